// The storage map: what the master publishes and everybody else obeys. Immutable; a newer epoch is a new object.
//
// Clients hash and index: pg = pgOfObject(...), acting = map.pgs.get(pg).acting, primary = acting[0]. Only the master
// computes placement; nobody else needs to agree with it about anything but this table.

import assert from 'node:assert/strict';
import { hashBytes } from './checksum.ts';
import { type DaemonId, type Epoch, type ImageId, type PgId, type PoolId, pgId } from './ids.ts';
import type { Layout } from './striping.ts';

export interface DaemonEntry {
  readonly id: DaemonId;
  /** Of its directory, made once. */
  readonly uuid: string;
  /** Of its process: another after every start. */
  readonly bootId: string;
  /** Data plane, "host:port". */
  readonly address: string;
  /** Data plane for those on the same `host`, "unix:/path", or "". */
  readonly unixAddress: string;
  /** Machine it runs on: equal for two processes that can share a unix socket. */
  readonly host: string;
  /** Failure domain: no two members of a PG share one, unless there are too few. */
  readonly domain: string;
  /** Share of the data relative to the others; 0 takes none. */
  readonly weight: number;
  /** Its process is alive, as far as the master knows. */
  readonly up: boolean;
  /** Placement may use it. A daemon that stays down goes out, and its data is copied elsewhere. */
  readonly in: boolean;
}

export interface PoolEntry {
  readonly id: PoolId;
  readonly name: string;
  /** A power of two. */
  readonly pgCount: number;
  readonly replicas: number;
  /** Members that must be in the acting set before the PG serves. */
  readonly minSize: number;
  /** What an ack means: in every member's page cache, or on its stable storage. */
  readonly durability: 'flush' | 'sync';
}

export interface PgEntry {
  readonly pg: PgId;
  /** Who holds it now; the first is the primary. Empty: nobody. */
  readonly acting: readonly DaemonId[];
  /** Epoch in which the current interval (this very acting set, these very processes) began. */
  readonly since: Epoch;
  /**
   * Not empty: the PG must not serve, because an earlier interval may have taken writes and none of its members is in
   * `acting`. These are the daemons any one of which would end the wait.
   */
  readonly waitFor: readonly DaemonId[];
  /**
   * Epoch that began the newest interval which the master allowed to take writes (activate), as of the beginning of
   * this interval; 0 if none ever did. A member holds every acked write if it is complete and was activated in that
   * interval or a later one (its les is not smaller).
   */
  readonly lastActive: Epoch;
}

export interface ImageEntry extends Layout {
  readonly id: ImageId;
  readonly name: string;
  readonly pool: PoolId;
  readonly sizeBytes: number;
  /** Lock epoch of the newest writer; requests with an older one are refused. 0: never locked. */
  readonly fence: number;
  readonly state: 'ready' | 'removing';
}

export interface StorageMap {
  readonly clusterId: string;
  readonly epoch: Epoch;
  readonly daemons: ReadonlyMap<DaemonId, DaemonEntry>;
  readonly pools: ReadonlyMap<PoolId, PoolEntry>;
  readonly pgs: ReadonlyMap<PgId, PgEntry>;
  readonly images: ReadonlyMap<ImageId, ImageEntry>;
}

/** What changed between two epochs. `from` 0: everything, whatever the receiver had. */
export interface MapUpdate {
  readonly clusterId: string;
  readonly from: Epoch;
  readonly to: Epoch;
  readonly daemons: readonly DaemonEntry[];
  readonly pools: readonly PoolEntry[];
  readonly pgs: readonly PgEntry[];
  readonly images: readonly ImageEntry[];
  readonly removedDaemons: readonly DaemonId[];
  readonly removedPools: readonly PoolId[];
  readonly removedPgs: readonly PgId[];
  readonly removedImages: readonly ImageId[];
}

/**
 * The map after `update`. Returns `map` itself if the update is not newer. Throws if it does not follow `map`: the
 * receiver must then ask for a full one.
 */
export function applyUpdate(map: StorageMap | null, update: MapUpdate): StorageMap {
  if (map !== null && update.to <= map.epoch) return map;
  const full = update.from === 0;
  if (!full && (map === null || map.epoch !== update.from))
    throw new Error(`map update from epoch ${update.from} does not follow epoch ${map?.epoch ?? 0}`);
  if (map !== null && map.clusterId !== update.clusterId)
    throw new Error(`map of cluster ${update.clusterId}, expected ${map.clusterId}`);
  const base = full ? null : map;
  return {
    clusterId: update.clusterId,
    epoch: update.to,
    daemons: merged(base?.daemons, update.daemons, update.removedDaemons, (d) => d.id),
    pools: merged(base?.pools, update.pools, update.removedPools, (p) => p.id),
    pgs: merged(base?.pgs, update.pgs, update.removedPgs, (p) => p.pg),
    images: merged(base?.images, update.images, update.removedImages, (i) => i.id),
  };
}

/** The whole map as an update, for a receiver that has none or is too far behind. */
export function fullUpdate(map: StorageMap): MapUpdate {
  return {
    clusterId: map.clusterId,
    from: 0,
    to: map.epoch,
    daemons: [...map.daemons.values()],
    pools: [...map.pools.values()],
    pgs: [...map.pgs.values()],
    images: [...map.images.values()],
    removedDaemons: [],
    removedPools: [],
    removedPgs: [],
    removedImages: [],
  };
}

function merged<V>(
  base: ReadonlyMap<number, V> | undefined,
  set: readonly V[],
  removed: readonly number[],
  key: (value: V) => number,
): ReadonlyMap<number, V> {
  if (base !== undefined && set.length === 0 && removed.length === 0) return base;
  const next = new Map(base);
  for (const value of set) next.set(key(value), value);
  for (const id of removed) next.delete(id);
  return next;
}

const hashScratch = Buffer.alloc(8);

/** Placement group of an object: xxHash32 of (image u32 LE, object u32 LE), masked to the pool's PG count. */
export function pgOfObject(pool: PoolEntry, image: ImageId, object: number): PgId {
  assert(Number.isInteger(Math.log2(pool.pgCount)));
  hashScratch.writeUInt32LE(image, 0);
  hashScratch.writeUInt32LE(object, 4);
  return pgId(pool.id, hashBytes(hashScratch) & (pool.pgCount - 1));
}
