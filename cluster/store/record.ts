// What stands in the log, byte by byte: batch headers and records. Pure encoding; README.md has the same tables.
//
//   batch = table pages [header, records...] + payload pages        all little endian
//   header (64): magic u32 | checksum u32 | salt u32 u32 | incarnation u32 | previous checksum u32 | position f64 |
//                previous position f64 | durable position f64 | table pages u16 | payload pages u16 | records u32 |
//                used bytes u32 | 0 u32
//   record (88): type u8 | op u8 | order u8 | flags u8 | bytes u32 | pg u32 | since u32 | seq f64 | previous since u32 |
//                image u32 | object u32 | slot u32 | offset u32 | length u32 | session f64 | request f64 | first block u32 |
//                blocks u32 | payload page u32 | payload pages u32, then one checksum u32 per block
//
// A record says physically what happened (which slot, does the object begin anew, is it gone), so that redo decides
// nothing. Numbers beyond 32 bits are doubles: exact to 2^53, and no BigInt.

import { hashBytes } from '../../proto/checksum.ts';
import { BLOCK_BYTES, OBJECT_ORDER_MAX, OBJECT_ORDER_MIN } from '../../proto/limits.ts';
import { PAGE_BYTES } from './limits.ts';
import { EntryOp, type LogEntry } from './store.ts';

export const HEADER_BYTES = 64;
export const RECORD_BYTES = 88;
export const BATCH_MAGIC = 0x48534c41;
/** Where a header says which position it was written at. */
export const POSITION_AT = 24;

export const RecordType = {
  /** An operation on an object that is also an entry of the PG's log. */
  ENTRY: 1,
  /** Content that recovery brought. */
  RECOVER: 2,
  /** An entry of the PG's log that another member has, without its effect. */
  MERGE: 3,
  /** The PG's log now ends at the version. */
  TRUNCATE: 4,
  /** The PG's log is empty and ends at the version. */
  RESET: 5,
  /** les (in `since`) and complete (in `op`). */
  SET_PG: 6,
} as const;
export type RecordType = (typeof RecordType)[keyof typeof RecordType];

export const Flag = {
  /** The object's content begins anew, in the slot named; a slot it had before is retired. */
  FRESH: 1,
  /** The object is gone afterwards. */
  GONE: 2,
  /** The blocks with a checksum stand in the slot already; otherwise in the batch's payload. */
  DIRECT: 4,
} as const;

export const NO_SLOT = 0xffff_ffff;

export interface LogRecord {
  type: RecordType;
  op: number;
  order: number;
  flags: number;
  pg: number;
  since: number;
  seq: number;
  /** `since` of the PG's entry before this one: the tail's, if this one becomes the oldest kept. */
  previousSince: number;
  image: number;
  object: number;
  slot: number;
  offset: number;
  length: number;
  session: number;
  sessionSeq: number;
  /** The blocks that the checksums are of. */
  firstBlock: number;
  blocks: number;
  /** Place in the batch's payload, in pages. */
  payloadPage: number;
  payloadPages: number;
}

/** A record with every field at zero, to be filled again and again. */
export function newRecord(): LogRecord {
  return {
    type: RecordType.ENTRY,
    op: 0,
    order: 0,
    flags: 0,
    pg: 0,
    since: 0,
    seq: 0,
    previousSince: 0,
    image: 0,
    object: 0,
    slot: NO_SLOT,
    offset: 0,
    length: 0,
    session: 0,
    sessionSeq: 0,
    firstBlock: 0,
    blocks: 0,
    payloadPage: 0,
    payloadPages: 0,
  };
}

export const recordBytes = (blocks: number): number => (RECORD_BYTES + blocks * 4 + 7) & ~7;
/** Pages of a table that holds just this one record. */
export const tablePagesFor = (bytes: number): number => Math.ceil((HEADER_BYTES + bytes) / PAGE_BYTES);

