// A storm of random steps against a store on a FaultDisk, and the judgement of what survives: for the fault tests.
//
// The promise judged: whatever was done is there after the death of the process, whatever was synced after a power cut,
// and what else is there is a prefix of what was asked: steps 1 to n for some n, each whole, nothing of n + 1.

import { StorageError } from '../../proto/errors.ts';
import type { Clock, Disk, Log, Timer } from '../../proto/ports.ts';
import { openDiskStore } from './disk-store.ts';
import type { DiskStore } from './engine.ts';
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

/** A disk in memory, or what stands before one. */
export type TestDisk = Disk & { readonly dead: boolean };

export function openOn(disk: Disk, clock: Clock, onFatal: (error: Error) => void): Promise<DiskStore> {
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

/** A store driven step by step, and what it owes to whoever drives it. */
export class Run {
  readonly disk: TestDisk;
  readonly clock: TestClock;
  readonly model: Model;
  readonly outcome: Outcome;
  store!: DiskStore;
  isOpen = false;

  /**
   * @param history the steps that the disk holds already
   * @param synced how many of them a power cut can't take
   */
  constructor(
    disk: TestDisk,
    clock: TestClock,
    orderOf = smallOrder,
    history: readonly Step[] = [],
    synced = history.length,
  ) {
    this.disk = disk;
    this.clock = clock;
    this.model = new Model(orderOf);
    for (const step of history) this.model.apply(step);
    this.outcome = {
      steps: [...history],
      acked: history.length,
      synced,
      refused: 0,
      fatal: null,
      killed: false,
      finished: false,
    };
  }

  /** What a start finds is durable once it serves. */
  async open(): Promise<void> {
    const { outcome } = this;
    this.store = await openOn(this.disk, this.clock, (error) => {
      if (outcome.fatal !== null) throw new Error('onFatal was called twice');
      outcome.fatal = error;
    });
    this.isOpen = true;
    outcome.synced = outcome.steps.length;
  }

  /** Asks for a step. False: refused since the disk is full. */
  perform(step: Step): boolean {
    const { outcome, model } = this;
    const place = outcome.steps.length + 1;
    outcome.steps.push(step);
    const onDone = (): void => {
      if (outcome.fatal !== null) throw new Error('done was called after a fatal error');
      if (model.calledBack(step)) outcome.acked = Math.max(outcome.acked, place);
    };
    try {
      model.perform(this.store, step, onDone);
      model.apply(step);
      return true;
    } catch (error) {
      if (!isNoSpace(error)) throw error;
      outcome.steps.pop();
      outcome.refused++;
      return false;
    }
  }

  sync(): void {
    const { outcome } = this;
    const target = outcome.steps.length;
    this.store.sync(() => {
      if (outcome.fatal !== null) throw new Error('a sync was done after a fatal error');
      outcome.synced = Math.max(outcome.synced, target);
    });
  }

  async close(): Promise<void> {
    await closeOn(this.store, this.clock);
    this.isOpen = false;
    this.outcome.synced = this.outcome.steps.length;
  }

  /** Drives the store until the end, a fatal error or the disk's death; any other error is the test's. */
  async drive(story: () => Promise<void>): Promise<Outcome> {
    const { outcome, disk } = this;
    try {
      await story();
    } catch (error) {
      if (!disk.dead && outcome.fatal === null && !isDiskError(rootOf(error))) throw error;
    }
    outcome.killed = disk.dead;
    return outcome;
  }
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
export function runPlan(disk: TestDisk, clock: TestClock, plan: Plan, history: readonly Step[] = []): Promise<Outcome> {
  const run = new Run(disk, clock, plan.orderOf, history);
  return run.drive(() => storm(run, plan));
}

/** Random steps as the plan has them, from the start of the store to its end. */
export async function storm(run: Run, plan: Plan): Promise<void> {
  const random = randomFrom(plan.seed);
  await run.open();
  for (let index = 0; index < plan.steps; index++) {
    const step = run.model.random(random);
    const dice = [random(), random(), random()];
    run.perform(step);
    if (dice[0]! % plan.syncEvery === 0) run.sync();
    if (dice[1]! % plan.checkpointEvery === 0) run.store.checkpoint();
    if (dice[2]! % plan.turnEvery === 0) run.clock.turn();
    if (run.outcome.fatal !== null) return;
    if (index % plan.reopenEvery === plan.reopenEvery - 1) {
      await run.close();
      await run.open();
    }
  }
  await run.close();
  run.outcome.finished = true;
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

/** The states that a store went through, one after each step: finds the one that another start has come to. */
export class Prefixes {
  private readonly steps: readonly Step[];
  private readonly from: number;
  private readonly models: Model[];

  /** @param from steps that must be there in any case */
  constructor(steps: readonly Step[], from: number, orderOf: (object: number) => number = smallOrder) {
    this.steps = steps;
    this.from = from;
    const model = new Model(orderOf);
    for (const step of steps.slice(0, from)) model.apply(step);
    this.models = [model];
  }

  /** After the first `length` steps. */
  at(length: number): Model {
    const { models } = this;
    while (models.length <= length - this.from) {
      const next = models[models.length - 1]!.copy();
      next.apply(this.steps[this.from + models.length - 1]!);
      models.push(next);
    }
    return models[length - this.from]!;
  }

  /**
   * Which prefix the store holds, at least `from` steps, or what is wrong: with the longest prefix whose PG states
   * agree, or with the shortest allowed.
   */
  async find(
    store: DiskStore,
    clock: TestClock,
    from = this.from,
    compare: typeof differenceOf = differenceOf,
  ): Promise<number | string> {
    let why = `no prefix of ${from} to ${this.steps.length} steps has these PG states`;
    for (let length = this.steps.length; length >= from; length--) {
      const model = this.at(length);
      if (model.pgs.some((pg) => model.pgDifference(store, pg) !== null)) continue;
      const found = await compare(model, store, clock);
      if (found === null) return length;
      why = `prefix ${length}: ${found}`;
    }
    return why;
  }
}

/** Where the store differs from the model, or null. */
export function differenceOf(model: Model, store: DiskStore, clock: TestClock): Promise<string | null> {
  const difference = model.difference(store);
  clock.settle();
  return difference;
}

/** The same, but blocks that can't be read or fail their checksum are not held against the store. */
export function unprovenDifferenceOf(model: Model, store: DiskStore, clock: TestClock): Promise<string | null> {
  const difference = model.unprovenDifference(store);
  clock.settle();
  return difference;
}

export function survivingPrefix(
  store: DiskStore,
  clock: TestClock,
  steps: readonly Step[],
  from: number,
  orderOf: (object: number) => number = smallOrder,
): Promise<number | string> {
  return new Prefixes(steps, from, orderOf).find(store, clock);
}

function rootOf(error: unknown): unknown {
  return error instanceof Error && error.cause !== undefined ? rootOf(error.cause) : error;
}

const isNoSpace = (error: unknown): boolean => error instanceof StorageError && error.code === 'NO_SPACE';
const isDiskError = (error: unknown): boolean => error instanceof Error && error.name === 'DiskError';
