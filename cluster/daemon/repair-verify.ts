// A daemon looks at its own copy: which blocks of a range can be read and match their checksums?
//
// The store serves what it reads; whoever gets it checks. Here the daemon checks for itself, and a range that the disk
// refuses to give is read block by block, so that one bad sector costs one block. Also the digest by which two copies of
// an object are compared without reading them.

import { payloadPool } from '../../proto/buffer-pool.ts';
import { firstMismatch, hashBytes } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import type { ImageId } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { Store } from '../store/store.ts';

/**
 * Checksum that stands for "this block is known to be bad": the store sets it when it had to move a block that failed,
 * a member says so of what it can't prove. A block whose checksum happens to be this one is served like any other.
 */
export const BAD_BLOCK = 0xffff_ffff;

/** A range of whole blocks of one object. */
export interface Range {
  readonly image: ImageId;
  readonly object: number;
  readonly order: number;
  readonly offset: number;
  readonly length: number;
}

/** What a copy holds in a range. */
export interface Copy {
  /** u32 LE per block, as the copy's index has them. */
  readonly checks: Buffer;
  /** The bytes, of good blocks at least; null: all holes. May be of payloadPool. */
  payload: Buffer | null;
  /** Blocks, counted from the start of the range, that can't be read or don't match. */
  readonly bad: number[];
  /** Some of them could not be read at all, now: another time perhaps. */
  readonly unreadable: boolean;
}

/** Reads and verifies a range of this daemon's own copy. Rejects if there is more wrong than bad blocks. */
export async function verifyOwn(store: Store, range: Range): Promise<Copy> {
  const { image, object, order, offset, length } = range;
  const found = await readOwn(store, range);
  if (!(found instanceof StorageError)) {
    const { checks, payload } = found;
    const bad = payload === null ? [] : badBlocks(payload, checks, range);
    return { checks, payload, bad, unreadable: false };
  }
  if (found.code !== 'IO') throw found;
  if (length === BLOCK_BYTES) {
    const checks = Buffer.alloc(4);
    store.checksums(image, object)?.copy(checks, 0, (offset / BLOCK_BYTES) * 4, (offset / BLOCK_BYTES + 1) * 4);
    return { checks, payload: Buffer.alloc(BLOCK_BYTES), bad: [0], unreadable: true };
  }
  const checks = Buffer.alloc((length / BLOCK_BYTES) * 4);
  const payload = Buffer.alloc(length);
  const bad: number[] = [];
  let unreadable = false;
  for (let i = 0; i < length / BLOCK_BYTES; i++) {
    const at = i * BLOCK_BYTES;
    const block = await verifyOwn(store, { image, object, order, offset: offset + at, length: BLOCK_BYTES });
    block.checks.copy(checks, i * 4);
    block.payload?.copy(payload, at);
    payloadPool.give(block.payload);
    if (block.bad.length > 0) bad.push(i);
    unreadable ||= block.unreadable;
  }
  return { checks, payload, bad, unreadable };
}

/** Blocks of a payload that don't match `checks`, counted from its start. */
export function badBlocks(
  payload: Buffer,
  checks: Buffer,
  { image, object, offset }: Pick<Range, 'image' | 'object' | 'offset'>,
): number[] {
  const bad: number[] = [];
  for (let from = 0; from < checks.length / 4; ) {
    const rest = payload.subarray(from * BLOCK_BYTES);
    const at = firstMismatch(rest, checks.subarray(from * 4), image, object, offset + from * BLOCK_BYTES);
    if (at === -1) break;
    bad.push(from + at);
    from += at + 1;
  }
  return bad;
}

/** What two copies of an object are compared by: equal digests and versions, equal content. */
export function digestOf(store: Store, image: ImageId, object: number): number {
  const checks = store.checksums(image, object);
  return checks === null ? 0 : hashBytes(checks);
}

function readOwn(
  store: Store,
  { image, object, order, offset, length }: Range,
): Promise<{ checks: Buffer; payload: Buffer | null } | StorageError> {
  return new Promise((resolve, reject) => {
    store.read(image, object, order, offset, length, (error, checks, payload) => {
      if (error === null) resolve({ checks: checks!, payload });
      else if (error instanceof StorageError) resolve(error);
      else reject(error);
    });
  });
}
