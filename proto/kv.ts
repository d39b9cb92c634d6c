// The ordered key-value port: the only durable memory that the master has. Embedded SQLite by default
// (cluster/world/sqlite-kv.ts), a Map in tests and simulations; small enough for etcd's range and txn calls.
//
// Keys are readable paths ("/pgs/1.2a"), values are JSON text. Everything returns a promise because a remote store
// must; an embedded one does its work before it returns.

/** What one batch demands and does. All of it happens, or nothing. */
export interface KeyValueBatch {
  /** Each key must have exactly this value now; null: it must be absent. */
  readonly compares: readonly { readonly key: string; readonly value: string | null }[];
  readonly puts: readonly { readonly key: string; readonly value: string }[];
  readonly deletes: readonly string[];
}

export interface KeyValueStore {
  /** Value of a key, or null. */
  get(key: string): Promise<string | null>;
  /** Every pair whose key starts with `prefix`, ordered by key (by its UTF-8 bytes). */
  range(prefix: string): Promise<{ key: string; value: string }[]>;
  /**
   * Carries out a batch: on stable storage when the promise resolves. False: a compare failed and nothing changed. A
   * rejection leaves it unknown whether it happened: the owner must stop and read again what is there.
   */
  batch(batch: KeyValueBatch): Promise<boolean>;
  close(): Promise<void>;
}
