// The log: batches of records appended to preallocated segments that are used in a ring, and the group sync.
//
// A position counts bytes from the beginning of time; position p stands in segment floor(p / segmentBytes) modulo the
// number of segments, at p modulo segmentBytes. A batch never crosses a segment: one that does not fit begins the next.
//
//   add() ... add()      records and payloads gather in the open batch
//   end of the turn      one write; then `done` of each record, in order (held back past ackLimit: see checkpoint.ts)
//   sync()               one sync in flight; those who ask meanwhile share the next
//
// After any failed write or sync the log is dead: fail() tells the owner once, nothing is written, synced or done again.

import assert from 'node:assert/strict';
import { StorageError } from '../../proto/errors.ts';
import type { Clock, DiskError, DiskFile } from '../../proto/ports.ts';
import { BATCH_PAYLOAD_MAX, PAGE_BYTES } from './limits.ts';
import { type BatchHeader, HEADER_BYTES, sealBatch, tablePagesFor } from './record.ts';
import type { Chain } from './snapshot.ts';
import type { Done } from './store.ts';

export interface Geometry {
  readonly segmentBytes: number;
  readonly segments: number;
  /** In every header: bytes of a client's payload can't pass for a batch. */
  readonly saltA: number;
  readonly saltB: number;
}

export const segmentName = (index: number): string => `log-${String(index).padStart(4, '0')}`;

/** Records of one turn rarely need more; a batch with one larger record gets a table of its own size. */
const TABLE_BYTES = PAGE_BYTES;
const NO_PARTS: Uint8Array[] = [];
/** Always left in the log for the mark that a checkpoint begins with. */
const MARK_RESERVE_BYTES = 4 * PAGE_BYTES;

export class StoreLog {
  readonly geometry: Geometry;
  readonly segments: readonly DiskFile[];
  private readonly clock: Clock;
  private readonly fatal: (error: Error) => void;
  dead: StorageError | null = null;

  /** End of the last batch. */
  position: number;
  chain: Chain;
  /** Everything before this is on stable storage. */
  durable: number;
  incarnation: number;
  /** Batches may not reach this: what follows is still needed by the newest durable checkpoint. */
  limit = 0;
  /** `done` of records beyond this waits: whoever writes faster than checkpoints can follow is slowed down here. */
  ackLimit = Number.POSITIVE_INFINITY;
  /** Called to move `limit` when a batch does not fit; throws NO_SPACE if it can't. */
  makeRoom: () => void = () => assert.fail('no one makes room');

  // The open batch; tableBytes 0 = none.
  private batchPosition = 0;
  private tableBytes = 0;
  private usedBytes = 0;
  private records = 0;
  private payloadBytes = 0;
  private table = Buffer.alloc(TABLE_BYTES);
  private parts: Uint8Array[] = NO_PARTS;
  private readonly header: BatchHeader = {
    checksum: 0,
    incarnation: 0,
    previousChecksum: 0,
    position: 0,
    previousPosition: 0,
    durablePosition: 0,
    tablePages: 0,
    payloadPages: 0,
    records: 0,
    usedBytes: 0,
  };

  /** End of the last mark before which everything was durable when it was written. */
  private markEnd = -1;

  /** Where the record just added is to be encoded, and the place of its payload. */
  recordTable: Buffer = this.table;
  recordAt = 0;
  recordPosition = 0;
  payloadPosition = 0;
  payloadPage = 0;

  private acks: Done[] = [];
  /** Position after the payload of each. */
  private ackEnds: number[] = [];
  private nextAck = 0;
  private turnScheduled = false;

  /** Files written since the last sync began: segments, and data files written directly. */
  private unsynced = new Set<DiskFile>();
  /** Files of the sync in flight, and how many of them are not back. */
  private inSync = new Set<DiskFile>();
  private syncing = 0;
  private waiters: { target: number; done: Done }[] = [];

  constructor(
    segments: readonly DiskFile[],
    geometry: Geometry,
    clock: Clock,
    fatal: (error: Error) => void,
    position: number,
    chain: Chain,
    incarnation: number,
  ) {
    this.segments = segments;
    this.geometry = geometry;
    this.clock = clock;
    this.fatal = fatal;
    this.position = position;
    this.durable = position;
    this.chain = chain;
    this.incarnation = incarnation;
  }

