// Real processes, real faults, an independent witness: at least 20 cycles, as many kinds as fit into the time.
//
// scripts/test soak --minutes M runs as many as wanted; ASHLAR_SEED (scripts/test --seed S) chooses another order.

import test from 'ava';
import { testUnless } from '../lib/processes.ts';
import { KINDS, NEEDS_ROOT, planOf } from './cycles.ts';
import { CLEAN_MS, DEATH_MS, HEALED_MS, randomOf, runTrial } from './trial.ts';

/** What a plain run has in any case; the other kinds as far as there is time. */
const FIRST = [
  'a daemon is killed',
  'the master is killed',
  'the gateway is killed',
  'two daemons are killed',
  'everything is killed',
  'a daemon is stopped and goes on',
  'the gateway is stopped and goes on',
  'a daemon does not hear another',
  'a daemon does not hear the gateway',
  'a daemon is cut off from the master',
  'a daemon is cut off from everybody',
  'connections between daemons break',
  'connections of the gateway break',
  "connections of the oracle's clients break",
  'connections are closed in one direction only',
  'a link trickles',
  'bits flip between gateway and daemons',
  'bits flip between daemons',
  'a copy rots while its daemon is down',
  'an older copy of the data is put back',
  'an older copy of the whole disk is put back',
];
/** No further cycle begins after this. */
const ENOUGH_MS = 85_000;
const FREEZE_MAX_MS = 4_000;
const RATE = 250;
const SEED = Number(process.env.ASHLAR_SEED ?? 1);
const isRoot = process.getuid?.() === 0;
const whyNoDisk = isRoot ? null : 'needs root, for a small disk of its own';

test.serial(
  'at least 20 faults hit a cluster under load: no promise is broken, and all copies are equal at the end',
  async (t) => {
    t.timeout(600_000);
    const random = randomOf(SEED);
    const others = Object.keys(KINDS).filter((kind) => !FIRST.includes(kind) && !NEEDS_ROOT.includes(kind));
    const plan = [...planOf(FIRST, FIRST.length, random), ...planOf(others, others.length, random)];
    const start = performance.now();
    const result = await runTrial({
      seed: SEED,
      daemons: 3,
      next: (cycle) => (cycle < FIRST.length || performance.now() - start < ENOUGH_MS ? (plan[cycle] ?? null) : null),
      freezeMaxMs: FREEZE_MAX_MS,
      smallDisk: false,
      rate: RATE,
      report: () => {},
    });
    const { cycles, ...sums } = result;
    t.true(cycles.length >= FIRST.length && FIRST.length >= 20);
    t.deepEqual(
      FIRST.filter((kind) => !(kind in KINDS)),
      [],
    );
    t.true(result.changes > 2_000 && result.reads > 1_000 && result.flushes > 100, JSON.stringify(sums));
    t.true(result.auditedBlocks === cycles.length * 2 * 2_048, JSON.stringify(sums));
    t.true(result.comparedObjects > 100, JSON.stringify(sums));
    t.true(result.proxy.resets > 0 && result.proxy.flips > 0 && result.proxy.connections > 50, JSON.stringify(sums));
    const worst = (field: 'waitedMs' | 'healedMs' | 'cleanMs', effect?: string): number =>
      Math.max(
        0,
        ...cycles.filter((cycle) => effect === undefined || cycle.effect === effect).map((cycle) => cycle[field]),
      );
    t.log(
      `${cycles.length} cycles in ${((performance.now() - start) / 1000).toFixed(0)} s`,
      `after a death I/O waited ${worst('waitedMs', 'death')} ms at most (promised ${DEATH_MS})`,
      `after healing ${worst('healedMs')} ms (promised ${HEALED_MS})`,
      `clean after ${worst('cleanMs')} ms (promised ${CLEAN_MS})`,
      JSON.stringify(sums),
    );
  },
);

testUnless(test, whyNoDisk)(
  'a full disk refuses new data, takes overwrites and trims, and is used again',
  async (t) => {
    t.timeout(240_000);
    const kinds = ['a disk is full', 'a daemon is killed'];
    const result = await runTrial({
      seed: SEED,
      daemons: 3,
      next: (cycle) => kinds[cycle] ?? null,
      freezeMaxMs: FREEZE_MAX_MS,
      smallDisk: true,
      rate: RATE,
      report: (line) => t.log(line),
    });
    t.is(result.cycles.length, 2);
  },
);

test('a plan has every kind before any comes again, and is the same for the same seed', (t) => {
  const kinds = ['a', 'b', 'c'];
  const plan = planOf(kinds, 9, randomOf(5));
  t.deepEqual(plan, planOf(kinds, 9, randomOf(5)));
  for (const from of [0, 3, 6]) t.deepEqual(plan.slice(from, from + 3).sort(), kinds);
});
