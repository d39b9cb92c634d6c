// An NBD server in memory that breaks exactly one promise, on purpose: what the oracle must notice.
//
// Two exports, "a" and "b". `stable` is what a crash leaves, `current` what is read; a good server copies the one to the
// other when it flushes. A fault hits one request in FAULT_EVERY, so that all others look well. Simple replies only.

import { createServer, type Server, type Socket } from 'node:net';

export type Fault =
  | 'none'
  | 'acked write is dropped'
  | 'flush does nothing'
  | 'read is one write behind'
  | 'write is torn inside a block'
  | 'write goes one block too far'
  | 'read returns the next block'
  | 'read returns the other export'
  | 'read flips a bit'
  | 'trim is ignored'
  | 'multi-conn: a flush covers its own connection only'
  | 'unflushed writes come and go after a crash';

const SIZE = 4 * 2 ** 20;
const BLOCK = 4096;
const FAULT_EVERY = 40;
const HAS_FLAGS = 1;
const FLAGS = HAS_FLAGS | 4 | 8 | 32 | 64 | 256; // flush, FUA, trim, write zeroes, multi-conn

interface Disk {
  stable: Buffer;
  current: Buffer;
  /** Content before the newest write. */
  before: Buffer;
  /** Writes that are not stable yet. */
  unflushed: { offset: number; length: number; socket: Socket }[];
  /** What an earlier crash took away. */
  lost: Buffer | null;
}
const newDisk = (): Disk => ({
  stable: Buffer.alloc(SIZE),
  current: Buffer.alloc(SIZE),
  before: Buffer.alloc(SIZE),
  unflushed: [],
  lost: null,
});

export class BadServer {
  readonly #fault: Fault;
  readonly #disks: Record<string, Disk> = { a: newDisk(), b: newDisk() };
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #requests = 0;
  /** How often it did wrong. */
  faults = 0;

