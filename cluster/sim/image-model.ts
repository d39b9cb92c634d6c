// What the image must hold, by every rule we have, and whether each read agrees.
//
// Three judges, from strict to lenient:
//   1. the writer's own reads: its writes of a unit take effect in the order of the calls, so a read returns the newest
//      that was acked before it began, or one called later; always, whatever fails underneath. Of what an earlier
//      session left, the first read decides, and later ones agree;
//   2. anybody's reads (a second, read-only client; writers that come and go): a linearizable register per unit;
//   3. where power was cut, others may see what was acked but not flushed come and go: the durable window.
//
// A unit is `grainBytes` of the image, the grain of all requests. Times are ticks: one counter over all starts and
// finishes.

import assert from 'node:assert/strict';
import { outsideWindow, type RegisterOperation, violation, type WindowWrite, ZEROS } from './register-checker.ts';
import { SECTOR_BYTES } from './stamps.ts';

/** Nobody has read what an earlier session left in the unit. */
const UNKNOWN = -1;

export interface WriteRecord extends WindowWrite {
  readonly session: number;
  /** First and last unit. */
  readonly units: readonly [number, number];
  finish: number;
  durable: number;
  /** A dead session's write can't take effect after its successor got the lock. */
  latestEffect: number;
}

export interface ReadRecord {
  readonly session: number;
  /** Sectors. */
  readonly first: number;
  readonly count: number;
  readonly start: number;
  /** Power cuts before it began. */
  readonly powerCuts: number;
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
  /** When power was first cut: until then every history is that of a register. */
  #firstCut = Infinity;
  #session = 0;
  /** Per unit: when this session's first request there was answered. From then on nobody else may change it. */
  readonly #touched: number[];
  /** Per unit: what this session found where it has not written, or UNKNOWN. */
  readonly #found: number[];
  readonly #writes: WriteRecord[][];
  readonly #reads: RegisterOperation[][];
  /** Per session: acked and not known durable. */
  readonly #volatile = new Map<number, WriteRecord[]>();
  /** Of the session that writes now: without an answer. */
  readonly #unanswered = new Set<WriteRecord>();

  constructor(imageBytes: number, grainBytes: number) {
    this.sectors = imageBytes / SECTOR_BYTES;
    this.sectorsPerUnit = grainBytes / SECTOR_BYTES;
    const units = this.sectors / this.sectorsPerUnit;
    this.#found = Array<number>(units).fill(UNKNOWN);
    this.#touched = Array<number>(units).fill(Infinity);
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
    this.#found.fill(UNKNOWN);
    this.#touched.fill(Infinity);
    this.#volatile.set(++this.#session, []);
    return this.#session;
  }

  /** The first session finds zeros, and knows. */
  firstSession(): number {
    this.newSession();
    this.#found.fill(ZEROS);
    return this.#session;
  }

  /** Power was cut somewhere: what was read, and not written by this session, may be another value afterwards. */
  onPowerCut(): void {
    if (this.powerCuts++ === 0) this.#firstCut = ++this.tick;
    this.#found.fill(UNKNOWN);
  }

