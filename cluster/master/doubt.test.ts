// Members that were believed to have everything, and have not: the PG finds its way back to the one that has.

import test from 'ava';
import type { PgReport } from '../../proto/control.ts';
import { World } from './fixture.ts';

test('a PG has just moved, and its new members say that none of them is whole: the old holder is a member again', async (t) => {
  const world = await World.start({ daemons: 3 });
  await world.createPool({ replicas: 2, minSize: 1 });
  await world.activateAll(true);
  const [a] = world.acting() as [number];
  await world.settled(world.master.handle('setDaemon', { id: a, in: false }));
  t.is(world.acting().length, 3, 'old and new holders');
  await world.activateAll(true);
  const [b, c] = world.acting() as [number, number];
  t.false([b, c].includes(a));
  t.is(world.acting().length, 2);

  const report = (change: Partial<PgReport> = {}): PgReport => {
    const { pg, since } = world.pg;
    const none = { missing: 0, missingBytes: 0, noSpace: [], objects: 1, bytes: 4096, waitFor: [] };
    return { pg, since, state: 'incomplete', ...none, ...change };
  };
  const say = async (daemon: number, change: Partial<PgReport> = {}): Promise<void> => {
    await world.daemon(daemon).beat([report(change)]);
    await world.clock.settle();
  };
  const { since } = world.pg;
  await say(c);
  await say(b, { since: since - 1 });
  await say(b, { state: 'peering' });
  t.is(world.pg.since, since, 'no word of another, of an earlier interval, or of another state counts');
  await say(b);
  t.true(world.acting().includes(a), 'it is asked again');
  t.true(world.pg.since > since);
  const again = world.pg.since;
  await say(world.acting()[0]!);
  t.is(world.pg.since, again, 'said once more, it changes nothing');
  await world.activateAll(true);
  t.false(world.acting().includes(a), 'and leaves when all is well');
});
