// One NBD connection, from the protocol document alone (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md):
// fixed newstyle, NBD_OPT_GO, simple replies, any number of requests in flight. TCP or a unix socket.
//
// Nothing waits for ever: a request without an answer after its time breaks the connection, and every request without an
// answer rejects with Unanswered: whether the server did it is unknown.

import { connect, type Socket } from 'node:net';

export const Command = { READ: 0, WRITE: 1, DISCONNECT: 2, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const;
export const FUA = 1;
/** Transmission flag: a flush on one connection covers all of them. */
const CAN_MULTI_CONN = 1 << 8;
const OPTION_GO = 7;
const REPLY_ACK = 1;
const REPLY_INFO = 3;
const REPLY_ERROR = 2 ** 31;
const OPTION_REPLY_MAGIC = Buffer.from('0003e889045565a9', 'hex');
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;

export interface Target {
  /** HOST:PORT, or unix:PATH */
  address: string;
  exportName: string;
}
/** The server said no, with NBD's number for it: 5 EIO, 28 ENOSPC, 108 ESHUTDOWN. */
export class Refused extends Error {
  readonly errno: number;
  constructor(errno: number) {
    super(`the server answered with error ${errno}`);
    this.errno = errno;
  }
}
/** The connection broke before the answer. */
export class Unanswered extends Error {}

interface Waiting {
  readBytes: number;
  deadline: number;
  resolve: (content: Buffer) => void;
  reject: (error: Error) => void;
}

export class Connection {
  readonly sizeBytes: number;
  readonly multiConn: boolean;
  readonly #socket: Socket;
  readonly #answerMs: number;
  readonly #watch: NodeJS.Timeout;
  readonly #waiting = new Map<number, Waiting>();
  #chunks: Buffer[] = [];
  #bytes = 0;
  /** Nothing is complete before so many bytes are there. */
  #wanted = 16;
  #cookie = 0;
  #broken: Unanswered | null = null;

  private constructor(socket: Socket, sizeBytes: number, flags: number, answerMs: number) {
    this.#socket = socket;
    this.sizeBytes = sizeBytes;
    this.multiConn = (flags & CAN_MULTI_CONN) !== 0;
    this.#answerMs = answerMs;
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('error', (error) => this.#break(error.message));
    socket.on('end', () => this.#break('the server ended the connection'));
    socket.on('close', () => this.#break('the connection is closed'));
    this.#watch = setInterval(() => this.#lookForLate(), 250);
  }

  /** @param answerMs a request that waits longer breaks the connection */
  static async open(target: Target, handshakeMs: number, answerMs: number): Promise<Connection> {
    const { address, exportName } = target;
    const at = address.lastIndexOf(':');
    const socket = address.startsWith('unix:')
      ? connect({ path: address.slice(5) })
      : connect({ host: address.slice(0, at), port: Number(address.slice(at + 1)), noDelay: true });
    const timer = setTimeout(() => socket.destroy(new Error(`no handshake within ${handshakeMs} ms`)), handshakeMs);
    try {
      const take = taker(socket);
      const greeting = await take(18);
      if (greeting.toString('latin1', 0, 16) !== 'NBDMAGICIHAVEOPT') throw new Error('the server is not NBD');
      const clientFlags = Buffer.alloc(4);
      clientFlags.writeUInt32BE(greeting.readUInt16BE(16) & 3);
      socket.write(Buffer.concat([clientFlags, optionGo(exportName)]));
      let sizeBytes = -1;
      let flags = 0;
      for (;;) {
        const header = await take(20);
        if (!header.subarray(0, 8).equals(OPTION_REPLY_MAGIC)) throw new Error('not an option reply');
        const type = header.readUInt32BE(12);
        const content = await take(header.readUInt32BE(16));
        if (type >= REPLY_ERROR) throw new Error(`export "${exportName}" is refused: ${content.toString()}`);
        if (type === REPLY_INFO && content.readUInt16BE(0) === 0) {
          sizeBytes = Number(content.readBigUInt64BE(2));
          flags = content.readUInt16BE(10);
        }
        if (type === REPLY_ACK) break;
      }
      if (sizeBytes < 0) throw new Error('the server did not tell the size');
      socket.removeAllListeners();
      return new Connection(socket, sizeBytes, flags, answerMs);
    } catch (error) {
      socket.on('error', () => {}); // it was told
      socket.destroy();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  get isBroken(): boolean {
    return this.#broken !== null;
  }
  request(command: number, flags: number, offset: number, length: number, payload: Buffer | null): Promise<Buffer> {
    if (this.#broken !== null) return Promise.reject(this.#broken);
    const cookie = ++this.#cookie;
    const header = Buffer.alloc(28);
    header.writeUInt32BE(REQUEST_MAGIC, 0);
    header.writeUInt16BE(flags, 4);
    header.writeUInt16BE(command, 6);
    header.writeBigUInt64BE(BigInt(cookie), 8);
    header.writeBigUInt64BE(BigInt(offset), 16);
    header.writeUInt32BE(length, 24);
    this.#socket.write(payload === null ? header : Buffer.concat([header, payload]));
    const readBytes = command === Command.READ ? length : 0;
    const deadline = performance.now() + this.#answerMs;
    return new Promise((resolve, reject) => this.#waiting.set(cookie, { readBytes, deadline, resolve, reject }));
  }
  /** Goodbye, as the protocol wants it. */
  close(): void {
    if (this.#broken !== null) return;
    this.request(Command.DISCONNECT, 0, 0, 0, null).catch(() => {}); // has no answer
    this.#socket.end();
  }
  destroy(): void {
    this.#break('closed by the oracle');
  }

  #onData(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    while (this.#bytes >= this.#wanted && this.#broken === null) {
      if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)];
      const bytes = this.#chunks[0]!;
      this.#wanted = 16;
      if (bytes.length < 16) return;
      if (bytes.readUInt32BE(0) !== SIMPLE_REPLY_MAGIC) return this.#break('not a simple reply');
      const errno = bytes.readUInt32BE(4);
      const waiting = this.#waiting.get(Number(bytes.readBigUInt64BE(8)));
      if (waiting === undefined) return this.#break('a reply to no request');
      const total = 16 + (errno === 0 ? waiting.readBytes : 0);
      if (bytes.length < total) {
        this.#wanted = total;
        return;
      }
      this.#waiting.delete(Number(bytes.readBigUInt64BE(8)));
      this.#chunks = [bytes.subarray(total)];
      this.#bytes -= total;
      if (errno === 0) waiting.resolve(bytes.subarray(16, total));
      else waiting.reject(new Refused(errno));
    }
  }
  #lookForLate(): void {
    const now = performance.now();
    for (const { deadline } of this.#waiting.values())
      if (now > deadline) return this.#break(`no answer within ${this.#answerMs} ms`);
  }
  #break(why: string): void {
    if (this.#broken !== null) return;
    this.#broken = new Unanswered(why);
    clearInterval(this.#watch);
    this.#socket.destroy();
    for (const { reject } of this.#waiting.values()) reject(this.#broken);
    this.#waiting.clear();
  }
}

function optionGo(exportName: string): Buffer {
  const name = Buffer.from(exportName);
  const option = Buffer.alloc(22 + name.length);
  option.write('IHAVEOPT');
  option.writeUInt32BE(OPTION_GO, 8);
  option.writeUInt32BE(6 + name.length, 12);
  option.writeUInt32BE(name.length, 16);
  name.copy(option, 20); // and no information requests
  return option;
}

/** Takes exact numbers of bytes while the two sides haggle. The server says nothing unasked after its last reply. */
function taker(socket: Socket): (count: number) => Promise<Buffer> {
  let bytes: Buffer = Buffer.alloc(0);
  let failed: Error | null = null;
  let wake: () => void = () => {};
  socket.on('data', (chunk: Buffer) => {
    bytes = Buffer.concat([bytes, chunk]);
    wake();
  });
  const fail = (error?: Error): void => {
    failed ??= error ?? new Error('the connection was closed during the handshake');
    wake();
  };
  socket
    .on('error', fail)
    .on('close', () => fail())
    .on('end', () => fail());
  return async (count) => {
    while (bytes.length < count) {
      if (failed !== null) throw failed;
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    const taken = bytes.subarray(0, count);
    bytes = bytes.subarray(count);
    return taken;
  };
}
