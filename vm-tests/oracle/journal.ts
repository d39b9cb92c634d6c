// The expected state on disk: what was sent and what was promised, so that an audit can be made by another process, later.
//
//   record (24 bytes): kind u32 | first block u32 | count u32 | stamp u32 | magic u32 | crc32 of all before u32
//
// A change is on stable storage here before it is sent to the server (many wait for one fdatasync), and a promise before
// an audit relies on it. A torn end is what was never relied on. One file per volume; its first record names the volume
// and the number of blocks.

import { closeSync, fdatasync, openSync, readFileSync, writeSync } from 'node:fs';
import { crc32 } from 'node:zlib';
import { Expected, type Promised } from './expected.ts';

const RECORD = 24;
const MAGIC = 0x314a524f;
const Kind = { VOLUME: 1, DATA: 2, ZEROS: 3, ACKED: 4, DURABLE: 5, CRASH: 6 } as const;

export class Journal {
  readonly #fd: number;
  #pending: Buffer[] = [];
  #waiting: (() => void)[] = [];
  #syncing = false;

  private constructor(fd: number) {
    this.#fd = fd;
  }
  /** A new file. @param volume number that all stamps of it carry */
  static create(path: string, volume: number, blocks: number): Journal {
    const journal = new Journal(openSync(path, 'wx'));
    journal.#add(Kind.VOLUME, volume, blocks, 0);
    return journal;
  }
  static append(path: string): Journal {
    return new Journal(openSync(path, 'a'));
  }

  /** Resolves when the change is on stable storage: now it may be sent. */
  issued(first: number, count: number, stamp: number, zeros: boolean): Promise<void> {
    this.#add(zeros ? Kind.ZEROS : Kind.DATA, first, count, stamp);
    return this.synced();
  }
  acked(first: number, count: number, stamp: number, fua: boolean): void {
    this.#add(fua ? Kind.DURABLE : Kind.ACKED, first, count, stamp);
  }
  flushed(covered: ReadonlyMap<number, number>): void {
    for (const [block, stamp] of covered) this.#add(Kind.DURABLE, block, 1, stamp);
  }
  crashed(): void {
    this.#add(Kind.CRASH, 0, 0, 0);
  }
  /** Resolves when all records so far are on stable storage. */
  synced(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      if (!this.#syncing) setImmediate(() => this.#sync());
    });
  }
  async close(): Promise<void> {
    await this.synced();
    closeSync(this.#fd);
  }

  #add(kind: number, first: number, count: number, stamp: number): void {
    const record = Buffer.alloc(RECORD);
    [kind, first, count, stamp, MAGIC].forEach((value, i) => {
      record.writeUInt32LE(value, i * 4);
    });
    record.writeUInt32LE(crc32(record.subarray(0, RECORD - 4)), RECORD - 4);
    this.#pending.push(record);
  }
  #sync(): void {
    if (this.#syncing || this.#waiting.length === 0) return;
    this.#syncing = true;
    const waiting = this.#waiting;
    this.#waiting = [];
    const bytes = Buffer.concat(this.#pending);
    this.#pending = [];
    for (let at = 0; at < bytes.length; ) at += writeSync(this.#fd, bytes, at);
    fdatasync(this.#fd, (error) => {
      if (error !== null) throw error; // an oracle that forgets must not go on
      this.#syncing = false;
      for (const resolve of waiting) resolve();
      this.#sync();
    });
  }
}

export interface Loaded {
  volume: number;
  expected: Expected;
}
/** What a journal says. Every change without an ack is possible. Throws if it is no journal or damaged in the middle. */
export function loadJournal(path: string, promise: Promised): Loaded {
  const bytes = readFileSync(path);
  let loaded: Loaded | null = null;
  for (let at = 0; at + RECORD <= bytes.length; at += RECORD) {
    const record = bytes.subarray(at, at + RECORD);
    if (record.readUInt32LE(RECORD - 4) !== crc32(record.subarray(0, RECORD - 4)))
      throw new Error(`${path} is damaged at byte ${at}`);
    const [kind, first, count, stamp] = [0, 4, 8, 12].map((field) => record.readUInt32LE(field)) as [
      number,
      number,
      number,
      number,
    ];
    if (kind === Kind.VOLUME) loaded = { volume: first, expected: new Expected(count, promise) };
    if (loaded === null) throw new Error(`${path} does not begin with its volume`);
    const { expected } = loaded;
    if (kind === Kind.DATA || kind === Kind.ZEROS) expected.issue(first, count, stamp, kind === Kind.ZEROS);
    else if (kind === Kind.ACKED) expected.ack(first, count, stamp, false);
    else if (kind === Kind.DURABLE) expected.ack(first, count, stamp, true);
    else if (kind === Kind.CRASH) expected.crash();
  }
  if (loaded === null) throw new Error(`${path} is empty`);
  return loaded;
}
