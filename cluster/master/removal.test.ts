// Draining and removing daemons, and moves that wait for room: who holds what meanwhile, and what is refused.

import test from 'ava';
import { World } from './fixture.ts';

const code = (error: unknown) => (error as { code?: string }).code;

async function cluster(daemons: number, options: { pgCount?: number; outAfterMs?: number } = {}): Promise<World> {
  const { pgCount = 8, outAfterMs = 600_000 } = options;
  const world = await World.start({ daemons, outAfterMs });
  await world.createPool({ pgCount, replicas: 2, minSize: 1 });
  await settle(world);
  return world;
}
/** Primaries activate and bring everything up to date until nothing moves any more. */
async function settle(world: World): Promise<void> {
  for (let round = 0; round < 6; round++) {
    await world.activateAll(true);
    for (const puppet of world.daemons.values()) if (puppet.subscription !== null) await puppet.report('active');
  }
}
const setDaemon = (world: World, id: number, change: { in?: boolean; weight?: number }) =>
  world.settled(world.master.handle('setDaemon', { id, ...change }));
const remove = (world: World, id: number) => world.settled(world.master.handle('removeDaemon', { id }));
const refusal = async (world: World, id: number): Promise<string> => {
  const error = (await world.settled(
    remove(world, id).then(
      () => null,
      (reason: Error) => reason,
    ),
  )) as Error | null;
  return error === null ? 'removed' : `${code(error)}: ${error.message}`;
};
const members = (world: World, id: number): number =>
  [...world.map.pgs.values()].filter((entry) => entry.acting.includes(id)).length;

