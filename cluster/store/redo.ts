// Reading the log at start: from the checkpoint's position to the end, telling a torn tail from a corrupt middle.
//
//   older segments   only the PGs' log entries are taken from them
//   walk 1           headers and tables from the redo position on, each chained to the one before; how far was the log
//                    known to be durable (`known`)?
//   beyond the end   is there any whole batch that knew the place where the chain ends as durable? Then something that
//                    was acked is damaged: CORRUPT, the store does not open. Otherwise it is the torn tail of a crash
//   walk 2           apply. Batches that end after `known` may be torn inside: their payloads and what they wrote
//                    directly must match its checksums, or the log ends before them. What is taken of them is written
//                    again: a sync that failed leaves pages that are right in memory, never reach the disk, and that no
//                    later sync speaks of
//
// A durable payload whose checksum fails is not judged here: the block's checksum tells whoever reads it.

import { AssertionError } from 'node:assert/strict';
import { blockChecksum, hashBytes, NO_DATA } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { Disk, DiskFile, Log } from '../../proto/ports.ts';
import type { Checkpoint } from './checkpoint-file.ts';
import { decodePgTable } from './checkpoint-file.ts';
import type { Content } from './content.ts';
import { PAGE_BYTES } from './limits.ts';
import { segmentName } from './log.ts';
import {
  type BatchHeader,
  decodeHeader,
  decodeRecord,
  Flag,
  HEADER_BYTES,
  invalidRecords,
  type LogRecord,
  looksLikeBatch,
  newRecord,
  POSITION_AT,
  RECORD_BYTES,
  RecordType,
} from './record.ts';
import type { Chain } from './snapshot.ts';

/** Checksum of a block that was unreadable when its object moved: fails for every reader, but is no sign of a tear. */
export const ROTTEN = 0xffff_ffff;

const SCAN_BYTES = 256 * 1024;

interface Batch {
  header: BatchHeader;
  table: Buffer;
  /** Position after it. */
  end: number;
}

export interface RedoResult {
  position: number;
  /** Up to here the log, and what it refers to, was found to be on stable storage already. */
  known: number;
  chain: Chain;
  batches: number;
}

export function openSegments(disk: Disk, count: number): DiskFile[] {
  return Array.from({ length: count }, (_, index) => disk.open(segmentName(index), false));
}

export class Redo {
  private readonly segments: readonly DiskFile[];
  private readonly checkpoint: Checkpoint;
  private readonly content: Content;
  private readonly messages: Log;
  private readonly record: LogRecord = newRecord();
  private readonly page = Buffer.alloc(PAGE_BYTES);
  private readonly block = Buffer.alloc(BLOCK_BYTES);

  constructor(segments: readonly DiskFile[], checkpoint: Checkpoint, content: Content, messages: Log) {
    this.segments = segments;
    this.checkpoint = checkpoint;
    this.content = content;
    this.messages = messages;
  }

  /** The PGs as of the checkpoint, with what the older segments still hold of their logs. */
  prepare(): void {
    this.readHistory();
    decodePgTable(this.checkpoint.pgTable, this.content.pgs);
  }

  /** Brings content from the checkpoint's state to the end of the log. Throws IO for a corrupt log. */
  run(): RedoResult {
    const { known, end } = this.walkHeaders();
    this.refuseIfDurableBeyond(end, known);
    return this.applyAll(known);
  }

  // --- the log's history before the checkpoint

  private readHistory(): void {
    const { redoPosition, chain } = this.checkpoint;
    if (chain.position < 0) return;
    let batch = this.oldest(chain.position);
    let last: Batch | null = null;
    while (batch !== null && batch.header.position <= chain.position) {
      this.takeEntries(batch);
      last = batch;
      batch = this.follow(chainOf(batch), batch.end);
    }
    if (last === null || last.header.position !== chain.position || last.end !== redoPosition) {
      // Nothing of the present is lost: only how far back the PGs' logs reach.
      this.messages.warn('the log before the checkpoint is damaged: entries of it are forgotten', { redoPosition });
      for (const state of this.content.pgs.all()) state.reset(0, 0);
    }
  }

  /** The first batch of the oldest segment from which on all are there up to `position`. */
  private oldest(position: number): Batch | null {
    const { segmentBytes, segments } = this.checkpoint.geometry;
    const newest = Math.floor(position / segmentBytes);
    let found: Batch | null = null;
    for (let number = newest; number >= 0 && number > newest - segments; number--) {
      const batch = this.readBatch(number * segmentBytes);
      if (batch === null) break;
      found = batch;
    }
    return found;
  }

