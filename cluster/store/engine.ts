// The store on a disk: the face of the engine. It decides, for each operation, where its bytes go, and puts the record of
// it in the log; content.ts applies the record, checkpoint.ts moves things on, reader.ts reads. It is opened by disk-store.ts.
//
//   payload          to an absent object, or to blocks that nothing durable refers to    >= 64 KiB: directly to the slot
//                    whole object, or half of one                                         >= 64 KiB: to a fresh slot
//                    else                                                                 in the log
//
// A direct write is made before its record: if the record is lost, nothing refers to what was written.

import { NO_DATA } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import {
  type Epoch,
  type ImageId,
  type PgId,
  type SessionId,
  VERSION_ZERO,
  type Version,
  versionName,
} from '../../proto/ids.ts';
import { BLOCK_BYTES, BLOCK_SHIFT } from '../../proto/limits.ts';
import type { Clock } from '../../proto/ports.ts';
import { checkEntry, checkOrder, checkRecovered, invalidExtent, invalidSuccessor } from './check.ts';
import type { Checkpointer } from './checkpoint.ts';
import type { Content } from './content.ts';
import { DirectWriter } from './direct-writer.ts';
import { DIRECT_BYTES_MIN, IN_LOG_SEGMENT_SHARE } from './limits.ts';
import type { StoreLog } from './log.ts';
import { metaCopyBytes } from './meta.ts';
import type { StoredObject } from './objects.ts';
import { Reader } from './reader.ts';
import {
  encodeRecord,
  Flag,
  type LogRecord,
  newRecord,
  RECORD_BYTES,
  RecordType,
  recordBytes,
  recordOfEntry,
} from './record.ts';
import type { Slot } from './slots.ts';
import {
  type Done,
  EntryOp,
  type LogEntry,
  type ObjectInfo,
  type PgInfo,
  type ReadDone,
  type Recovered,
  type Store,
} from './store.ts';

/** While the disk is full and no checkpoint succeeds, the log is kept for what must not fail: shares of it in use. */
const BLOCKED_WRITES_SHARE = 0.5;
const BLOCKED_RESERVE_SHARE = 0.75;
const CLOSE_POLL_MS = 5;

export class DiskStore implements Store {
  private readonly content: Content;
  private readonly log: StoreLog;
  private readonly checkpointer: Checkpointer;
  private readonly reader: Reader;
  private readonly direct: DirectWriter;
  private readonly clock: Clock;
  private readonly closeFiles: () => void;
  private readonly inLogMax: number;
  private readonly record: LogRecord = newRecord();
  private closing = false;

  constructor(content: Content, log: StoreLog, checkpointer: Checkpointer, clock: Clock, closeFiles: () => void) {
    this.content = content;
    this.log = log;
    this.checkpointer = checkpointer;
    this.clock = clock;
    this.closeFiles = closeFiles;
    this.reader = new Reader(content, log, clock);
    this.direct = new DirectWriter(content, log, this.reader);
    this.inLogMax = log.geometry.segmentBytes / IN_LOG_SEGMENT_SHARE;
  }

  // --- data path

  append(entry: LogEntry, payload: Buffer | null, checks: Buffer | null, reserve: boolean, done: Done): void {
    const group = this.content.pgs.get(entry.pg);
    const last = group === undefined ? VERSION_ZERO : { since: group.lastSince, seq: group.lastSeq };
    checkEntry(entry, payload, checks, last);
    const object = this.content.index.get(entry.image, entry.object);
    if (object !== undefined) checkOrder(object.order, entry.order);
    this.admit(entry.op === EntryOp.WRITE, reserve);
    recordOfEntry(this.record, RecordType.ENTRY, entry, last.since);
    if (entry.op === EntryOp.WRITE) this.write(object, payload!, checks!, reserve, done);
    else {
      if (object !== undefined) this.erase(object, entry.op === EntryOp.DELETE);
      this.addRecord(null, null, done);
    }
  }

