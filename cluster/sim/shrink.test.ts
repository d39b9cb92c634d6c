import test from 'ava';
import { BUGS } from './bugs.ts';
import { plant } from './planting.ts';
import { shrink } from './shrink.ts';

test('a failing seed is made smaller until nothing can be left out, still fails, and replays to the same digest', async (t) => {
  t.timeout(120_000);
  const bug = BUGS.find(({ name }) => name === 'replay-over-newer-writes')!;
  const simulation = await plant('shrunk', bug.edits);
  const options = {
    plan: {
      ...bug.plan,
      faults: ['crash daemon', 'crash master', 'take over'] as const,
      minSize: 1,
      operations: 300,
      durationMs: 8_000,
    },
  };
  // One failure may need all of its operations; three do not.
  let fewerOperations = 0;
  let failures = 0;
  for (let seed = 1; seed < 60 && fewerOperations === 0 && failures < 3; seed++) {
    const failing = await simulation.runSeed(seed, options);
    if (failing.failure === null) continue;
    failures += 1;
    const { plan, outcome } = await shrink(simulation, failing, options);
    t.true(outcome.events <= failing.events);
    t.true(
      outcome.faultsFired < failing.faultsFired,
      `${outcome.faultsFired} of ${failing.faultsFired} faults are left`,
    );
    if (outcome.plan.operations < failing.plan.operations) fewerOperations += 1;
    t.log(
      `${failing.events} events and ${failing.faultsFired} faults became ${outcome.events} and ${outcome.faultsFired}`,
    );
    const again = await simulation.runSeed(failing.seed, { plan });
    t.not(again.failure, null);
    t.is(again.digest, outcome.digest);
  }
  t.true(failures > 0, 'the bug shows');
  t.is(fewerOperations, 1, 'operations are left out too');
});
