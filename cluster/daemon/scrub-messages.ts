// The listing that light scrub compares: (object, version, digest of its block checksums), 28 bytes each, little endian:
//
//   image u32 | object u32 | order u32 | version since u32, seq u64 | digest u32

import { StorageError } from '../../proto/errors.ts';
import { readU64, writeU64 } from '../../proto/frame.ts';
import { FRAME_META_MAX } from '../../proto/limits.ts';
import type { ObjectInfo } from '../store/store.ts';

export interface ObjectDigest extends ObjectInfo {
  readonly digest: number;
}

const DIGEST_BYTES = 28;
/** Objects per frame. */
export const DIGESTS_MAX = Math.floor(FRAME_META_MAX / DIGEST_BYTES);

export function encodeDigests(objects: readonly ObjectDigest[]): Buffer {
  const target = Buffer.alloc(objects.length * DIGEST_BYTES);
  let at = 0;
  for (const { image, object, order, version, digest } of objects) {
    target.writeUInt32LE(image, at);
    target.writeUInt32LE(object, at + 4);
    target.writeUInt32LE(order, at + 8);
    target.writeUInt32LE(version.since, at + 12);
    writeU64(target, version.seq, at + 16);
    target.writeUInt32LE(digest, at + 24);
    at += DIGEST_BYTES;
  }
  return target;
}

/** Throws INVALID on anything but a listing. */
export function decodeDigests(from: Buffer | null): ObjectDigest[] {
  if (from === null) return [];
  if (from.length % DIGEST_BYTES !== 0) throw new StorageError('INVALID', 'digest listing of a broken length');
  const objects: ObjectDigest[] = [];
  for (let at = 0; at < from.length; at += DIGEST_BYTES) {
    const seq = readU64(from, at + 16);
    if (Number.isNaN(seq)) throw new StorageError('INVALID', 'sequence number above 2^53 - 1');
    objects.push({
      image: from.readUInt32LE(at),
      object: from.readUInt32LE(at + 4),
      order: from.readUInt32LE(at + 8),
      version: { since: from.readUInt32LE(at + 12), seq },
      digest: from.readUInt32LE(at + 24),
    });
  }
  return objects;
}
