// A small NBD client that shares no code with the product: the independent witness of what the server says and keeps.
//
// Fixed newstyle, NBD_OPT_GO, simple replies; many requests in flight. Written from the protocol document
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md).

import { connect, type Socket } from 'node:net';

const OPTION_MAGIC = Buffer.from('IHAVEOPT');
const OPTION_GO = 7;
const OPTION_REPLY_MAGIC = 0x3e889045565a9n;
const REPLY_ACK = 1;
const REPLY_INFO = 3;
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;
export const Command = { READ: 0, WRITE: 1, DISCONNECT: 2, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const;
export const FLAG_FUA = 1;

/** The server answered with an error: NBD's number, such as 22 (EINVAL), 28 (ENOSPC). */
export class NbdError extends Error {
  readonly errno: number;
  constructor(errno: number) {
    super(`NBD error ${errno}`);
    this.errno = errno;
  }
}

interface Waiting {
  readBytes: number;
  resolve: (data: Buffer) => void;
  reject: (error: Error) => void;
}

export class NbdClient {
  readonly sizeBytes: number;
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  #received: Buffer[] = [];
  #receivedBytes = 0;
  #cookie = 0;
  #broken: Error | null = null;

  private constructor(socket: Socket, sizeBytes: number, rest: Buffer) {
    this.#socket = socket;
    this.sizeBytes = sizeBytes;
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('error', (error) => this.#break(error));
    socket.on('close', () => this.#break(new Error('the server closed the connection')));
    if (rest.length > 0) this.#onData(rest);
  }

  /** @param address "host:port" */
  static async open(address: string, exportName: string, timeoutMs = 10_000): Promise<NbdClient> {
    const at = address.lastIndexOf(':');
    const socket = connect(Number(address.slice(at + 1)), address.slice(0, at));
    socket.setNoDelay(true);
    const reader = new HandshakeReader(socket, timeoutMs);
    try {
      const greeting = await reader.take(18);
      if (greeting.toString('latin1', 0, 16) !== 'NBDMAGICIHAVEOPT')
        throw new Error('the server does not greet as NBD');
      const client = Buffer.alloc(4);
      client.writeUInt32BE(greeting.readUInt16BE(16) & 3); // what it offers of FIXED_NEWSTYLE and NO_ZEROES
      const name = Buffer.from(exportName);
      const option = Buffer.alloc(16 + 4 + name.length + 2);
      OPTION_MAGIC.copy(option);
      option.writeUInt32BE(OPTION_GO, 8);
      option.writeUInt32BE(4 + name.length + 2, 12);
      option.writeUInt32BE(name.length, 16);
      name.copy(option, 20);
      socket.write(Buffer.concat([client, option]));
      let sizeBytes = -1;
      for (;;) {
        const header = await reader.take(20);
        if (header.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) throw new Error('not an option reply');
        const type = header.readUInt32BE(12);
        const data = await reader.take(header.readUInt32BE(16));
        if (type === REPLY_INFO && data.readUInt16BE(0) === 0) sizeBytes = Number(data.readBigUInt64BE(2));
        else if (type === REPLY_ACK) break;
        else if (type >= 2 ** 31)
          throw new Error(`export "${exportName}" refused: ${type - 2 ** 31}, ${data.toString()}`);
      }
      return new NbdClient(socket, sizeBytes, reader.release());
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }

  read(offset: number, length: number): Promise<Buffer> {
    return this.request(Command.READ, 0, offset, length, null, length);
  }
  async write(offset: number, data: Buffer, fua = false): Promise<void> {
    await this.request(Command.WRITE, fua ? FLAG_FUA : 0, offset, data.length, data, 0);
  }
  async flush(): Promise<void> {
    await this.request(Command.FLUSH, 0, 0, 0, null, 0);
  }

  /** Any request, also a wrong one. Rejects with NbdError, or with why the connection broke. */
  request(
    command: number,
    flags: number,
    offset: number,
    length: number,
    payload: Buffer | null,
    readBytes: number,
  ): Promise<Buffer> {
    if (this.#broken !== null) return Promise.reject(this.#broken);
    const cookie = ++this.#cookie;
    const header = Buffer.alloc(28);
    header.writeUInt32BE(REQUEST_MAGIC, 0);
    header.writeUInt16BE(flags, 4);
    header.writeUInt16BE(command, 6);
    header.writeBigUInt64BE(BigInt(cookie), 8);
    header.writeBigUInt64BE(BigInt(offset), 16);
    header.writeUInt32BE(length, 24);
    this.#socket.cork();
    this.#socket.write(header);
    if (payload !== null) this.#socket.write(payload);
    this.#socket.uncork();
    return new Promise((resolve, reject) => this.#waiting.set(cookie, { readBytes, resolve, reject }));
  }

  /** Says goodbye as the protocol wants it. */
  async disconnect(): Promise<void> {
    const gone = new Promise<void>((resolve) => this.#socket.once('close', () => resolve()));
    void this.request(Command.DISCONNECT, 0, 0, 0, null, 0).catch(() => {});
    this.#socket.end();
    await gone;
  }
  destroy(): void {
    this.#socket.destroy();
  }

  #onData(chunk: Buffer): void {
    this.#received.push(chunk);
    this.#receivedBytes += chunk.length;
    while (this.#receivedBytes >= 16) {
      if (this.#received.length > 1) this.#received = [Buffer.concat(this.#received)];
      const bytes = this.#received[0]!;
      if (bytes.readUInt32BE(0) !== SIMPLE_REPLY_MAGIC) return this.#break(new Error('not a simple reply'));
      const errno = bytes.readUInt32BE(4);
      const cookie = Number(bytes.readBigUInt64BE(8));
      const waiting = this.#waiting.get(cookie);
      if (waiting === undefined) return this.#break(new Error(`a reply nobody waits for: cookie ${cookie}`));
      const total = 16 + (errno === 0 ? waiting.readBytes : 0);
      if (bytes.length < total) return;
      this.#waiting.delete(cookie);
      this.#received = [bytes.subarray(total)];
      this.#receivedBytes -= total;
      if (errno === 0) waiting.resolve(bytes.subarray(16, total));
      else waiting.reject(new NbdError(errno));
    }
  }
  #break(error: Error): void {
    if (this.#broken !== null) return;
    this.#broken = error;
    this.#socket.destroy();
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}

/** Takes exact byte counts from a socket while the two sides haggle. */
class HandshakeReader {
  readonly #socket: Socket;
  readonly #onData: (chunk: Buffer) => void;
  readonly #onEnd: (why?: Error) => void;
  readonly #timer: NodeJS.Timeout;
  #bytes: Buffer = Buffer.alloc(0);
  #failed: Error | null = null;
  #wake: (() => void) | null = null;

  constructor(socket: Socket, timeoutMs: number) {
    this.#socket = socket;
    this.#onData = (chunk) => {
      this.#bytes = Buffer.concat([this.#bytes, chunk]);
      this.#wake?.();
    };
    this.#onEnd = (why) => {
      this.#failed ??= why ?? new Error('the server closed the connection during the handshake');
      this.#wake?.();
    };
    this.#timer = setTimeout(() => this.#onEnd(new Error(`no handshake within ${timeoutMs} ms`)), timeoutMs);
    socket.on('data', this.#onData).on('error', this.#onEnd).on('close', this.#onEnd);
  }
  async take(count: number): Promise<Buffer> {
    while (this.#bytes.length < count) {
      if (this.#failed !== null) {
        clearTimeout(this.#timer);
        throw this.#failed;
      }
      await new Promise<void>((wake) => {
        this.#wake = wake;
      });
    }
    const taken = this.#bytes.subarray(0, count);
    this.#bytes = this.#bytes.subarray(count);
    return taken;
  }
  /** Gives the socket to the next owner, with what came too much. */
  release(): Buffer {
    clearTimeout(this.#timer);
    this.#socket.off('data', this.#onData).off('error', this.#onEnd).off('close', this.#onEnd);
    return this.#bytes;
  }
}
