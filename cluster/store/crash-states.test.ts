// The power is cut at every moment of every story and of random storms, and each disk that may be left of it is started
// again: see crash-states.ts.

import test, { type ExecutionContext } from 'ava';
import { type CrashState, crashStates, judge } from './crash-states.ts';
import { RecordingDisk } from './recording-disk.ts';
import { PLAN, Prefixes, Run, storm, TestClock } from './scenario.ts';
import { actOut, beginningOf, STORIES, type Story } from './stories.ts';

/** States of one gap between the ends of two syncs. */
const PER_GAP = 64;
/** Distinct states in all: storms go on until there are so many. More of them: ASHLAR_CRASH_STATES=100000. */
const STATES_MIN = 10_000;
const STATES = Math.max(STATES_MIN, Number(process.env.ASHLAR_CRASH_STATES ?? 0));

const STORM: Story = { title: 'a storm of random steps', act: () => {} };

interface Found {
  states: number;
  events: number;
  failure: string | null;
}

/** Records one run and judges the states that a power cut could leave of it, until one fails. */
async function enumerate(story: Story, seed = 0): Promise<Found> {
  const { disk: start, history } = await beginningOf(story);
  const clock = new TestClock();
  const disk = start.survivor('kill', clock);
  const recording = new RecordingDisk(disk, disk.image(), () => run.outcome.synced);
  const run: Run = new Run(recording, clock, undefined, history);
  const plan = { ...PLAN, seed, steps: 70, syncEvery: 4 + (seed % 9), checkpointEvery: 9 + (seed % 11) };
  const outcome = story === STORM ? await run.drive(() => storm(run, plan)) : await actOut(story, run);
  const found: Found = { states: 0, events: recording.journal.length, failure: null };
  if (!outcome.finished) return { ...found, failure: `the story did not end: ${outcome.fatal}` };
  const prefixes = new Prefixes(outcome.steps, 0);
  for (const state of crashStates(recording, PER_GAP, seed + 1)) {
    if (state.isNew) found.states++;
    const why = await judge(state, prefixes);
    if (why === null) continue;
    found.failure = describe(state, why);
    break;
  }
  return found;
}

const describe = (state: CrashState, why: string): string => `${state.label}, ${state.owed} steps owed: ${why}`;

async function check(t: ExecutionContext, story: Story, seed = 0): Promise<number> {
  const { states, events, failure } = await enumerate(story, seed);
  t.is(failure, null, `${story.title}, seed ${seed}, state ${states}`);
  t.log(`${states} states from ${events} operations`);
  return states;
}

let total = 0;

for (const story of STORIES)
  test.serial(`after a power cut at any moment nothing is lost: ${story.title}`, async (t) => {
    total += await check(t, story);
  });

test.serial('after a power cut at any moment of random storms nothing is lost, in ten thousand states', async (t) => {
  for (let seed = 1; total < STATES; seed++) total += await check(t, STORM, seed);
  t.true(total >= STATES_MIN);
  t.log(`${total} distinct states in all`);
});
