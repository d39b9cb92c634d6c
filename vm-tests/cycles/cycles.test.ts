// Real processes, real faults, an independent witness: at least 20 cycles, as many kinds as fit into the time.
//
// scripts/test soak --minutes M runs as many as wanted; ASHLAR_SEED (scripts/test --seed S) chooses another order.

import test from 'ava';
import { testUnless } from '../lib/processes.ts';
import { KINDS, NEEDS_ROOT, planOf } from './cycles.ts';
import { CLEAN_MS, DEATH_MS, HEALED_MS, randomOf, runTrial } from './trial.ts';

const CYCLES_MIN = 20;
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
    const plan = planOf(
      Object.keys(KINDS).filter((kind) => !NEEDS_ROOT.includes(kind)),
      100,
      randomOf(SEED),
    );
    const start = performance.now();
    const result = await runTrial({
      seed: SEED,
      daemons: 3,
      next: (cycle) => (cycle < CYCLES_MIN || performance.now() - start < ENOUGH_MS ? plan[cycle]! : null),
      freezeMaxMs: FREEZE_MAX_MS,
      smallDisk: false,
      rate: RATE,
      report: () => {},
    });
    const { cycles, ...sums } = result;
    t.true(cycles.length >= CYCLES_MIN);
    t.true(result.changes > 2_000 && result.reads > 1_000 && result.flushes > 100, JSON.stringify(sums));
    t.true(result.auditedBlocks === cycles.length * 2 * 2_048, JSON.stringify(sums));
    t.true(result.comparedObjects > 100, JSON.stringify(sums));
    t.true(result.proxy.resets > 0 && result.proxy.connections > 50, JSON.stringify(sums));
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
