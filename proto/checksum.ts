// Checksums: xxHash32 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), by the xxhash-wasm library.
//
// A block's checksum is seeded with the place the block belongs to, so that a block read from the wrong place fails
// even though its bytes are whole. 0 is kept for "no data here": a real checksum of 0 is stored as 1.

import xxhash from 'xxhash-wasm';
import { BLOCK_BYTES } from './limits.ts';
import { smallHash } from './small-hash.ts';

const { h32Raw } = await xxhash();

/** Up to here smallHash() is faster than a call of the library. */
const SMALL_BYTES_MAX = 192;

/** xxHash32, seed 0, of bytes [start, end): 0 to 2^32 - 1. */
export function hashBytes(bytes: Uint8Array, start = 0, end = bytes.length): number {
  if (end - start <= SMALL_BYTES_MAX) return smallHash(bytes, start, end);
  return h32Raw(start === 0 && end === bytes.length ? bytes : bytes.subarray(start, end), 0);
}

/** Checksum value that means "this block holds no data and reads as zeros". */
export const NO_DATA = 0;

/** Seed for a block: image, object and block number mixed by integer multiplications (finaliser of MurmurHash3). */
export function blockSeed(image: number, object: number, block: number): number {
  let h = Math.imul(image, 0x9e3779b1) ^ Math.imul(object, 0x85ebca6b) ^ Math.imul(block + 1, 0xc2b2ae35);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Checksum of one 4 KiB block at its place. Never NO_DATA. */
export function blockChecksum(bytes: Uint8Array, image: number, object: number, block: number): number {
  return h32Raw(bytes, blockSeed(image, object, block)) || 1;
}

/** Checksums (u32 little endian each) of a payload of whole blocks that starts at `offset` bytes into the object. */
export function payloadChecksums(payload: Buffer, image: number, object: number, offset: number): Buffer {
  const blocks = payload.length / BLOCK_BYTES;
  const sums = Buffer.allocUnsafe(blocks * 4);
  const first = offset / BLOCK_BYTES;
  for (let i = 0; i < blocks; i++)
    sums.writeUInt32LE(blockChecksum(blockOf(payload, i), image, object, first + i), i * 4);
  return sums;
}

/**
 * The first block of `payload` that does not match `sums`, or -1 if all do. A block marked NO_DATA matches anything
 * here: readers must take it as zeros whatever the payload holds.
 */
export function firstMismatch(payload: Buffer, sums: Buffer, image: number, object: number, offset: number): number {
  const blocks = payload.length / BLOCK_BYTES;
  const first = offset / BLOCK_BYTES;
  for (let i = 0; i < blocks; i++) {
    const expected = sums.readUInt32LE(i * 4);
    if (expected === NO_DATA) continue;
    if (blockChecksum(blockOf(payload, i), image, object, first + i) !== expected) return i;
  }
  return -1;
}

/** Block `index` of a payload; most payloads are one block. */
const blockOf = (payload: Buffer, index: number): Buffer =>
  payload.length === BLOCK_BYTES ? payload : payload.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES);
