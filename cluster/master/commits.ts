// The one queue of changes. Operations run one after the other; those that wait together become one batch and one epoch.
//
//   submit(op) ─┐
//   submit(op) ─┼─> one Change ─> settle (targets, intervals) ─> batch, durable ─> state ─> published ─> promises resolve
//   submit(op) ─┘
//
// Nobody is told anything before it is durable. If the store fails, or was written by another master, what is durable is
// unknown: the master must stop, and every operation from then on is refused.

import { StorageError } from '../../proto/errors.ts';
import type { KeyValueStore } from '../../proto/kv.ts';
import type { MapUpdate } from '../../proto/map.ts';
import type { Clock } from '../../proto/ports.ts';
import { Change, type State } from './state.ts';

/** Checks everything before it writes anything to the change: it throws StorageError to refuse, and then did nothing. */
export type Operation<T> = (change: Change) => T;

interface Pending {
  run(change: Change): void;
  /** It is durable and published. */
  settled(): void;
  failed(error: unknown): void;
}

export interface CommitEvents {
  /** Completes a change with what follows from it. */
  settle(change: Change): void;
  /** The change is durable and in the state. */
  committed(update: MapUpdate | null): void;
  fatal(error: Error): void;
}

export class Commits {
  readonly #clock: Clock;
  readonly #kv: KeyValueStore;
  readonly #state: State;
  readonly #events: CommitEvents;
  #waiting: Pending[] = [];
  #running: Promise<void> | null = null;
  /** Why no operation is taken any more. */
  #stopped: StorageError | null = null;

  constructor(clock: Clock, kv: KeyValueStore, state: State, events: CommitEvents) {
    this.#clock = clock;
    this.#kv = kv;
    this.#state = state;
    this.#events = events;
  }

  /** Resolves with what the operation returned when it is durable. Rejects with the StorageError that it threw. */
  submit<T>(operation: Operation<T>): Promise<T> {
    if (this.#stopped !== null) return Promise.reject(this.#stopped);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    let result: T;
    this.#waiting.push({
      run(change) {
        result = operation(change);
      },
      settled: () => resolve(result),
      failed: reject,
    });
    if (this.#running === null) {
      const { promise: done, resolve: finish } = Promise.withResolvers<void>();
      this.#running = done;
      this.#clock.soon(() => void this.#drain().then(finish));
    }
    return promise;
  }

  /** Refuses what comes from now on, and resolves when nothing is under way. */
  async stop(why: StorageError): Promise<void> {
    this.#stopped ??= why;
    await this.#running;
  }

  async #drain(): Promise<void> {
    while (this.#waiting.length > 0) {
      const pending = this.#waiting;
      this.#waiting = [];
      try {
        await this.#commit(pending);
      } catch (error) {
        this.#fail(error, pending);
      }
    }
    this.#running = null;
  }

  async #commit(pending: readonly Pending[]): Promise<void> {
    const change = new Change(this.#state);
    const accepted: Pending[] = [];
    for (const operation of pending) {
      try {
        operation.run(change);
        accepted.push(operation);
      } catch (error) {
        if (!(error instanceof StorageError)) throw error;
        operation.failed(error);
      }
    }
    this.#events.settle(change);
    const update = change.seal();
    const batch = change.batch();
    if (batch !== null) {
      if (!(await this.#kv.batch(batch)))
        throw new StorageError('IDENTITY', 'another master has written to this store: this one is deposed');
      this.#state.apply(change);
    }
    this.#events.committed(update);
    for (const operation of accepted) operation.settled();
  }

  #fail(error: unknown, pending: readonly Pending[]): void {
    const cause = error instanceof Error ? error : new Error(String(error));
    this.#stopped ??= new StorageError('UNAVAILABLE', `the master has stopped: ${cause.message}`, cause);
    for (const operation of [...pending, ...this.#waiting]) operation.failed(this.#stopped);
    this.#waiting = [];
    this.#events.fatal(cause);
  }
}
