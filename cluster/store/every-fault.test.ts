// Each operation of the disk fails in turn, in each story, until the story ends untouched; then a second one fails while
// the store recovers from the first.
//
//   fault       the N-th operation (write, sync, creation, rename, sync of the directory): EIO once, EIO from there
//               on, ENOSPC once, or the process dies at it
//   meanwhile   the store goes on and is right, or has ended itself
//   then        the process is killed, or the power goes; the M-th operation of the start fails in its turn; after another
//               kill or power cut the store must start and hold all that it owes, and nothing that it should not
//
// Reads fail on their own, once each. M goes round with N. What a start has served is owed from then on.

import test, { type ExecutionContext } from 'ava';
import type { Fault, FaultDisk } from './fault-disk.ts';
import { randomFrom, type Step } from './model.ts';
import { Redo } from './redo.ts';
import { differenceOf, openOn, Prefixes, Run, TestClock, unprovenDifferenceOf } from './scenario.ts';
import { actOut, type Beginning, beginningOf, STORIES, type Story } from './stories.ts';

const FAULTS: readonly Omit<Fault, 'at'>[] = [
  { what: 'IO' },
  { what: 'IO', forEver: true },
  { what: 'NO_SPACE' },
  { what: 'kill' },
];
/** A start does so many operations, about. */
const SECOND_FAULTS = 9;

type How = 'kill' | 'power';

interface Left {
  disk: FaultDisk;
  /** Steps that must be there after a kill, and after a power cut. */
  acked: number;
  synced: number;
}

/** What a kill or a power cut leaves, and what is still owed. */
function cut(left: Left, how: How, seed: number): Left & { clock: TestClock } {
  const clock = new TestClock();
  const disk = left.disk.survivor(how, clock, randomFrom(seed));
  return { disk, clock, synced: left.synced, acked: how === 'kill' ? left.acked : left.synced };
}

/** A power cut that takes all that was not synced, names included. */
function harshCut({ disk, acked, synced }: Left): Left & { clock: TestClock } {
  const clock = new TestClock();
  return { disk: disk.harshCut(clock), clock, acked, synced };
}

/** Starts the store on what is left, with a fault if one is armed. What was served is owed. Throws what open() throws. */
async function start(left: Left & { clock: TestClock }, prefixes: Prefixes): Promise<number | string> {
  const store = await openOn(left.disk, left.clock, () => {});
  const found = await prefixes.find(store, left.clock, left.acked);
  if (typeof found === 'number') left.acked = left.synced = found;
  return found;
}

/** The start after the fault, once with a second fault and once without. Returns what is wrong, or null. */
async function recovers(first: Left, steps: readonly Step[], at: number): Promise<string | null> {
  const prefixes = new Prefixes(steps, first.synced);
  for (const how of ['kill', 'power'] as const) {
    const second = FAULTS[at % FAULTS.length]!;
    const left = cut(first, how, at);
    left.disk.arm({ ...second, at: 1 + (Math.floor(at / FAULTS.length) % SECOND_FAULTS) });
    try {
      const found = await start(left, prefixes);
      if (typeof found === 'string') return `${how}, then ${second.what}: ${found}`;
    } catch (error) {
      if (left.disk.counted() === 0) return `${how}: the start failed without a fault: ${error}`;
    }
    left.disk.arm(null);
    for (const next of ['kill', 'power'] as const) {
      try {
        const served = cut(left, next, at + 1);
        const found = await start(served, prefixes);
        if (typeof found === 'string') return `${how}, ${second.what} at the start, ${next}: ${found}`;
        const after = await start(harshCut(served), prefixes);
        if (after !== found) return `${how}, ${second.what} at the start, ${next}, served, power: ${after}`;
      } catch (error) {
        return `${how}, ${second.what} at the start, ${next}: ${error}`;
      }
    }
  }
  return null;
}

