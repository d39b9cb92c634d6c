import test from 'ava';
import { pgId } from './ids.ts';
import { type Candidate, place, topologyOf } from './placement.ts';

const PGS = 2_048;

function daemons(count: number, perDomain = 1, weight: (id: number) => number = () => 1): Candidate[] {
  return Array.from({ length: count }, (_, at) => ({
    id: at + 1,
    domain: `host-${Math.floor(at / perDomain)}`,
    weight: weight(at + 1),
    in: true,
  }));
}
function placeAll(candidates: Candidate[], replicas: number, pgs = PGS): number[][] {
  const topology = topologyOf(candidates);
  return Array.from({ length: pgs }, (_, index) => place(topology, pgId(1, index), replicas));
}
function countPer(placed: number[][]): Map<number, number> {
  const counts = new Map<number, number>();
  for (const target of placed) for (const id of target) counts.set(id, (counts.get(id) ?? 0) + 1);
  return counts;
}
/** Copies that must be made to get from one table to the other, as [pg, who gets it]. */
function moves(before: number[][], after: number[][]): [number, number][] {
  return after.flatMap((target, pg) =>
    target.filter((id) => !before[pg]!.includes(id)).map((id): [number, number] => [pg, id]),
  );
}

test('members of a PG are distinct daemons in distinct failure domains', (t) => {
  const candidates = daemons(12, 3);
  const domainOf = new Map(candidates.map((c) => [c.id, c.domain]));
  for (const target of placeAll(candidates, 3)) {
    t.is(target.length, 3);
    t.is(new Set(target.map((id) => domainOf.get(id))).size, 3);
  }
});

test('with too few domains the rest are other daemons, and with too few daemons the set is short', (t) => {
  for (const target of placeAll(daemons(6, 3), 4, 64)) {
    const onFirstHost = target.slice(0, 2).filter((id) => id <= 3).length;
    t.is(new Set(target).size, 4);
    t.is(onFirstHost, 1, 'both hosts come first');
  }
  for (const target of placeAll(daemons(2), 3, 64)) t.deepEqual([...target].sort(), [1, 2]);
  for (const target of placeAll([], 3, 4)) t.deepEqual(target, []);
});

test('a daemon that is out or has weight 0 takes nothing, and only its slots move', (t) => {
  const all = daemons(8);
  const before = placeAll(all, 2);
  for (const gone of [{ in: false }, { weight: 0 }]) {
    const after = placeAll(
      all.map((c) => (c.id === 3 ? { ...c, ...gone } : c)),
      2,
    );
    t.is(countPer(after).get(3), undefined);
    const moved = moves(before, after);
    t.is(moved.length, countPer(before).get(3)!);
    for (const [pg] of moved) t.true(before[pg]!.includes(3));
  }
});

test('a daemon that leaves a host of several moves its own slots and no others', (t) => {
  const all = daemons(12, 3);
  const before = placeAll(all, 2);
  const after = placeAll(
    all.filter((c) => c.id !== 5),
    2,
  );
  const moved = moves(before, after);
  t.is(moved.length, countPer(before).get(5)!);
  for (const [pg] of moved) t.true(before[pg]!.includes(5));
});

test('a daemon that joins takes about its share, all of it to itself', (t) => {
  const before = placeAll(daemons(9), 2);
  const after = placeAll(daemons(10), 2);
  const moved = moves(before, after);
  t.true(
    moved.every(([, id]) => id === 10),
    'nothing moves between old daemons',
  );
  const share = (PGS * 2) / 10;
  t.true(Math.abs(moved.length - share) < 0.2 * share, `${moved.length} moved, the share is ${share}`);
});

test('a weight that doubles moves copies to that daemon only; one that halves moves them away from it only', (t) => {
  const even = placeAll(daemons(10), 2);
  const heavy = placeAll(
    daemons(10, 1, (id) => (id === 4 ? 2 : 1)),
    2,
  );
  const gained = moves(even, heavy);
  t.true(gained.length > 0 && gained.every(([, id]) => id === 4));
  const lost = moves(heavy, even);
  t.true(lost.length > 0 && lost.every(([pg]) => heavy[pg]!.includes(4) && !even[pg]!.includes(4)));
});

test('copies and the primary role are drawn in proportion to the weights', (t) => {
  const weights = [0, 1, 1, 2, 4];
  const placed = placeAll(
    daemons(4, 1, (id) => weights[id]!),
    1,
    8_192,
  );
  const counts = countPer(placed);
  for (const id of [1, 2, 3, 4]) {
    const share = (8_192 * weights[id]!) / 8;
    t.true(Math.abs(counts.get(id)! - share) < 0.1 * share, `daemon ${id}: ${counts.get(id)} of ${share}`);
  }
  const first = countPer(placeAll(daemons(8), 3, 8_192).map(([primary]) => [primary!]));
  for (const count of first.values()) t.true(Math.abs(count - 1_024) < 0.12 * 1_024, `${count} primaries of 1024`);
});

test('the order of the daemons in the registry does not matter', (t) => {
  const candidates = daemons(12, 3);
  t.deepEqual(placeAll(candidates.toReversed(), 3, 256), placeAll(candidates, 3, 256));
});

test('of 10,000 daemons one that joins takes its share from everywhere, and nothing else moves', (t) => {
  const pgs = 512;
  const candidates = daemons(10_000, 10, (id) => (id % 3) + 1);
  const before = placeAll(candidates, 3, pgs);
  const counts = countPer(before);
  const domains = new Set(before.flatMap((target) => target.map((id) => Math.floor((id - 1) / 10))));
  // 1,536 balls into 1,000 hosts: 1000 * (1 - e^-1.536) = 785 hosts are hit; no daemon is hit absurdly often.
  t.true(Math.abs(domains.size - 785) < 60, `${domains.size} hosts used`);
  t.true(Math.max(...counts.values()) <= 6, `${Math.max(...counts.values())} PGs on one daemon`);
  const heavy = [...counts].filter(([id]) => id % 3 === 2).reduce((sum, [, count]) => sum + count, 0);
  t.true(Math.abs(heavy / (pgs * 3) - 0.5) < 0.05, 'half of the weight has half of the copies');

  // A host as heavy as a tenth of all: it must win about that part of the PGs, and only it gains.
  const joined: Candidate[] = [...candidates, { id: 10_001, domain: 'new', weight: 2_000, in: true }];
  const moved = moves(before, placeAll(joined, 3, pgs));
  t.true(moved.every(([, id]) => id === 10_001));
  t.true(moved.length > 0.15 * pgs && moved.length < 0.4 * pgs, `${moved.length} of ${pgs} PGs move`);
});
