// Giving a daemon up: what a PG asks for afterwards, and what is refused.

import test from 'ava';
import { World } from './fixture.ts';
import {
  activated,
  cleaned,
  givenUp,
  isFresh,
  isSettled,
  newPg,
  nextInterval,
  type PgRecord,
  waitForOf,
} from './intervals.ts';

const up =
  (...ids: number[]) =>
  (id: number): boolean =>
    ids.includes(id);

/** Clean on A and B (1, 2), then A alone (epoch 5), then nobody; C (3) was never there. */
const soloed = (): PgRecord => {
  const both = cleaned(activated(newPg(7, [1, 2], 2)));
  const alone = activated(nextInterval(both, [1], 5));
  return nextInterval(alone, [2], 9);
};

test('A alone took writes: given up, its interval goes, and whoever was in the one before counts', (t) => {
  const record = soloed();
  t.deepEqual(waitForOf(record), [1]);
  t.is(record.lastActive, 5);
  const after = givenUp(record, 1, up(2));
  t.deepEqual(waitForOf(after), []);
  t.deepEqual(after.history, [{ since: 2, acting: [2] }]);
  t.is(after.lastActive, 0, 'nobody is left who might have more: any copy will do');
  t.false(after.complete.includes(1));
  t.false(isFresh(after));
});

test('while somebody who is down may still have more, what is here must be as new as that', (t) => {
  const both = cleaned(activated(newPg(7, [1, 2, 3], 2)));
  const pair = activated(nextInterval(both, [1, 3], 5));
  const record = nextInterval(pair, [2], 9);
  t.deepEqual(waitForOf(record), [1, 3]);
  const after = givenUp(record, 1, up(2));
  t.deepEqual(waitForOf(after), [3]);
  t.is(after.lastActive, 5);
  t.is(givenUp(after, 3, up(2)).lastActive, 0);
});

test('the only holder is given up: the PG is not taken for one that never had anything, until it is clean again', (t) => {
  const alone = cleaned(activated(newPg(7, [1], 2)));
  const empty = nextInterval(alone, [], 5);
  const after = givenUp(empty, 1, up(2));
  t.deepEqual([after.history, after.complete], [[], []]);
  t.false(isFresh(after));
  const served = activated(nextInterval(after, [2, 3], 9));
  t.deepEqual(served.complete, [], 'nobody is believed to have everything');
  t.false(isSettled(served), 'nobody may delete what is left');
  t.true(isSettled(cleaned(served)));
  t.false('lossAccepted' in cleaned(served));
});

test('an operator gives a daemon up: refused while the PG serves, while the daemon is up, and for one it does not wait for', async (t) => {
  const world = await World.start({ daemons: 3 });
  await world.createPool({ replicas: 2, minSize: 1 });
  await world.activateAll(true);
  const [a, b] = world.acting() as [number, number];
  const c = 6 - a - b;
  const accept = (daemon: number) => world.settled(world.master.handle('acceptDataLoss', { pg: world.pg.pg, daemon }));
  await t.throwsAsync(accept(a), { code: 'INVALID', message: /serves/ });
  await world.daemon(b).die();
  await world.activateAll(false);
  await world.daemon(a).die();
  await world.daemon(b).restart();
  t.deepEqual(world.pg.waitFor, [a]);
  await t.throwsAsync(accept(c), { code: 'INVALID', message: /does not wait for daemon/ });
  await t.throwsAsync(accept(b), { code: 'BUSY', message: /is up/ });
  await t.throwsAsync(accept(99), { code: 'NOT_FOUND' });
  const { since } = world.pg;
  t.deepEqual(await accept(a), { waitFor: [] });
  t.true(world.pg.since > since, 'a new interval, so that the primary begins anew');
  t.deepEqual([world.pg.waitFor, world.pg.lastActive], [[], 0]);
});