  recover(piece: Recovered, payload: Buffer | null, checks: Buffer | null, done: Done): void {
    checkRecovered(piece, payload, checks);
    const known = this.content.index.get(piece.image, piece.object);
    if (known !== undefined && !piece.replace) checkOrder(known.order, piece.order);
    this.admit(true, false);
    this.recoverRecord(piece.pg, piece.image, piece.object);
    const { record } = this;
    record.order = piece.order;
    record.since = piece.version.since;
    record.seq = piece.version.seq;
    record.offset = piece.offset;
    record.length = piece.length;
    const first = piece.offset >> BLOCK_SHIFT;
    const count = piece.length >> BLOCK_SHIFT;
    const object = piece.replace ? undefined : known;
    const kept = object === undefined ? 0 : object.allocated - object.allocatedIn(first, count);
    const brought = checks === null ? 0 : countData(checks);
    if (kept + brought === 0) {
      record.flags = Flag.GONE;
      this.addRecord(null, null, done);
    } else if (brought === 0) {
      // Holes only: their checksums say so.
      record.slot = object!.slot.number;
      record.firstBlock = first;
      record.blocks = count;
      this.addRecord(checks, null, done);
    } else this.write(object, payload!, checks!, false, done);
  }

  recoverDelete(pg: PgId, image: ImageId, object: number, done: Done): void {
    this.recoverRecord(pg, image, object);
    this.record.flags = Flag.GONE;
    this.addRecord(null, null, done);
  }

  private recoverRecord(pg: PgId, image: ImageId, object: number): void {
    const { record } = this;
    Object.assign(record, BLANK);
    record.type = RecordType.RECOVER;
    record.op = EntryOp.WRITE;
    record.pg = pg;
    record.image = image;
    record.object = object;
  }

  sync(done: Done): void {
    this.log.sync(done);
  }

  read(image: ImageId, object: number, order: number, offset: number, length: number, done: ReadDone): void {
    const why = invalidExtent(image, object, order, offset, length);
    if (why !== null) return done(new StorageError('INVALID', `read: ${why}`), null, null);
    if (this.log.dead !== null) return done(this.log.dead, null, null);
    this.reader.read(image, object, order, offset, length, done);
  }

  allocation(image: ImageId, object: number): Buffer | null {
    const known = this.content.index.get(image, object);
    if (known === undefined) return null;
    const bits = Buffer.alloc(Math.ceil(known.blocks / 8));
    for (let block = 0; block < known.blocks; block++)
      if (known.check(block) !== NO_DATA) bits[block >> 3]! |= 1 << (block & 7);
    return bits;
  }

  checksums(image: ImageId, object: number): Buffer | null {
    const known = this.content.index.get(image, object);
    return known === undefined ? null : Buffer.from(known.checks);
  }

  /** Refuses, before anything is changed, what a dead log or a disk too full for checkpoints can't take. */
  private admit(isWrite: boolean, reserve: boolean): void {
    if (this.log.dead !== null) throw this.log.dead;
    if (!this.content.space.blocked || !isWrite) return;
    if (this.checkpointer.logUse > (reserve ? BLOCKED_RESERVE_SHARE : BLOCKED_WRITES_SHARE))
      throw this.content.space.fullError(0);
  }

  /** A ZERO or DELETE of an object that exists: is it gone afterwards? */
  private erase(object: StoredObject, all: boolean): void {
    const { record } = this;
    const erased = all
      ? object.allocated
      : object.allocatedIn(record.offset >> BLOCK_SHIFT, record.length >> BLOCK_SHIFT);
    if (erased === object.allocated) record.flags = Flag.GONE;
    else record.slot = object.slot.number;
  }