  /**
   * Also of a session that has lost the lock: a daemon that is cut off from the master, and that no newer interval can
   * do without, may still take its writes until the new session reaches it.
   * @param operation its number, or ZEROS for a zeroing
   */
  beginWrite(session: number, operation: number, first: number, count: number): WriteRecord {
    const start = ++this.tick;
    const units: [number, number] = [this.#unitOf(first), this.#unitOf(first + count - 1)];
    const write = {
      session,
      units,
      stamp: operation,
      start,
      finish: Infinity,
      durable: Infinity,
      latestEffect: Infinity,
    };
    if (session === this.#session) this.#unanswered.add(write);
    for (let unit = units[0]; unit <= units[1]; unit++) this.#writes[unit]!.push(write);
    return write;
  }

  /** Throws Error if the session had lost the unit to another before the write began. */
  acked(write: WriteRecord, fua: boolean): void {
    write.finish = ++this.tick;
    this.ackedOperations++;
    this.#unanswered.delete(write);
    for (let unit = write.units[0]; unit <= write.units[1]; unit++) {
      if (write.session === this.#session) this.#touched[unit] = Math.min(this.#touched[unit]!, write.finish);
      else if (this.#touched[unit]! < write.start)
        throw new Error(
          `unit ${unit}: operation ${write.stamp} was acked although another writer had been here before`,
        );
    }
    if (fua) write.durable = write.finish;
    else this.#volatile.get(write.session)!.push(write);
  }

  /** The write was refused: a daemon that had taken it before would have said so. */
  refused(write: WriteRecord): void {
    write.latestEffect = Math.min(write.latestEffect, ++this.tick);
    this.#unanswered.delete(write);
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

  beginRead(session: number, first: number, count: number): ReadRecord {
    return { session, first, count, start: ++this.tick, powerCuts: this.powerCuts };
  }

  /**
   * Judges what a read returned. Throws Error with what is wrong.
   * @param got the operation seen in each sector
   */
  endRead(read: ReadRecord, got: Uint32Array): void {
    const finish = ++this.tick;
    this.ackedOperations++;
    this.readsChecked++;
    for (let at = 0; at < got.length; at += this.sectorsPerUnit) {
      const unit = this.#unitOf(read.first + at);
      const stamp = got[at]!;
      for (let i = 1; i < this.sectorsPerUnit; i++)
        if (got[at + i] !== stamp)
          throw new Error(`unit ${unit} is torn: operations ${[...got.subarray(at, at + this.sectorsPerUnit)].join()}`);
      if (read.session === this.#session) {
        this.#judgeOwn(read, unit, stamp);
        this.#touched[unit] = Math.min(this.#touched[unit]!, finish);
      }
      const operation: RegisterOperation = { kind: 'read', stamp, start: read.start, finish };
      this.#reads[unit]!.push(operation);
      const why = outsideWindow(this.#writes[unit]!, operation);
      if (why !== null) throw new Error(`unit ${unit}: ${why}`);
    }
  }

  #judgeOwn(read: ReadRecord, unit: number, stamp: number): void {
    const { acked, allowed } = this.#ownWrites(unit, read.start);
    if (allowed.some((write) => write.stamp === stamp)) return;
    if (acked !== null)
      throw new Error(
        `unit ${unit}: the writer read operation ${stamp}, although its own operation ${acked.stamp} was acked before`,
      );
    const found = this.#found[unit]!;
    if (read.powerCuts !== this.powerCuts) return;
    if (found === UNKNOWN) this.#found[unit] = stamp;
    else if (found !== stamp) throw new Error(`unit ${unit}: was read as operation ${found}, and now as ${stamp}`);
  }

  /** This session's newest write of the unit acked before `tick`, and all that a read begun then may return. */
  #ownWrites(unit: number, tick: number): { acked: WriteRecord | null; allowed: WriteRecord[] } {
    let acked: WriteRecord | null = null;
    let allowed: WriteRecord[] = [];
    for (const write of this.#writes[unit]!) {
      if (write.session !== this.#session) continue;
      if (write.finish < tick) {
        acked = write;
        allowed = [];
      }
      allowed.push(write);
    }
    return { acked, allowed };
  }

  /** First sector of a status reply's range that is said to hold no data although it certainly does; or -1. */
  wrongHole(read: ReadRecord, isData: (sector: number) => boolean): number {
    if (read.session !== this.#session) return -1;
    for (let sector = read.first; sector < read.first + read.count; sector++) {
      if (isData(sector)) continue;
      const { acked, allowed } = this.#ownWrites(this.#unitOf(sector), read.start);
      if (acked !== null && allowed.every((write) => write.stamp !== ZEROS)) return sector;
    }
    return -1;
  }

  /** The verdict over all histories, once nothing runs any more. Throws Error with what is wrong. */
  judgeHistories(): void {
    for (let unit = 0; unit < this.#writes.length; unit++) {
      // Later on others may see what was acked and not flushed go and come: the window judged that already.
      const reads = this.#reads[unit]!.filter((read) => read.finish < this.#firstCut);
      const seen = new Set(reads.map((read) => read.stamp));
      const writes = this.#writes[unit]!.filter(
        (write) => write.start < this.#firstCut && (this.#known(write.finish) || seen.has(write.stamp)),
      );
      const history: RegisterOperation[] = writes.map((write) => ({
        kind: 'write',
        stamp: write.stamp,
        start: write.start,
        finish: this.#known(write.finish) ? write.finish : Infinity,
        expires: write.latestEffect,
      }));
      history.push(...reads);
      const why = violation(history);
      if (why !== null) throw new Error(`unit ${unit} is not linearizable: ${why}`);
    }
  }

  /** Was this an answer of the time before power was cut? */
  #known(finish: number): boolean {
    return finish < this.#firstCut;
  }

  #unitOf(sector: number): number {
    assert(sector >= 0 && sector < this.sectors);
    return Math.floor(sector / this.sectorsPerUnit);
  }
}
