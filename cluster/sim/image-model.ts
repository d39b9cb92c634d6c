// What the image must hold, by every rule we have, and whether each read agrees.
//
// Three judges, from strict to lenient:
//   1. the writer's own reads: an image's requests that overlap take effect in the order of the calls, so a read
//      returns exactly what the calls before it say; always, whatever fails underneath;
//   2. anybody's reads (a second, read-only client; writers that come and go): a linearizable register per unit;
//   3. where power was cut, others may see what was acked but not flushed come and go: the durable window.
//
// A unit is `grainBytes` of the image. Times are ticks: one counter over all starts and finishes.

import assert from 'node:assert/strict';
import { outsideWindow, type RegisterOperation, violation, type WindowWrite, ZEROS } from './register-checker.ts';
import { SECTOR_BYTES } from './stamps.ts';

/** The sector's content is not known to the writer's session: another session left it. */
const UNKNOWN = 0xffff_ffff;

export interface WriteRecord extends WindowWrite {
  readonly session: number;
  finish: number;
  durable: number;
  /** A dead session's write can't take effect after its successor got the lock. */
  latestEffect: number;
}

export interface ReadExpectation {
  readonly first: number;
  readonly start: number;
  readonly powerCuts: number;
  /** The operation expected per sector, or UNKNOWN. null: a reader that is not the writer expects nothing. */
  readonly operations: Uint32Array | null;
  /** Which of them are only known from reading. */
  readonly pinned: Uint8Array | null;
  readonly session: number;
}

export class ImageModel {
  readonly sectors: number;
  readonly sectorsPerUnit: number;
  /** True once power was cut: unflushed writes may be gone. */
  powerCuts = 0;
  tick = 0;
  ackedOperations = 0;
  readsChecked = 0;
  #operations = 0;
  #session = 0;
  readonly #expected: Uint32Array;
  readonly #pinned: Uint8Array;
  readonly #writes: WriteRecord[][];
  readonly #reads: RegisterOperation[][];
  /** Per session: acked and not known durable. */
  readonly #volatile = new Map<number, WriteRecord[]>();
  /** Of the session that writes now: without an answer. */
  readonly #unanswered = new Set<WriteRecord>();

  constructor(imageBytes: number, grainBytes: number) {
    this.sectors = imageBytes / SECTOR_BYTES;
    this.sectorsPerUnit = grainBytes / SECTOR_BYTES;
    this.#expected = new Uint32Array(this.sectors);
    this.#pinned = new Uint8Array(this.sectors);
    const units = this.sectors / this.sectorsPerUnit;
    this.#writes = Array.from({ length: units }, () => []);
    this.#reads = Array.from({ length: units }, () => []);
  }

  get session(): number {
    return this.#session;
  }

  nextOperation(): number {
    return ++this.#operations;
  }