  /** Places the payload and adds the record. `object` is undefined if its content begins anew. */
  private write(object: StoredObject | undefined, payload: Buffer, checks: Buffer, reserve: boolean, done: Done): void {
    const { record, content } = this;
    record.firstBlock = record.offset >> BLOCK_SHIFT;
    record.blocks = record.length >> BLOCK_SHIFT;
    const objectBytes = 1 << record.order;
    const large = payload.length >= DIRECT_BYTES_MIN;
    const inLog = payload.length <= this.inLogMax;
    // Making room may run a checkpoint, so it comes before any decision about slots.
    this.log.ensureRoom(recordBytes(objectBytes >> BLOCK_SHIFT), inLog ? payload.length : 0);
    if (object === undefined) {
      const slot = this.direct.filesOf(record.order).candidate();
      this.demand(this.newGround(slot, record.firstBlock, record.blocks) + this.newMeta(slot), reserve);
      record.slot = slot.number;
      record.flags = Flag.FRESH;
      if (large || !inLog) this.writeDirect(slot, payload, checks);
    } else {
      record.slot = object.slot.number;
      if ((large || !inLog) && content.isClean(object, record.firstBlock, record.blocks)) {
        this.demand(this.newGround(object.slot, record.firstBlock, record.blocks), reserve);
        this.writeDirect(object.slot, payload, checks);
      } else if (!inLog || (large && payload.length * 2 >= objectBytes && this.canMove(object, reserve)))
        return this.move(object, payload, checks, reserve, done);
      else this.demand(this.newGround(object.slot, record.firstBlock, record.blocks), reserve);
    }
    this.addRecord(checks, (record.flags & Flag.DIRECT) !== 0 ? null : payload, done);
  }

  /** Refuses with NO_SPACE; if slots wait for a checkpoint to be free again, one begins, so that a later try succeeds. */
  private demand(bytes: number, reserve: boolean): void {
    const { space, retired } = this.content;
    if (space.allows(bytes, reserve)) return;
    if (retired.size > 0 && !space.blocked) this.checkpointer.begin();
    throw space.fullError(bytes);
  }

  private writeDirect(slot: Slot, payload: Buffer, checks: Buffer): void {
    this.direct.write(slot, this.record.firstBlock, payload, checks);
    this.record.flags |= Flag.DIRECT;
  }

  private newGround(slot: Slot, first: number, count: number): number {
    return (count - slot.groundCount(first, count)) * BLOCK_BYTES;
  }

  private newMeta(slot: Slot): number {
    return slot.generation === 0 ? 2 * metaCopyBytes(slot.file.order) : 0;
  }

  private canMove(object: StoredObject, reserve: boolean): boolean {
    const slot = object.slot.file.candidate();
    return this.content.space.allows(this.newGround(slot, 0, object.blocks) + this.newMeta(slot), reserve);
  }

  /** The whole object goes to a fresh slot: the payload, and what it does not cover from where it is now. */
  private move(object: StoredObject, payload: Buffer, checks: Buffer, reserve: boolean, done: Done): void {
    const { record } = this;
    const slot = object.slot.file.candidate();
    this.demand(this.newGround(slot, 0, object.blocks) + this.newMeta(slot), reserve);
    const all = this.direct.writeMoved(object, slot, record.firstBlock, payload, checks);
    record.slot = slot.number;
    record.flags = Flag.FRESH | Flag.DIRECT;
    record.firstBlock = 0;
    record.blocks = object.blocks;
    this.addRecord(all, null, done);
  }

  /** Puts the record in the log and applies it. */
  private addRecord(checks: Buffer | null, payload: Buffer | null, done: Done | null): void {
    const { record, log } = this;
    const bytes = recordBytes(record.blocks);
    log.ensureRoom(bytes, payload === null ? 0 : payload.length);
    log.add(bytes, payload);
    record.payloadPage = log.payloadPage;
    record.payloadPages = payload === null ? 0 : payload.length / BLOCK_BYTES;
    encodeRecord(record, log.recordTable, log.recordAt);
    checks?.copy(log.recordTable, log.recordAt + RECORD_BYTES);
    const checksAt = log.recordAt + RECORD_BYTES;
    this.content.apply(record, log.recordTable, checksAt, log.recordPosition, log.payloadPosition);
    log.finish(done);
    this.checkpointer.consider();
  }

  // --- peering and recovery

  pgInfo(pg: PgId): PgInfo {
    const state = this.content.pgs.get(pg);
    return state === undefined ? { les: 0, complete: true, last: VERSION_ZERO, tail: VERSION_ZERO } : state.info();
  }

  pgs(): PgId[] {
    return this.content.pgs.ids();
  }

