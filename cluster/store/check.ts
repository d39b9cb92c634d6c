// What a caller may ask of a store, checked once at its border by both backends. Past it nothing is checked again.

import { NO_DATA } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { IMAGE_ID_MAX, OBJECT_NUMBER_MAX, type Version, versionName } from '../../proto/ids.ts';
import { BLOCK_BYTES, OBJECT_ORDER_MAX, OBJECT_ORDER_MIN } from '../../proto/limits.ts';
import { EntryOp, type LogEntry, type Recovered } from './store.ts';

/** Why this is no range of whole blocks of an object, or null. */
export function invalidExtent(
  image: number,
  object: number,
  order: number,
  offset: number,
  length: number,
): string | null {
  if (!Number.isInteger(order) || order < OBJECT_ORDER_MIN || order > OBJECT_ORDER_MAX) return `object order ${order}`;
  if (!Number.isInteger(image) || image < 0 || image > IMAGE_ID_MAX) return `image ${image}`;
  if (!Number.isInteger(object) || object < 0 || object > OBJECT_NUMBER_MAX) return `object ${object}`;
  if (!Number.isInteger(offset) || offset < 0 || offset % BLOCK_BYTES !== 0) return `offset ${offset}`;
  if (!Number.isInteger(length) || length < 0 || length % BLOCK_BYTES !== 0) return `length ${length}`;
  if (offset + length > 1 << order) return `${offset}+${length} ends after the object`;
  return null;
}

/** Why `next` can't be the entry after `last`, or null. */
export function invalidSuccessor(last: Version, next: Version): string | null {
  if (next.seq === last.seq + 1 && next.since >= last.since && next.since > 0) return null;
  return `version ${versionName(next)} does not follow ${versionName(last)}`;
}

export function checkEntry(entry: LogEntry, payload: Buffer | null, checks: Buffer | null, last: Version): void {
  const why =
    invalidExtent(entry.image, entry.object, entry.order, entry.offset, entry.length) ??
    invalidSuccessor(last, entry.version) ??
    invalidPayload(entry, payload, checks);
  if (why !== null) throw new StorageError('INVALID', `append: ${why}`);
}

function invalidPayload(entry: LogEntry, payload: Buffer | null, checks: Buffer | null): string | null {
  if (entry.op === EntryOp.WRITE) {
    if (entry.length === 0) return 'a write of nothing';
    if (payload === null || payload.length !== entry.length)
      return `payload of ${payload?.length} bytes, not ${entry.length}`;
    return invalidChecks(checks, entry.length) ?? (hasHole(checks!) ? 'a checksum that means no data' : null);
  }
  if (payload !== null || checks !== null) return 'a payload with an operation that has none';
  if (entry.op === EntryOp.ZERO) return entry.length === 0 ? 'a zero of nothing' : null;
  return entry.op === EntryOp.DELETE ? null : `operation ${entry.op}`;
}

function hasHole(checks: Buffer): boolean {
  for (let at = 0; at < checks.length; at += 4) if (checks.readUInt32LE(at) === NO_DATA) return true;
  return false;
}

function invalidChecks(checks: Buffer | null, length: number): string | null {
  const bytes = (length / BLOCK_BYTES) * 4;
  return checks !== null && checks.length === bytes ? null : `checksums of ${checks?.length} bytes, not ${bytes}`;
}

export function checkRecovered(piece: Recovered, payload: Buffer | null, checks: Buffer | null): void {
  const { image, object, order, offset, length } = piece;
  let why = invalidExtent(image, object, order, offset, length);
  if (why === null && length > 0) {
    why = invalidChecks(checks, length);
    if (why === null && payload !== null && payload.length !== length)
      why = `payload of ${payload.length} bytes, not ${length}`;
    if (why === null && payload === null && checks!.some((byte) => byte !== 0)) why = 'checksums without a payload';
  }
  if (why !== null) throw new StorageError('INVALID', `recover: ${why}`);
}

export function checkOrder(known: number, asked: number): void {
  if (known !== asked) throw new StorageError('INVALID', `the object has size 2^${known}, the request says 2^${asked}`);
}
