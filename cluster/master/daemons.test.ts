// Storage daemons come, go, restart, hang and lie: what the master makes of it.

import test from 'ava';
import { World } from './fixture.ts';
import { MemoryKv } from './memory-kv.ts';

const code = (error: unknown) => (error as { code?: string }).code;

test('a directory keeps its number for ever, and another one gets another', async (t) => {
  const world = await World.start({ daemons: 2 });
  t.deepEqual([...world.map.daemons.keys()], [1, 2]);
  await world.daemon(1).restart();
  t.is(world.daemon(1).id, 1);
  await world.crashMaster();
  await world.daemon(1).restart();
  t.is(world.daemon(1).id, 1);
  await world.daemon(3).start();
  t.is(world.daemon(3).id, 3);
});

test('a daemon is up from its subscription on, not from its registration, and down when it ends', async (t) => {
  const world = await World.start();
  const daemon = world.daemon(1);
  await daemon.register();
  t.like(daemon.entry, { up: false, in: false });
  await daemon.subscribe();
  t.like(daemon.entry, { up: true, in: true });
  await daemon.die();
  t.like(daemon.entry, { up: false, in: true });
});

test('daemons that register together share one epoch', async (t) => {
  const world = await World.start();
  const before = world.map.epoch;
  const daemons = [1, 2, 3, 4, 5].map((n) => world.daemon(n));
  await Promise.all(daemons.map((daemon) => daemon.register()));
  t.is(world.map.epoch, before + 1);
  await Promise.all(daemons.map((daemon) => daemon.subscribe()));
  t.is(world.map.epoch, before + 2);
  t.is([...world.map.daemons.values()].filter((entry) => entry.up).length, 5);
});

test('a daemon of another cluster is refused', async (t) => {
  const world = await World.start();
  const error = await t.throwsAsync(world.daemon(1).register({ clusterId: 'another' }));
  t.is(code(error), 'IDENTITY');
  t.is(world.map.daemons.size, 0);
});

test('two live processes of one directory: the second is refused as soon as the first is heard', async (t) => {
  const world = await World.start({ daemons: 1 });
  const second = world.master.handle('register', world.daemon(1).registration({ bootId: 'usurper' }));
  const refused = t.throwsAsync(second, { message: /already running/ });
  await world.clock.advance(1_200);
  t.is(code(await refused), 'IDENTITY');
  t.is(world.daemon(1).entry.bootId, 'boot-1-1');
});

test('a process that registers before the death of the old one is noticed is taken in when it is', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool();
  const [one] = [world.daemon(1)];
  const second = world.master.handle('register', one.registration({ bootId: 'boot-1-2' }));
  await world.clock.advance(300);
  await one.die();
  await world.clock.advance(300);
  t.is((await second).id, 1);
  t.like(one.entry, { bootId: 'boot-1-2', up: false });
});

test('an old process whose machine vanished is given up after the time of silence', async (t) => {
  const world = await World.start({ daemons: 1 });
  world.daemon(1).responsive = false;
  const second = world.master.handle('register', world.daemon(1).registration({ bootId: 'boot-1-2' }));
  await world.clock.advance(4_500);
  t.is((await second).id, 1);
  t.regex(world.daemon(1).closed!, /another process/, 'should it live after all, it learns');
  await world.clock.advance(2_000);
  t.false(world.daemon(1).entry.up, 'the new process is up when it subscribes, not before');
});

test('a daemon that has seen a newer map than this store holds stops the master', async (t) => {
  const world = await World.start({ daemons: 1 });
  const clusterId = world.map.clusterId;
  const error = await t.throwsAsync(world.daemon(1).register({ clusterId, newestEpoch: world.map.epoch + 1 }));
  t.is(code(error), 'UNAVAILABLE', 'the daemon is right: it waits for the right master');
  t.regex(world.fatal!.message, /old copy/);
  const after = await t.throwsAsync(world.createPool());
  t.is(code(after), 'UNAVAILABLE');
});

test('a stranger who claims a high epoch does not stop the master', async (t) => {
  const world = await World.start({ daemons: 1 });
  await t.throwsAsync(world.daemon(2).register({ clusterId: 'another', newestEpoch: 999_999 }));
  t.is(world.fatal, null);
  await world.createPool();
  t.is(world.map.pools.size, 1);
});