  /** A new writer holds the lock: it knows nothing of the image, and its predecessor's writes are over. */
  newSession(): number {
    const tick = ++this.tick;
    for (const write of this.#unanswered) write.latestEffect = tick;
    this.#unanswered.clear();
    this.#expected.fill(UNKNOWN);
    this.#pinned.fill(0);
    this.#volatile.set(++this.#session, []);
    return this.#session;
  }

  /** The first session finds zeros, and knows. */
  firstSession(): number {
    this.newSession();
    this.#expected.fill(ZEROS);
    return this.#session;
  }

  /** Power was cut somewhere: what was only read, not written by this session, may be another value afterwards. */
  onPowerCut(): void {
    this.powerCuts++;
    for (let i = 0; i < this.sectors; i++) if (this.#pinned[i] === 1) this.#expected[i] = UNKNOWN;
    this.#pinned.fill(0);
  }

  /**
   * @param operation its number, or ZEROS for a zeroing
   * @returns null if the session has lost its lock: the write must fail, and nobody may ever see it
   */
  beginWrite(session: number, operation: number, first: number, count: number): WriteRecord | null {
    const start = ++this.tick;
    if (session !== this.#session) return null;
    const write = { session, stamp: operation, start, finish: Infinity, durable: Infinity, latestEffect: Infinity };
    this.#unanswered.add(write);
    this.#expected.fill(operation, first, first + count);
    this.#pinned.fill(0, first, first + count);
    for (let unit = this.#unitOf(first); unit <= this.#unitOf(first + count - 1); unit++)
      this.#writes[unit]!.push(write);
    return write;
  }

  acked(write: WriteRecord, fua: boolean): void {
    write.finish = ++this.tick;
    this.ackedOperations++;
    this.#unanswered.delete(write);
    if (fua) write.durable = write.finish;
    else this.#volatile.get(write.session)!.push(write);
  }

  /** What a flush of this session that begins now promises. */
  beginFlush(session: number): readonly WriteRecord[] {
    return [...this.#volatile.get(session)!];
  }

  flushed(session: number, promised: readonly WriteRecord[]): void {
    const tick = ++this.tick;
    this.ackedOperations++;
    for (const write of promised) write.durable = Math.min(write.durable, tick);
    const done = new Set(promised);
    this.#volatile.set(
      session,
      this.#volatile.get(session)!.filter((write) => !done.has(write)),
    );
  }

  beginRead(session: number, first: number, count: number): ReadExpectation {
    const isWriter = session === this.#session;
    return {
      first,
      start: ++this.tick,
      powerCuts: this.powerCuts,
      operations: isWriter ? this.#expected.slice(first, first + count) : null,
      pinned: isWriter ? this.#pinned.slice(first, first + count) : null,
      session,
    };
  }

  /**
   * Judges what a read returned. Throws Error with what is wrong.
   * @param got the operation seen in each sector
   */
  endRead(read: ReadExpectation, got: Uint32Array): void {
    const finish = ++this.tick;
    this.ackedOperations++;
    this.readsChecked++;
    const { first, start } = read;
    for (let i = 0; i < got.length; i++) if (read.operations !== null) this.#judgeOwn(read, i, got[i]!);
    for (let unit = this.#unitOf(first); unit <= this.#unitOf(first + got.length - 1); unit++) {
      const from = unit * this.sectorsPerUnit - first;
      if (from < 0 || from + this.sectorsPerUnit > got.length) continue;
      const stamp = got[from]!;
      for (let i = 1; i < this.sectorsPerUnit; i++)
        if (got[from + i] !== stamp)
          throw new Error(
            `unit ${unit} is torn: operations ${[...got.subarray(from, from + this.sectorsPerUnit)].join()}`,
          );
      const operation: RegisterOperation = { kind: 'read', stamp, start, finish };
      this.#reads[unit]!.push(operation);
      const why = outsideWindow(this.#writes[unit]!, operation);
      if (why !== null) throw new Error(`unit ${unit}: ${why}`);
    }
  }

  #judgeOwn(read: ReadExpectation, i: number, got: number): void {
    if (read.session !== this.#session) return;
    const sector = read.first + i;
    const expected = read.operations![i]!;
    const cutSince = read.powerCuts !== this.powerCuts;
    if (expected !== UNKNOWN && !(cutSince && read.pinned![i] === 1)) {
      if (got !== expected)
        throw new Error(
          `sector ${sector}: the writer's read returned operation ${got}, its calls before it say ${expected}`,
        );
      return;
    }
    if (cutSince) return;
    if (this.#pinned[sector] === 1 && this.#expected[sector] !== got)
      throw new Error(`sector ${sector}: was read as operation ${this.#expected[sector]}, and now as ${got}`);
    if (this.#expected[sector] === UNKNOWN) {
      this.#expected[sector] = got;
      this.#pinned[sector] = 1;
    }
  }

  /** First sector of a status reply's range that is said to hold no data while the writer's calls say it does; or -1. */
  wrongHole(read: ReadExpectation, isData: (sector: number) => boolean): number {
    if (read.session !== this.#session || read.powerCuts !== this.powerCuts || read.operations === null) return -1;
    for (let i = 0; i < read.operations.length; i++) {
      const expected = read.operations[i]!;
      if (expected !== UNKNOWN && expected !== ZEROS && !isData(read.first + i)) return read.first + i;
    }
    return -1;
  }

  /** The verdict over all histories, once nothing runs any more. Throws Error with what is wrong. */
  judgeHistories(): void {
    if (this.powerCuts > 0) return;
    for (let unit = 0; unit < this.#writes.length; unit++) {
      const reads = this.#reads[unit]!;
      const seen = new Set(reads.map((read) => read.stamp));
      const writes = this.#writes[unit]!.filter((write) => write.finish !== Infinity || seen.has(write.stamp));
      const history: RegisterOperation[] = writes.map((write) => ({
        kind: 'write',
        stamp: write.stamp,
        start: write.start,
        finish: write.stamp === ZEROS ? write.finish : Math.min(write.finish, write.latestEffect),
      }));
      history.push(...reads);
      const why = violation(history);
      if (why !== null) throw new Error(`unit ${unit} is not linearizable: ${why}`);
    }
  }

  #unitOf(sector: number): number {
    assert(sector >= 0 && sector < this.sectors);
    return Math.floor(sector / this.sectorsPerUnit);
  }
}
