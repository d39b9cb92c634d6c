// Every bug of bugs.ts, planted in the product's own source, is found by the simulation within a bounded number of
// seeds; and the seed that found it finds nothing in the product as it is. One after the other: a run watches its whole process.

import test from 'ava';
import { BUGS, type Bug } from './bugs.ts';
import { type PlantedSimulation, plant } from './planting.ts';
import { describeFailure, type Outcome, type RunOptions, runSeed } from './run-seed.ts';

const SEEDS_MAX = 80;

const optionsOf = ({ plan }: Bug): RunOptions => ({
  plan: plan ?? {},
  ...(plan?.store === undefined ? {} : { stores: [plan.store] }),
});

async function firstFailure(simulation: PlantedSimulation, bug: Bug): Promise<Outcome | null> {
  for (let seed = 1; seed <= (bug.seedsMax ?? SEEDS_MAX); seed++) {
    const outcome = await simulation.runSeed(seed, optionsOf(bug));
    if (outcome.failure !== null) return outcome;
  }
  return null;
}

for (const bug of BUGS)
  test.serial(`planted: ${bug.name}`, async (t) => {
    t.timeout(120_000);
    const outcome = await firstFailure(await plant(bug.name, bug.edits), bug);
    t.not(outcome, null, 'no seed found it');
    t.log(`seed ${outcome!.seed}: ${outcome!.failure!.message}`);
    const sound = await runSeed(outcome!.seed, optionsOf(bug));
    t.is(sound.failure, null, sound.failure === null ? '' : describeFailure(sound));
  });

test.serial('the list has at least 25 bugs, and an edit that fits no source is an error', async (t) => {
  t.true(BUGS.length >= 25);
  const edits = [{ file: 'cluster/daemon/serving.ts', find: 'words that are not there', replace: '' }];
  await t.throwsAsync(plant('nothing', edits), { message: /0 times, not once/ });
});