test('a quick restart with a new boot id begins a new interval though it was never seen down', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool();
  await world.activateAll(true);
  const before = world.pg;
  const one = world.daemon(1);
  one.boots++;
  one.subscription!.close();
  one.subscription = null;
  void world.master.handle('register', one.registration()); // in the same turn as the broken stream
  await world.clock.settle();
  await one.subscribe();
  t.true(world.pg.since > before.since);
  t.deepEqual([...world.pg.acting].sort(), [1, 2]);
});

test('silence marks a daemon down after four seconds, and its next heartbeat up again', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool();
  const one = world.daemon(1);
  one.responsive = false;
  await world.clock.advance(3_400);
  t.true(one.entry.up);
  await world.clock.advance(1_200);
  t.false(one.entry.up);
  t.deepEqual(world.acting(), [2]);
  one.responsive = true;
  await world.clock.advance(1_600);
  t.true(one.entry.up);
});

test('a daemon that stays down goes out, and comes in again when it returns; an operator\'s "out" stays', async (t) => {
  const world = await World.start({ daemons: 3, outAfterMs: 60_000 });
  const one = world.daemon(1);
  await one.die();
  await world.clock.advance(59_000);
  t.true(one.entry.in);
  await world.clock.advance(2_000);
  t.false(one.entry.in);
  await one.start();
  t.like(one.entry, { up: true, in: true });

  await world.settled(world.master.handle('setDaemon', { id: 1, in: false }));
  await one.restart();
  t.like(one.entry, { up: true, in: false });
  await world.crashMaster();
  await one.restart();
  t.like(one.entry, { up: true, in: false });
  await world.settled(world.master.handle('setDaemon', { id: 1, in: true, weight: 2.5 }));
  t.like(one.entry, { in: true, weight: 2.5 });
  const refused = await t.throwsAsync(world.settled(world.master.handle('setDaemon', { id: 1, weight: -1 })));
  t.is(code(refused), 'INVALID');
});

test('after a restart of the master, daemons that were up stay up for a grace, and then go down', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool();
  await world.activateAll(true);
  const before = world.pg;
  await world.crashMaster();
  t.true(world.daemon(1).entry.up && world.daemon(2).entry.up);
  await world.daemon(1).subscribe();
  await world.clock.advance(2_000);
  t.deepEqual(world.pg, before, 'nobody had to peer again');
  await world.clock.advance(3_000);
  t.true(world.daemon(1).entry.up);
  t.false(world.daemon(2).entry.up, 'it did not come back');
});

test('one report about a daemon that the master hears well changes nothing; four seconds of them do', async (t) => {
  const world = await World.start({ daemons: 3 });
  const [one, two] = [world.daemon(1), world.daemon(2)];
  await two.complainAbout(one);
  t.true(one.entry.up);
  for (let i = 0; i < 4; i++) {
    await world.clock.advance(1_000);
    await two.complainAbout(one);
  }
  t.false(one.entry.up);
});

test('two reporters are believed at once, and so is one about a daemon that the master misses as well', async (t) => {
  const world = await World.start({ daemons: 4 });
  const [one, two, three, four] = [1, 2, 3, 4].map((n) => world.daemon(n));
  await two!.complainAbout(one!);
  await three!.complainAbout(one!);
  t.false(one!.entry.up);
  four!.responsive = false;
  await world.clock.advance(1_900);
  t.true(four!.entry.up);
  await two!.complainAbout(four!);
  t.false(four!.entry.up);
});

test('of two daemons that accuse each other only one goes, and it does not flap', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool({ replicas: 2, minSize: 1 });
  const [one, two] = [world.daemon(1), world.daemon(2)];
  let changes = 0;
  let up = 2;
  for (let i = 0; i < 120; i++) {
    await one.complainAbout(two);
    await two.complainAbout(one);
    await world.clock.advance(500);
    const now = [one, two].filter((daemon) => daemon.entry.up).length;
    t.true(now >= 1, 'somebody serves all the time');
    if (now !== up) changes++;
    up = now;
  }
  // Held down for 5, 10, 20, 40 s, with 4 s of complaints between: at most 4 times down in a minute.
  t.true(changes >= 2 && changes <= 8, `${changes} changes in a minute`);
});

test('a report about an earlier process, or by a daemon that is down, is ignored', async (t) => {
  const world = await World.start({ daemons: 3 });
  const [one, two, three] = [1, 2, 3].map((n) => world.daemon(n));
  await three!.die();
  await three!.complainAbout(one!);
  await two!.complainAbout(one!);
  t.true(one!.entry.up);
  const stale = { reporter: 2, daemon: 1, bootId: 'boot-1-0', reason: 'late' };
  await world.settled(world.master.handle('reportFailure', { ...stale, reporter: 2 }));
  t.true(one!.entry.up);
});