  /** Makes sure that a batch with such a record and payload fits, before anything is changed. May throw NO_SPACE. */
  ensureRoom(recordBytes: number, payloadBytes: number): void {
    if (this.dead !== null) throw this.dead;
    const { segmentBytes } = this.geometry;
    const most = tablePagesFor(recordBytes) * PAGE_BYTES + payloadBytes;
    assert(most <= segmentBytes);
    // The worst case: this batch is closed, does not fit in the segment, and the next begins a new one.
    const end = this.openEnd();
    const inSegment = end % segmentBytes;
    const reach = inSegment + most > segmentBytes ? end - inSegment + segmentBytes + most : end + most;
    if (reach + MARK_RESERVE_BYTES > this.limit) this.makeRoom();
  }

  /** Opens or goes on with a batch: room for a record of so many bytes (all of it) and its payload. */
  add(recordBytes: number, payload: Buffer | null): void {
    const payloadBytes = payload === null ? 0 : payload.length;
    if (this.tableBytes !== 0 && !this.fitsOpen(recordBytes, payloadBytes)) this.submit();
    if (this.tableBytes === 0) this.openBatch(recordBytes, payloadBytes);
    this.recordTable = this.table;
    this.recordAt = this.usedBytes;
    this.recordPosition = this.batchPosition;
    this.payloadPage = this.payloadBytes / PAGE_BYTES;
    this.payloadPosition = this.batchPosition + this.tableBytes + this.payloadBytes;
    this.usedBytes += recordBytes;
    this.records++;
    if (payload !== null) {
      this.parts.push(payload);
      this.payloadBytes += payloadBytes;
    }
  }

  /** The record last added is complete. `done` is called when it is written; null: nobody waits. */
  finish(done: Done | null): void {
    if (done !== null) {
      this.acks.push(done);
      this.ackEnds.push(this.openEnd());
    }
    this.scheduleTurn();
    if (this.payloadBytes >= BATCH_PAYLOAD_MAX) this.submit();
  }

  /** Something was written to a data file that records will refer to: the next sync includes it. */
  wrote(file: DiskFile): void {
    this.unsynced.add(file);
  }

  private fitsOpen(recordBytes: number, payloadBytes: number): boolean {
    const { segmentBytes } = this.geometry;
    return (
      this.usedBytes + recordBytes <= this.tableBytes &&
      (this.batchPosition % segmentBytes) + this.tableBytes + this.payloadBytes + payloadBytes <= segmentBytes
    );
  }

  private openBatch(recordBytes: number, payloadBytes: number): void {
    const { segmentBytes } = this.geometry;
    const tableBytes = Math.max(TABLE_BYTES, tablePagesFor(recordBytes) * PAGE_BYTES);
    const inSegment = this.position % segmentBytes;
    const fits = inSegment + tableBytes + payloadBytes <= segmentBytes;
    this.batchPosition = fits ? this.position : this.position - inSegment + segmentBytes;
    this.tableBytes = tableBytes;
    this.usedBytes = HEADER_BYTES;
    if (this.table.length !== tableBytes) this.table = Buffer.alloc(tableBytes);
    this.parts = [this.table];
    this.payloadBytes = 0;
    this.records = 0;
  }

  private openEnd(): number {
    return this.tableBytes === 0 ? this.position : this.batchPosition + this.tableBytes + this.payloadBytes;
  }

  /** Is what stands at this position of the log not written yet? */
  isOpen(position: number): boolean {
    return position >= this.position;
  }

  /** Writes the open batch, if there is one. */
  submit(): void {
    if (this.tableBytes !== 0) this.writeBatch();
  }

  /** Writes a batch without records, unless the last one is: it tells redo how far the log was durable. */
  writeMark(): void {
    this.submit();
    if (this.markEnd === this.position) return;
    const complete = this.durable === this.position;
    this.openBatch(0, 0);
    this.writeBatch();
    if (complete) this.markEnd = this.position;
  }

