import test, { type ExecutionContext } from 'ava';
import { type DaemonId, type PgId, pgId } from '../../proto/ids.ts';
import { type Candidate, place, topologyOf } from '../../proto/placement.ts';
import { SimRandom } from '../sim/random.ts';
import { balancePool, type Targets } from './balance.ts';

const none: Targets = new Map();

/** A pool whose targets are kept through changes of membership, as the master keeps them. */
class Pool {
  readonly replicas: number;
  readonly pgs: PgId[];
  hashed: Targets = none;
  targets: Targets = none;
  candidates: Candidate[] = [];

  constructor(pgCount: number, replicas: number) {
    this.replicas = replicas;
    this.pgs = Array.from({ length: pgCount }, (_, index) => pgId(1, index));
  }

  set(candidates: Candidate[]): void {
    const weights = new Map(this.candidates.filter((c) => c.in).map((c) => [c.id, c.weight]));
    const topology = topologyOf(candidates);
    const hashed = new Map(this.pgs.map((pg) => [pg, place(topology, pg, this.replicas)]));
    this.targets = balancePool({
      topology,
      replicas: this.replicas,
      hashed,
      hashedBefore: this.hashed,
      targetsBefore: this.targets,
      weightBefore: (id) => weights.get(id) ?? 0,
    });
    this.hashed = hashed;
    this.candidates = candidates;
  }
}

function daemons(count: number, perDomain = 1, weight: (id: DaemonId) => number = () => 1): Candidate[] {
  return Array.from({ length: count }, (_, at) => ({
    id: at + 1,
    domain: `host-${Math.floor(at / perDomain)}`,
    weight: weight(at + 1),
    in: true,
  }));
}

function counts(targets: Targets, part: (target: readonly DaemonId[]) => readonly DaemonId[]): Map<DaemonId, number> {
  const count = new Map<DaemonId, number>();
  for (const target of targets.values()) for (const id of part(target)) count.set(id, (count.get(id) ?? 0) + 1);
  return count;
}
const members = (target: readonly DaemonId[]): readonly DaemonId[] => target;
const primary = (target: readonly DaemonId[]): readonly DaemonId[] => target.slice(0, 1);

/** Every daemon within 5 % (or one slot) of its share by weight, both in copies and in the primary role. */
function assertBalanced(t: ExecutionContext, pool: Pool, label: string): void {
  const placeable = pool.candidates.filter((c) => c.in && c.weight > 0);
  const weight = placeable.reduce((sum, c) => sum + c.weight, 0);
  for (const [part, total] of [
    [members, pool.pgs.length * Math.min(pool.replicas, placeable.length)],
    [primary, pool.pgs.length],
  ] as const) {
    const count = counts(pool.targets, part);
    for (const candidate of placeable) {
      const share = (total * candidate.weight) / weight;
      const off = Math.abs((count.get(candidate.id) ?? 0) - share);
      t.true(
        off <= Math.max(1, 0.05 * share),
        `${label}: daemon ${candidate.id} has ${count.get(candidate.id)} of ${share}`,
      );
    }
  }
}

function assertSound(t: ExecutionContext, pool: Pool): void {
  const domainOf = new Map(pool.candidates.map((c) => [c.id, c.domain]));
  const placeable = pool.candidates.filter((c) => c.in && c.weight > 0);
  const domains = Math.min(pool.replicas, new Set(placeable.map((c) => c.domain)).size);
  for (const target of pool.targets.values()) {
    t.is(new Set(target).size, Math.min(pool.replicas, placeable.length));
    t.is(new Set(target.map((id) => domainOf.get(id))).size, domains);
    t.true(target.every((id) => placeable.some((c) => c.id === id)));
  }
}

/** Copies that the change makes necessary, and those of them between daemons that `changed` does not name. */
function moves(before: Targets, after: Targets, changed: readonly DaemonId[]): { all: number; betweenOld: number } {
  let all = 0;
  let betweenOld = 0;
  for (const [pg, target] of after) {
    const gone = before.get(pg)!.filter((id) => !target.includes(id));
    const gained = target.filter((id) => !before.get(pg)!.includes(id));
    all += gained.length;
    // A copy that appears on an old daemon is excused if the copy that it replaces was on a changed one.
    const excused = gone.filter((id) => changed.includes(id)).length;
    betweenOld += Math.max(0, gained.filter((id) => !changed.includes(id)).length - excused);
  }
  return { all, betweenOld };
}

for (const [count, pgs, replicas, perDomain] of [
  [4, 128, 3, 1],
  [5, 256, 2, 1],
  [10, 512, 2, 1],
  [20, 1_024, 2, 1],
  [12, 512, 3, 2],
  [3, 64, 2, 1],
  [2, 64, 2, 1],
] as const)
  test(`${pgs} PGs x ${replicas} on ${count} equal daemons, ${perDomain} per host, are balanced within 5 %, primaries too`, (t) => {
    const pool = new Pool(pgs, replicas);
    pool.set(daemons(count, perDomain));
    assertSound(t, pool);
    assertBalanced(t, pool, 'new pool');
  });

test('unequal weights get unequal shares, within 5 %', (t) => {
  const pool = new Pool(1_024, 2);
  pool.set(daemons(10, 1, (id) => (id <= 5 ? 1 : 2)));
  assertSound(t, pool);
  assertBalanced(t, pool, 'weights 1 and 2');
});

test('a daemon too heavy for its share gets every PG once, and the others split the rest evenly', (t) => {
  const pool = new Pool(256, 2);
  pool.set(daemons(4, 1, (id) => (id === 1 ? 100 : 1)));
  assertSound(t, pool);
  const count = counts(pool.targets, members);
  t.true(count.get(1)! >= 0.95 * 256);
  for (const id of [2, 3, 4]) t.true(Math.abs(count.get(id)! - 256 / 3) <= 5, `daemon ${id}: ${count.get(id)}`);
});