test('a pool made before there is any daemon is placed when they come', async (t) => {
  const world = await World.start();
  await world.createPool({ pgCount: 8, replicas: 2 });
  t.deepEqual(world.acting(), []);
  await world.daemon(1).start();
  t.deepEqual(world.acting(), [1]);
  await world.daemon(2).start();
  t.true([...world.map.pgs.values()].every((entry) => entry.acting.length === 2));
});

test('activation is refused for an old interval, to another daemon, to an old process, and while the PG waits', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool({ replicas: 2, minSize: 1 });
  const { pg, since, acting } = world.pg;
  const [first, second] = acting.map((id) => world.daemon(id));
  t.false(await first!.mark('activate', pg, since - 1));
  t.false(await second!.mark('activate', pg, since));
  t.false(await first!.mark('clean', pg, since), 'not clean before it is active');
  t.true(await first!.mark('activate', pg, since));
  t.true(await first!.mark('activate', pg, since), 'asked again');
  await second!.die();
  t.true(await first!.mark('activate', pg, world.pg.since));
  const oldBoot = { ...world.pg };
  await first!.restart();
  first!.boots--;
  t.false(await first!.mark('activate', pg, oldBoot.since));
  t.false(await first!.mark('activate', pg, world.pg.since), 'the boot id is of the old process');
  first!.boots++;
  t.true(await first!.mark('activate', pg, world.pg.since));

  await first!.die();
  await second!.start();
  t.deepEqual(world.pg.waitFor, [first!.id]);
  t.false(await second!.mark('activate', pg, world.pg.since));
});

test('lastActive names the newest interval that may have taken writes', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool();
  t.is(world.pg.lastActive, 0);
  const first = world.pg.since;
  await world.activateAll();
  await world.daemon(world.acting()[1]!).die();
  t.is(world.pg.lastActive, first);
  await world.daemon(world.acting()[0]!).restart();
  t.is(world.pg.lastActive, first, 'the interval in between was never activated');
});

test('a member that is preferred becomes the primary of a new interval; an old request for it is refused', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool();
  await world.activateAll();
  const { pg, since, acting } = world.pg;
  const request = { pg, since, daemon: acting[1]! };
  await world.settled(world.master.handle('preferPrimary', request));
  t.deepEqual(world.acting(), [acting[1]!, acting[0]!]);
  t.true(world.pg.since > since);
  t.is(code(await t.throwsAsync(world.settled(world.master.handle('preferPrimary', request)))), 'STALE');
});

test('a preferred primary goes back when the PG has been clean for a while, and waits longer if it is preferred again', async (t) => {
  const world = await World.start({ daemons: 2 });
  await world.createPool();
  const intended = world.acting();
  const prefer = async () => {
    const { pg, since } = world.pg;
    await world.settled(world.master.handle('preferPrimary', { pg, since, daemon: intended[1]! }));
    await world.activateAll(true);
  };
  await world.activateAll(true);
  await prefer();
  t.deepEqual(world.acting(), intended.toReversed());
  await world.clock.advance(9_000);
  t.deepEqual(world.acting(), intended.toReversed());
  await world.clock.advance(2_000);
  t.deepEqual(world.acting(), intended);
  await prefer();
  await world.clock.advance(15_000);
  t.deepEqual(world.acting(), intended.toReversed());
  await world.clock.advance(6_000);
  t.deepEqual(world.acting(), intended);
});

test('a failing store stops the master: nothing is accepted or told any more', async (t) => {
  const kv = new MemoryKv();
  const world = await World.start({ kv, daemons: 1 });
  const before = world.map;
  kv.onBatch = () => {
    throw new Error('disk on fire');
  };
  t.is(code(await t.throwsAsync(world.createPool())), 'UNAVAILABLE');
  t.regex(world.fatal!.message, /disk on fire/);
  t.is(world.map, before);
  t.is(code(await t.throwsAsync(world.createPool())), 'UNAVAILABLE');
  t.is(code(await t.throwsAsync(world.settled(world.master.handle('status', {})))), 'UNAVAILABLE');
  t.not(world.daemon(1).closed, null, 'subscribers are told');
});

test('a second master on the same store deposes the first at its next change', async (t) => {
  const kv = new MemoryKv();
  const first = await World.start({ kv, daemons: 1 });
  const second = await World.start({ kv });
  await second.createPool();
  await t.throwsAsync(first.createPool());
  t.regex(first.fatal!.message, /another master/);
  t.is(second.map.pools.size, 1);
});
