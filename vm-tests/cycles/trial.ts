// A trial: one cluster, the oracle's load on it, fault after fault, and after each of them the question whether every
// promise was kept.
//
//   cycle   fault ─► heal ─► I/O is back ─► clean ─► audit of every block          end   all copies byte-equal, no alarms
//
// All chance comes from the seed (but not the scheduling of real processes). A failure says seed, cycle, block and story,
// and keeps the directory.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { compareDirectories } from '../lib/copies.ts';
import { sleep } from '../lib/processes.ts';
import { type Status, Witness } from '../oracle/witness.ts';
import { DAMAGING, type Effect, FILLER, KINDS, mayRefuse } from './cycles.ts';
import { LiveCluster } from './live-cluster.ts';

/** What is promised (reliability.md section 6), */
export const DEATH_MS = 2_000;
export const HEALED_MS = 30_000;
export const CLEAN_MS = 120_000;
/** and how much longer a machine may take that many tests share, before it counts as a failure. */
const DEATH_TOLERANCE_MS = 15_000;
const HEALED_TOLERANCE_MS = 60_000;
const CLEAN_TOLERANCE_MS = 180_000;
const LOAD_BEFORE_MS = 300;
const POLL_MS = 100;
const REPLICAS = 2;

export interface TrialOptions {
  seed: number;
  daemons: number;
  /** Kinds in order; ends when `next` returns null. */
  next: (cycle: number) => string | null;
  freezeMaxMs: number;
  smallDisk: boolean;
  /** Requests per second on each of two exports. */
  rate: number;
  report: (line: string) => void;
}
export interface CycleResult {
  kind: string;
  effect: Effect;
  /** Longest that a request waited while the fault lasted, and from the healing on. */
  waitedMs: number;
  healedMs: number;
  cleanMs: number;
  totalMs: number;
  /** Errors that the server answered with, by NBD's number. */
  refused: Record<string, number>;
}
export interface TrialResult {
  cycles: CycleResult[];
  changes: number;
  reads: number;
  flushes: number;
  unknown: number;
  refused: Record<string, number>;
  auditedBlocks: number;
  comparedObjects: number;
  proxy: LiveCluster['proxy']['done'];
}

export class TrialFailed extends Error {}

export async function runTrial(options: TrialOptions): Promise<TrialResult> {
  const directory = mkdtempSync(join(tmpdir(), `ashlar-cycles-${options.seed}-`));
  const trial = new Trial(options, directory);
  try {
    const result = await trial.run();
    await trial.end();
    rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
    return result;
  } catch (error) {
    const cause = error as Error;
    const text = [
      `seed ${options.seed}, cycle ${trial.cycle} (${trial.kind}): ${cause.message}`,
      'story:',
      ...trial.story.slice(-60),
      `everything is kept in ${directory}`,
    ].join('\n');
    writeFileSync(join(directory, 'failure'), `${text}\n${cause.stack}\n`);
    await trial.end();
    throw new TrialFailed(text, { cause });
  }
}

class Trial {
  readonly story: string[] = [];
  cycle = 0;
  kind = 'start';
  readonly #options: TrialOptions;
  readonly #directory: string;
  readonly #random: () => number;
  readonly #start = performance.now();
  readonly #ends: (() => Promise<void>)[] = [];
  readonly #results: CycleResult[] = [];
  #audited = 0;
  #cluster!: LiveCluster;
  #witness!: Witness;

  constructor(options: TrialOptions, directory: string) {
    this.#options = options;
    this.#directory = directory;
    this.#random = randomOf(options.seed);
  }

