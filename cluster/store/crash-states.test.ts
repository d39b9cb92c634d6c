// The power is cut at every moment of every story and of random storms, and each disk that may be left of it is started
// again: see crash-states.ts.

import test, { type ExecutionContext } from 'ava';
import { crashRun, STORM } from './crash-run.ts';
import { STORIES, type Story } from './stories.ts';

/** Distinct states that all stories and storms together must make. */
const STATES_MIN = 10_000;
/** Each makes some 1,500 states. More of them: ASHLAR_CRASH_STORMS=100. */
const STORMS = Number(process.env.ASHLAR_CRASH_STORMS ?? 4);

/** Digests of all states: stories begin alike. */
const all = new Set<string>();

async function check(t: ExecutionContext, story: Story, seed = 0): Promise<void> {
  // Some seconds of work, on a machine that may be busy with more.
  t.timeout(600_000);
  const { states, operations, failure } = await crashRun(story, seed);
  for (const digest of states) all.add(digest);
  t.is(failure, null, `${story.title}, seed ${seed}, state ${states.size}`);
  t.log(`${states.size} states of ${operations} operations`);
}

for (const story of STORIES)
  test.serial(`after a power cut at any moment nothing is lost: ${story.title}`, async (t) => {
    await check(t, story);
  });

for (let seed = 1; seed <= STORMS; seed++)
  test.serial(`after a power cut at any moment nothing is lost: random steps, seed ${seed}`, async (t) => {
    await check(t, STORM, seed);
  });

test.serial('ten thousand states were judged', (t) => {
  t.true(all.size >= STATES_MIN, `only ${all.size}`);
  t.log(`${all.size} distinct states`);
});
