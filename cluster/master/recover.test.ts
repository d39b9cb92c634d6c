import test from 'ava';
import type { Testimony } from '../../proto/control.ts';
import { pgId } from '../../proto/ids.ts';
import { type DaemonEntry, fullUpdate, type PgEntry, type StorageMap } from '../../proto/map.ts';
import { fillStore, pairsOf } from './backup.ts';
import { activated, desiredActing, waitForOf } from './intervals.ts';
import { MemoryKv } from './memory-kv.ts';
import { EPOCHS_SKIPPED, recoverPg, recoverState, SESSIONS_SKIPPED, type Witness } from './recover.ts';
import { loadState } from './state.ts';

const PG = pgId(1, 0);
const POOL = { id: 1, name: 'p', pgCount: 1, replicas: 2, minSize: 1, durability: 'flush' as const };
const NEXT = 1_000_000;

const entryOf = (acting: number[], since: number, lastActive: number, waitFor: number[] = []): PgEntry => ({
  pg: PG,
  acting,
  since,
  waitFor,
  lastActive,
});
const copy = (id: number, les: number, more: Partial<Witness> = {}): Witness => ({
  pg: PG,
  id,
  les,
  complete: true,
  lastSince: 0,
  allowed: 0,
  ...more,
});
const NOBODY = { missing: [], acceptDataLoss: false };

test('everybody testifies, the PG was active: it serves from any complete member of the last interval', (t) => {
  const witnesses = [copy(1, 50), copy(2, 50), copy(3, 0)];
  const { record, hasGood, suspects } = recoverPg(entryOf([1, 2], 50, 40), POOL, NEXT, witnesses, NOBODY);
  t.is(record.lastActive, 50);
  t.deepEqual(record.history, [{ since: 50, acting: [1, 2] }]);
  t.true(hasGood);
  t.deepEqual(suspects, []);
  t.deepEqual(record.acting, [], 'nobody is a member before it has registered');
  t.deepEqual(waitForOf({ ...record, acting: [2] }), []);
  t.deepEqual(waitForOf({ ...record, acting: [3] }), [1, 2]);
});

test('a member that was still being recovered is no copy to serve from', (t) => {
  const witnesses = [copy(1, 50), copy(2, 50, { complete: false })];
  const { record } = recoverPg(entryOf([1, 2], 50, 40), POOL, NEXT, witnesses, NOBODY);
  t.deepEqual(record.history, [{ since: 50, acting: [1] }]);
});

test('an interval newer than every map that was kept: only who was in it may lead', (t) => {
  const witnesses = [copy(1, 50), copy(2, 60)];
  const { record } = recoverPg(entryOf([1, 2], 50, 40), POOL, NEXT, witnesses, NOBODY);
  t.is(record.lastActive, 60);
  t.deepEqual(record.history, [{ since: 60, acting: [2] }]);
});

test('a peering cut off by the end left the new les on an incomplete copy only: the one before it still counts', (t) => {
  // Interval 50 of [1, 2] began; 2 noted it, incomplete; 1 lost power before its own note was durable.
  const witnesses = [copy(1, 40), copy(2, 50, { complete: false })];
  const { record, hasGood } = recoverPg(entryOf([1, 2], 50, 40), POOL, NEXT, witnesses, NOBODY);
  t.is(record.lastActive, 40);
  t.true(hasGood);
  t.deepEqual(record.history, [{ since: 40, acting: [1] }]);
});

test('a PG that waited for somebody when the master was lost goes on to wait for the same copies', (t) => {
  // [1] took writes in 40 and died; 2 is back alone, and the map said that it must wait for 1.
  const witnesses = [copy(2, 30)];
  const evidence = { missing: [1], acceptDataLoss: false };
  const { record, suspects } = recoverPg(entryOf([2], 50, 40, [1]), POOL, NEXT, witnesses, evidence);
  t.is(record.lastActive, 40);
  t.deepEqual(suspects, [1]);
  t.deepEqual(waitForOf({ ...record, acting: [2] }), [1]);
});

test('split brain at minimum size 1: the missing member of the last map may have written alone, so it is waited for', (t) => {
  const witnesses = [copy(1, 50, { lastSince: 50 }), copy(2, 0)];
  const evidence = { missing: [3], acceptDataLoss: false };
  const { record, suspects } = recoverPg(entryOf([1, 3], 50, 40), POOL, NEXT, witnesses, evidence);
  t.deepEqual(suspects, [3]);
  t.deepEqual(waitForOf({ ...record, acting: [1, 2] }), [3]);
  t.deepEqual(waitForOf({ ...record, acting: [3] }), [1]);
  t.deepEqual(waitForOf({ ...record, acting: [1, 3] }), []);
});

