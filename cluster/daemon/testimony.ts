// What this daemon tells a master that is rebuilt from its daemons. See cluster/master/recover.ts for what it is worth.
//
// What it says of its PGs must be on stable storage before it is said: a new interval will be judged by it, and this
// daemon may lose its power in between.

import type { PgTestimony, Testimony } from '../../proto/control.ts';
import type { Epoch } from '../../proto/ids.ts';
import { fullUpdate, type MapUpdate } from '../../proto/map.ts';
import type { Store } from '../store/store.ts';
import type { Daemon } from './daemon.ts';
import type { SavedMap } from './saved-map.ts';

/** @param saved what was in the directory when the process started: better than nothing before the first map came */
export async function testimonyOf(daemon: Daemon, saved: SavedMap | null): Promise<Testimony> {
  const { identity, map, store } = daemon;
  // First looked at, then synced: what changes meanwhile is not told.
  const pgs = store.pgs().map((pg) => pgTestimony(store, pg));
  await new Promise<void>((resolve, reject) => {
    store.sync((error) => (error === null ? resolve() : reject(error)));
  });
  const newest: MapUpdate | null =
    map !== null && map.epoch >= (saved?.map.to ?? 0) ? fullUpdate(map) : (saved?.map ?? null);
  const newestEpoch: Epoch = Math.max(identity.newestEpoch, newest?.to ?? 0);
  return {
    clusterId: identity.clusterId,
    uuid: identity.uuid,
    id: daemon.id === 0 ? (identityIn(newest, identity.uuid) ?? 0) : daemon.id,
    bootId: identity.bootId,
    newestEpoch,
    map: newest,
    // Facts of an older process stay true; where both know a PG, this one's interval is the newer.
    activated: [...(saved?.activated ?? []), ...daemon.activatedPgs()],
    pgs,
    sessionMost: sessionMost(store),
    imageMost: imageMost(store),
  };
}

const identityIn = (map: MapUpdate | null, uuid: string): number | undefined =>
  map?.daemons.find((entry) => entry.uuid === uuid)?.id;

function pgTestimony(store: Store, pg: number): PgTestimony {
  const { les, complete, last } = store.pgInfo(pg);
  return { pg, les, complete, lastSince: last.since };
}

function sessionMost(store: Store): number {
  let most = 0;
  for (const pg of store.pgs())
    for (const { session } of store.logAfter(pg, store.pgInfo(pg).tail) ?? []) most = Math.max(most, session);
  return most;
}

function imageMost(store: Store): number {
  let most = 0;
  for (const pg of store.pgs()) for (const { image } of store.objects(pg)) most = Math.max(most, image);
  return most;
}
