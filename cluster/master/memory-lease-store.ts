// A model of etcd in memory, for tests and simulations: revisions, transactions with limits, leases that end by a clock.
//
// It never loses a call and answers at once; what a network does to calls is for whoever wraps it. As in etcd, a lease
// that is over goes on for a while before its keys vanish, so that whoever relies on the exact moment is found out.

import { StorageError } from '../../proto/errors.ts';
import {
  ABSENT,
  type LeaseStore,
  STORE_OPERATIONS_MAX,
  type StoreCompare,
  type StoredPair,
  type StoreOutcome,
  type StoreTransaction,
} from '../../proto/lease-store.ts';
import type { Clock } from '../../proto/ports.ts';

/** etcd looks for leases that are over twice a second. */
const EXPIRY_LATE_MS = 500;
/** etcd's --max-request-bytes. */
const REQUEST_BYTES_MAX = 1.5 * 2 ** 20;

export class MemoryLeaseStore implements LeaseStore {
  readonly #clock: Pick<Clock, 'now'>;
  #revision = 1;
  #leases = 0;
  readonly #pairs = new Map<string, StoredPair>();
  readonly #ends = new Map<string, { at: number; ttlMs: number }>();

  constructor(clock: Pick<Clock, 'now'>) {
    this.#clock = clock;
  }

  async get(key: string): Promise<StoredPair | null> {
    this.#expire();
    return this.#pairs.get(key) ?? null;
  }

  async range(prefix: string): Promise<StoredPair[]> {
    this.#expire();
    const found = [...this.#pairs.values()].filter(({ key }) => key.startsWith(prefix));
    return found.sort((a, b) => Buffer.compare(Buffer.from(a.key), Buffer.from(b.key)));
  }

  async transact(transaction: StoreTransaction): Promise<StoreOutcome> {
    this.#expire();
    const { compares, puts, deletes, deletePrefix, otherwise } = transaction;
    refuseTooLarge(transaction);
    if (!compares.every((compare) => this.#holds(compare)))
      return { done: false, found: this.#pairs.get(otherwise) ?? null };
    for (const { lease } of puts)
      if (lease !== undefined && !this.#ends.has(lease)) throw new StorageError('NOT_FOUND', 'the lease is over');
    this.#revision++;
    for (const { key, value, lease = ABSENT } of puts) {
      const created = this.#pairs.get(key)?.created ?? String(this.#revision);
      this.#pairs.set(key, { key, value, created, lease });
    }
    for (const key of deletes) this.#pairs.delete(key);
    if (deletePrefix !== undefined)
      for (const key of [...this.#pairs.keys()]) if (key.startsWith(deletePrefix)) this.#pairs.delete(key);
    return { done: true, created: String(this.#revision) };
  }

  async grant(ttlMs: number): Promise<{ lease: string; ttlMs: number }> {
    const lease = String(++this.#leases);
    this.#ends.set(lease, { at: this.#clock.now() + ttlMs, ttlMs });
    return { lease, ttlMs };
  }

  async renew(lease: string): Promise<boolean> {
    this.#expire();
    const end = this.#ends.get(lease);
    if (end === undefined) return false;
    end.at = this.#clock.now() + end.ttlMs;
    return true;
  }

  async revoke(lease: string): Promise<void> {
    this.#expire();
    this.#end(lease);
  }

  close(): void {}

  #holds(compare: StoreCompare): boolean {
    const pair = this.#pairs.get(compare.key);
    return 'value' in compare ? pair?.value === compare.value : (pair?.created ?? ABSENT) === compare.created;
  }

  #expire(): void {
    for (const [lease, { at }] of this.#ends) if (this.#clock.now() >= at + EXPIRY_LATE_MS) this.#end(lease);
  }

  #end(lease: string): void {
    this.#ends.delete(lease);
    this.#revision++;
    for (const pair of [...this.#pairs.values()]) if (pair.lease === lease) this.#pairs.delete(pair.key);
  }
}

function refuseTooLarge({ compares, puts, deletes, deletePrefix }: StoreTransaction): void {
  const changes = [...puts.map(({ key }) => key), ...deletes];
  if (new Set(changes).size !== changes.length) throw new StorageError('INVALID', 'a key twice in one transaction');
  const operations = changes.length + (deletePrefix === undefined ? 0 : 1);
  if (operations > STORE_OPERATIONS_MAX || compares.length > STORE_OPERATIONS_MAX)
    throw new StorageError('INVALID', 'too many operations in one transaction');
  const bytes = puts.reduce((sum, { key, value }) => sum + Buffer.byteLength(key) + Buffer.byteLength(value), 0);
  if (bytes > REQUEST_BYTES_MAX) throw new StorageError('INVALID', 'the request is too large');
}
