// Updates of the storage map joined together: what a receiver that fell behind needs instead of each of them.

import assert from 'node:assert/strict';
import type { MapUpdate } from './map.ts';

/**
 * One update that does what `first` and then `second` do. It is never larger than the map they lead to, however many
 * are joined: that is what bounds the memory of a slow receiver.
 */
export function joinUpdates(first: MapUpdate, second: MapUpdate): MapUpdate {
  if (second.from === 0) return second;
  assert(first.to === second.from && first.clusterId === second.clusterId, 'updates follow each other');
  const daemons = joined(first.daemons, first.removedDaemons, second.daemons, second.removedDaemons, (d) => d.id);
  const pools = joined(first.pools, first.removedPools, second.pools, second.removedPools, (p) => p.id);
  const pgs = joined(first.pgs, first.removedPgs, second.pgs, second.removedPgs, (p) => p.pg);
  const images = joined(first.images, first.removedImages, second.images, second.removedImages, (i) => i.id);
  const full = first.from === 0; // a full update removes nothing: what it does not name is not there
  return {
    clusterId: second.clusterId,
    from: first.from,
    to: second.to,
    daemons: daemons.set,
    pools: pools.set,
    pgs: pgs.set,
    images: images.set,
    removedDaemons: full ? [] : daemons.removed,
    removedPools: full ? [] : pools.removed,
    removedPgs: full ? [] : pgs.removed,
    removedImages: full ? [] : images.removed,
  };
}

function joined<V>(
  firstSet: readonly V[],
  firstRemoved: readonly number[],
  secondSet: readonly V[],
  secondRemoved: readonly number[],
  key: (value: V) => number,
): { set: V[]; removed: number[] } {
  const set = new Map(firstSet.map((value) => [key(value), value]));
  const removed = new Set(firstRemoved);
  for (const value of secondSet) {
    set.set(key(value), value);
    removed.delete(key(value));
  }
  for (const id of secondRemoved) {
    set.delete(id);
    removed.add(id);
  }
  return { set: [...set.values()], removed: [...removed] };
}
