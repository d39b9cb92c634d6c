// Makes a failing seed smaller: the same seed with fewer faults, fewer requests and less time, as long as it still fails.
//
// Greedy: each step leaves one thing out or halves one number, and stays if the run fails once more, with whatever
// message: a smaller story of the same cause mostly ends elsewhere. What comes out is a part of a plan, which replays
// with --plan.

import type { Plan } from './plan.ts';
import type { PlantedSimulation } from './planting.ts';
import type { Outcome, RunOptions } from './run-seed.ts';
import { CALM_NETWORK } from './sim-network.ts';

const RUNS_MAX = 300;
const OPERATIONS_LEAST = 10;
const DURATION_LEAST_MS = 1_000;

export interface Shrunk {
  /** What replaces parts of the plan that the seed draws. */
  readonly plan: Partial<Plan>;
  readonly outcome: Outcome;
  readonly runs: number;
}

/**
 * @param simulation the product's, or one with a planted bug
 * @param failing the outcome of the seed under `options`, which is a failure
 */
export async function shrink(simulation: PlantedSimulation, failing: Outcome, options: RunOptions): Promise<Shrunk> {
  let plan: Partial<Plan> = options.plan ?? {};
  let outcome = failing;
  let runs = 0;
  const tries = async (smaller: Partial<Plan>): Promise<boolean> => {
    if (runs >= RUNS_MAX) return false;
    runs++;
    const candidate = { ...plan, ...smaller };
    const result = await simulation.runSeed(failing.seed, { ...options, plan: candidate });
    if (result.failure === null) return false;
    plan = candidate;
    outcome = result;
    return true;
  };
  for (let kept = ''; kept !== JSON.stringify(plan) && runs < RUNS_MAX; ) {
    kept = JSON.stringify(plan);
    // Half of the strikes, a quarter, ... one of them.
    for (let size = Math.ceil(outcome.strikes / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2))
      for (let at = 0; at < outcome.strikes; at += size) {
        const chunk = Array.from({ length: Math.min(size, outcome.strikes - at) }, (_, i) => at + i);
        const { faultsLeftOut } = outcome.plan;
        if (chunk.every((number) => faultsLeftOut.includes(number))) continue;
        await tries({ faultsLeftOut: [...new Set([...faultsLeftOut, ...chunk])] });
      }
    for (const name of Object.keys(CALM_NETWORK) as (keyof typeof CALM_NETWORK)[])
      if (outcome.plan.network[name] !== CALM_NETWORK[name])
        await tries({ network: { ...outcome.plan.network, [name]: CALM_NETWORK[name] } });
    for (const simpler of SIMPLER) {
      const [name] = Object.keys(simpler) as (keyof Plan)[];
      if (outcome.plan[name!] !== simpler[name!]) await tries(simpler);
    }
    while (outcome.plan.operations > OPERATIONS_LEAST)
      if (!(await tries({ operations: Math.floor(outcome.plan.operations / 2) }))) break;
    while (outcome.plan.durationMs > DURATION_LEAST_MS)
      if (!(await tries({ durationMs: Math.floor(outcome.plan.durationMs / 2) }))) break;
  }
  return { plan, outcome, runs };
}

/** Things that a run may do without. */
const SIMPLER: readonly Partial<Plan>[] = [
  { observer: false },
  { slowReads: false },
  { clocksDrift: false },
  { controlLossChance: 0 },
  { controlRepeatChance: 0 },
  { oneHost: false },
  { pgCount: 1 },
  { depth: 1 },
  { zeroShare: 0 },
  { grainBytes: 4096 },
  { largestBytes: 4096 },
];
