// The two checkpoint files: what redo starts from. Both hold the newest checkpoint except while one is being replaced.
//
//   magic u32 | checksum u32 (of all after it) | format u32 | total bytes u32 | sequence f64 | generation f64 |
//   redo position f64 | chain position f64 | chain checksum u32 | incarnation u32 | durable position f64 |
//   segment bytes u32 | segments u32 | salt u32 u32 | census u32 | slots saved u32 | PGs u32 | cluster id length u32 |
//   cluster id, 64 bytes | 0 to byte 192 | per PG: pg u32 | les u32 | complete u32 | last since u32 | last seq f64
//
// `sequence` says which file is newer; `generation` which copies of slot metadata count: a start writes a new sequence of
// the same generation.

import { hashBytes } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { type Disk, DiskError, type DiskFile } from '../../proto/ports.ts';
import { PAGE_BYTES } from './limits.ts';
import type { Geometry } from './log.ts';
import type { PgTable } from './pg-log.ts';
import type { Chain } from './snapshot.ts';

const MAGIC = 0x54504b43;
const FORMAT = 1;
const HEAD_BYTES = 192;
const PG_BYTES = 24;
const CLUSTER_ID_MAX = 64;
export const CHECKPOINT_NAMES = ['checkpoint.a', 'checkpoint.b'] as const;
/** Both files are this large from the beginning, so that a full disk does not stop a checkpoint of up to 2,700 PGs. */
export const CHECKPOINT_FILE_BYTES = 16 * PAGE_BYTES;

export interface Checkpoint {
  sequence: number;
  generation: number;
  redoPosition: number;
  chain: Chain;
  incarnation: number;
  /** The log was durable at least to here. */
  durablePosition: number;
  geometry: Geometry;
  /** Exclusive or of censusOf() over all slots with metadata, and their number. */
  census: number;
  slotsSaved: number;
  clusterId: string;
  pgTable: Buffer;
}

export function encodePgTable(pgs: PgTable): Buffer {
  const table = Buffer.alloc(pgs.size * PG_BYTES);
  let at = 0;
  for (const state of pgs.all()) {
    table.writeUInt32LE(state.pg, at);
    table.writeUInt32LE(state.les, at + 4);
    table.writeUInt32LE(state.complete ? 1 : 0, at + 8);
    table.writeUInt32LE(state.lastSince, at + 12);
    table.writeDoubleLE(state.lastSeq, at + 16);
    at += PG_BYTES;
  }
  return table;
}

/** PG states of the checkpoint; a log whose newest entry is not `last` is emptied, the others were found in the log. */
export function decodePgTable(table: Buffer, pgs: PgTable): void {
  for (let at = 0; at < table.length; at += PG_BYTES) {
    const state = pgs.take(table.readUInt32LE(at));
    state.les = table.readUInt32LE(at + 4);
    state.complete = table.readUInt32LE(at + 8) === 1;
    const since = table.readUInt32LE(at + 12);
    const seq = table.readDoubleLE(at + 16);
    if (state.lastSeq !== seq || state.lastSince !== since) state.reset(since, seq);
  }
}

export function encodeCheckpoint(checkpoint: Checkpoint): Buffer {
  const { geometry, pgTable } = checkpoint;
  const total = HEAD_BYTES + pgTable.length;
  const bytes = Buffer.alloc(Math.ceil(total / PAGE_BYTES) * PAGE_BYTES);
  bytes.writeUInt32LE(MAGIC, 0);
  bytes.writeUInt32LE(FORMAT, 8);
  bytes.writeUInt32LE(total, 12);
  bytes.writeDoubleLE(checkpoint.sequence, 16);
  bytes.writeDoubleLE(checkpoint.generation, 24);
  bytes.writeDoubleLE(checkpoint.redoPosition, 32);
  bytes.writeDoubleLE(checkpoint.chain.position, 40);
  bytes.writeUInt32LE(checkpoint.chain.checksum, 48);
  bytes.writeUInt32LE(checkpoint.incarnation, 52);
  bytes.writeDoubleLE(checkpoint.durablePosition, 56);
  bytes.writeUInt32LE(geometry.segmentBytes, 64);
  bytes.writeUInt32LE(geometry.segments, 68);
  bytes.writeUInt32LE(geometry.saltA, 72);
  bytes.writeUInt32LE(geometry.saltB, 76);
  bytes.writeUInt32LE(checkpoint.census, 80);
  bytes.writeUInt32LE(checkpoint.slotsSaved, 84);
  bytes.writeUInt32LE(pgTable.length / PG_BYTES, 88);
  const clusterId = Buffer.from(checkpoint.clusterId, 'utf8');
  if (clusterId.length > CLUSTER_ID_MAX) throw new StorageError('INVALID', 'the cluster id is longer than 64 bytes');
  bytes.writeUInt32LE(clusterId.length, 92);
  clusterId.copy(bytes, 96);
  pgTable.copy(bytes, HEAD_BYTES);
  bytes.writeUInt32LE(hashBytes(bytes.subarray(8, total)), 4);
  return bytes;
}

