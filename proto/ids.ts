// The identifiers both sides agree on, and how they are packed into one number each.
//
// Everything here is a plain `number` below 2^53: no BigInt and no string is built on the data path. The ranges are
// chosen so that the packed forms stay safe integers; the functions that pack assert them.

import assert from 'node:assert/strict';

/** Storage daemon number, 1 to 65,535, handed out by the master. 0 means none. */
export type DaemonId = number;
/** Version of the storage map, 1 to 2^32 - 1; 0 means "no map yet". Never decreases in any durable state. */
export type Epoch = number;
/** Image number, 1 to 2^21 - 1, never used again after the image is removed. */
export type ImageId = number;
/** Pool number, 1 to 255. */
export type PoolId = number;
/** A placement group: pool * 65,536 + index in the pool. */
export type PgId = number;
/** Client session number, handed out by the master, never used again. */
export type SessionId = number;

export const IMAGE_ID_MAX = 2 ** 21 - 1;
export const OBJECT_NUMBER_MAX = 2 ** 32 - 1;
export const POOL_ID_MAX = 255;
export const PG_COUNT_MAX = 65_536;

export function pgId(pool: PoolId, index: number): PgId {
  assert(pool >= 1 && pool <= POOL_ID_MAX && index >= 0 && index < PG_COUNT_MAX);
  return pool * PG_COUNT_MAX + index;
}
export const poolOfPg = (pg: PgId): PoolId => Math.floor(pg / PG_COUNT_MAX);
export const indexOfPg = (pg: PgId): number => pg % PG_COUNT_MAX;
/** "1.2a": pool, then the index in hexadecimal, as Ceph prints it. */
export const pgName = (pg: PgId): string => `${poolOfPg(pg)}.${indexOfPg(pg).toString(16)}`;

/** One object as one Map key: image * 2^32 + object number (at most 2^53 - 1). */
export type ObjectKey = number;
export const objectKey = (image: ImageId, object: number): ObjectKey => image * 2 ** 32 + object;
export const imageOfKey = (key: ObjectKey): ImageId => Math.floor(key / 2 ** 32);
export const numberOfKey = (key: ObjectKey): number => key % 2 ** 32;

/**
 * Version of a PG's log entry and of the object it last touched: the epoch that began the interval in which it was
 * assigned, and a sequence number that grows by exactly one per entry of the PG, across intervals.
 * {since: 0, seq: 0} is before everything; an object at that version never equals any real one.
 */
export interface Version {
  readonly since: Epoch;
  readonly seq: number;
}
export const VERSION_ZERO: Version = Object.freeze({ since: 0, seq: 0 });
export function compareVersions(a: Version, b: Version): number {
  return a.since !== b.since ? a.since - b.since : a.seq - b.seq;
}
export const sameVersion = (a: Version, b: Version): boolean => a.since === b.since && a.seq === b.seq;
export const versionName = (v: Version): string => `${v.since}'${v.seq}`;
