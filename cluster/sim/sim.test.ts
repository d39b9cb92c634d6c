// Whole clusters under seeds: nothing wrong may be found, and every fifth seed must repeat to the digest.
//
// ASHLAR_SEEDS and ASHLAR_SEED choose how many and from which (scripts/test sim --seeds N --seed S).

import test from 'ava';
import type { Plan } from './plan.ts';
import { describeFailure, runSeed } from './run-seed.ts';
import { CALM_NETWORK } from './sim-network.ts';

const SEEDS = Number(process.env.ASHLAR_SEEDS ?? 500);
const FIRST = Number(process.env.ASHLAR_SEED ?? 1);
const TWICE_EVERY = 5;
/** Seeds in which hardly anything happened say nothing; more of them mean that the plans are wrong. */
const VACUOUS_SHARE_MAX = 0.05;

test(`${SEEDS} seeds from ${FIRST}: clusters that crash, pause, lose and partition keep every promise, twice the same`, async (t) => {
  t.timeout(10 * 60_000);
  let vacuous = 0;
  let acked = 0;
  const probes = new Map<string, number>();
  for (let seed = FIRST; seed < FIRST + SEEDS; seed++) {
    const outcome = await runSeed(seed);
    if (outcome.failure !== null) {
      t.log(describeFailure(outcome));
      t.fail(`seed ${seed}: ${outcome.failure.message}`);
      return;
    }
    if (outcome.vacuous) vacuous++;
    acked += outcome.ackedOperations;
    for (const [name, times] of outcome.probes) probes.set(name, (probes.get(name) ?? 0) + times);
    if ((seed - FIRST) % TWICE_EVERY === 0)
      t.is((await runSeed(seed)).digest, outcome.digest, `seed ${seed} must repeat: something outside it had a say`);
  }
  t.log(`${acked} operations acked and judged, ${vacuous} vacuous seeds`);
  t.log(
    [...probes]
      .sort()
      .map(([name, times]) => `${name} ${times}`)
      .join(', '),
  );
  if (SEEDS < 50) return;
  t.true(vacuous <= SEEDS * VACUOUS_SHARE_MAX, `${vacuous} of ${SEEDS} seeds are vacuous`);
  for (const fault of [
    'cut power of a daemon',
    'cut all power',
    'crash daemon',
    'crash master',
    'crash writer',
    'take over',
    'partition',
    'payload bit flip',
    'frame repeated',
    'control call repeated',
    'disk full',
    'disk read fails',
    'disk sync fails',
    'disk write fails',
    'disk stall',
    'bit rot',
    'add daemon',
    'image made and removed',
    'move data',
    'pause daemon',
    'pause master',
    'clog',
    'silence',
    'reset: random',
  ])
    t.true(probes.has(fault), `no seed had the fault: ${fault}`);
});

test('another seed is another run', async (t) => {
  t.not((await runSeed(1)).digest, (await runSeed(2)).digest);
});

/** One hot PG, and directions that go silent for longer than anybody waits. */
const MUTE_CONNECTIONS: Partial<Plan> = {
  faults: ['reset connections'],
  faultEveryMs: 700,
  depth: 16,
  operations: 3_000,
  durationMs: 60_000,
  imageBytes: 65_536,
  largestBytes: 4_096,
  grainBytes: 4_096,
  pgCount: 1,
  observer: false,
  layout: { order: 16, stripeUnit: 65_536, stripeCount: 1 },
  network: { ...CALM_NETWORK, delayMeanMs: 1, lossChance: 0.03, silenceMeanMs: 15_000 },
};

/** Runs that once found something wrong, with what it was. */
const STORIES: [title: string, seed: number, store: Plan['store'], plan: Partial<Plan>][] = [
  [
    'two processes of one directory wait for their predecessor to be gone, the dead one does not become the daemon',
    24,
    'memory',
    { faults: ['reset connections', 'crash daemon', 'partition'], faultEveryMs: 300, depth: 16 },
  ],
  [
    'pushes to members that are gone give their turns back, and recovery goes on',
    445,
    'memory',
    { faults: ['break streams'], faultEveryMs: 300, depth: 16 },
  ],
  [
    'all members lose power, and the writer reads what it had acked and not flushed before it is replayed',
    112,
    'disk',
    {},
  ],
  [
    "a mute connection's hello comes after its client has used another, and its old write does not land on a newer one",
    368,
    'memory',
    MUTE_CONNECTIONS,
  ],
  [
    'a read does not go back behind a change in flight while acked changes of an ended interval are laid over it',
    1006,
    'memory',
    MUTE_CONNECTIONS,
  ],
];
for (const [title, seed, store, plan] of STORIES)
  test(title, async (t) => {
    const outcome = await runSeed(seed, { plan, stores: [store] });
    t.is(outcome.failure, null, outcome.failure === null ? '' : describeFailure(outcome));
  });
