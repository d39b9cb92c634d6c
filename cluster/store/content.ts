// What a record of the log does to the objects and PGs in memory. Appending applies each record as it is written, redo
// applies the same records again: one piece of code, so that a restart ends in the state that was served.
//
// Records are physical (slot, begins anew, gone), see record.ts; which slot and which way is decided in engine.ts.

import assert from 'node:assert/strict';
import { NO_DATA } from '../../proto/checksum.ts';
import { BLOCK_BYTES, BLOCK_SHIFT } from '../../proto/limits.ts';
import { ObjectIndex, Overlay, StoredObject } from './objects.ts';
import { PgTable } from './pg-log.ts';
import { Flag, type LogRecord, RecordType } from './record.ts';
import { type Slot, type SlotFiles, SlotState } from './slots.ts';
import type { Space } from './space.ts';
import { EntryOp } from './store.ts';

export class Content {
  readonly index = new ObjectIndex();
  readonly pgs = new PgTable();
  readonly slots: SlotFiles;
  readonly space: Space;
  /** Changed since the last snapshot was taken. */
  dirty = new Set<StoredObject>();
  /** Slots freed since then. */
  retired = new Set<Slot>();
  /** Blocks with ground in them. */
  retiredBlocks = 0;
  /** Any record since then; also those that change no object. */
  changed = false;
  /** Where the newest durable checkpoint's redo begins: holes made before it may be written directly. */
  redoPosition = 0;

  constructor(slots: SlotFiles, space: Space) {
    this.slots = slots;
    this.space = space;
  }

  /**
   * @param checks holds the record's block checksums from `checksAt` on
   * @param position of the record's batch
   * @param payloadPosition of the record's payload in the log
   */
  apply(record: LogRecord, checks: Buffer, checksAt: number, position: number, payloadPosition: number): void {
    this.changed = true;
    const group = this.pgs.take(record.pg);
    switch (record.type) {
      case RecordType.ENTRY:
        assert(record.seq === group.lastSeq + 1, 'a gap between entries');
        group.push(record, this.pgs.entriesMax);
        this.applyContent(record, checks, checksAt, position, payloadPosition);
        return;
      case RecordType.RECOVER:
        this.applyContent(record, checks, checksAt, position, payloadPosition);
        return;
      case RecordType.MERGE:
        assert(record.seq === group.lastSeq + 1, 'a gap between merged entries');
        group.push(record, this.pgs.entriesMax);
        return;
      case RecordType.TRUNCATE:
        group.truncate(record.since, record.seq);
        return;
      case RecordType.RESET:
        group.reset(record.since, record.seq);
        return;
      case RecordType.SET_PG:
        group.les = record.since;
        group.complete = record.op === 1;
        return;
      default:
        assert.fail(`record type ${record.type}`);
    }
  }

  private applyContent(record: LogRecord, checks: Buffer, checksAt: number, position: number, payload: number): void {
    const known = this.index.get(record.image, record.object);
    if ((record.flags & Flag.GONE) !== 0) {
      if (known !== undefined) this.remove(known);
      return;
    }
    if (known === undefined && (record.flags & Flag.FRESH) === 0) return;
    const object = (record.flags & Flag.FRESH) !== 0 ? this.begin(record, known) : known!;
    assert(object.slot.number === record.slot && object.order === record.order, 'the record names another slot');
    this.touch(object);
    const before = object.allocated;
    if (record.type === RecordType.ENTRY && record.op === EntryOp.ZERO)
      this.clear(object, record.offset >> BLOCK_SHIFT, record.length >> BLOCK_SHIFT, position);
    else if ((record.flags & Flag.DIRECT) !== 0) this.fill(object, record, checks, checksAt, position, 0);
    else this.fill(object, record, checks, checksAt, position, payload);
    object.group.blocks += object.allocated - before;
    this.space.liveBlocks += object.allocated - before;
    object.since = record.since;
    object.seq = record.seq;
  }

  /** Call before an object changes. */
  private touch(object: StoredObject): void {
    if (object.snapshot !== null) object.snapshot.save(object);
    if (!object.dirty) {
      object.dirty = true;
      this.dirty.add(object);
    }
    object.stamp++;
  }

