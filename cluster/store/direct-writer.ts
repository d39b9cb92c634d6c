// Writes that go to a slot before the log knows of them: payloads too large to be worth writing twice.
//
// Nothing refers to the blocks written here until a record does, so a crash or a full disk in between leaves nothing to
// undo. The log's next sync includes the data file; redo takes a record whose blocks did not arrive for a torn one.

import { firstMismatch, NO_DATA } from '../../proto/checksum.ts';
import type { StorageError } from '../../proto/errors.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { DiskError } from '../../proto/ports.ts';
import type { Content } from './content.ts';
import type { StoreLog } from './log.ts';
import type { StoredObject } from './objects.ts';
import type { Reader } from './reader.ts';
import { ROTTEN } from './redo.ts';
import type { Slot, SlotFile } from './slots.ts';

export class DirectWriter {
  private readonly content: Content;
  private readonly log: StoreLog;
  private readonly reader: Reader;

  constructor(content: Content, log: StoreLog, reader: Reader) {
    this.content = content;
    this.log = log;
    this.reader = reader;
  }

  /** The files of an object size, made when the first such object is written. */
  filesOf(order: number): SlotFile {
    try {
      return this.content.slots.of(order);
    } catch (error) {
      throw this.refusal(error, 0);
    }
  }

  /** Writes the blocks of the payload that hold data to their places, the first at `firstBlock`. */
  write(slot: Slot, firstBlock: number, payload: Buffer, checks: Buffer): void {
    const blocks = checks.length / 4;
    for (let from = 0; from < blocks; ) {
      let end = from;
      while (end < blocks && checks.readUInt32LE(end * 4) !== NO_DATA) end++;
      if (end > from)
        this.writeBlocks(slot, firstBlock + from, payload.subarray(from * BLOCK_BYTES, end * BLOCK_BYTES));
      from = end + 1;
    }
  }

  /** Writes a whole object to another slot, the payload over what it held; returns the checksums of all its blocks. */
  writeMoved(object: StoredObject, slot: Slot, firstBlock: number, payload: Buffer, checks: Buffer): Buffer {
    const endBlock = firstBlock + checks.length / 4;
    const all = Buffer.from(object.checks);
    checks.copy(all, firstBlock * 4);
    const stays = (block: number): boolean =>
      (block < firstBlock || block >= endBlock) && all.readUInt32LE(block * 4) !== NO_DATA;
    for (let from = 0; from < object.blocks; ) {
      let end = from;
      while (end < object.blocks && stays(end)) end++;
      if (end > from) this.copyBlocks(object, slot, from, end, all);
      from = end + 1;
    }
    this.write(slot, firstBlock, payload, checks);
    return all;
  }

  /** Copies blocks to the other slot. One that is bad must go on failing its checksum, but not look like a torn write. */
  private copyBlocks(object: StoredObject, slot: Slot, first: number, end: number, all: Buffer): void {
    const { image, object: number } = object;
    const bytes = this.readable(object, first, end);
    for (let block = first; block < end; ) {
      const rest = bytes.subarray((block - first) * BLOCK_BYTES);
      const bad = firstMismatch(rest, all.subarray(block * 4, end * 4), image, number, block * BLOCK_BYTES);
      if (bad < 0) break;
      all.writeUInt32LE(ROTTEN, (block + bad) * 4);
      block += bad + 1;
    }
    this.writeBlocks(slot, first, bytes);
  }

  /** The blocks as far as the disk gives them, zeros for those it does not. */
  private readable(object: StoredObject, first: number, end: number): Buffer {
    try {
      return this.reader.readBlocks(object, first, end - first);
    } catch (error) {
      if (this.log.dead !== null) throw error;
      if (end - first === 1) return Buffer.alloc(BLOCK_BYTES);
      const middle = (first + end) >> 1;
      return Buffer.concat([this.readable(object, first, middle), this.readable(object, middle, end)]);
    }
  }

  private writeBlocks(slot: Slot, block: number, bytes: Buffer): void {
    const { data } = slot.file;
    try {
      data.write([bytes], slot.placeOf(block));
    } catch (error) {
      throw this.refusal(error, bytes.length);
    }
    this.log.wrote(data);
  }

  /** What a failed write means before anything refers to it: a full disk is the caller's matter, all else is the end. */
  private refusal(error: unknown, bytes: number): StorageError {
    if (!(error instanceof DiskError && error.code === 'NO_SPACE')) return this.log.fail(error as Error);
    this.content.space.refresh();
    return this.content.space.fullError(bytes);
  }
}
