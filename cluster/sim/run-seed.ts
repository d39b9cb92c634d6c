// One seed from beginning to end: plan, cluster, workload under faults, healing, audit; and what came of it.

import { payloadPool } from '../../proto/buffer-pool.ts';
import { audit } from './audit.ts';
import { ClusterSim, type Hooks } from './cluster-sim.ts';
import { ImageModel } from './image-model.ts';
import { Nemesis } from './nemesis.ts';
import { Operator } from './operator.ts';
import { type Plan, planOf } from './plan.ts';
import { SimRandom } from './random.ts';
import type { TraceEntry } from './scheduler.ts';
import type { Workload } from './workload.ts';
import { Writers } from './writers.ts';

export interface Outcome {
  readonly seed: number;
  readonly plan: Plan;
  /** null: nothing wrong was found. */
  readonly failure: Error | null;
  /** Digest of all events: the same in every run of the seed. */
  readonly digest: string;
  readonly events: number;
  readonly virtualMs: number;
  readonly ackedOperations: number;
  readonly faultsFired: number;
  /** Times that a fault was tried. */
  readonly strikes: number;
  /** Too little happened for "nothing wrong" to mean anything. */
  readonly vacuous: boolean;
  readonly probes: ReadonlyMap<string, number>;
  readonly trace: readonly string[];
}

export interface RunOptions {
  readonly hooks?: Hooks;
  /** Replaces parts of the plan that the seed drew. */
  readonly plan?: Partial<Plan>;
  readonly stores?: readonly ('memory' | 'disk')[];
  /** Gets every event and every log line of every process as it comes. */
  readonly verbose?: (line: string) => void;
}

const ACKED_LEAST = 100;
export async function runSeed(seed: number, options: RunOptions = {}): Promise<Outcome> {
  payloadPool.poison = true;
  const random = new SimRandom(seed);
  const plan: Plan = {
    ...planOf(seed, random.fork('plan'), options.stores ?? ['memory', 'disk', 'disk']),
    ...options.plan,
  };
  const cluster = new ClusterSim(plan, random, options.hooks ?? {});
  const { verbose } = options;
  if (verbose !== undefined) cluster.scheduler.tracer = (entry) => verbose(traceLine(entry));
  const model = new ImageModel(plan.imageBytes, plan.grainBytes);
  const { scheduler } = cluster;
  const workload: Workload = {
    scheduler,
    plan,
    model,
    random: random.fork('workload'),
    mayRefuse: (error) => cluster.mayRefuse(error),
    left: plan.operations,
  };
  const operator = plan.faults.includes('images come and go') ? new Operator(cluster) : null;
  const writers = new Writers(cluster, workload);
  const nemesis = new Nemesis(cluster, writers);

  const rejected = (reason: unknown): void =>
    scheduler.fail(new Error(`a promise was rejected and nobody looked: ${String(reason)}`, { cause: reason }));
  process.on('unhandledRejection', rejected);
  let failure: Error | null = null;
  try {
    await cluster.start();
    writers.start();
    operator?.start();
    nemesis.start();
    const end = scheduler.now + plan.durationMs;
    await cluster.until(() => scheduler.now >= end, plan.durationMs + 60_000, 'the run');
    nemesis.heal();
    await audit(cluster, workload, writers, operator);
  } catch (error) {
    failure = error as Error;
  } finally {
    // What was rejected in the last events comes to light now, and must not be taken for the next seed's.
    await scheduler.run(() => true, 0);
    process.off('unhandledRejection', rejected);
  }
  return {
    seed,
    plan,
    failure,
    digest: scheduler.digest,
    events: scheduler.events,
    virtualMs: scheduler.now,
    ackedOperations: model.ackedOperations,
    faultsFired: nemesis.fired,
    strikes: nemesis.strikes,
    vacuous: model.ackedOperations < ACKED_LEAST || nemesis.fired === 0,
    probes: scheduler.probes,
    trace: scheduler.trace().map(traceLine),
  };
}

const traceLine = ({ time, node, kind, detail }: TraceEntry): string => `${time.toFixed(3)} ${node} ${kind} ${detail}`;

/** What to print of a failed seed: enough to run it again and to begin to understand it. */
export function describeFailure(outcome: Outcome, lines = 60): string {
  const { seed, failure, plan, digest } = outcome;
  return [
    `seed ${seed} fails: ${failure?.message}`,
    `run it again: scripts/test sim --seeds 1 --seed ${seed}`,
    `digest ${digest}, ${outcome.events} events, ${Math.round(outcome.virtualMs)} virtual ms, ${outcome.ackedOperations} operations acked`,
    `plan ${JSON.stringify(plan)}`,
    failure?.stack ?? '',
    failure?.cause instanceof Error ? (failure.cause.stack ?? '') : '',
    'last events:',
    ...outcome.trace.slice(-lines),
  ].join('\n');
}
