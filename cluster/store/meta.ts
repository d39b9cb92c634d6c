// The metadata of one slot on disk, written at checkpoints: two copies, overwritten by turns.
//
//   copy: magic u32 | checksum u32 | generation f64 | kind u8 | order u8 | 0 u16 | slot u32 | image u32 | object u32 |
//         pg u32 | since u32 | seq f64 | 0 to byte 64 | ground bits, to a multiple of 4 | checksum u32 per block
//
// A copy counts if its checksum is right, it names its own place, and its generation is not newer than the newest
// durable checkpoint; of two that count, the newer one. Copies are whole pages for objects of 512 KiB and more, so that
// writing one reads nothing; smaller ones are 512 bytes, the unit that disks write whole.

import { hashBytes } from '../../proto/checksum.ts';
import { BLOCK_SHIFT } from '../../proto/limits.ts';
import { PAGE_BYTES } from './limits.ts';
import type { Slot } from './slots.ts';

const META_MAGIC = 0x4154454d;
const HEAD_BYTES = 64;
const SECTOR_BYTES = 512;

const blocksOf = (order: number): number => 1 << (order - BLOCK_SHIFT);
const groundBytes = (order: number): number => Math.ceil(blocksOf(order) / 32) * 4;
const usedBytes = (order: number): number => HEAD_BYTES + groundBytes(order) + blocksOf(order) * 4;

export function metaCopyBytes(order: number): number {
  const used = usedBytes(order);
  return used <= SECTOR_BYTES ? SECTOR_BYTES : Math.ceil(used / PAGE_BYTES) * PAGE_BYTES;
}

/** Where a copy stands in the meta file. */
export const metaPlace = (order: number, slot: number, side: number): number =>
  (slot * 2 + side) * metaCopyBytes(order);

export interface MetaCopy {
  generation: number;
  live: boolean;
  image: number;
  object: number;
  pg: number;
  since: number;
  seq: number;
  /** Both are views of the buffer decoded. */
  ground: Buffer;
  checks: Buffer;
}

/** What a slot holds, or null for a free one. */
export interface MetaContent {
  image: number;
  object: number;
  pg: number;
  since: number;
  seq: number;
  checks: Buffer;
}

/** Bytes of a copy that say something; the rest of it is zeros. */
export const metaUsedBytes = usedBytes;

/** @param copy where to, metaUsedBytes() long; made if left out */
export function encodeMeta(
  slot: Slot,
  generation: number,
  content: MetaContent | null,
  copy: Buffer = Buffer.allocUnsafe(usedBytes(slot.file.order)),
): Buffer {
  const { order } = slot.file;
  copy.fill(0, 0, HEAD_BYTES + groundBytes(order));
  if (content === null) copy.fill(0, HEAD_BYTES);
  copy.writeUInt32LE(META_MAGIC, 0);
  copy.writeDoubleLE(generation, 8);
  copy[16] = content === null ? 0 : 1;
  copy[17] = order;
  copy.writeUInt32LE(slot.number, 20);
  if (content !== null) {
    copy.writeUInt32LE(content.image, 24);
    copy.writeUInt32LE(content.object, 28);
    copy.writeUInt32LE(content.pg, 32);
    copy.writeUInt32LE(content.since, 36);
    copy.writeDoubleLE(content.seq, 40);
    content.checks.copy(copy, HEAD_BYTES + groundBytes(order));
  }
  slot.ground.copy(copy, HEAD_BYTES);
  copy.writeUInt32LE(hashBytes(copy.subarray(8, usedBytes(order))), 4);
  return copy;
}

/** A copy that is whole and stands where it belongs, or null. */
export function decodeMeta(copy: Buffer, order: number, slot: number): MetaCopy | null {
  if (copy.readUInt32LE(0) !== META_MAGIC || copy[17] !== order || copy.readUInt32LE(20) !== slot) return null;
  if (hashBytes(copy.subarray(8, usedBytes(order))) !== copy.readUInt32LE(4)) return null;
  const groundEnd = HEAD_BYTES + groundBytes(order);
  return {
    generation: copy.readDoubleLE(8),
    live: copy[16] === 1,
    image: copy.readUInt32LE(24),
    object: copy.readUInt32LE(28),
    pg: copy.readUInt32LE(32),
    since: copy.readUInt32LE(36),
    seq: copy.readDoubleLE(40),
    ground: copy.subarray(HEAD_BYTES, HEAD_BYTES + Math.max(1, blocksOf(order) >> 3)),
    checks: copy.subarray(groundEnd, groundEnd + blocksOf(order) * 4),
  };
}

/** A slot's share of the census: the exclusive or over all slots tells whether each stands at the right generation. */
export function censusOf(order: number, slot: number, generation: number): number {
  if (generation === 0) return 0;
  let h = Math.imul(order + 1, 0x9e3779b1) ^ Math.imul(slot + 1, 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 15) ^ (generation % 2 ** 32), 0xc2b2ae35);
  h = Math.imul(h ^ (h >>> 13) ^ Math.floor(generation / 2 ** 32), 0x27d4eb2f);
  return (h ^ (h >>> 16)) >>> 0;
}
