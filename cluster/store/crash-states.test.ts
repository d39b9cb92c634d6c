// The power is cut at every moment of every story and of random storms, and each disk that may be left of it is started
// again: see crash-states.ts.

import test, { type ExecutionContext } from 'ava';
import { crashRun, STORM } from './crash-run.ts';
import { STORIES, type Story } from './stories.ts';

/** Distinct states that all stories and storms together must make. */
const STATES_MIN = 10_000;
/** Each makes some 1,400 states. More of them: ASHLAR_CRASH_STORMS=100. */
const STORMS = Number(process.env.ASHLAR_CRASH_STORMS ?? 6);

async function check(t: ExecutionContext, story: Story, seed = 0): Promise<number> {
  const { states, operations, failure } = await crashRun(story, seed);
  t.is(failure, null, `${story.title}, seed ${seed}, state ${states}`);
  t.log(`${states} states of ${operations} operations`);
  return states;
}

let total = 0;

for (const story of STORIES)
  test.serial(`after a power cut at any moment nothing is lost: ${story.title}`, async (t) => {
    total += await check(t, story);
  });

for (let seed = 1; seed <= STORMS; seed++)
  test.serial(`after a power cut at any moment nothing is lost: random steps, seed ${seed}`, async (t) => {
    total += await check(t, STORM, seed);
  });

test.serial('ten thousand states were judged', (t) => {
  t.true(total >= STATES_MIN, `only ${total}`);
  t.log(`${total} distinct states`);
});