  private takeEntries(batch: Batch): void {
    const { record } = this;
    const { pgs } = this.content;
    let at = HEADER_BYTES;
    for (let i = 0; i < batch.header.records; i++) {
      at = decodeRecord(record, batch.table, at);
      const state = pgs.take(record.pg);
      if (record.type === RecordType.ENTRY || record.type === RecordType.MERGE) {
        if (state.lastSeq !== record.seq - 1 || state.lastSince !== record.previousSince)
          state.reset(record.previousSince, record.seq - 1);
        state.push(record, pgs.entriesMax);
      } else if (record.type === RecordType.TRUNCATE) state.truncate(record.since, record.seq);
      else if (record.type === RecordType.RESET) state.reset(record.since, record.seq);
    }
  }

  // --- the part to be redone

  private walkHeaders(): { known: number; end: number } {
    let known = this.checkpoint.durablePosition;
    let end = this.checkpoint.redoPosition;
    let batch = this.follow(this.checkpoint.chain, end);
    while (batch !== null) {
      known = Math.max(known, batch.header.durablePosition);
      end = batch.end;
      batch = this.follow(chainOf(batch), end);
    }
    return { known, end };
  }

  private refuseIfDurableBeyond(end: number, known: number): void {
    const { segmentBytes, segments, saltA, saltB } = this.checkpoint.geometry;
    const ringBytes = segmentBytes * segments;
    if (known > end) throw this.corrupt(end, known);
    const last = (Math.floor(this.checkpoint.redoPosition / segmentBytes) + segments) * segmentBytes;
    const chunk = Buffer.allocUnsafe(Math.min(SCAN_BYTES, segmentBytes));
    for (let position = end; position < last; ) {
      const bytes = Math.min(chunk.length, segmentBytes - (position % segmentBytes));
      this.readAt(chunk.subarray(0, bytes), position);
      for (let at = 0; at < bytes; at += PAGE_BYTES) {
        // Also one of a later round, which there can't be, unless the checkpoint files are old copies.
        const claimed = chunk.readDoubleLE(at + POSITION_AT);
        if (!Number.isSafeInteger(claimed) || claimed < 0) continue;
        if (claimed % ringBytes !== (position + at) % ringBytes) continue;
        if (!looksLikeBatch(chunk, at, claimed, saltA, saltB)) continue;
        const stray = this.readBatch(claimed);
        if (stray !== null && stray.header.durablePosition > end) throw this.corrupt(end, stray.header.durablePosition);
      }
      position += bytes;
    }
  }

  private corrupt(position: number, durable: number): StorageError {
    const { segmentBytes, segments } = this.checkpoint.geometry;
    const name = segmentName(Math.floor(position / segmentBytes) % segments);
    return new StorageError(
      'IO',
      `the log is corrupt at byte ${position % segmentBytes} of ${name} (position ${position}), which was on stable ` +
        `storage up to position ${durable}: this daemon's data can't be trusted; remove it and let it be copied anew`,
    );
  }

  private applyAll(known: number): RedoResult {
    let { chain, redoPosition: position } = this.checkpoint;
    let batches = 0;
    for (;;) {
      const batch = this.follow(chain, position);
      if (batch === null) break;
      if (batch.end > known) {
        if (!this.isWhole(batch)) {
          this.messages.warn('the log ends in a torn batch', { position: batch.header.position });
          break;
        }
        this.writeAgain(batch);
      }
      this.applyBatch(batch);
      batches++;
      chain = chainOf(batch);
      position = batch.end;
    }
    return { position, known, chain, batches };
  }

  private applyBatch(batch: Batch): void {
    const { record } = this;
    const payload = batch.header.position + batch.header.tablePages * PAGE_BYTES;
    let at = HEADER_BYTES;
    for (let i = 0; i < batch.header.records; i++) {
      const next = decodeRecord(record, batch.table, at);
      const { position } = batch.header;
      this.refuseDistantSlot(record, position);
      try {
        this.content.apply(record, batch.table, at + RECORD_BYTES, position, payload + record.payloadPage * PAGE_BYTES);
      } catch (error) {
        // Here the world is wrong, not the program: what it wrote itself would fit.
        if (!(error instanceof AssertionError)) throw error;
        throw this.nonsense(position, error.message);
      }
      at = next;
    }
  }

  /** Slots are made in order, one per record at the most: no log can be so far ahead of the metadata as this. */
  private refuseDistantSlot(record: LogRecord, position: number): void {
    if ((record.flags & Flag.FRESH) === 0 || (record.flags & Flag.GONE) !== 0) return;
    const { segmentBytes, segments } = this.checkpoint.geometry;
    const most = this.content.slots.of(record.order).slots.length + (segmentBytes * segments) / RECORD_BYTES;
    if (record.slot > most) throw this.nonsense(position, `slot ${record.slot}`);
  }

  private nonsense(position: number, why: string): StorageError {
    return new StorageError(
      'IO',
      `the log holds what no daemon writes (position ${position}: ${why}), though its checksum is right: this daemon's ` +
        "data can't be trusted; remove it and let it be copied anew",
    );
  }