  /** The object, empty, in the slot that the record names. */
  private begin(record: LogRecord, known: StoredObject | undefined): StoredObject {
    if (known !== undefined) this.remove(known);
    const file = this.slots.of(record.order);
    const slot = file.take(record.slot);
    this.space.reusableBlocks -= slot.groundCount(0, file.blocks);
    if (slot.generation === 0 && !slot.promised) {
      slot.promised = true;
      this.space.promisedMetaBytes += 2 * file.copyBytes;
    }
    const group = this.pgs.take(record.pg);
    const object = new StoredObject(record.image, record.object, record.order, group, slot);
    this.index.add(object);
    return object;
  }

  private remove(object: StoredObject): void {
    if (object.snapshot !== null) object.snapshot.save(object);
    this.forgetPromises(object);
    this.index.remove(object);
    this.dirty.delete(object);
    this.space.liveBlocks -= object.allocated;
    object.overlay = null;
    object.stamp++;
    object.slot.state = SlotState.RETIRED;
    this.retired.add(object.slot);
    const ground = object.slot.groundCount(0, object.blocks);
    this.retiredBlocks += ground;
    this.space.reusableBlocks += ground;
  }

  private forgetPromises(object: StoredObject): void {
    const { overlay, slot } = object;
    if (overlay === null) return;
    for (let block = overlay.next(0); block >= 0; block = overlay.next(block + 1))
      if (overlay.get(block) > 0 && !slot.hasGround(block)) this.space.promisedBlocks--;
  }

  /** @param payload position in the log of the record's payload, or 0: the blocks stand in the slot */
  private fill(
    object: StoredObject,
    record: LogRecord,
    checks: Buffer,
    checksAt: number,
    position: number,
    payload: number,
  ): void {
    for (let i = 0; i < record.blocks; i++) {
      const block = record.firstBlock + i;
      const check = checks.readUInt32LE(checksAt + i * 4);
      if (check === NO_DATA) {
        this.clear(object, block, 1, position);
        continue;
      }
      if (object.check(block) === NO_DATA) object.allocated++;
      object.checks.writeUInt32LE(check, block * 4);
      this.setPlace(object, block, payload === 0 ? 0 : payload + i * BLOCK_BYTES);
    }
  }

  private clear(object: StoredObject, first: number, count: number, position: number): void {
    for (let block = first; block < first + count; block++) {
      if (object.check(block) === NO_DATA) continue;
      object.checks.writeUInt32LE(NO_DATA, block * 4);
      object.allocated--;
      this.setPlace(object, block, -position - 1);
    }
  }

  private setPlace(object: StoredObject, block: number, place: number): void {
    const { slot } = object;
    const before = object.overlay === null ? 0 : object.overlay.get(block);
    if (!slot.hasGround(block)) {
      if (before > 0) this.space.promisedBlocks--;
      if (place > 0) this.space.promisedBlocks++;
      else if (place === 0 && slot.layGround(block)) this.space.spend(BLOCK_BYTES);
    }
    if (place === 0 && before === 0) return;
    object.overlay ??= new Overlay(object.blocks);
    object.overlay.set(block, place);
  }

  /** The checkpoint copied the block from the log to the slot. */
  settle(object: StoredObject, block: number): void {
    this.setPlace(object, block, 0);
    object.stamp++;
    if (object.overlay?.count !== 0) return;
    object.overlay.release();
    object.overlay = null;
  }

  /** Forgets places that say no more than the checksums do: holes that the newest durable checkpoint knows. */
  prune(object: StoredObject): void {
    const { overlay } = object;
    if (overlay === null) return;
    for (let block = overlay.next(0); block >= 0; block = overlay.next(block + 1)) {
      const place = overlay.get(block);
      if (place > 0 || -place - 1 >= this.redoPosition) return;
    }
    object.overlay = null;
  }

  /**
   * May these blocks be written in place before the record that refers to them is in the log? Only if neither the newest
   * durable checkpoint nor any record since refers to what stands there: they are holes, and were when it was taken.
   */
  isClean(object: StoredObject, first: number, count: number): boolean {
    const { overlay } = object;
    for (let block = first; block < first + count; block++) {
      if (object.check(block) !== NO_DATA) return false;
      if (overlay === null) continue;
      const place = overlay.get(block);
      if (place < 0 && -place - 1 >= this.redoPosition) return false;
    }
    return true;
  }
}
