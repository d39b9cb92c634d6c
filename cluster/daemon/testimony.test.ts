// A daemon in front of a master that is being rebuilt: what it tells, also when its process is new and has no map yet.

import test from 'ava';
import type { Testimony } from '../../proto/control.ts';
import { fullUpdate } from '../../proto/map.ts';
import { Cluster, until, write } from './fixture.ts';
import { testimonyOf } from './testimony.ts';

const ORDER = 16;

test('a primary tells its map, the interval it was allowed to serve, and what its store has of the PG', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 1 });
  await cluster.createImage('image', 4 * 2 ** 20, ORDER);
  const image = await cluster.writer();
  await write(image, 0, Buffer.alloc(2 ** ORDER, 1));
  await until('both obey the newest map', () =>
    cluster.hosts.every(({ daemon }) => daemon!.epoch === cluster.map.epoch),
  );
  const { pg, since } = cluster.pg();
  const told: Testimony[] = [];
  for (const { daemon } of cluster.hosts) told.push(await testimonyOf(daemon!, null));
  const primary = told.find(({ id }) => id === cluster.primary().id)!;
  const member = told.find(({ id }) => id === cluster.member().id)!;
  t.deepEqual(primary.map, fullUpdate(cluster.map));
  t.deepEqual(primary.activated, [{ pg, since }]);
  t.deepEqual(member.activated, [], 'a member does not know whether the interval was allowed');
  for (const { pgs, clusterId, newestEpoch, imageMost, sessionMost } of told) {
    t.deepEqual(pgs, [{ pg, les: since, complete: true, lastSince: since }]);
    t.is(clusterId, cluster.map.clusterId);
    t.is(newestEpoch, cluster.map.epoch);
    t.is(imageMost, [...cluster.map.images.keys()][0]!);
    t.true(sessionMost > 0);
  }
});

test('a process without a map tells the one that its directory kept, and knows its number from it', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 1, replicas: 1, pgCount: 1 });
  await until('it has the pool', () => cluster.host(1).daemon!.map?.pools.size === 1);
  const { daemon } = cluster.host(1);
  const saved = { map: fullUpdate(cluster.map), activated: [{ pg: cluster.pg().pg, since: 3 }] };
  daemon!.map = null;
  daemon!.id = 0;
  const told = await testimonyOf(daemon!, saved);
  t.deepEqual(told.map, saved.map);
  t.is(told.id, 1);
  t.is(told.newestEpoch, Math.max(saved.map.to, daemon!.identity.newestEpoch));
  t.true(told.activated.some(({ since }) => since === 3));
  t.is((await testimonyOf(daemon!, null)).map, null);
});