  constructor(fault: Fault) {
    this.#fault = fault;
    this.#server = createServer({ noDelay: true }, (socket) => this.#serve(socket));
  }
  /** Resolves to its address. */
  listen(): Promise<string> {
    return new Promise((resolve) =>
      this.#server.listen(0, '127.0.0.1', () =>
        resolve(`127.0.0.1:${(this.#server.address() as { port: number }).port}`),
      ),
    );
  }
  /** Power is lost: what is not stable is gone, every connection breaks. */
  crash(): void {
    this.breakConnections();
    for (const disk of Object.values(this.#disks)) {
      disk.lost = Buffer.from(disk.current);
      disk.stable.copy(disk.current);
      disk.unflushed = [];
    }
  }
  breakConnections(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
  close(): void {
    this.breakConnections();
    this.#server.close();
  }

  /** Is it this request's turn to go wrong? */
  #isHit(fault: Fault): boolean {
    if (fault !== this.#fault || ++this.#requests % FAULT_EVERY !== 0) return false;
    this.faults++;
    return true;
  }

  #write(disk: Disk, socket: Socket, offset: number, content: Buffer, fua: boolean): void {
    disk.current.copy(disk.before);
    if (this.#isHit('acked write is dropped')) return;
    let at = offset;
    let bytes = content;
    if (at + bytes.length + BLOCK <= SIZE && this.#isHit('write goes one block too far')) at += BLOCK;
    if (this.#isHit('write is torn inside a block')) bytes = bytes.subarray(0, bytes.length - 1536);
    bytes.copy(disk.current, at);
    disk.unflushed.push({ offset: at, length: bytes.length, socket });
    if (fua) this.#flush(disk, socket);
  }
  #flush(disk: Disk, socket: Socket): void {
    if (this.#fault === 'flush does nothing') {
      this.faults++;
      return;
    }
    const covered = this.#fault.startsWith('multi-conn')
      ? disk.unflushed.filter((write) => write.socket === socket)
      : disk.unflushed;
    this.faults += disk.unflushed.length - covered.length;
    for (const { offset, length } of covered) disk.current.copy(disk.stable, offset, offset, offset + length);
    disk.unflushed = disk.unflushed.filter((write) => !covered.includes(write));
  }
  #read(disk: Disk, offset: number, length: number): Buffer {
    const at = (from: Buffer, place = offset): Buffer => Buffer.from(from.subarray(place, place + length));
    if (this.#isHit('read is one write behind')) return at(disk.before);
    if (offset + length + BLOCK <= SIZE && this.#isHit('read returns the next block'))
      return at(disk.current, offset + BLOCK);
    if (this.#isHit('read returns the other export')) return at(this.#other(disk).current);
    if (disk.lost !== null && this.#isHit('unflushed writes come and go after a crash')) return at(disk.lost);
    const content = at(disk.current);
    if (this.#isHit('read flips a bit')) content[(length >> 1) + 100]! ^= 4;
    return content;
  }
  #other(disk: Disk): Disk {
    return disk === this.#disks.a ? this.#disks.b! : this.#disks.a!;
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket)).on('error', () => {});
    let bytes: Buffer = Buffer.alloc(0);
    let disk: Disk | null = null;
    let greeted = false;
    socket.write(Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])]));
    socket.on('data', (chunk: Buffer) => {
      bytes = Buffer.concat([bytes, chunk]);
      for (;;) {
        let taken = 0;
        if (!greeted) {
          if (bytes.length < 4) return;
          greeted = true;
          taken = 4;
        } else if (disk === null) {
          if (bytes.length < 16 || bytes.length < 16 + bytes.readUInt32BE(12)) return;
          taken = 16 + bytes.readUInt32BE(12);
          disk = this.#disks[bytes.toString('utf8', 20, 20 + bytes.readUInt32BE(16))]!;
          socket.write(Buffer.concat([optionReply(3, sizeInfo()), optionReply(1, Buffer.alloc(0))]));
        } else {
          taken = this.#request(disk, socket, bytes);
          if (taken === 0) return;
        }
        bytes = bytes.subarray(taken);
      }
    });
  }
  /** Returns how many bytes it took; 0: the request is not complete. */
  #request(disk: Disk, socket: Socket, bytes: Buffer): number {
    if (bytes.length < 28) return 0;
    const fua = (bytes.readUInt16BE(4) & 1) !== 0;
    const command = bytes.readUInt16BE(6);
    const offset = Number(bytes.readBigUInt64BE(16));
    const length = bytes.readUInt32BE(24);
    const taken = 28 + (command === 1 ? length : 0);
    if (bytes.length < taken) return 0;
    let content: Buffer = Buffer.alloc(0);
    if (command === 0) content = this.#read(disk, offset, length);
    else if (command === 1) this.#write(disk, socket, offset, bytes.subarray(28, taken), fua);
    else if (command === 2) socket.end();
    else if (command === 3) this.#flush(disk, socket);
    else if (command !== 4 || !this.#isHit('trim is ignored'))
      this.#write(disk, socket, offset, Buffer.alloc(length), fua);
    const reply = Buffer.alloc(16);
    reply.writeUInt32BE(0x67446698, 0);
    bytes.copy(reply, 8, 8, 16);
    if (command !== 2) socket.write(Buffer.concat([reply, content]));
    return taken;
  }
}

function optionReply(type: number, content: Buffer): Buffer {
  const header = Buffer.alloc(20);
  header.write('0003e889045565a9', 'hex');
  header.writeUInt32BE(7, 8);
  header.writeUInt32BE(type, 12);
  header.writeUInt32BE(content.length, 16);
  return Buffer.concat([header, content]);
}
function sizeInfo(): Buffer {
  const info = Buffer.alloc(12);
  info.writeBigUInt64BE(BigInt(SIZE), 2);
  info.writeUInt16BE(FLAGS, 10);
  return info;
}