test('asked again with nothing changed, nothing moves', (t) => {
  const pool = new Pool(512, 2);
  pool.set(daemons(10));
  const before = pool.targets;
  pool.set(daemons(10));
  t.deepEqual(pool.targets, before);
});

for (const count of [5, 10, 20]) {
  const pgs = 2 ** Math.round(Math.log2(count * 50)); // about 100 slots per daemon at two replicas
  const slots = pgs * 2;

  test(`a daemon that joins ${count} takes about its share; less than 1 % of all copies move between old daemons`, (t) => {
    const pool = new Pool(pgs, 2);
    pool.set(daemons(count));
    const before = pool.targets;
    pool.set(daemons(count + 1));
    assertSound(t, pool);
    assertBalanced(t, pool, 'after the join');
    const moved = moves(before, pool.targets, [count + 1]);
    const share = slots / (count + 1);
    t.log(`${moved.all} of ${slots} copies move (share ${share.toFixed(0)}), ${moved.betweenOld} between old daemons`);
    t.true(moved.all <= 1.05 * share + 0.01 * slots);
    t.true(moved.betweenOld <= 0.01 * slots);
  });

  test(`a daemon that leaves ${count + 1} gives its share away; less than 1 % of all copies move between the others`, (t) => {
    const pool = new Pool(pgs, 2);
    pool.set(daemons(count + 1));
    const before = pool.targets;
    pool.set(daemons(count + 1).map((c) => (c.id === 2 ? { ...c, in: false } : c)));
    assertSound(t, pool);
    assertBalanced(t, pool, 'after the leave');
    const moved = moves(before, pool.targets, [2]);
    const share = counts(before, members).get(2)!;
    t.log(`${moved.all} of ${slots} copies move (it had ${share}), ${moved.betweenOld} between the others`);
    t.true(moved.all <= share + 0.01 * slots);
    t.true(moved.betweenOld <= 0.01 * slots);
  });

  test(`of ${count} daemons one that doubles its weight gains about what it lacks; less than 1 % move between the others`, (t) => {
    const pool = new Pool(pgs, 2);
    pool.set(daemons(count));
    const before = pool.targets;
    pool.set(daemons(count, 1, (id) => (id === 3 ? 2 : 1)));
    assertSound(t, pool);
    assertBalanced(t, pool, 'after the change of weight');
    const moved = moves(before, pool.targets, [3]);
    const share = (slots * 2) / (count + 1) - slots / count;
    t.log(
      `${moved.all} of ${slots} copies move (it gains ${share.toFixed(0)}), ${moved.betweenOld} between the others`,
    );
    t.true(moved.all <= 1.1 * share + 0.01 * slots);
    t.true(moved.betweenOld <= 0.01 * slots);
  });
}

test('out and in again, many times over, stays balanced and does not churn more and more', (t) => {
  const pool = new Pool(512, 2);
  pool.set(daemons(10));
  for (let round = 0; round < 12; round++) {
    const id = (round % 10) + 1;
    pool.set(daemons(10).map((c) => (c.id === id ? { ...c, in: false } : c)));
    assertBalanced(t, pool, `round ${round}, out`);
    const before = pool.targets;
    pool.set(daemons(10));
    assertSound(t, pool);
    assertBalanced(t, pool, `round ${round}, in`);
    t.true(moves(before, pool.targets, [id]).betweenOld <= 0.01 * 1_024, `round ${round}`);
  }
});

test('a stand-in keeps its slot when the daemon that it stands in for leaves', (t) => {
  const pool = new Pool(512, 2);
  pool.set(daemons(10));
  const { targets: before, hashed: hashedBefore } = pool;
  const standInsOf = (id: DaemonId) =>
    [...before].filter(([pg, target]) => hashedBefore.get(pg)!.includes(id) && !target.includes(id));
  const leaver = daemons(10).reduce((most, { id }) => (standInsOf(id).length > standInsOf(most).length ? id : most), 1);
  const standIns = standInsOf(leaver);
  t.true(standIns.length > 5, `others hold ${standIns.length} slots of daemon ${leaver}`);
  pool.set(daemons(10).filter((c) => c.id !== leaver));
  const kept = standIns.filter(([pg, target]) => target.every((id) => pool.targets.get(pg)!.includes(id)));
  t.true(kept.length >= standIns.length - 2, `${kept.length} of ${standIns.length} stay`);
});

test('whatever the topology and its history, targets are sound, and asking again moves nothing', (t) => {
  const random = new SimRandom(7);
  for (let history = 0; history < 40; history++) {
    const replicas = random.between(1, 4);
    const pool = new Pool(2 ** random.between(4, 7), replicas);
    let candidates: Candidate[] = [];
    for (let step = 0; step < 8; step++) {
      const joins = random.below(3) + (step === 0 ? 1 : 0);
      for (let i = 0; i < joins; i++)
        candidates = [
          ...candidates,
          {
            id: candidates.length + 1,
            domain: `host-${random.below(6)}`,
            weight: random.below(4),
            in: random.chance(0.9),
          },
        ];
      candidates = candidates.map((c) =>
        random.chance(0.2) ? { ...c, in: !c.in } : random.chance(0.1) ? { ...c, weight: random.below(4) } : c,
      );
      pool.set(candidates);
      assertSound(t, pool);
      const before = pool.targets;
      pool.set(candidates);
      t.deepEqual(pool.targets, before);
    }
  }
});