/** Runs the story with the fault at `at`. Returns what is wrong, null, or 'untouched' if the story ended before. */
async function withFault(story: Story, beginning: Beginning, fault: Fault): Promise<string | null> {
  const clock = new TestClock();
  const disk = beginning.disk.survivor('kill', clock);
  disk.arm(fault);
  const run = new Run(disk, clock, undefined, beginning.history, beginning.synced);
  const outcome = await actOut(story, run);
  if (disk.counted() < fault.at) return outcome.finished ? 'untouched' : 'did not end';
  if (run.isOpen && outcome.fatal === null && !disk.dead) {
    const wrong = await differenceOf(run.model, run.store, clock);
    if (wrong !== null) return `the store went on and is wrong: ${wrong}`;
  }
  disk.arm(null);
  return recovers({ disk, acked: outcome.acked, synced: outcome.synced }, outcome.steps, fault.at);
}

/** Lets the fault happen at 1, 2, 3 ... until the story ends before it. */
async function everyPlace(t: ExecutionContext, story: Story, fault: Omit<Fault, 'at'>): Promise<number> {
  const beginning = await beginningOf(story);
  for (let at = 1; ; at++) {
    const wrong = await withFault(story, beginning, { ...fault, at });
    if (wrong === null) continue;
    t.is(wrong, 'untouched', `${fault.what}${fault.forEver ? ' for ever' : ''} at ${at}`);
    return at - 1;
  }
}

for (const story of STORIES)
  test(`any operation may fail, and another while recovering: ${story.title}`, async (t) => {
    // All stories at once take half a minute, on a machine that may be busy with more.
    t.timeout(600_000);
    const places: number[] = [];
    for (const fault of FAULTS) places.push(await everyPlace(t, story, fault));
    t.true(places.every((count) => count >= 10));
    t.log(`${places.reduce((sum, count) => sum + count)} places`);
  });

/** One read fails, which changes nothing on the disk: a start refuses, a block is shown as bad; nothing is lost. */
async function withFailedRead(story: Story, beginning: Beginning, at: number): Promise<string | null> {
  const clock = new TestClock();
  const disk = beginning.disk.survivor('kill', clock);
  disk.arm({ at, of: 'read', what: 'IO' });
  const run = new Run(disk, clock, undefined, beginning.history, beginning.synced);
  const { steps, acked, synced, fatal } = await actOut(story, run);
  if (disk.counted('read') < at) return 'untouched';
  disk.arm(null);
  if (run.isOpen && fatal === null) {
    const wrong = await unprovenDifferenceOf(run.model, run.store, clock);
    if (wrong !== null) return `the store went on and is wrong: ${wrong}`;
  }
  const prefixes = new Prefixes(steps, synced);
  for (const how of ['kill', 'power'] as const) {
    const left = cut({ disk, acked, synced }, how, at);
    const store = await openOn(left.disk, left.clock, () => {});
    const found = await prefixes.find(store, left.clock, left.acked, unprovenDifferenceOf);
    if (typeof found === 'string') return `${how}: ${found}`;
  }
  return null;
}

for (const story of STORIES)
  test(`any read may fail: ${story.title}`, async (t) => {
    const beginning = await beginningOf(story);
    let places = 0;
    for (let at = 1; ; at++) {
      const wrong = await withFailedRead(story, beginning, at);
      if (wrong === 'untouched') break;
      t.is(wrong, null, `read ${at}`);
      if (wrong !== null) break;
      places++;
    }
    t.true(places > 5);
    t.log(`${places} places`);
  });

// Serial tests come before all others: what is planted is there for everyone.
test.serial('a start that does not write again what a failed sync forgot is found', async (t) => {
  const original: unknown = Reflect.get(Redo.prototype, 'writeAgain');
  Reflect.set(Redo.prototype, 'writeAgain', () => {});
  try {
    const story = STORIES[0]!;
    const beginning = await beginningOf(story);
    let wrong: string | null = null;
    let at = 0;
    while (wrong === null) wrong = await withFault(story, beginning, { what: 'IO', at: ++at });
    t.not(wrong, 'untouched');
    t.log(`${story.title}, operation ${at}: ${wrong}`);
  } finally {
    Reflect.set(Redo.prototype, 'writeAgain', original);
  }
});