  /** Do the payloads, in the log and written directly, match their checksums? */
  private isWhole(batch: Batch): boolean {
    const { record } = this;
    const payload = batch.header.position + batch.header.tablePages * PAGE_BYTES;
    let at = HEADER_BYTES;
    for (let i = 0; i < batch.header.records; i++) {
      const next = decodeRecord(record, batch.table, at);
      for (let j = 0; j < record.blocks; j++) {
        const check = batch.table.readUInt32LE(at + RECORD_BYTES + j * 4);
        if (check === NO_DATA || check === ROTTEN) continue;
        const block = record.firstBlock + j;
        const direct = (record.flags & Flag.DIRECT) !== 0;
        if (direct) {
          const { data } = this.content.slots.of(record.order);
          if (data.read(this.block, placeOf(record, block)) !== BLOCK_BYTES) return false;
        } else this.readAt(this.block, payload + record.payloadPage * PAGE_BYTES + j * BLOCK_BYTES);
        if (blockChecksum(this.block, record.image, record.object, block) !== check) return false;
      }
      at = next;
    }
    return true;
  }

  /** Writes the batch, and the blocks that it wrote directly, where they are: the next sync is about them in any case. */
  private writeAgain(batch: Batch): void {
    const { position } = batch.header;
    const file = this.segmentAt(position);
    const bytes = Buffer.allocUnsafe(batch.end - position);
    this.readAt(bytes, position);
    file.write([bytes], position % this.checkpoint.geometry.segmentBytes);
    const { record } = this;
    let at = HEADER_BYTES;
    for (let i = 0; i < batch.header.records; i++) {
      const next = decodeRecord(record, batch.table, at);
      if ((record.flags & Flag.DIRECT) !== 0)
        for (let j = 0; j < record.blocks; j++)
          if (batch.table.readUInt32LE(at + RECORD_BYTES + j * 4) !== NO_DATA) this.writeBlockAgain(record, j);
      at = next;
    }
  }

  private writeBlockAgain(record: LogRecord, index: number): void {
    const { data } = this.content.slots.of(record.order);
    const place = placeOf(record, record.firstBlock + index);
    if (data.read(this.block, place) !== BLOCK_BYTES) throw new StorageError('IO', `${data.name} ends before ${place}`);
    data.write([this.block], place);
  }

  // --- batches

  /** The batch chained to `chain`, at `position` or, if it did not fit there, at the beginning of the next segment. */
  private follow(chain: Chain, position: number): Batch | null {
    const { segmentBytes } = this.checkpoint.geometry;
    const nextSegment = Math.ceil(position / segmentBytes) * segmentBytes;
    for (const place of nextSegment === position ? [position] : [position, nextSegment]) {
      const batch = this.readBatch(place);
      if (batch === null || batch.header.previousPosition !== chain.position) continue;
      if (batch.header.previousChecksum === chain.checksum) return batch;
    }
    return null;
  }

  /** The batch whose header and table are whole at this position, or null. */
  private readBatch(position: number): Batch | null {
    const { segmentBytes, saltA, saltB } = this.checkpoint.geometry;
    this.readAt(this.page, position);
    if (!looksLikeBatch(this.page, 0, position, saltA, saltB)) return null;
    const header = decodeHeader(this.page);
    const tableBytes = header.tablePages * PAGE_BYTES;
    const end = position + tableBytes + header.payloadPages * PAGE_BYTES;
    const { usedBytes } = header;
    if (usedBytes < HEADER_BYTES || usedBytes > tableBytes || (position % segmentBytes) + end - position > segmentBytes)
      return null;
    const table = Buffer.allocUnsafe(tableBytes);
    this.readAt(table, position);
    if (hashBytes(table.subarray(8, usedBytes)) !== header.checksum) return null;
    const why = invalidRecords(table, header, this.record);
    if (why !== null) throw this.nonsense(position, why);
    return { header, table, end };
  }

  private segmentAt(position: number): DiskFile {
    const { segmentBytes, segments } = this.checkpoint.geometry;
    return this.segments[Math.floor(position / segmentBytes) % segments]!;
  }

  private readAt(target: Buffer, position: number): void {
    const { segmentBytes } = this.checkpoint.geometry;
    const file = this.segmentAt(position);
    if (file.read(target, position % segmentBytes) !== target.length)
      throw new StorageError('IO', `${file.name} is shorter than ${segmentBytes} bytes`);
  }
}

const chainOf = (batch: Batch): Chain => ({ position: batch.header.position, checksum: batch.header.checksum });
/** Where a block of the record's object stands in its data file. */
const placeOf = (record: LogRecord, block: number): number => record.slot * (1 << record.order) + block * BLOCK_BYTES;
