// What a daemon finds on its disk, damaged: slot metadata, checkpoint files, and the log. A checksum that is right is
// forged for part of the inputs, so that the checks behind it are reached as well.

import test from 'ava';
import { hashBytes } from '../../proto/checksum.ts';
import type { Disk, DiskFile, Log } from '../../proto/ports.ts';
import { fuzz } from '../../scripts/fuzz/fuzz.ts';
import {
  CHECKPOINT_NAMES,
  type Checkpoint,
  CheckpointFiles,
  decodePgTable,
  encodeCheckpoint,
} from './checkpoint-file.ts';
import { Content } from './content.ts';
import { decodeMeta, encodeMeta, metaCopyBytes, metaUsedBytes } from './meta.ts';
import { PgTable } from './pg-log.ts';
import {
  decodeHeader,
  decodeRecord,
  encodeRecord,
  Flag,
  HEADER_BYTES,
  invalidRecords,
  type LogRecord,
  newRecord,
  RECORD_BYTES,
  RecordType,
  recordBytes,
  sealBatch,
} from './record.ts';
import { Redo } from './redo.ts';
import { SlotFile, SlotFiles } from './slots.ts';
import { Space } from './space.ts';

const PAGE = 4096;
const QUIET: Log = { debug() {}, info() {}, warn() {}, error() {} };

/** A file in memory that never grows. */
class FixedFile implements DiskFile {
  readonly name: string;
  bytes: Buffer;
  constructor(name: string, bytes: Buffer) {
    this.name = name;
    this.bytes = bytes;
  }
  size(): number {
    return this.bytes.length;
  }
  read(target: Uint8Array, position: number): number {
    if (position >= this.bytes.length) return 0;
    return this.bytes.copy(target, 0, position, position + target.length);
  }
  readLater(): void {
    throw new TypeError('nothing is read later');
  }
  write(parts: readonly Uint8Array[], position: number): void {
    for (const part of parts) {
      if (position + part.length > this.bytes.length) throw new TypeError('written beyond the end');
      this.bytes.set(part, position);
      position += part.length;
    }
  }
  sync(): void {}
  syncNow(): void {}
  truncate(): void {}
  close(): void {}
}
class FixedDisk implements Disk {
  readonly files = new Map<string, FixedFile>();
  open(name: string): DiskFile {
    let file = this.files.get(name);
    if (file === undefined) {
      file = new FixedFile(name, Buffer.alloc(0));
      this.files.set(name, file);
    }
    return file;
  }
  exists(name: string): boolean {
    return this.files.has(name);
  }
  list(): string[] {
    return [...this.files.keys()];
  }
  rename(): void {}
  remove(): void {}
  syncDirectory(): void {}
  freeBytes(): number {
    return 2 ** 30;
  }
}

const ORDER = 16;

test('slot metadata', (t) => {
  const disk = new FixedDisk();
  const file = new SlotFile(ORDER, disk.open('data-16'), disk.open('meta-16'));
  const slot = file.at(3);
  const checks = Buffer.alloc(64, 0x31);
  const content = { image: 4, object: 5, pg: 65_537, since: 9, seq: 2 ** 40, checks };
  const copy = Buffer.alloc(metaCopyBytes(ORDER));
  fuzz(t, {
    samples: [encodeMeta(slot, 12, content), encodeMeta(slot, 13, null)].map((bytes) => Buffer.from(bytes)),
    capBytes: 0,
    decode(input, random) {
      // A copy always has its length: it is read from its place in a file.
      copy.fill(0);
      input.copy(copy, 0, 0, copy.length);
      if (random(2) === 0) copy.writeUInt32LE(hashBytes(copy.subarray(8, metaUsedBytes(ORDER))), 4);
      const found = decodeMeta(copy, ORDER, 3);
      if (found !== null && found.checks.length !== 64) throw new TypeError('checksums of another length');
      return found !== null;
    },
  });
});

const GEOMETRY = { segmentBytes: 2 * PAGE, segments: 2, saltA: 0x1234, saltB: 0x5678 };
const CHECKPOINT: Checkpoint = {
  sequence: 3,
  generation: 2,
  redoPosition: 0,
  chain: { position: -1, checksum: 0 },
  incarnation: 1,
  durablePosition: 0,
  geometry: GEOMETRY,
  census: 0,
  slotsSaved: 0,
  clusterId: 'c',
  pgTable: Buffer.alloc(48, 1),
};

test('checkpoint files', (t) => {
  const disk = new FixedDisk();
  const [a, b] = CHECKPOINT_NAMES.map((name) => disk.open(name) as FixedFile);
  const whole = encodeCheckpoint(CHECKPOINT);
  const used = whole.readUInt32LE(12);
  const page = Buffer.alloc(PAGE);
  fuzz(t, {
    samples: [whole.subarray(0, used), encodeCheckpoint({ ...CHECKPOINT, pgTable: Buffer.alloc(0) }).subarray(0, 192)],
    capBytes: 0,
    decode(input, random) {
      page.fill(0);
      input.copy(page);
      const total = page.readUInt32LE(12);
      if (random(2) === 0 && total >= 192 && total <= PAGE) page.writeUInt32LE(hashBytes(page.subarray(8, total)), 4);
      a!.bytes = page;
      b!.bytes = random(2) === 0 ? page.subarray(0, random(PAGE)) : Buffer.from('');
      const checkpoint = new CheckpointFiles(disk).read();
      const pgs = new PgTable();
      decodePgTable(checkpoint.pgTable, pgs);
      return true;
    },
  });
});

