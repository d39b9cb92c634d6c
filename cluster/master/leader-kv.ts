// The key-value store of the master that leads, in a store that it shares with other masters.
//
//   PREFIX/pgs/1.2a        the master's keys, each below the prefix
//   PREFIX:leader          who leads (election.ts); every transaction demands that it is still in the same life
//   PREFIX:journal/...     a batch that is too large for one transaction, on its way
//
// A deposed master can't write: its life of the leader key is over, and the store compares it in the same transaction.
//
// A batch within the store's limits is one transaction. A larger one (a pool of thousands of PGs) is written down first,
// in parts; then one transaction, which has the batch's compares, says that it is to happen. From there on it happens:
// the parts are carried out one by one, and whoever opens the store next finishes what its predecessor began. Nobody
// but the leader reads these keys, and it opens before it reads: so no one ever sees half of a batch.
//
// After a failure the outcome of a batch is unknown, and may still change: this object does nothing any more. Whoever
// goes on must lead anew, in a new life of the leader key, and open again.

import assert from 'node:assert/strict';
import { StorageError } from '../../proto/errors.ts';
import type { KeyValueBatch, KeyValueStore } from '../../proto/kv.ts';
import {
  ABSENT,
  type LeaseStore,
  STORE_BYTES_MAX,
  STORE_OPERATIONS_MAX,
  type StoreCompare,
  type StoreTransaction,
} from '../../proto/lease-store.ts';

export const leaderKeyOf = (prefix: string): string => `${prefix}:leader`;

export interface LeaderKvOptions {
  readonly store: LeaseStore;
  /** Without a slash at its end: "/ashlar". */
  readonly prefix: string;
  /** The life of the leader key that is ours. */
  readonly created: string;
}

type Part = Pick<KeyValueBatch, 'puts' | 'deletes'>;

/** Transactions under way together while a large batch is carried out: the store syncs them together. */
const APPLIED_AT_ONCE = 8;
/** What an operation costs in a request beside its bytes. */
const OPERATION_BYTES = 32;

export class LeaderKv implements KeyValueStore {
  readonly #store: LeaseStore;
  readonly #prefix: string;
  readonly #guard: StoreCompare & { readonly created: string };
  /** Batches run one after the other. */
  #last: Promise<unknown> = Promise.resolve();
  #broken: StorageError | null = null;

  /**
   * Finishes what the last leader began. Rejects with UNAVAILABLE if the store does not answer, or if the lead was
   * lost.
   */
  static async open(options: LeaderKvOptions): Promise<LeaderKv> {
    const kv = new LeaderKv(options);
    await kv.#finishJournal();
    return kv;
  }

  private constructor({ store, prefix, created }: LeaderKvOptions) {
    assert(created !== ABSENT, 'a leader has made the leader key');
    this.#store = store;
    this.#prefix = prefix;
    this.#guard = { key: leaderKeyOf(prefix), created };
  }

  /** Why nothing can be done with it any more. */
  get broken(): StorageError | null {
    return this.#broken;
  }

