// Runs seeds of the simulation: node cluster/sim/main.ts [--seeds N] [--seed FIRST] [--verbose] [--store memory|disk]
// [--plan JSON], which replaces parts of what the seeds draw (plan.ts), [--shrink], which makes the first failure smaller.
//
// Every fifth seed runs twice, and its digests must be equal. Exits 1 when a seed fails, 2 when a run does not repeat.

import { execFileSync } from 'node:child_process';
import { parseArgs } from 'node:util';
import type { Plan } from './plan.ts';
import { describeFailure, type RunOptions, runSeed } from './run-seed.ts';
import { shrink } from './shrink.ts';

const TWICE_EVERY = 5;
const VACUOUS_SHARE_MAX = 0.05;

const { values } = parseArgs({
  options: {
    seeds: { type: 'string', default: '100' },
    seed: { type: 'string', default: '1' },
    store: { type: 'string' },
    plan: { type: 'string', default: '{}' },
    shrink: { type: 'boolean', default: false },
    verbose: { type: 'boolean', default: false },
  },
});
const count = Number(values.seeds);
const first = Number(values.seed);
if (!Number.isInteger(count) || count < 1 || !Number.isInteger(first) || first < 0) {
  process.stderr.write('sim: --seeds must be a positive integer, --seed an integer from 0\n');
  process.exit(64);
}
const options: RunOptions = {
  plan: JSON.parse(values.plan) as Partial<Plan>,
  ...(values.verbose ? { verbose: (line: string) => process.stdout.write(`${line}\n`) } : {}),
  ...(values.store === 'memory' || values.store === 'disk' ? { stores: [values.store] as const } : {}),
};

/** What the failing sources are, as far as git knows them. */
function commit(): string {
  try {
    const git = (...args: string[]): string =>
      execFileSync('git', args, { cwd: import.meta.dirname, encoding: 'utf8', stdio: 'pipe' }).trim();
    return git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain') === '' ? '' : ' and changes');
  } catch {
    return 'unknown: no git here';
  }
}

const started = performance.now();
const probes = new Map<string, number>();
let virtualMs = 0;
let acked = 0;
let vacuous = 0;
const failed: number[] = [];
for (let seed = first; seed < first + count; seed++) {
  const outcome = await runSeed(seed, options);
  if (outcome.failure !== null) {
    // The first in full, the others by name: whoever repairs one looks at the next afterwards.
    const first = failed.length === 0;
    process.stdout.write(
      first
        ? `commit ${commit()}\n${describeFailure(outcome, count === 1 ? 400 : 60)}\n`
        : `seed ${seed} fails: ${outcome.failure.message}\n`,
    );
    if (first && values.shrink) {
      const { plan, outcome: smaller, runs } = await shrink({ runSeed }, outcome, options);
      process.stdout.write(
        `after ${runs} runs it still fails, with ${smaller.events} events: ${smaller.failure!.message}\n` +
          `node cluster/sim/main.ts --seeds 1 --seed ${seed}${values.store === undefined ? '' : ` --store ${values.store}`} --plan '${JSON.stringify(plan)}'\n`,
      );
    }
    failed.push(seed);
    continue;
  }
  if ((seed - first) % TWICE_EVERY === 0) {
    const again = await runSeed(seed, options);
    if (again.digest !== outcome.digest) {
      process.stdout.write(`seed ${seed} does not repeat: digests ${outcome.digest} and ${again.digest}\n`);
      process.exit(2);
    }
  }
  virtualMs += outcome.virtualMs;
  acked += outcome.ackedOperations;
  if (outcome.vacuous) vacuous++;
  for (const [name, times] of outcome.probes) probes.set(name, (probes.get(name) ?? 0) + times);
}
const seconds = (performance.now() - started) / 1000;
process.stdout.write(
  `${count - failed.length} of ${count} seeds from ${first} pass: ${acked} operations acked in ${Math.round(virtualMs / 1000)} virtual seconds, ` +
    `${seconds.toFixed(1)} s; ${vacuous} vacuous\n`,
);
for (const [name, times] of [...probes].sort()) process.stdout.write(`  ${name}: ${times}\n`);
if (failed.length > 0) {
  process.stdout.write(`failed seeds: ${failed.join(' ')}\n`);
  process.exit(1);
}
if (vacuous > count * VACUOUS_SHARE_MAX && count >= 10) {
  process.stdout.write('too many seeds in which too little happened\n');
  process.exit(1);
}
