// scripts/test soak --minutes M [--seed S]: trials of real processes one after the other, for as long as wanted.
//
// Every trial has a cluster and a seed of its own (S, S+1, …). Processes are stopped for up to 60 s here. Prints a line
// per cycle, and the result of each trial as JSON; the first failure ends it, with exit code 1.

import { parseArgs } from 'node:util';
import { KINDS, NEEDS_ROOT, planOf } from './cycles.ts';
import { DEATH_MS, randomOf, runTrial, TrialFailed } from './trial.ts';

const TRIAL_CYCLES = 100;
const FREEZE_MAX_MS = 60_000;

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '10' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    /** Only kinds whose name contains this. */
    kind: { type: 'string', default: '' },
    'freeze-max': { type: 'string', default: String(FREEZE_MAX_MS / 1000) },
    rate: { type: 'string', default: '400' },
  },
});
const isRoot = process.getuid?.() === 0;
const kinds = Object.keys(KINDS).filter((kind) => kind.includes(values.kind) && (isRoot || !NEEDS_ROOT.includes(kind)));
if (kinds.length === 0) {
  console.error(`soak: no kind of fault contains "${values.kind}": ${Object.keys(KINDS).join('; ')}`);
  process.exit(2);
}
const end = performance.now() + Number(values.minutes) * 60_000;
let cycles = 0;
let slowDeaths = 0;
for (let seed = Number(values.seed); performance.now() < end; seed++) {
  console.log(`soak: trial with seed ${seed}`);
  const plan = planOf(kinds, TRIAL_CYCLES, randomOf(seed ^ 0x5eed));
  try {
    const result = await runTrial({
      seed,
      daemons: 3 + (seed % 3),
      next: (cycle) => (performance.now() < end ? (plan[cycle] ?? null) : null),
      freezeMaxMs: Number(values['freeze-max']) * 1000,
      smallDisk: isRoot,
      rate: Number(values.rate),
      report: (line) => console.log(`${new Date().toISOString()} ${line}`),
    });
    cycles += result.cycles.length;
    slowDeaths += result.cycles.filter(({ effect, waitedMs }) => effect === 'death' && waitedMs > DEATH_MS).length;
    const { cycles: all, ...sums } = result;
    console.log(JSON.stringify({ seed, cycles: all.length, ...sums }));
  } catch (error) {
    if (!(error instanceof TrialFailed)) throw error;
    console.error(`not ok - ${error.message}`);
    process.exit(1);
  }
}
console.log(`soak: ${cycles} cycles, 0 failed; I/O waited more than ${DEATH_MS} ms after ${slowDeaths} deaths`);
process.exit(0); // whatever a trial left open
