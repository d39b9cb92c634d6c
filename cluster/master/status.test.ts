// What people are told: states, sentences and progress.

import test from 'ava';
import { World } from './fixture.ts';
import { duration } from './status.ts';

const statusOf = (world: World) => world.settled(world.master.handle('status', {}));

async function cluster(daemons: number, pgCount: number) {
  const world = await World.start({ daemons });
  await world.createPool({ pgCount, replicas: 2, minSize: 1 });
  await world.activateAll(true);
  await reportAll(world);
  return world;
}
async function reportAll(world: World, missing = 0): Promise<void> {
  for (const puppet of world.daemons.values()) if (puppet.subscription !== null) await puppet.report('active', missing);
}

test('a healthy cluster is clean and gives no reasons', async (t) => {
  const world = await cluster(3, 8);
  const status = await statusOf(world);
  t.is(status.health, 'clean');
  t.deepEqual(status.reasons, []);
  t.deepEqual(status.pgStates, { active: 8 });
  t.is(status.objects, 80);
  t.is(
    status.daemons.reduce((sum, daemon) => sum + daemon.pgs, 0),
    16,
  );
  t.is(
    status.daemons.reduce((sum, daemon) => sum + daemon.primaries, 0),
    8,
  );
});

test('an empty cluster is clean; a pool without daemons is blocked and says what to do', async (t) => {
  const world = await World.start();
  t.is((await statusOf(world)).health, 'clean');
  await world.createPool({ pgCount: 4 });
  const status = await statusOf(world);
  t.is(status.health, 'blocked');
  t.deepEqual(status.reasons, ['pgs 1.0, 1.1, 1.2 and 1 more have no storage daemon: start one']);
});

test('a daemon that died: degraded while the others serve, with copies counted and the time told', async (t) => {
  const world = await cluster(2, 8);
  await world.daemon(2).die();
  t.is((await statusOf(world)).health, 'blocked', 'its PGs are peering');
  await world.activateAll();
  await reportAll(world);
  await world.clock.advance(12_300);
  const status = await statusOf(world);
  t.is(status.health, 'degraded');
  t.deepEqual(status.reasons, [
    'pgs 1.0, 1.1, 1.2 and 5 more have 1 copy of 2',
    '80 object copies are degraded',
    'daemon 2 (down since 12 s)',
  ]);
});

test('a PG that waits says for whom, and since when that one is down', async (t) => {
  const world = await cluster(2, 1);
  const [first, second] = world.acting().map((id) => world.daemon(id));
  await second!.die();
  await world.activateAll();
  await first!.die();
  await world.clock.advance(60_000);
  await second!.start();
  await world.clock.advance(5_000);
  const status = await statusOf(world);
  t.is(status.health, 'blocked');
  t.is(status.reasons[0], `pg 1.0 waits for daemon ${first!.id} (down since 1 min 5 s)`);
  t.deepEqual(status.pgStates, { incomplete: 1 });
});

test('below the minimum size a PG is blocked and says what it lacks', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool({ replicas: 2, minSize: 2 });
  await world.daemon(2).die();
  const status = await statusOf(world);
  t.is(status.health, 'blocked');
  t.is(status.reasons[0], 'pg 1.0 has 1 copy, below the 2 that pool "p" needs to serve');
});

test('recovery shows how much is left of the most there was, and forgets the peak when it is done', async (t) => {
  const world = await cluster(2, 4);
  await reportAll(world, 50);
  await world.clock.advance(1_000);
  await reportAll(world, 20);
  let status = await statusOf(world);
  t.is(status.health, 'degraded');
  t.like(status, { missing: 80, missingPeak: 200 });
  t.deepEqual(status.reasons, [
    'pgs 1.0, 1.1, 1.2 and 1 more are recovering',
    '80 object copies are misplaced',
    '80 of at most 200 object copies are still to be made',
  ]);
  await reportAll(world, 0);
  status = await statusOf(world);
  t.like(status, { missing: 0, missingPeak: 0, health: 'clean' });
});

test('recovery tells how much is to go in bytes, how fast it goes, and how long it will take', async (t) => {
  const world = await cluster(2, 4);
  await reportAll(world, 50);
  t.like((await statusOf(world)).recovery, { missingBytes: 200 * 4096, bytesPerSecond: 0, secondsLeft: -1 });
  for (let second = 0; second < 20; second++) {
    for (const puppet of world.daemons.values()) puppet.recoveredBytes += 2048;
    await world.clock.advance(1_000);
  }
  const { recovery } = await statusOf(world);
  t.is(recovery.bytesPerSecond, 4096);
  t.is(recovery.secondsLeft, 200);
  t.deepEqual(recovery.pools, [{ pool: 1, degraded: 0, misplaced: 200, missingBytes: 200 * 4096 }]);
  await reportAll(world, 0);
  await world.clock.advance(20_000);
  t.like((await statusOf(world)).recovery, { missingBytes: 0, bytesPerSecond: 0, secondsLeft: 0, misplaced: 0 });
});

test('members without space, and disks that are nearly full, are named', async (t) => {
  const world = await cluster(3, 1);
  const [lead, other] = world.acting();
  const { pg, since } = world.pg;
  const report = {
    pg,
    since,
    state: 'active' as const,
    missing: 3,
    missingBytes: 3,
    objects: 3,
    bytes: 3,
    waitFor: [],
  };
  await world.daemon(lead!).beat([{ ...report, noSpace: [other!] }]);
  world.daemon(other!).space = { usedBytes: 86, freeBytes: 14, full: false };
  await world.daemon(other!).beat();
  const { reasons } = await statusOf(world);
  t.true(reasons.includes(`pg 1.0 can't recover daemon ${other}, which has no space for what it would send`));
  t.true(reasons.includes(`daemon ${other} is nearly full (86 %)`));
});

test('a report of an earlier interval does not count: the PG is peering', async (t) => {
  const world = await cluster(2, 1);
  const { pg, since } = world.pg;
  const primary = world.daemon(world.acting()[0]!);
  await world.daemon(world.acting()[1]!).die();
  await primary.beat([
    { pg, since, state: 'active', missing: 0, missingBytes: 0, noSpace: [], objects: 1, bytes: 1, waitFor: [] },
  ]);
  const status = await statusOf(world);
  t.deepEqual(status.pgStates, { peering: 1 });
  t.regex(status.reasons[0]!, /^pg 1\.0 is peering under daemon \d$/);
});

test('a full daemon, and an image with its owner, are shown', async (t) => {
  const world = await cluster(2, 1);
  const image = await world.createImage();
  const client = await (await world.client('nbd on alpha')).subscribe();
  await client.lock(image);
  const space = { usedBytes: 100, freeBytes: 0, full: true };
  world.daemon(1).space = space;
  await world.daemon(1).beat();
  const status = await statusOf(world);
  t.deepEqual(status.reasons, ['daemon 1 is full']);
  t.is(status.images[0]!.owner, 'nbd on alpha');
  await client.die();
  t.is((await statusOf(world)).images[0]!.owner, '');
});

test('durations are what people say', (t) => {
  t.is(duration(12_900), '12 s');
  t.is(duration(65_000), '1 min 5 s');
  t.is(duration(2 * 3_600_000 + 600_000), '2 h 10 min');
  t.is(duration(99 * 3_600_000), '4 d 3 h');
});
