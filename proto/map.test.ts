import test from 'ava';
import { pgId } from './ids.ts';
import {
  applyUpdate,
  type DaemonEntry,
  fullUpdate,
  type ImageEntry,
  type MapUpdate,
  type PgEntry,
  type PoolEntry,
  pgOfObject,
  type StorageMap,
} from './map.ts';
import { joinUpdates } from './map-updates.ts';

function randomFrom(seed: number): (n: number) => number {
  let state = (seed % 2_147_483_646) + 1;
  return (n) => {
    state = (state * 48_271) % 2_147_483_647;
    return state % n;
  };
}
const daemon = (id: number, random: (n: number) => number): DaemonEntry => ({
  id,
  uuid: `u${id}`,
  bootId: `b${random(1000)}`,
  address: `127.0.0.1:${7000 + id}`,
  unixAddress: '',
  host: 'h',
  domain: `d${id}`,
  weight: random(200),
  up: random(2) === 0,
  in: random(2) === 0,
});
const pool = (id: number, random: (n: number) => number): PoolEntry => ({
  id,
  name: `p${random(1000)}`,
  pgCount: 8,
  replicas: 2,
  minSize: 1,
  durability: 'flush',
});
const pgEntry = (index: number, random: (n: number) => number): PgEntry => ({
  pg: pgId(1, index),
  acting: [1 + random(4)],
  since: 1 + random(1000),
  waitFor: [],
  lastActive: random(1000),
});
const image = (id: number, random: (n: number) => number): ImageEntry => ({
  id,
  name: `i${id}`,
  pool: 1,
  sizeBytes: random(2 ** 30),
  order: 20,
  stripeUnit: 2 ** 20,
  stripeCount: 1,
  fence: random(1000),
  state: 'ready',
});

/** A random change of a map, as the master would publish it. */
function randomUpdate(map: StorageMap, random: (n: number) => number): MapUpdate {
  const some = <V>(make: (id: number, random: (n: number) => number) => V, chance: number): V[] =>
    [1, 2, 3, 4, 5].filter(() => random(100) < chance).map((id) => make(id, random));
  const update = {
    clusterId: 'c',
    from: map.epoch,
    to: map.epoch + 1,
    daemons: some(daemon, 20),
    pools: some(pool, 5),
    pgs: some(pgEntry, 30),
    images: some(image, 20),
  };
  const gone = <V>(ids: Iterable<number>, set: readonly V[], key: (value: V) => number): number[] =>
    [...ids].filter((id) => random(100) < 10 && !set.some((value) => key(value) === id));
  return {
    ...update,
    removedDaemons: gone(map.daemons.keys(), update.daemons, (d) => d.id),
    removedPools: gone(map.pools.keys(), update.pools, (p) => p.id),
    removedPgs: gone(map.pgs.keys(), update.pgs, (p) => p.pg),
    removedImages: gone(map.images.keys(), update.images, (i) => i.id),
  };
}
const EMPTY: StorageMap = {
  clusterId: 'c',
  epoch: 1,
  daemons: new Map(),
  pools: new Map(),
  pgs: new Map(),
  images: new Map(),
};
/** Equal in content, whatever the order in which it was put together. */
const plain = (map: StorageMap) => ({
  epoch: map.epoch,
  daemons: Object.fromEntries(map.daemons),
  pools: Object.fromEntries(map.pools),
  pgs: Object.fromEntries(map.pgs),
  images: Object.fromEntries(map.images),
});

test('3,000 random updates: one by one, joined in any groups, or as a whole map, all lead to the same', (t) => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = randomFrom(seed * 991);
    let map = EMPTY;
    let joinedMap = EMPTY;
    let pending: MapUpdate | null = null;
    for (let step = 0; step < 50; step++) {
      const update = randomUpdate(map, random);
      map = applyUpdate(map, update);
      pending = pending === null ? update : joinUpdates(pending, update);
      if (random(4) > 0) continue;
      joinedMap = applyUpdate(joinedMap, pending);
      pending = null;
      t.deepEqual(plain(joinedMap), plain(map), `seed ${seed}, step ${step}`);
    }
    t.deepEqual(plain(applyUpdate(null, fullUpdate(map))), plain(map));
    t.deepEqual(plain(applyUpdate(joinedMap, fullUpdate(map))), plain(map), 'a whole map forgets what was there');
  }
});

test('a whole map joined with what follows it is a whole map, and one that follows replaces all', (t) => {
  const random = randomFrom(5);
  let map = applyUpdate(EMPTY, randomUpdate(EMPTY, random));
  const whole = fullUpdate(map);
  const next = { ...randomUpdate(map, random), removedDaemons: [...map.daemons.keys()], daemons: [] };
  map = applyUpdate(map, next);
  const joined = joinUpdates(whole, next);
  t.is(joined.from, 0);
  t.deepEqual(plain(applyUpdate(null, joined)), plain(map));
  t.is(joinUpdates(next, whole), whole);
});

test('an update that is not newer changes nothing; a gap and another cluster are refused', (t) => {
  const random = randomFrom(9);
  const first = randomUpdate(EMPTY, random);
  const map = applyUpdate(EMPTY, first);
  t.is(applyUpdate(map, first), map);
  t.is(applyUpdate(map, { ...fullUpdate(map), to: 1 }), map, 'not even a whole one: epochs never go back');
  const later = { ...first, from: 5, to: 6 };
  t.throws(() => applyUpdate(map, later), { message: /does not follow/ });
  t.throws(() => applyUpdate(null, later), { message: /does not follow/ });
  t.throws(() => applyUpdate(map, { ...fullUpdate(map), to: 9, clusterId: 'other' }), { message: /cluster other/ });
  t.throws(() => joinUpdates(first, later), { code: 'ERR_ASSERTION' });
});

test('what an update does not touch is shared with the map before', (t) => {
  const random = randomFrom(2);
  const map = applyUpdate(EMPTY, { ...randomUpdate(EMPTY, random), daemons: [daemon(1, random)] });
  const next = applyUpdate(map, { ...fullUpdate(map), from: map.epoch, to: 3, daemons: [], pools: [], pgs: [] });
  t.is(next.daemons, map.daemons);
  t.is(next.pgs, map.pgs);
});

test('objects spread evenly over PGs, and each object keeps its PG for ever', (t) => {
  const p = { ...pool(3, randomFrom(1)), pgCount: 64 };
  const counts = new Map<number, number>();
  for (let object = 0; object < 64_000; object++) {
    const pg = pgOfObject(p, 12, object);
    counts.set(pg, (counts.get(pg) ?? 0) + 1);
  }
  t.is(counts.size, 64);
  for (const count of counts.values()) t.true(count > 850 && count < 1_150, `${count} objects, 1,000 expected`);
  // Golden values: another hash would lose all data.
  t.deepEqual(
    [
      [1, 0],
      [1, 1],
      [2, 0],
      [2 ** 21 - 1, 2 ** 32 - 1],
    ].map(([i, o]) => pgOfObject({ ...p, pgCount: 65_536 }, i!, o!) - pgId(3, 0)),
    [25_393, 22_637, 39_994, 57_767],
  );
});