  async run(): Promise<TrialResult> {
    const { daemons, smallDisk, next, rate, seed } = this.#options;
    const atEnd = (end: () => Promise<void>): void => void this.#ends.unshift(end);
    this.#cluster = await LiveCluster.start(
      {
        directory: join(this.#directory, 'cluster'),
        daemons,
        replicas: REPLICAS,
        images: [
          { name: 'fine', sizeBytes: 32 * 2 ** 20, order: 16 },
          { name: 'plain', sizeBytes: 32 * 2 ** 20, order: 20 },
          FILLER,
        ],
        random: this.#random,
        smallDisk,
      },
      atEnd,
    );
    const address = this.#cluster.gatewayAddress;
    this.#witness = await Witness.start(
      {
        state: join(this.#directory, 'oracle'),
        targets: [`${address}/fine`, `${address}/plain`],
        blocks: 2_048,
        connections: 3,
        depth: 12,
        rate,
        seed,
      },
      atEnd,
    );
    this.#cluster.know({ name: 'oracle', pid: this.#witness.pid });
    this.#tell('cluster and oracle run');
    for (;;) {
      const kind = next(this.cycle);
      if (kind === null) break;
      this.cycle++;
      this.kind = kind;
      this.#results.push(await this.#runCycle(kind));
    }
    this.kind = 'end';
    return this.#finish();
  }
  /** Ends all processes. Never rejects. */
  async end(): Promise<void> {
    for (const end of this.#ends) await end();
  }

  async #runCycle(kind: string): Promise<CycleResult> {
    const startedAt = performance.now();
    const [cluster, witness] = [this.#cluster, this.#witness];
    this.#tell(`--- cycle ${this.cycle}: ${kind}`);
    const refusedBefore = refusedOf(await witness.status());
    await witness.resume();
    await sleep(LOAD_BEFORE_MS);
    let waitedMs = 0;
    let healedAt = 0;
    const effect = await KINDS[kind]!({
      cluster,
      random: this.#random,
      freezeMaxMs: this.#options.freezeMaxMs,
      sleep,
      tell: (line) => this.#tell(line),
      begin: () => witness.reset(),
      heal: async () => {
        const { gapMs, slowestMs } = await witness.status();
        waitedMs = Math.max(gapMs, slowestMs);
        await witness.reset();
        healedAt = performance.now();
      },
    });
    await this.#untilServing(healedAt);
    const cleanMs = await this.#untilClean(healedAt);
    const { gapMs, slowestMs } = await witness.status();
    await this.#audit();
    if (DAMAGING.includes(kind)) await this.#scrub();
    const result: CycleResult = {
      kind,
      effect,
      waitedMs: Math.round(waitedMs),
      healedMs: Math.round(Math.max(gapMs, slowestMs)),
      cleanMs: Math.round(cleanMs),
      totalMs: Math.round(performance.now() - startedAt),
      refused: sinceThen(refusedBefore, refusedOf(await witness.status())),
    };
    const waits = `waited ${result.waitedMs} ms, healed ${result.healedMs} ms, clean ${result.cleanMs} ms`;
    const errors = Object.entries(result.refused).map(([errno, times]) => `, error ${errno} ${times} times`);
    const line = `${waits}, cycle ${result.totalMs} ms${errors.join('')}`;
    this.#tell(line);
    this.#options.report(`cycle ${this.cycle}: ${kind}: ${line}`);
    for (const errno of Object.keys(result.refused))
      if (!mayRefuse(kind, Number(errno)))
        throw new Error(`the server answered ${result.refused[errno]} requests with error ${errno}`);
    const slow = effect === 'death' ? Math.max(result.waitedMs, result.healedMs) : 0;
    if (slow > DEATH_TOLERANCE_MS) throw new Error(`I/O waited ${slow} ms when a process died; ${DEATH_MS} promised`);
    if (result.healedMs > HEALED_TOLERANCE_MS)
      throw new Error(`I/O was back ${result.healedMs} ms after the fault was healed; ${HEALED_MS} promised`);
    return result;
  }

  /** Both exports answer changes and flushes again. */
  async #untilServing(healedAt: number): Promise<void> {
    const made = async (): Promise<number[]> => {
      const { counts } = await this.#witness.status();
      return Object.values(counts).flatMap(({ changes, flushes }) => [changes, flushes]);
    };
    const before = await made();
    while (!(await made()).every((count, i) => count > before[i]!)) {
      this.#mustNotHaveBroken();
      if (performance.now() - healedAt > HEALED_TOLERANCE_MS) {
        const why = await this.#cluster.whyNotClean();
        throw new Error(`no I/O ${HEALED_TOLERANCE_MS} ms after the fault was healed; the cluster: ${why}`);
      }
      await sleep(POLL_MS);
    }
  }
  async #untilClean(healedAt: number): Promise<number> {
    for (;;) {
      const why = await this.#cluster.whyNotClean();
      const ms = performance.now() - healedAt;
      if (why === null) return ms;
      if (ms > CLEAN_TOLERANCE_MS) throw new Error(`not clean after ${ms.toFixed(0)} ms: ${why}`);
      await sleep(POLL_MS);
    }
  }
  /** Finds and repairs what no read has touched. */
  async #scrub(): Promise<void> {
    const master = this.#cluster.control();
    const { pgs } = await master.call('startScrub', { pg: 0, image: 0, deep: true, repair: true });
    const startedAt = performance.now();
    for (;;) {
      const status = (await master.call('scrubStatus', {})).pgs;
      const waiting = status.filter(({ ordered }) => ordered);
      if (waiting.length === 0) {
        const left = status.flatMap(({ inconsistencies }) => inconsistencies);
        if (left.length > 0) throw new Error(`a deep scrub left damage: ${JSON.stringify(left.slice(0, 5))}`);
        const repaired = status.reduce((sum, pg) => sum + pg.repaired, 0);
        const ms = (performance.now() - startedAt).toFixed(0);
        this.#tell(`deep scrub of ${pgs.length} PGs: ${repaired} ranges repaired so far, ${ms} ms`);
        return;
      }
      if (performance.now() - startedAt > CLEAN_TOLERANCE_MS)
        throw new Error(`a deep scrub of ${waiting.length} PGs does not end`);
      await sleep(POLL_MS);
    }
  }
  async #audit(): Promise<void> {
    const { blocks, unreadable } = await this.#witness.audit();
    this.#audited += blocks;
    this.#mustNotHaveBroken();
    if (unreadable.length > 0)
      throw new Error(`${unreadable.length} blocks can't be read: ${unreadable.slice(0, 5).join('; ')}`);
  }
  #mustNotHaveBroken(): void {
    const { violations } = this.#witness;
    if (violations.length > 0)
      throw new Error(`${violations.length} broken promises:\n${violations.slice(0, 10).join('\n')}`);
  }

  async #finish(): Promise<TrialResult> {
    const status = await this.#witness.status();
    const code = await this.#witness.stop();
    if (code !== 0) throw new Error(`the oracle ended with ${code}`);
    const directories = await this.#cluster.stop();
    const alarms = this.#cluster.alarms();
    if (alarms.length > 0) throw new Error(`alarms in the logs:\n${alarms.slice(0, 5).join('\n')}`);
    const compared = await compareDirectories(directories, REPLICAS);
    if (compared.differences.length > 0)
      throw new Error(`copies differ:\n${compared.differences.slice(0, 10).join('\n')}`);
    const all = Object.values(status.counts);
    const sum = (field: 'changes' | 'reads' | 'flushes' | 'unknown'): number =>
      all.reduce((total, count) => total + count[field], 0);
    return {
      cycles: this.#results,
      changes: sum('changes'),
      reads: sum('reads'),
      flushes: sum('flushes'),
      unknown: sum('unknown'),
      refused: refusedOf(status),
      auditedBlocks: this.#audited,
      comparedObjects: compared.objects,
      proxy: this.#cluster.proxy.done,
    };
  }
  #tell(line: string): void {
    this.story.push(`${((performance.now() - this.#start) / 1000).toFixed(2)} s  ${line}`);
  }
}

function refusedOf({ counts }: Status): Record<string, number> {
  const sums: Record<string, number> = {};
  for (const { refused } of Object.values(counts))
    for (const [errno, times] of Object.entries(refused)) sums[errno] = (sums[errno] ?? 0) + times;
  return sums;
}
function sinceThen(before: Record<string, number>, now: Record<string, number>): Record<string, number> {
  const more = Object.entries(now).map(([errno, times]) => [errno, times - (before[errno] ?? 0)] as const);
  return Object.fromEntries(more.filter(([, times]) => times > 0));
}

/** 0 to 1, from a seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
