// Records a story or a storm on a disk in memory and judges every state that a power cut could leave of it.

import type { Disk } from '../../proto/ports.ts';
import { type Judgement, judgeAll } from './crash-states.ts';
import { RecordingDisk } from './recording-disk.ts';
import { PLAN, Prefixes, Run, storm, TestClock } from './scenario.ts';
import { actOut, beginningOf, type Story } from './stories.ts';

/** States of one gap between the ends of two syncs. */
const PER_GAP = 64;

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
  if (!outcome.finished) return { states: 0, operations, failure: `the story did not end: ${outcome.fatal}` };
  return { operations, ...(await judgeAll(recording, new Prefixes(outcome.steps, 0), PER_GAP, seed + 1)) };
}