  async get(key: string): Promise<string | null> {
    this.#refuseBroken();
    return (await this.#store.get(this.#prefix + key))?.value ?? null;
  }

  async range(prefix: string): Promise<{ key: string; value: string }[]> {
    this.#refuseBroken();
    assert(prefix.startsWith('/'), 'keys are paths');
    const found = await this.#store.range(this.#prefix + prefix);
    return found.map(({ key, value }) => ({ key: key.slice(this.#prefix.length), value }));
  }

  batch(batch: KeyValueBatch): Promise<boolean> {
    const result = this.#last.then(() => this.#carryOut(batch));
    this.#last = result.catch(() => {}); // its caller hears of it; the next finds the store broken
    return result;
  }

  async close(): Promise<void> {
    this.#broken ??= new StorageError('UNAVAILABLE', 'the key-value store is closed');
  }

  async #carryOut(batch: KeyValueBatch): Promise<boolean> {
    this.#refuseBroken();
    const whole = this.#absolute(batch);
    const compares = batch.compares.map(({ key, value }): StoreCompare => {
      const absolute = this.#prefix + key;
      return value === null ? { key: absolute, created: ABSENT } : { key: absolute, value };
    });
    if (compares.length >= STORE_OPERATIONS_MAX)
      throw new StorageError('INVALID', `a batch with ${compares.length} compares is more than the store takes`);
    const parts = partsOf(whole, bytesOf);
    if (parts.length <= 1) return this.#transact({ compares, ...whole });
    return this.#carryOutLarge(whole, compares);
  }

  async #carryOutLarge(whole: Part, compares: readonly StoreCompare[]): Promise<boolean> {
    // As JSON a part is larger than what it holds.
    const parts = partsOf(whole, (op) => Buffer.byteLength(JSON.stringify(op)));
    for (const [at, part] of parts.entries())
      await this.#demand({ puts: [{ key: this.#journalKey(`part/${ordinal(at)}`), value: JSON.stringify(part) }] });
    const commit = { key: this.#journalKey('commit'), value: String(parts.length) };
    const happens = await this.#transact({ compares, puts: [commit], deletes: [] });
    if (happens) await this.#apply(whole);
    await this.#demand({ deletePrefix: this.#journalKey('') });
    return happens;
  }

  async #finishJournal(): Promise<void> {
    const pairs = await this.#store.range(this.#journalKey(''));
    if (pairs.length === 0) return;
    const commit = pairs.find(({ key }) => key === this.#journalKey('commit'));
    if (commit !== undefined) {
      const parts = pairs.filter((pair) => pair !== commit);
      if (parts.length !== Number(commit.value))
        throw new StorageError('IO', `${commit.key} tells of ${commit.value} parts, but ${parts.length} are there`);
      for (const { value } of parts) await this.#apply(JSON.parse(value) as Part);
    }
    await this.#demand({ deletePrefix: this.#journalKey('') });
  }

  /** May be repeated, and in any order: nothing else is written until the journal is empty. */
  async #apply(whole: Part): Promise<void> {
    const parts = partsOf(whole, bytesOf);
    for (let at = 0; at < parts.length; at += APPLIED_AT_ONCE)
      await Promise.all(parts.slice(at, at + APPLIED_AT_ONCE).map((part) => this.#demand(part)));
  }

  /** A transaction that depends on nothing but the lead. */
  async #demand(changes: Partial<StoreTransaction>): Promise<void> {
    const done = await this.#transact({ compares: [], puts: [], deletes: [], ...changes });
    assert(done, 'there was nothing to compare but the lead');
  }

  /** False: a compare failed, and the lead is still ours. */
  async #transact(transaction: Omit<StoreTransaction, 'otherwise'>): Promise<boolean> {
    this.#refuseBroken();
    try {
      const compares = [this.#guard, ...transaction.compares];
      const outcome = await this.#store.transact({ ...transaction, compares, otherwise: this.#guard.key });
      this.#refuseBroken(); // closed in the meantime: nobody may build on it
      if (outcome.done) return true;
      if (outcome.found?.created === this.#guard.created) return false;
      const who = outcome.found === null ? 'nobody' : `the master at ${outcome.found.value}`;
      throw new StorageError('UNAVAILABLE', `this master is deposed: ${who} leads`);
    } catch (error) {
      assert(error instanceof StorageError, String(error));
      this.#broken ??= error;
      throw error;
    }
  }

  #absolute({ puts, deletes }: KeyValueBatch): Part {
    return {
      puts: puts.map(({ key, value }) => ({ key: this.#prefix + key, value })),
      deletes: deletes.map((key) => this.#prefix + key),
    };
  }
  #journalKey(name: string): string {
    return `${this.#prefix}:journal/${name}`;
  }
  #refuseBroken(): void {
    if (this.#broken !== null) throw this.#broken;
  }
}

const ordinal = (at: number): string => String(at).padStart(6, '0');

interface Operation {
  readonly key: string;
  /** null: delete it. */
  readonly value: string | null;
}
const bytesOf = ({ key, value }: Operation): number =>
  Buffer.byteLength(key) + Buffer.byteLength(value ?? '') + OPERATION_BYTES;

/** Cuts changes into pieces that one transaction holds, the guard included. Throws INVALID for one that never will. */
function partsOf({ puts, deletes }: Part, sizeOf: (operation: Operation) => number): Part[] {
  const parts: { puts: { key: string; value: string }[]; deletes: string[] }[] = [];
  let bytes = Number.POSITIVE_INFINITY;
  let count = 0;
  const place = (operation: Operation): (typeof parts)[number] => {
    const size = sizeOf(operation);
    if (size > STORE_BYTES_MAX)
      throw new StorageError('INVALID', `${operation.key}: ${size} bytes are more than the store takes at once`);
    if (bytes + size > STORE_BYTES_MAX || count === STORE_OPERATIONS_MAX - 1) {
      parts.push({ puts: [], deletes: [] });
      bytes = 0;
      count = 0;
    }
    bytes += size;
    count++;
    return parts.at(-1)!;
  };
  for (const put of puts) place(put).puts.push(put);
  for (const key of deletes) place({ key, value: null }).deletes.push(key);
  return parts;
}