/** Writes the record without its checksums, which follow at `at + RECORD_BYTES`. */
export function encodeRecord(record: LogRecord, into: Buffer, at: number): void {
  into[at] = record.type;
  into[at + 1] = record.op;
  into[at + 2] = record.order;
  into[at + 3] = record.flags;
  into.writeUInt32LE(recordBytes(record.blocks), at + 4);
  into.writeUInt32LE(record.pg, at + 8);
  into.writeUInt32LE(record.since, at + 12);
  into.writeDoubleLE(record.seq, at + 16);
  into.writeUInt32LE(record.previousSince, at + 24);
  into.writeUInt32LE(record.image, at + 28);
  into.writeUInt32LE(record.object, at + 32);
  into.writeUInt32LE(record.slot, at + 36);
  into.writeUInt32LE(record.offset, at + 40);
  into.writeUInt32LE(record.length, at + 44);
  into.writeDoubleLE(record.session, at + 48);
  into.writeDoubleLE(record.sessionSeq, at + 56);
  into.writeUInt32LE(record.firstBlock, at + 64);
  into.writeUInt32LE(record.blocks, at + 68);
  into.writeUInt32LE(record.payloadPage, at + 72);
  into.writeUInt32LE(record.payloadPages, at + 76);
  into.writeDoubleLE(0, at + 80);
}

/** Reads a record of a table whose checksum was right; returns the place of the next one. */
export function decodeRecord(record: LogRecord, from: Buffer, at: number): number {
  record.type = from[at]! as RecordType;
  record.op = from[at + 1]!;
  record.order = from[at + 2]!;
  record.flags = from[at + 3]!;
  record.pg = from.readUInt32LE(at + 8);
  record.since = from.readUInt32LE(at + 12);
  record.seq = from.readDoubleLE(at + 16);
  record.previousSince = from.readUInt32LE(at + 24);
  record.image = from.readUInt32LE(at + 28);
  record.object = from.readUInt32LE(at + 32);
  record.slot = from.readUInt32LE(at + 36);
  record.offset = from.readUInt32LE(at + 40);
  record.length = from.readUInt32LE(at + 44);
  record.session = from.readDoubleLE(at + 48);
  record.sessionSeq = from.readDoubleLE(at + 56);
  record.firstBlock = from.readUInt32LE(at + 64);
  record.blocks = from.readUInt32LE(at + 68);
  record.payloadPage = from.readUInt32LE(at + 72);
  record.payloadPages = from.readUInt32LE(at + 76);
  return at + from.readUInt32LE(at + 4);
}

/**
 * Why the records of a table, whose checksum was right, are none that this program writes, or null. What is read past
 * this point stays within the table, the batch's payload and the object. Whether it fits the records before it is not
 * looked at.
 */
export function invalidRecords(table: Buffer, header: BatchHeader, record: LogRecord): string | null {
  const { usedBytes, records, payloadPages } = header;
  let at = HEADER_BYTES;
  for (let i = 0; i < records; i++) {
    if (at + RECORD_BYTES > usedBytes) return `${records} records do not fit ${usedBytes} bytes`;
    const bytes = table.readUInt32LE(at + 4);
    decodeRecord(record, table, at);
    // First the count itself: recordBytes() is for counts whose bytes fit 31 bits.
    if (record.blocks > usedBytes / 4 || bytes !== recordBytes(record.blocks) || at + bytes > usedBytes)
      return `a record of ${bytes} bytes`;
    if (record.type < RecordType.ENTRY || record.type > RecordType.SET_PG) return `record type ${record.type}`;
    if (!Number.isSafeInteger(record.seq) || record.seq < 0) return `sequence number ${record.seq}`;
    const isRemoval = (record.flags & Flag.GONE) !== 0 && record.blocks === 0;
    if ((record.type === RecordType.ENTRY || record.type === RecordType.RECOVER) && !isRemoval) {
      const { order, blocks } = record;
      if (order < OBJECT_ORDER_MIN || order > OBJECT_ORDER_MAX) return `object order ${order}`;
      const objectBytes = 2 ** order;
      if ((record.firstBlock + blocks) * BLOCK_BYTES > objectBytes) return `${blocks} blocks end after the object`;
      if (record.offset + record.length > objectBytes) return `${record.length} bytes end after the object`;
      if (record.payloadPage + record.payloadPages > payloadPages) return 'a payload that ends after the batch';
    }
    at += bytes;
  }
  return at === usedBytes ? null : `${usedBytes - at} bytes after the last record`;
}