  private writeBatch(): void {
    if (this.dead !== null) throw this.dead;
    const { header, geometry } = this;
    const end = this.openEnd();
    assert(end <= this.limit, 'the log runs over what a checkpoint needs');
    header.incarnation = this.incarnation;
    header.previousChecksum = this.chain.checksum;
    header.position = this.batchPosition;
    header.previousPosition = this.chain.position;
    header.durablePosition = this.durable;
    header.tablePages = this.tableBytes / PAGE_BYTES;
    header.payloadPages = this.payloadBytes / PAGE_BYTES;
    header.records = this.records;
    header.usedBytes = this.usedBytes;
    const checksum = sealBatch(this.table, header, geometry.saltA, geometry.saltB);
    const file = this.segmentAt(this.batchPosition);
    const { parts } = this;
    this.tableBytes = 0;
    this.parts = NO_PARTS;
    try {
      file.write(parts, this.batchPosition % geometry.segmentBytes);
    } catch (error) {
      throw this.fail(error as Error);
    }
    this.unsynced.add(file);
    this.chain = { position: this.batchPosition, checksum };
    this.position = end;
    this.scheduleTurn();
  }

  segmentAt(position: number): DiskFile {
    const { segmentBytes, segments } = this.geometry;
    return this.segments[Math.floor(position / segmentBytes) % segments]!;
  }

  private scheduleTurn(): void {
    if (this.turnScheduled) return;
    this.turnScheduled = true;
    this.clock.soon(this.endTurn);
  }

  private readonly endTurn = (): void => {
    this.turnScheduled = false;
    if (this.dead !== null) return;
    try {
      this.submit();
    } catch {
      return; // fail() has told the owner
    }
    this.runAcks();
  };

  /** Calls `done` of what is written and not held back. */
  runAcks(): void {
    const { acks, ackEnds } = this;
    while (this.nextAck < acks.length) {
      const end = ackEnds[this.nextAck]!;
      if (end > this.position || end > this.ackLimit || this.dead !== null) break;
      acks[this.nextAck++]!(null);
    }
    acks.splice(0, this.nextAck);
    ackEnds.splice(0, this.nextAck);
    this.nextAck = 0;
  }

  setLimits(limit: number, ackLimit: number): void {
    this.limit = limit;
    this.ackLimit = ackLimit;
    this.scheduleTurn();
  }

  /** Everything added before this call is on stable storage when `done` is called. */
  sync(done: Done): void {
    if (this.dead !== null) return;
    try {
      this.submit();
    } catch {
      return;
    }
    this.waiters.push({ target: this.position, done });
    if (this.syncing === 0) this.startSync();
  }

  private startSync(): void {
    const files = this.unsynced;
    const target = this.position;
    this.unsynced = new Set();
    this.inSync = files;
    if (files.size === 0) {
      this.syncing = 1;
      this.clock.soon(() => this.onSynced(null, target));
      return;
    }
    this.syncing = files.size;
    for (const file of files) file.sync((error) => this.onSynced(error, target));
  }

  private onSynced(error: DiskError | null, target: number): void {
    if (this.dead !== null) return;
    if (error !== null) {
      this.fail(error);
      return;
    }
    if (--this.syncing > 0) return;
    this.durable = Math.max(this.durable, target);
    const { waiters } = this;
    this.waiters = waiters.filter((waiter) => waiter.target > target);
    for (const waiter of waiters) if (waiter.target <= target && this.dead === null) waiter.done(null);
    if (this.waiters.length > 0 && this.syncing === 0) this.startSync();
  }

  /** The same, blocking. Used when the log is full and at the end; nobody who waits in sync() is told. */
  syncNow(): void {
    if (this.dead !== null) throw this.dead;
    this.submit();
    try {
      // Those whose sync is in flight too: it may not have reached the disk yet.
      if (this.syncing > 0) for (const file of this.inSync) file.syncNow();
      for (const file of this.unsynced) file.syncNow();
    } catch (error) {
      throw this.fail(error as Error);
    }
    this.durable = this.position;
  }

  get idle(): boolean {
    return this.syncing === 0 && this.waiters.length === 0;
  }

  /** Nothing is taken any more; nobody did wrong. */
  end(): void {
    this.dead ??= new StorageError('UNAVAILABLE', 'the store is closed');
  }

  /** Ends it for good; returns the error that everyone gets from now on. */
  fail(cause: Error): StorageError {
    if (this.dead === null) {
      this.dead = new StorageError('IO', `the store's disk failed: ${cause.message}`, cause);
      this.acks = [];
      this.waiters = [];
      this.fatal(this.dead);
    }
    return this.dead;
  }
}