test('a drained daemon serves until others have everything, is removed only then, and never comes back', async (t) => {
  const world = await cluster(3);
  const two = world.daemon(2);
  t.regex(await refusal(world, 2), /BUSY: daemon 2 can't be removed: it takes data; drain it first/);
  const before = members(world, 2);
  t.true(before > 0);
  await setDaemon(world, 2, { in: false });
  t.is(members(world, 2), before, 'it still holds all it held');
  t.true([...world.map.pgs.values()].every(({ acting }) => acting.filter((id) => id !== 2).length >= 1));
  t.regex(await refusal(world, 2), /it still holds pgs 1\.\d+, 1\.\d+, 1\.\d+ and \d+ more/);
  await settle(world);
  t.is(members(world, 2), 0);
  t.true([...world.map.pgs.values()].every(({ acting }) => acting.length === 2));
  two.space = { usedBytes: 4096, freeBytes: 2 ** 40, full: false };
  await two.beat();
  t.regex(await refusal(world, 2), /has not deleted all of what has moved yet/);
  two.space = { usedBytes: 0, freeBytes: 2 ** 40, full: false };
  await two.beat();
  await remove(world, 2);
  t.deepEqual([...world.map.daemons.keys()], [1, 3]);
  t.regex(two.closed!, /was removed/);
  t.is(await refusal(world, 2), 'NOT_FOUND: no daemon has the number 2');

  await world.crashMaster();
  const back = await t.throwsAsync(two.register());
  t.is(code(back), 'IDENTITY');
  t.regex(back!.message, /daemon 2 \(uuid-2\) was removed from this cluster: its directory can't come back/);
  await world.daemon(4).start();
  t.is(world.daemon(4).id, 4, 'nor does its number');
});

test('a drain with nowhere to go gives up no copy, and ends by itself when a daemon is added', async (t) => {
  const world = await cluster(2);
  await setDaemon(world, 1, { in: false });
  await settle(world);
  t.is(members(world, 1), 8);
  t.true([...world.map.pgs.values()].every(({ acting }) => acting.length === 2));
  await world.daemon(3).start();
  await settle(world);
  t.is(members(world, 1), 0);
  t.true([...world.map.pgs.values()].every(({ acting }) => acting.length === 2));
});

test('a daemon that is gone is removed when it is out and everything is clean without it, not before', async (t) => {
  const world = await cluster(3, { outAfterMs: 60_000 });
  await world.daemon(3).die();
  t.regex(await refusal(world, 3), /it takes data/);
  await world.activateAll();
  await world.clock.advance(62_000);
  t.false(world.daemon(3).entry.in);
  t.regex(await refusal(world, 3), /may need what it holds/);
  await world.activateAll(true);
  await settle(world);
  t.is(await refusal(world, 3), 'removed');
  t.deepEqual([...world.map.daemons.keys()], [1, 2]);
});

test('a daemon that is gone stays while a PG has too few copies without it', async (t) => {
  const world = await cluster(2, { outAfterMs: 60_000 });
  await world.daemon(2).die();
  await world.activateAll(true);
  await world.clock.advance(62_000);
  t.regex(await refusal(world, 2), /it is down, and pgs 1\.0, 1\.1, 1\.2 and 5 more are not clean without it/);
});

test('nothing moves to a disk that is nearly full until it has room; a PG that lacks a copy takes it all the same', async (t) => {
  const world = await cluster(2);
  const three = world.daemon(3);
  three.space = { usedBytes: 91_000_000, freeBytes: 9_000_000, full: false };
  three.weight = 0;
  await three.start();
  await three.beat();
  await setDaemon(world, 3, { weight: 1 });
  t.is(members(world, 3), 0, 'they have two copies where they are');
  const { reasons } = await world.settled(world.master.handle('status', {}));
  t.true(
    reasons.some((reason) => /stay where they are until daemon 3 has room/.test(reason)),
    reasons.join('; '),
  );
  t.true(reasons.includes('daemon 3 is nearly full (91 %)'));

  await world.daemon(2).die();
  t.true(members(world, 3) > 0, 'a copy on a nearly full disk is better than none');
  await world.daemon(2).start();
  await settle(world);

  three.space = { usedBytes: 50_000_000, freeBytes: 50_000_000, full: false };
  await three.beat();
  await world.clock.advance(6_000);
  await settle(world);
  t.is(members(world, 3), 5, 'its share of 16 copies');
});

test('moves that begin together do not overfill a disk together', async (t) => {
  const world = await cluster(2, { pgCount: 16 });
  // Each PG has 4096 bytes: there is room for three of them below 90 %.
  world.daemon(3).weight = 0;
  await world.daemon(3).start();
  world.daemon(3).space = { usedBytes: 90_000 - 3 * 4096 - 100, freeBytes: 10_000 + 3 * 4096 + 100, full: false };
  await world.daemon(3).beat();
  await setDaemon(world, 3, { weight: 1 });
  t.is(members(world, 3), 3);
});

test('a disk that runs full while data moves to it is let off within a second, and all copies stay where they were', async (t) => {
  const world = await cluster(2);
  const three = await world.daemon(3).start();
  const moving = members(world, 3);
  t.true(moving > 0);
  await world.activateAll();
  three.space = { usedBytes: 100, freeBytes: 0, full: true };
  await three.beat();
  await world.clock.advance(1_000);
  t.is(members(world, 3), 0);
  await settle(world);
  t.true([...world.map.pgs.values()].every(({ acting }) => acting.length === 2));
  three.space = { usedBytes: 0, freeBytes: 2 ** 40, full: false };
  await three.beat();
  await world.clock.advance(6_000);
  t.is(members(world, 3), moving, 'there is room again');
});

test('the speed of recovery is set for a daemon, kept by the master, and told with every heartbeat', async (t) => {
  const world = await cluster(1);
  await world.settled(world.master.handle('setDaemon', { id: 1, recoveryBytesPerSecond: 5e6 }));
  await world.crashMaster();
  const { bootId, space } = world.daemon(1);
  const beat = { id: 1, bootId, epoch: world.map.epoch, pgs: [], space, recoveredBytes: 0 };
  t.is((await world.master.handle('heartbeat', beat)).recoveryBytesPerSecond, 5e6);
  await setDaemon(world, 1, { weight: 2 });
  t.is((await world.master.handle('heartbeat', beat)).recoveryBytesPerSecond, 5e6, 'another change leaves it');
});

test('a clean PG of which a member then misses something: nothing is deleted elsewhere until it is clean again, and late words do not count', async (t) => {
  const world = await cluster(3, { pgCount: 1 });
  const { pg, since, acting } = world.pg;
  const [lead, member] = acting;
  const left = [1, 2, 3].find((id) => !acting.includes(id))!;
  const { bootId } = world.daemon(lead!);
  const say = async (method: 'activate' | 'clean', attempt: number, behind: number[] = []): Promise<boolean> => {
    const request = { id: lead!, bootId, pgs: [{ pg, since, attempt, behind }] };
    return (await world.settled(world.master.handle(method, request))).accepted.length === 1;
  };
  const mayForget = async (): Promise<boolean> => {
    const request = { id: left, bootId: world.daemon(left).bootId, pgs: [{ pg, since }] };
    return (await world.settled(world.master.handle('forget', request))).accepted.length === 1;
  };
  t.true(await say('clean', 1));
  t.true(await mayForget());
  t.true(await say('activate', 2, [member!]));
  t.false(await mayForget());
  t.false(await say('clean', 1), 'this was said before');
  t.false(await mayForget());
  t.is(world.pg.since, since, 'it served all the time');
  t.true(await say('clean', 2));
  t.true(await mayForget());
});
