// The port to a store that several masters share: pairs with revisions, transactions and leases, as etcd has them.
//
//   cluster/master/election.ts    who leads: one key under a lease
//   cluster/master/leader-kv.ts   the KeyValueStore (kv.ts) of the one who leads
//   cluster/world/etcd-client.ts  etcd itself; cluster/master/memory-lease-store.ts  its model, for tests and simulation
//
// Every method rejects with StorageError. UNAVAILABLE leaves it unknown whether a change happened, or still will: what
// is under way may arrive late, so whoever gets it must not write again under the same condition and believe it.

/** A pair as it was found. */
export interface StoredPair {
  readonly key: string;
  readonly value: string;
  /** Opaque name of this life of the key: another one each time it is made anew. */
  readonly created: string;
  /** The lease it dies with; "0": none. */
  readonly lease: string;
}

/** A key has this value, or is in this life; "0" for `created`: it is absent. */
export type StoreCompare =
  | { readonly key: string; readonly value: string }
  | { readonly key: string; readonly created: string };

/** What `created` says of a key that is not there. */
export const ABSENT = '0';

export interface StoreTransaction {
  readonly compares: readonly StoreCompare[];
  /** No key twice, also not in `deletes`. */
  readonly puts: readonly { readonly key: string; readonly value: string; readonly lease?: string }[];
  readonly deletes: readonly string[];
  /** Every key that begins with this goes too. */
  readonly deletePrefix?: string;
  /** Read, at the same moment, if a compare failed. */
  readonly otherwise: string;
}

export type StoreOutcome =
  /** Durable. `created` is that of the keys that were made. */
  { readonly done: true; readonly created: string } | { readonly done: false; readonly found: StoredPair | null };

export interface LeaseStore {
  /** As of a moment after the call. */
  get(key: string): Promise<StoredPair | null>;
  /** All pairs whose key begins with `prefix`, of one moment after the call, ordered by the keys' bytes. */
  range(prefix: string): Promise<StoredPair[]>;
  transact(transaction: StoreTransaction): Promise<StoreOutcome>;
  /** A lease that lasts at least `ttlMs` from the moment the store heard of it, or as long as it says. */
  grant(ttlMs: number): Promise<{ lease: string; ttlMs: number }>;
  /** Makes it last its whole time again, from a moment after the call. False: it is over. */
  renew(lease: string): Promise<boolean>;
  /** Ends it and removes its keys. Resolves also if it was over already. */
  revoke(lease: string): Promise<void>;
  close(): void;
}

/** Most changes, and most compares, in a transaction: what etcd takes unless it is told otherwise (--max-txn-ops). */
export const STORE_OPERATIONS_MAX = 128;
/** Most bytes of keys and values in a transaction: etcd takes requests of 1.5 MiB (--max-request-bytes). */
export const STORE_BYTES_MAX = 2 ** 20;