test('minimum size 2: one missing daemon can not have served alone, nothing waits', (t) => {
  const evidence = { missing: [3], acceptDataLoss: false };
  const pool = { ...POOL, replicas: 3, minSize: 2 };
  const { record, suspects } = recoverPg(entryOf([1, 2, 3], 50, 40), pool, NEXT, [copy(1, 50), copy(2, 50)], evidence);
  t.deepEqual(suspects, []);
  t.deepEqual(record.history, [{ since: 50, acting: [1, 2] }]);
});

test('a missing daemon that was no member of an interval proven active can not have newer writes', (t) => {
  const evidence = { missing: [3], acceptDataLoss: false };
  for (const proof of [{ lastSince: 50 }, { allowed: 50 }]) {
    const witnesses = [copy(1, 50, proof), copy(2, 50)];
    t.deepEqual(recoverPg(entryOf([1, 2], 50, 40), POOL, NEXT, witnesses, evidence).suspects, []);
  }
  // Without proof the interval before it, whose members nobody knows, may have been the last: 3 may have been one.
  const witnesses = [copy(1, 50), copy(2, 50)];
  t.deepEqual(recoverPg(entryOf([1, 2], 50, 40), POOL, NEXT, witnesses, evidence).suspects, [3]);
});

test('a member and a stranger are missing: both are waited for, since the member may have handed on to the stranger', (t) => {
  const evidence = { missing: [3, 4], acceptDataLoss: false };
  const { record } = recoverPg(entryOf([1, 3], 50, 40), POOL, NEXT, [copy(1, 50, { allowed: 50 })], evidence);
  t.deepEqual(waitForOf({ ...record, acting: [1, 3] }), [4]);
  t.deepEqual(waitForOf({ ...record, acting: [1, 3, 4] }), []);
});

test('all members are missing: the others do not serve, and what the members bring decides', (t) => {
  const evidence = { missing: [1, 2], acceptDataLoss: false };
  const { record, hasGood } = recoverPg(entryOf([1, 2], 50, 40), POOL, NEXT, [copy(3, 0)], evidence);
  t.is(
    record.lastActive,
    40,
    'what the master had recorded: whether 50 served only 1 and 2 can tell, and both must come',
  );
  t.false(hasGood);
  t.deepEqual(waitForOf({ ...record, acting: [3, 1] }), [2]);
});

test('loss accepted: the newest complete copy that testified serves, whoever is missing', (t) => {
  const evidence = { missing: [3], acceptDataLoss: true };
  const split = recoverPg(entryOf([1, 3], 50, 40), POOL, NEXT, [copy(1, 50), copy(2, 0)], evidence);
  t.deepEqual(split.suspects, []);
  t.deepEqual(split.record.history, [{ since: 50, acting: [1] }]);
  const witnesses = [copy(1, 30), copy(2, 50, { complete: false })];
  const { record, hasGood } = recoverPg(entryOf([2, 3], 50, 40), POOL, NEXT, witnesses, evidence);
  t.is(record.lastActive, 30);
  t.true(hasGood);
  const empty = [copy(1, 0), copy(2, 50, { complete: false })];
  const broken = recoverPg(entryOf([2, 3], 50, 40), POOL, NEXT, empty, evidence);
  t.is(broken.record.lastActive, 50, 'a daemon that never held the PG does not lead it: the rest of the data would go');
  t.false(broken.hasGood);
});

test('a PG that never was active stays new, and anybody may have it', (t) => {
  const { record, hasGood } = recoverPg(entryOf([1, 2], 50, 0), POOL, NEXT, [copy(1, 0), copy(2, 0)], NOBODY);
  t.true(hasGood);
  t.deepEqual(record.history, []);
  t.deepEqual(
    desiredActing(record, [1, 2], () => true),
    [1, 2],
  );
  t.deepEqual(activated({ ...record, acting: [1, 2] }).complete, [1, 2]);
});

// --- the whole state