  setPg(pg: PgId, les: Epoch, complete: boolean): void {
    Object.assign(this.record, BLANK);
    this.record.type = RecordType.SET_PG;
    this.record.pg = pg;
    this.record.since = les;
    this.record.op = complete ? 1 : 0;
    this.addRecord(null, null, null);
  }

  logAfter(pg: PgId, version: Version): LogEntry[] | null {
    const state = this.content.pgs.get(pg);
    if (state !== undefined) return state.after(version);
    return version.since === 0 && version.seq === 0 ? [] : null;
  }

  findRequest(pg: PgId, session: SessionId, sessionSeq: number): Version | null {
    return this.content.pgs.get(pg)?.findRequest(session, sessionSeq) ?? null;
  }

  mergeLog(pg: PgId, entries: readonly LogEntry[]): void {
    let { last } = this.pgInfo(pg);
    for (const { version } of entries) {
      const why = invalidSuccessor(last, version);
      if (why !== null) throw new StorageError('INVALID', `mergeLog: ${why}`);
      last = version;
    }
    for (const entry of entries) {
      recordOfEntry(this.record, RecordType.MERGE, entry, this.pgInfo(pg).last.since);
      this.addRecord(null, null, null);
    }
  }

  resetLog(pg: PgId, last: Version): void {
    this.cutLog(RecordType.RESET, pg, last);
  }

  truncateLog(pg: PgId, last: Version): void {
    const holds = this.content.pgs.get(pg)?.holds(last) ?? (last.since === 0 && last.seq === 0);
    if (!holds) throw new StorageError('INVALID', `truncateLog: PG ${pg} does not hold ${versionName(last)}`);
    this.cutLog(RecordType.TRUNCATE, pg, last);
  }

  private cutLog(type: RecordType, pg: PgId, last: Version): void {
    Object.assign(this.record, BLANK);
    this.record.type = type;
    this.record.pg = pg;
    this.record.since = last.since;
    this.record.seq = last.seq;
    this.addRecord(null, null, null);
  }

  objects(pg: PgId): Iterable<ObjectInfo> {
    const members = this.content.index.ofPg(this.content.pgs.get(pg));
    return members.map(({ image, object, order, since, seq }) => ({ image, object, order, version: { since, seq } }));
  }

  objectVersion(image: ImageId, object: number): Version {
    const known = this.content.index.get(image, object);
    return known === undefined ? VERSION_ZERO : { since: known.since, seq: known.seq };
  }

  pgUsage(pg: PgId): { objects: number; bytes: number } {
    const state = this.content.pgs.get(pg);
    return state === undefined
      ? { objects: 0, bytes: 0 }
      : { objects: state.objects.size, bytes: state.blocks * BLOCK_BYTES };
  }

  // --- life

  space(): { usedBytes: number; freeBytes: number; full: boolean } {
    return this.content.space.report();
  }

  /** Begins a checkpoint, if none is under way, without waiting for it. */
  checkpoint(): void {
    this.checkpointer.begin();
  }

  /** Checkpoints committed since the start. */
  get checkpoints(): number {
    return this.checkpointer.committed;
  }

  /** Reads that went off the event loop since the start. */
  get readsLater(): number {
    return this.reader.later;
  }

  close(done: Done): void {
    if (this.closing) throw new StorageError('INVALID', 'the store is closed already');
    this.closing = true;
    let failure: Error | null = this.log.dead;
    if (failure === null) {
      try {
        this.checkpointer.finishNow();
      } catch (error) {
        failure = error as Error;
      }
    }
    this.checkpointer.close();
    const end = (): void => {
      if (this.reader.inFlight > 0 || !this.log.idle) {
        this.clock.after(CLOSE_POLL_MS, end);
        return;
      }
      this.log.end();
      this.closeFiles();
      done(failure);
    };
    this.clock.soon(end);
  }
}

const BLANK: LogRecord = Object.freeze(newRecord());

function countData(checks: Buffer): number {
  let found = 0;
  for (let at = 0; at < checks.length; at += 4) if (checks.readUInt32LE(at) !== NO_DATA) found++;
  return found;
}