/** Fills a record from an entry; the physical fields (slot, flags, blocks, payload) stay to be filled. */
export function recordOfEntry(record: LogRecord, type: RecordType, entry: LogEntry, previousSince: number): void {
  record.type = type;
  record.op = entry.op;
  record.order = entry.order;
  record.flags = 0;
  record.pg = entry.pg;
  record.since = entry.version.since;
  record.seq = entry.version.seq;
  record.previousSince = previousSince;
  record.image = entry.image;
  record.object = entry.object;
  record.slot = NO_SLOT;
  record.offset = entry.offset;
  record.length = entry.length;
  record.session = entry.session;
  record.sessionSeq = entry.sessionSeq;
  record.firstBlock = 0;
  record.blocks = 0;
  record.payloadPage = 0;
  record.payloadPages = 0;
}

export const isWrite = (record: LogRecord): boolean => record.op === EntryOp.WRITE;

export interface BatchHeader {
  checksum: number;
  incarnation: number;
  previousChecksum: number;
  position: number;
  previousPosition: number;
  durablePosition: number;
  tablePages: number;
  payloadPages: number;
  records: number;
  usedBytes: number;
}

/** Writes the header over the table and seals it: the checksum covers salt, header and records. Returns the checksum. */
export function sealBatch(table: Buffer, header: BatchHeader, saltA: number, saltB: number): number {
  table.writeUInt32LE(BATCH_MAGIC, 0);
  table.writeUInt32LE(saltA, 8);
  table.writeUInt32LE(saltB, 12);
  table.writeUInt32LE(header.incarnation, 16);
  table.writeUInt32LE(header.previousChecksum, 20);
  table.writeDoubleLE(header.position, POSITION_AT);
  table.writeDoubleLE(header.previousPosition, 32);
  table.writeDoubleLE(header.durablePosition, 40);
  table.writeUInt16LE(header.tablePages, 48);
  table.writeUInt16LE(header.payloadPages, 50);
  table.writeUInt32LE(header.records, 52);
  table.writeUInt32LE(header.usedBytes, 56);
  table.writeUInt32LE(0, 60);
  const checksum = hashBytes(table.subarray(8, header.usedBytes));
  table.writeUInt32LE(checksum, 4);
  return checksum;
}

/** Does a page look like the header of a batch written at `position` of this store? Says nothing of its checksum. */
export function looksLikeBatch(page: Buffer, at: number, position: number, saltA: number, saltB: number): boolean {
  return (
    page.readUInt32LE(at) === BATCH_MAGIC &&
    page.readUInt32LE(at + 8) === saltA &&
    page.readUInt32LE(at + 12) === saltB &&
    page.readDoubleLE(at + POSITION_AT) === position
  );
}

export function decodeHeader(page: Buffer): BatchHeader {
  return {
    checksum: page.readUInt32LE(4),
    incarnation: page.readUInt32LE(16),
    previousChecksum: page.readUInt32LE(20),
    position: page.readDoubleLE(POSITION_AT),
    previousPosition: page.readDoubleLE(32),
    durablePosition: page.readDoubleLE(40),
    tablePages: page.readUInt16LE(48),
    payloadPages: page.readUInt16LE(50),
    records: page.readUInt32LE(52),
    usedBytes: page.readUInt32LE(56),
  };
}