/** One batch with these records, at a position, chained to another. */
function batch(
  records: Partial<LogRecord>[],
  position: number,
  previous: { position: number; checksum: number },
): Buffer {
  const table = Buffer.alloc(PAGE);
  let at = HEADER_BYTES;
  for (const fields of records) {
    const record: LogRecord = { ...newRecord(), order: ORDER, pg: 65_536, since: 5, ...fields };
    encodeRecord(record, table, at);
    for (let i = 0; i < record.blocks; i++) table.writeUInt32LE(0x77, at + RECORD_BYTES + i * 4);
    at += recordBytes(record.blocks);
  }
  const header = {
    checksum: 0,
    incarnation: 1,
    previousChecksum: previous.checksum,
    position,
    previousPosition: previous.position,
    // Nothing after it was written by one who knew it to be durable: damage reads as a torn tail.
    durablePosition: 0,
    tablePages: 1,
    payloadPages: 0,
    records: records.length,
    usedBytes: at,
  };
  sealBatch(table, header, GEOMETRY.saltA, GEOMETRY.saltB);
  return table;
}

const FIRST = batch(
  [
    {
      type: RecordType.ENTRY,
      op: 1,
      seq: 1,
      image: 3,
      object: 7,
      slot: 0,
      length: 8192,
      flags: Flag.FRESH | Flag.DIRECT,
    },
    { type: RecordType.SET_PG, op: 1, since: 5 },
  ],
  0,
  { position: -1, checksum: 0 },
);
const SECOND = batch(
  [
    { type: RecordType.ENTRY, op: 2, seq: 2, previousSince: 5, image: 3, object: 7, slot: 0, length: 4096 },
    { type: RecordType.MERGE, op: 1, seq: 3, previousSince: 5, image: 3, object: 8 },
    { type: RecordType.TRUNCATE, since: 5, seq: 2 },
    { type: RecordType.RESET, since: 6, seq: 9 },
    { type: RecordType.ENTRY, op: 3, seq: 10, since: 6, image: 3, object: 7, slot: 0, flags: Flag.GONE },
  ],
  PAGE,
  { position: 0, checksum: FIRST.readUInt32LE(4) },
);
/** What a batch's table uses of its page. */
const USED = [FIRST, SECOND].map((table) => table.readUInt32LE(56));

test('batch tables', (t) => {
  const page = Buffer.alloc(PAGE);
  const record = newRecord();
  fuzz(t, {
    samples: [FIRST.subarray(0, USED[0]), SECOND.subarray(0, USED[1])],
    capBytes: 0,
    decode(input, random) {
      page.fill(0);
      input.copy(page);
      const used = page.readUInt32LE(56);
      if (used < HEADER_BYTES || used > PAGE) return false;
      if (random(2) === 0) page.writeUInt32LE(hashBytes(page.subarray(8, used)), 4);
      const header = decodeHeader(page);
      if (hashBytes(page.subarray(8, used)) !== header.checksum) return false;
      if (invalidRecords(page, header, record) !== null) return false;
      for (let at = HEADER_BYTES, i = 0; i < header.records; i++) {
        at = decodeRecord(record, page, at);
        if (at > used) throw new TypeError('a record leads out of the table');
      }
      return true;
    },
  });
});

const SEGMENTS = [0, 1].map((number) => new FixedFile(`log-${number}`, Buffer.alloc(GEOMETRY.segmentBytes)));
const LOG_SAMPLES = [Buffer.concat([FIRST.subarray(0, USED[0]), SECOND.subarray(0, USED[1])])];

/** The two batches on their pages of an else empty log. */
function lay(input: Buffer): void {
  for (const segment of SEGMENTS) segment.bytes.fill(0);
  input.copy(SEGMENTS[0]!.bytes, 0, 0, Math.min(USED[0]!, input.length));
  input.copy(SEGMENTS[0]!.bytes, PAGE, Math.min(USED[0]!, input.length), Math.min(input.length, PAGE));
}
function redo(): boolean {
  const disk = new FixedDisk();
  const content = new Content(new SlotFiles(disk), new Space(disk));
  const work = new Redo(SEGMENTS, { ...CHECKPOINT, pgTable: Buffer.alloc(0) }, content, QUIET);
  work.prepare();
  return work.run().batches > 0;
}
/** Redo looks at pages and tables, and scans segments in pieces; 1 MiB for slots and objects that records make. */
const LOG_CAP_BYTES = 16 * GEOMETRY.segmentBytes + 2 ** 20;

test('the log: batches, records and their chain', (t) => {
  fuzz(t, {
    samples: LOG_SAMPLES,
    capBytes: LOG_CAP_BYTES,
    share: 0.15,
    decode(input) {
      lay(input);
      return redo();
    },
  });
});

test('the log, when checksums and chain are right whatever the records say', (t) => {
  fuzz(t, {
    samples: LOG_SAMPLES,
    capBytes: LOG_CAP_BYTES,
    share: 0.15,
    decode(input) {
      lay(input);
      const { bytes } = SEGMENTS[0]!;
      const first = bytes.subarray(0, PAGE);
      const second = bytes.subarray(PAGE, 2 * PAGE);
      for (const table of [first, second]) {
        if (table === second) {
          second.writeUInt32LE(first.readUInt32LE(4), 20);
          second.writeDoubleLE(0, 32);
        }
        const used = table.readUInt32LE(56);
        if (used >= HEADER_BYTES && used <= PAGE) table.writeUInt32LE(hashBytes(table.subarray(8, used)), 4);
      }
      return redo();
    },
  });
});
