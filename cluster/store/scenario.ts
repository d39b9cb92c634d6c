// A storm of random steps against a store on a FaultDisk, and the judgement of what survives: for the fault tests.
//
// The promise judged: whatever was done is there after the death of the process, whatever was synced after a power cut,
// and what else is there is a prefix of what was asked: steps 1 to n for some n, each whole, nothing of n + 1.

import { StorageError } from '../../proto/errors.ts';
import type { Clock, Log, Timer } from '../../proto/ports.ts';
import { openDiskStore } from './disk-store.ts';
import type { DiskStore } from './engine.ts';
import type { FaultDisk } from './fault-disk.ts';
import { Model, randomFrom, type Step, smallOrder } from './model.ts';

/** Time that stands still until turn() or pass(). */
export class TestClock implements Clock {
  private timeMs = 0;
  private waiting: (() => void)[] = [];
  private timers: { at: number; fire: () => void; cancelled: boolean }[] = [];

  now(): number {
    return this.timeMs;
  }

  after(ms: number, fire: () => void): Timer {
    const timer = { at: this.timeMs + ms, fire, cancelled: false };
    this.timers.push(timer);
    return {
      cancel: () => {
        timer.cancelled = true;
      },
    };
  }

  /** Time goes by while something blocks: no timer fires. */
  block(ms: number): void {
    this.timeMs += ms;
  }

  soon(run: () => void): void {
    this.waiting.push(run);
  }

  /** One turn of the loop: runs what waits now. */
  turn(): void {
    const now = this.waiting;
    this.waiting = [];
    for (const run of now) run();
  }

  /** Turns until nothing waits. */
  settle(): void {
    while (this.waiting.length > 0) this.turn();
  }

  /** Time goes on and timers fire. */
  pass(ms: number): void {
    this.timeMs += ms;
    const due = this.timers.filter((timer) => timer.at <= this.timeMs);
    this.timers = this.timers.filter((timer) => timer.at > this.timeMs);
    for (const timer of due) if (!timer.cancelled) timer.fire();
    this.settle();
  }
}

export const silentLog: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

export const LOG_BYTES = 2 * 2 ** 20;

export function openOn(disk: FaultDisk, clock: Clock, onFatal: (error: Error) => void): Promise<DiskStore> {
  return openDiskStore({ disk, clock, log: silentLog, logBytes: LOG_BYTES, onFatal });
}

export interface Outcome {
  /** Steps in the order they were asked; the last may be one that the crash cut short. */
  steps: Step[];
  /** Steps from the first one that must be there after the process died, and after a power cut. */
  acked: number;
  synced: number;
  /** Steps refused with NO_SPACE, which are not among `steps`. */
  refused: number;
  fatal: Error | null;
  killed: boolean;
  /** Ended as planned, and closed. */
  finished: boolean;
}

export interface Plan {
  seed: number;
  steps: number;
  /** Which objects and sizes; the small ones if left out. */
  orderOf?: (object: number) => number;
  /** One in so many steps is followed by a sync, a checkpoint's beginning, a turn of the loop. */
  syncEvery: number;
  checkpointEvery: number;
  turnEvery: number;
  /** Close and open again after so many steps. */
  reopenEvery: number;
}

export const PLAN: Plan = { seed: 1, steps: 60, syncEvery: 9, checkpointEvery: 13, turnEvery: 3, reopenEvery: 41 };

/**
 * Runs the plan until its end, a fatal error, or the disk's death.
 * @param history the steps that the disk holds already
 */
export async function runPlan(
  disk: FaultDisk,
  clock: TestClock,
  plan: Plan,
  history: readonly Step[] = [],
): Promise<Outcome> {
  const outcome: Outcome = {
    steps: [...history],
    acked: history.length,
    synced: history.length,
    refused: 0,
    fatal: null,
    killed: false,
    finished: false,
  };
  const onFatal = (error: Error): void => {
    if (outcome.fatal !== null) throw new Error('onFatal was called twice');
    outcome.fatal = error;
  };
  try {
    await storm(disk, clock, plan, outcome, onFatal);
  } catch (error) {
    const cause = rootOf(error);
    if (!disk.dead && outcome.fatal === null && !isDiskError(cause)) throw error;
  }
  outcome.killed = disk.dead;
  return outcome;
}

async function storm(
  disk: FaultDisk,
  clock: TestClock,
  plan: Plan,
  outcome: Outcome,
  onFatal: (error: Error) => void,
): Promise<void> {
  const random = randomFrom(plan.seed);
  const model = new Model(plan.orderOf ?? smallOrder);
  const { steps } = outcome;
  for (const step of steps) model.apply(step);
  let store = await openOn(disk, clock, onFatal);
  for (let index = 0; index < plan.steps; index++) {
    const step = model.random(random);
    const dice = [random(), random(), random()];
    const place = steps.length + 1;
    steps.push(step);
    const onDone = (): void => {
      if (outcome.fatal !== null) throw new Error('done was called after a fatal error');
      if (model.calledBack(step)) outcome.acked = Math.max(outcome.acked, place);
    };
    try {
      model.perform(store, step, onDone);
      model.apply(step);
    } catch (error) {
      if (!isNoSpace(error)) throw error;
      steps.pop();
      outcome.refused++;
    }
    if (dice[0]! % plan.syncEvery === 0) {
      const target = steps.length;
      store.sync(() => {
        if (outcome.fatal !== null) throw new Error('a sync was done after a fatal error');
        outcome.synced = Math.max(outcome.synced, target);
      });
    }
    if (dice[1]! % plan.checkpointEvery === 0) store.checkpoint();
    if (dice[2]! % plan.turnEvery === 0) clock.turn();
    if (outcome.fatal !== null) return;
    if (index % plan.reopenEvery === plan.reopenEvery - 1) {
      await closeOn(store, clock);
      store = await openOn(disk, clock, onFatal);
    }
  }
  await closeOn(store, clock);
  outcome.finished = true;
}

export async function closeOn(store: DiskStore, clock: TestClock): Promise<void> {
  let closed: Error | null | undefined;
  store.close((error) => {
    closed = error;
  });
  for (let i = 0; i < 100 && closed === undefined; i++) {
    clock.settle();
    clock.pass(10);
  }
  if (closed === undefined) throw new Error('close() never ended');
  if (closed !== null) throw closed;
}

/**
 * Which prefix of the steps the store holds, at least `from` of them, or what is wrong: with the longest prefix whose
 * PG states agree, or with the shortest allowed.
 */
export async function survivingPrefix(
  store: DiskStore,
  clock: TestClock,
  steps: readonly Step[],
  from: number,
  orderOf: (object: number) => number = smallOrder,
): Promise<number | string> {
  let why = `no prefix of ${from} to ${steps.length} steps has these PG states`;
  for (let length = steps.length; length >= from; length--) {
    const model = new Model(orderOf);
    for (const step of steps.slice(0, length)) model.apply(step);
    if (model.pgs.some((pg) => model.pgDifference(store, pg) !== null)) continue;
    const difference = model.difference(store);
    clock.settle();
    const found = await difference;
    if (found === null) return length;
    why = `prefix ${length}: ${found}`;
  }
  return why;
}

function rootOf(error: unknown): unknown {
  return error instanceof Error && error.cause !== undefined ? rootOf(error.cause) : error;
}

const isNoSpace = (error: unknown): boolean => error instanceof StorageError && error.code === 'NO_SPACE';
const isDiskError = (error: unknown): boolean => error instanceof Error && error.name === 'DiskError';