const daemonOf = (id: number, more: Partial<DaemonEntry> = {}): DaemonEntry => ({
  id,
  uuid: `uuid-${id}`,
  bootId: `boot-${id}`,
  address: `127.0.0.1:${7000 + id}`,
  unixAddress: '',
  host: 'h',
  domain: `d${id}`,
  weight: 100,
  up: true,
  in: true,
  ...more,
});
const MAP: StorageMap = {
  clusterId: 'c',
  epoch: 55,
  daemons: new Map([1, 2, 3].map((id) => [id, daemonOf(id)])),
  pools: new Map([[1, POOL]]),
  pgs: new Map([[PG, entryOf([1, 2], 50, 40)]]),
  images: new Map([
    [
      7,
      {
        id: 7,
        name: 'vol',
        pool: 1,
        sizeBytes: 2 ** 30,
        order: 20,
        stripeUnit: 2 ** 16,
        stripeCount: 4,
        fence: 9,
        state: 'ready',
      },
    ],
  ]),
};
const testimony = (id: number, map: StorageMap | null, more: Partial<Testimony> = {}): Testimony => ({
  clusterId: 'c',
  uuid: `uuid-${id}`,
  id,
  bootId: `boot-${id}`,
  newestEpoch: map?.epoch ?? 0,
  map: map === null ? null : fullUpdate(map),
  activated: [],
  pgs: id === 3 ? [] : [{ pg: PG, les: 50, complete: true, lastSince: 50 }],
  sessionMost: 0,
  imageMost: 0,
  ...more,
});
const STRICT = { acceptMissing: [], acceptDataLoss: false };

test('the newest map wins, and every number goes above whatever was given out', (t) => {
  const older: StorageMap = { ...MAP, epoch: 20, images: new Map() };
  const testimonies = [
    testimony(1, older, { sessionMost: 800 }),
    testimony(2, MAP, { newestEpoch: 58, imageMost: 90 }),
    testimony(3, null),
  ];
  const { state, notes } = recoverState(testimonies, STRICT);
  t.deepEqual(notes, []);
  t.is(state.epoch, 58 + EPOCHS_SKIPPED);
  t.is(state.pgs.get(PG)!.since, state.epoch);
  t.is(state.counters.session, 800 + SESSIONS_SKIPPED);
  t.true(state.counters.image > 90 && state.counters.daemon > 3 && state.counters.pool > 1);
  const image = state.images.get(7)!;
  t.deepEqual({ ...image.entry, fence: 9 }, MAP.images.get(7));
  t.is(image.entry.fence, 9 + EPOCHS_SKIPPED);
  t.is(image.owner, 0);
  t.deepEqual(
    [...state.daemons.values()].map(({ entry }) => [entry.id, entry.up, entry.in]),
    [
      [1, false, true],
      [2, false, true],
      [3, false, true],
    ],
  );
  t.deepEqual(state.overrides.get(PG)?.target, [1, 2], 'data stays where it is');
});

test('the rebuilt state is what a master reads back from its store', async (t) => {
  const { state } = recoverState(
    [1, 2, 3].map((id) => testimony(id, MAP)),
    STRICT,
  );
  const kv = new MemoryKv();
  await fillStore(kv, pairsOf(state));
  t.deepEqual(await loadState(kv, 'another'), state);
  await t.throwsAsync(fillStore(kv, pairsOf(state)), { code: 'EXISTS' });
});

test('a daemon that is silent and was not given up stops the rebuilding, by name', (t) => {
  const two = [testimony(1, MAP), testimony(2, MAP)];
  t.throws(() => recoverState(two, STRICT), { code: 'UNAVAILABLE', message: /daemons 3 / });
  const { notes } = recoverState(two, { ...STRICT, acceptMissing: [3] });
  t.deepEqual(notes, [], '3 holds nothing of an interval proven active: nothing waits for it');
});

test('a daemon that was out stays out and is named; one that no map knows is named too', (t) => {
  const map = { ...MAP, daemons: new Map(MAP.daemons).set(3, daemonOf(3, { in: false, up: false })) };
  const { state, notes } = recoverState(
    [1, 2, 3, 4].map((id) => testimony(id, id === 4 ? null : map)),
    STRICT,
  );
  t.is(state.daemons.get(3)?.outBy, 'operator');
  t.true(notes.some((note) => /daemon 3 was out/.test(note)) && notes.some((note) => /uuid-4/.test(note)));
  t.true(state.counters.daemon > 4);
});

test('daemons of two clusters, or none with a map, rebuild nothing', (t) => {
  const other = { ...MAP, clusterId: 'other' };
  t.throws(() => recoverState([testimony(1, MAP), testimony(2, other)], STRICT), { code: 'IDENTITY' });
  t.throws(() => recoverState([testimony(1, null)], STRICT), { code: 'NOT_FOUND' });
});

test('a cluster rebuilt until no epoch is left is refused, not wrapped around', (t) => {
  const map = { ...MAP, epoch: 2 ** 32 - EPOCHS_SKIPPED - 5 };
  t.throws(
    () =>
      recoverState(
        [1, 2, 3].map((id) => testimony(id, map)),
        STRICT,
      ),
    { code: 'INVALID' },
  );
});
