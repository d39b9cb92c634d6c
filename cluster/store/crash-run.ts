// Records a story or a storm on a disk in memory and judges every state that a power cut could leave of it; then, for
// some of these, every state that another power cut could leave of the start that recovers from the first.

import type { Disk } from '../../proto/ports.ts';
import { type CrashState, crashStates, type Judgement, judgeAll } from './crash-states.ts';
import { FaultDisk } from './fault-disk.ts';
import { RecordingDisk } from './recording-disk.ts';
import { closeOn, openOn, PLAN, Prefixes, Run, storm, TestClock } from './scenario.ts';
import { actOut, beginningOf, type Story } from './stories.ts';

/** States of one gap between the ends of two syncs, and of one of a start that recovers. */
const PER_GAP = 64;
const PER_RECOVERY_GAP = 16;
/** Starts of one run whose own states are looked at. */
const RECOVERIES = 5;

/** Random steps instead of a story; other ones for each seed. */
export const STORM: Story = { title: 'a storm of random steps', act: () => {} };

export interface CrashRun extends Judgement {
  /** Writes, syncs, creations ... recorded. */
  operations: number;
}

/** @param wrap puts a disk that does wrong between the store and the recording */
export async function crashRun(story: Story, seed = 0, wrap: (disk: Disk) => Disk = (disk) => disk): Promise<CrashRun> {
  const { disk: start, history, synced } = await beginningOf(story);
  const clock = new TestClock();
  const disk = start.survivor('kill', clock);
  const recording = new RecordingDisk(disk, disk.image(), () => run.outcome.synced);
  const run: Run = new Run(Object.assign(wrap(recording), { dead: false }), clock, undefined, history, synced);
  const plan = { ...PLAN, seed, steps: 70, syncEvery: 4 + (seed % 9), checkpointEvery: 9 + (seed % 11) };
  const outcome = story === STORM ? await run.drive(() => storm(run, plan)) : await actOut(story, run);
  const operations = recording.journal.length;
  if (!outcome.finished) return { states: new Set(), operations, failure: `the story did not end: ${outcome.fatal}` };
  const prefixes = new Prefixes(outcome.steps, 0);
  const judgement = await judgeAll(recording, prefixes, PER_GAP, seed + 1);
  const every = Math.max(1, Math.floor(judgement.states.size / RECOVERIES));
  let count = 0;
  for (const state of crashStates(recording, PER_GAP, seed + 1)) {
    if (judgement.failure !== null) break;
    if (++count % every !== 0) continue;
    const again = await recoveryRun(state, prefixes, wrap, seed);
    for (const digest of again.states) judgement.states.add(digest);
    if (again.failure !== null) judgement.failure = `recovering from: ${state.label}: ${again.failure}`;
  }
  return { operations, ...judgement };
}

/** Whatever the first start finds on the disk is there for good: a power cut during it, or later, changes nothing. */
async function recoveryRun(
  state: CrashState,
  prefixes: Prefixes,
  wrap: (disk: Disk) => Disk,
  seed: number,
): Promise<Judgement> {
  const clock = new TestClock();
  const peek = await openOn(FaultDisk.holding(state.files, clock), clock, () => {});
  const found = await prefixes.find(peek, clock, state.owed);
  if (typeof found !== 'number') return { states: new Set(), failure: found };
  const recording = new RecordingDisk(FaultDisk.holding(state.files, clock), state.files, () => found);
  const store = await openOn(wrap(recording), clock, () => {});
  await closeOn(store, clock);
  return judgeAll(recording, prefixes, PER_RECOVERY_GAP, seed + 1);
}