function decodeCheckpoint(bytes: Buffer): Checkpoint | null {
  if (bytes.length < HEAD_BYTES || bytes.readUInt32LE(0) !== MAGIC) return null;
  const total = bytes.readUInt32LE(12);
  if (total < HEAD_BYTES || total > bytes.length) return null;
  if (hashBytes(bytes.subarray(8, total)) !== bytes.readUInt32LE(4)) return null;
  const format = bytes.readUInt32LE(8);
  if (format !== FORMAT)
    throw new StorageError('UNSUPPORTED', `the store has format ${format}, this program knows ${FORMAT}`);
  if (HEAD_BYTES + bytes.readUInt32LE(88) * PG_BYTES !== total || bytes.readUInt32LE(92) > CLUSTER_ID_MAX) return null;
  return {
    sequence: bytes.readDoubleLE(16),
    generation: bytes.readDoubleLE(24),
    redoPosition: bytes.readDoubleLE(32),
    chain: { position: bytes.readDoubleLE(40), checksum: bytes.readUInt32LE(48) },
    incarnation: bytes.readUInt32LE(52),
    durablePosition: bytes.readDoubleLE(56),
    geometry: {
      segmentBytes: bytes.readUInt32LE(64),
      segments: bytes.readUInt32LE(68),
      saltA: bytes.readUInt32LE(72),
      saltB: bytes.readUInt32LE(76),
    },
    census: bytes.readUInt32LE(80),
    slotsSaved: bytes.readUInt32LE(84),
    clusterId: bytes.toString('utf8', 96, 96 + bytes.readUInt32LE(92)),
    pgTable: bytes.subarray(HEAD_BYTES, HEAD_BYTES + bytes.readUInt32LE(88) * PG_BYTES),
  };
}

export class CheckpointFiles {
  private readonly files: readonly [DiskFile, DiskFile];
  /** The one to be written first: not the newest, or not readable. */
  private next: 0 | 1 = 0;
  /** What read() found, byte by byte. */
  private found = Buffer.alloc(0);

  constructor(disk: Disk) {
    const [a, b] = CHECKPOINT_NAMES;
    this.files = [disk.open(a, true), disk.open(b, true)];
  }

  get first(): DiskFile {
    return this.files[this.next];
  }

  get second(): DiskFile {
    return this.files[1 - this.next]!;
  }

  /** The newest whole checkpoint. Throws IO if there is none. */
  read(): Checkpoint {
    const contents = this.files.map((file) => {
      const bytes = Buffer.alloc(file.size());
      file.read(bytes, 0);
      return bytes;
    });
    const [a, b] = contents.map(decodeCheckpoint);
    if (!a && !b) throw new StorageError('IO', 'neither checkpoint.a nor checkpoint.b is readable');
    const aIsNewest = a && (!b || a.sequence >= b.sequence);
    this.next = aIsNewest ? 1 : 0;
    this.found = contents[aIsNewest ? 0 : 1]!;
    return aIsNewest ? a : b!;
  }

  /**
   * Writes what read() found where it is, and syncs it. It may be there in the page cache only, if the sync that should
   * have brought it to the disk failed; then the other file, which is to be overwritten next, is all there is.
   */
  affirm(): void {
    const newest = this.files[1 - this.next]!;
    newest.write([this.found], 0);
    newest.syncNow();
  }

  /** Replaces the older checkpoint. Once this is on stable storage the new one is in force. */
  writeFirst(bytes: Buffer): void {
    // Room in both before either is changed; what is after a checkpoint's end does not count.
    for (const file of this.files) {
      const size = file.size();
      if (size < bytes.length) file.write([Buffer.alloc(bytes.length - size)], size);
    }
    this.first.write([bytes], 0);
  }

  /** Makes the other file the same, so that one bad sector does not cost the checkpoint; a full disk does not matter. */
  writeSecond(bytes: Buffer): void {
    try {
      this.second.write([bytes], 0);
    } catch (error) {
      if (!(error instanceof DiskError && error.code === 'NO_SPACE')) throw error;
    }
  }

  /** The next checkpoint is written to the other file first. */
  swap(): void {
    this.next = this.next === 0 ? 1 : 0;
  }

  close(): void {
    for (const file of this.files) file.close();
  }
}
