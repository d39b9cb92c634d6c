// The N-th operation of the disk fails, or the process dies at it, for every N until the scenario ends untouched.

import test, { type ExecutionContext } from 'ava';
import { type Fault, FaultDisk, type Operation } from './fault-disk.ts';
import { randomFrom, type Step } from './model.ts';
import { LOG_BYTES, type Outcome, openOn, PLAN, type Plan, runPlan, survivingPrefix, TestClock } from './scenario.ts';

/** An empty store, made once; each run starts from a copy. */
async function emptyStore(): Promise<FaultDisk> {
  const clock = new TestClock();
  const disk = new FaultDisk(clock);
  const store = await openOn(disk, clock, () => {});
  store.close(() => {});
  clock.settle();
  return disk;
}

async function judge(
  t: ExecutionContext,
  disk: FaultDisk,
  outcome: Outcome,
  how: 'kill' | 'power',
  seed: number,
  plan: Plan = PLAN,
): Promise<boolean> {
  const clock = new TestClock();
  const survivor = disk.survivor(how, clock, randomFrom(seed));
  const store = await openOn(survivor, clock, (error) => t.fail(`fatal: ${error.message}`));
  const from = how === 'kill' ? outcome.acked : outcome.synced;
  const prefix = await survivingPrefix(store, clock, outcome.steps, from, plan.orderOf);
  if (typeof prefix === 'number') return true;
  t.fail(`${how}, seed ${seed}: ${prefix}`);
  return false;
}

/** Runs the plan with the fault at 1, 2, 3 ... until it does not happen any more. Returns how often it did. */
async function everyPlace(
  t: ExecutionContext,
  fault: Omit<Fault, 'at'>,
  plan: Plan,
  expect: (outcome: Outcome, at: number) => void,
): Promise<number> {
  const start = await emptyStore();
  for (let at = 1; ; at++) {
    const clock = new TestClock();
    const disk = start.survivor('kill', clock);
    disk.arm({ ...fault, at });
    const outcome = await runPlan(disk, clock, plan);
    if (disk.counted(fault.of) < at) {
      t.true(outcome.finished);
      return at - 1;
    }
    disk.arm(null);
    expect(outcome, at);
    for (const how of ['kill', 'power'] as const) if (!(await judge(t, disk, outcome, how, at, plan))) return at;
  }
}

test('the scenario without a fault: everything is there after a kill and a power cut', async (t) => {
  const start = await emptyStore();
  const clock = new TestClock();
  const disk = start.survivor('kill', clock);
  disk.arm(null);
  const outcome = await runPlan(disk, clock, { ...PLAN, steps: 400 });
  t.true(outcome.finished);
  t.is(outcome.steps.length, 400);
  t.true(outcome.synced > 300 && outcome.acked > 390);
  t.log(`${disk.counted('write')} writes, ${disk.counted('sync')} syncs`);
  t.true(await judge(t, disk, outcome, 'kill', 1));
  t.true(await judge(t, disk, outcome, 'power', 2));
});

for (const operation of ['write', 'sync', 'create', 'syncDirectory'] satisfies Operation[])
  test(`the process dies just before its N-th ${operation}, for every N: nothing done is lost`, async (t) => {
    const places = await everyPlace(t, { of: operation, what: 'kill' }, PLAN, (outcome) => t.true(outcome.killed));
    t.true(places >= 3, `${places} places`);
    t.log(`${places} places`);
  });

test('the N-th write or sync fails with EIO, for every N: one fatal error, nothing done after it', async (t) => {
  for (const operation of ['write', 'sync'] as const) {
    const places = await everyPlace(t, { of: operation, what: 'IO' }, PLAN, (outcome, at) =>
      t.true(outcome.fatal !== null || outcome.steps.length === 0 || !outcome.finished, `${operation} ${at}`),
    );
    t.true(places > 20, `${places} places`);
  }
});

test('the N-th write fails with ENOSPC, for every N: refused, put off or fatal, and nothing lost', async (t) => {
  const ends = { refused: 0, fatal: 0, putOff: 0, notOpened: 0 };
  const places = await everyPlace(t, { of: 'write', what: 'NO_SPACE' }, PLAN, (outcome) => {
    if (outcome.fatal !== null) ends.fatal++;
    else if (outcome.refused > 0) ends.refused++;
    else if (outcome.finished) ends.putOff++;
    else ends.notOpened++;
  });
  t.log(`${places} places: ${JSON.stringify(ends)}`);
  t.true(ends.refused > 0 && ends.putOff > 0);
});

test('from the N-th write on the disk is full for ever: the daemon reads on, and a restart finds all', async (t) => {
  const places = await everyPlace(t, { of: 'write', what: 'NO_SPACE', forEver: true }, PLAN, () => {});
  t.true(places > 20);
});

test('a new store is made again after dying at any step of making it', async (t) => {
  for (let at = 1; ; at++) {
    const clock = new TestClock();
    const disk = new FaultDisk(clock);
    disk.arm({ at, what: 'kill' });
    const outcome = await runPlan(disk, clock, { ...PLAN, steps: 1 });
    if (disk.counted() < at) {
      t.true(at > 8, 'the scenario has steps');
      return;
    }
    for (const how of ['kill', 'power'] as const) if (!(await judge(t, disk, outcome, how, at))) return;
  }
});

test('one disk goes through many lives, each ended by a kill or a power cut at a random moment', async (t) => {
  const start = await emptyStore();
  for (let seed = 1; seed <= 12; seed++) {
    const random = randomFrom(seed);
    let clock = new TestClock();
    let disk = start.survivor('kill', clock);
    let history: Step[] = [];
    for (let life = 1; life <= 14; life++) {
      const plan: Plan = {
        seed: seed * 1000 + life,
        steps: 150,
        syncEvery: 3 + (random() % 40),
        turnEvery: 1 + (random() % 5),
        checkpointEvery: 3 + (random() % 20),
        reopenEvery: 20 + (random() % 100),
      };
      disk.arm({ at: 3 + (random() % 300), what: 'kill' });
      const outcome = await runPlan(disk, clock, plan, history);
      const how = random() % 3 === 0 ? 'kill' : 'power';
      const next = new TestClock();
      disk = disk.survivor(how, next, random);
      const store = await openOn(disk, next, (error) => t.fail(error.message));
      const from = how === 'kill' ? outcome.acked : outcome.synced;
      const prefix = await survivingPrefix(store, next, outcome.steps, from);
      if (typeof prefix !== 'number') return t.fail(`seed ${seed}, life ${life}, ${how}: ${prefix}`);
      // As if this process died at once: the next life starts from what it left.
      clock = new TestClock();
      disk = disk.survivor('kill', clock);
      history = outcome.steps.slice(0, prefix);
    }
  }
  t.is(LOG_BYTES, 2 * 2 ** 20);
});

test('the power goes at random moments of a long storm, again and again on the same disk', async (t) => {
  const start = await emptyStore();
  for (let seed = 1; seed <= 40; seed++) {
    const clock = new TestClock();
    const disk = start.survivor('kill', clock);
    const plan = { ...PLAN, seed, steps: 250, syncEvery: 5 + (seed % 40), turnEvery: 1 + (seed % 5), reopenEvery: 90 };
    disk.arm({ at: 20 + ((seed * 37) % 600), what: 'kill' });
    const outcome = await runPlan(disk, clock, plan);
    for (let cut = 1; cut <= 3; cut++) if (!(await judge(t, disk, outcome, 'power', seed * 100 + cut, plan))) return;
  }
  t.is(LOG_BYTES, 2 * 2 ** 20);
});
