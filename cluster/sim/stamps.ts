// What the workload writes: every 512-byte sector says which write made it and where it belongs, and can be believed.
//
//   sector: operation u32 | sector number in the image u32 | salt u32 | checksum u32 of the three, 32 times over
//
// Reading one back gives the operation's number, "zeros", or an error for anything else: torn, misplaced, damaged.

import assert from 'node:assert/strict';
import { payloadPool } from '../../proto/buffer-pool.ts';

export const SECTOR_BYTES = 512;
const STAMP_BYTES = 16;

/** Content of sectors [first, first + count) as operation `operation` writes them. */
export function stampSectors(operation: number, first: number, count: number, salt: number): Buffer {
  assert(operation > 0);
  const bytes = payloadPool.take(count * SECTOR_BYTES);
  const stamp = Buffer.allocUnsafe(STAMP_BYTES);
  for (let i = 0; i < count; i++) {
    stamp.writeUInt32LE(operation, 0);
    stamp.writeUInt32LE(first + i, 4);
    stamp.writeUInt32LE(salt, 8);
    stamp.writeUInt32LE(mixed(operation, first + i, salt), 12);
    bytes.fill(stamp, i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
  }
  return bytes;
}

/**
 * Operation that wrote each sector, 0 for zeros.
 * @throws Error that says which sector is not as any operation wrote it
 */
export function readStamps(bytes: Buffer, first: number, salt: number): Uint32Array {
  assert(bytes.length % SECTOR_BYTES === 0);
  const operations = new Uint32Array(bytes.length / SECTOR_BYTES);
  for (let i = 0; i < operations.length; i++) {
    const sector = bytes.subarray(i * SECTOR_BYTES, (i + 1) * SECTOR_BYTES);
    const operation = sector.readUInt32LE(0);
    operations[i] = operation;
    const periodic = sector.subarray(STAMP_BYTES).equals(sector.subarray(0, SECTOR_BYTES - STAMP_BYTES));
    if (!periodic) throw new Error(`sector ${first + i} is torn or damaged`);
    if (
      operation === 0 &&
      sector.readUInt32LE(4) === 0 &&
      sector.readUInt32LE(8) === 0 &&
      sector.readUInt32LE(12) === 0
    )
      continue;
    const number = sector.readUInt32LE(4);
    if (sector.readUInt32LE(12) !== mixed(operation, number, sector.readUInt32LE(8)))
      throw new Error(`sector ${first + i} is damaged`);
    if (number !== first + i || sector.readUInt32LE(8) !== salt)
      throw new Error(`sector ${first + i} holds sector ${number} of operation ${operation}`);
  }
  return operations;
}

function mixed(operation: number, sector: number, salt: number): number {
  const h = Math.imul(operation ^ 0x5bd1e995, 0x9e3779b1) ^ Math.imul(sector + salt, 0x85ebca6b);
  return Math.imul(h ^ (h >>> 15), 0xc2b2ae35) >>> 0;
}
