// Masters that share a store, under seeds (masters-sim.ts). ASHLAR_SEEDS and ASHLAR_SEED choose how many and from which.

import test from 'ava';
import { type MastersBug, runMasters } from './masters-sim.ts';

const SEEDS = Number(process.env.ASHLAR_SEEDS ?? 40);
const FIRST = Number(process.env.ASHLAR_SEED ?? 1);
const TWICE_EVERY = 10;
/** A planted bug must be found within so many. */
const PLANTED_SEEDS = 200;

test(`${SEEDS} seeds from ${FIRST}: of masters that crash, stop and lose etcd one leads, and all that was acked is there`, async (t) => {
  t.timeout(5 * 60_000);
  const probes = new Set<string>();
  const takeOverMs: number[] = [];
  let acked = 0;
  let terms = 0;
  for (let seed = FIRST; seed < FIRST + SEEDS; seed++) {
    const outcome = await runMasters(seed);
    t.is(outcome.failure, null, `seed ${seed}: ${outcome.failure?.stack}`);
    acked += outcome.acked;
    terms += outcome.terms;
    takeOverMs.push(...outcome.takeOverMs);
    for (const name of outcome.probes.keys()) probes.add(name);
    if ((seed - FIRST) % TWICE_EVERY === 0)
      t.is((await runMasters(seed)).digest, outcome.digest, `seed ${seed} must repeat: something outside it had a say`);
  }
  t.log(
    `${acked} acked, ${terms} terms; ${takeOverMs.length} deaths in peace, longest ${Math.max(...takeOverMs).toFixed(0)} ms`,
  );
  t.true(acked > SEEDS * 100 && terms > SEEDS * 5 && takeOverMs.length === 3 * SEEDS, 'something happened');
  for (const fault of [
    'crash',
    'pause',
    'cut off from etcd',
    'etcd away',
    'told to stop',
    'arrives late',
    'answer lost',
    'read',
  ])
    t.true(probes.has(fault), `no seed had: ${fault}`);
});

const BUGS: [MastersBug, RegExp][] = [
  ['transactions without the guard', /changed .* while .* led|epoch went back/],
  ['a lease that never ends by the clock', /a read does not see/],
  ['a journal that nobody finishes', /pool \d+ has \d+ of 256 PGs|acked and lost/],
];
for (const [bug, verdict] of BUGS)
  test(`planted: ${bug} is found`, async (t) => {
    t.timeout(5 * 60_000);
    for (let seed = 1; seed <= PLANTED_SEEDS; seed++) {
      const { failure } = await runMasters(seed, bug);
      if (failure === null) continue;
      t.regex(failure.message, verdict);
      t.log(`found in seed ${seed}: ${failure.message}`);
      return;
    }
    t.fail(`not found in ${PLANTED_SEEDS} seeds`);
  });
