// The key-value port in memory: for tests and simulations. What it holds outlives the master that used it, as a disk
// would: a test "restarts" a master by opening another one on the same object, or on a copy made at any moment.

import { StorageError } from '../../proto/errors.ts';
import type { KeyValueBatch, KeyValueStore } from '../../proto/kv.ts';

export class MemoryKv implements KeyValueStore {
  readonly #pairs: Map<string, string>;
  #closed = false;
  /** Called with every batch that was carried out: a test may copy the store there, or throw to fail it. */
  onBatch: ((batch: KeyValueBatch) => void) | null = null;

  constructor(pairs: Iterable<readonly [string, string]> = []) {
    this.#pairs = new Map(pairs);
  }

  /** What a disk would hold if the power went now. */
  copy(): MemoryKv {
    return new MemoryKv(this.#pairs);
  }

  async get(key: string): Promise<string | null> {
    this.#refuseClosed();
    return this.#pairs.get(key) ?? null;
  }

  async range(prefix: string): Promise<{ key: string; value: string }[]> {
    this.#refuseClosed();
    const found: { key: string; value: string }[] = [];
    for (const [key, value] of this.#pairs) if (key.startsWith(prefix)) found.push({ key, value });
    return found.sort((a, b) => Buffer.compare(Buffer.from(a.key), Buffer.from(b.key)));
  }

  async batch(batch: KeyValueBatch): Promise<boolean> {
    this.#refuseClosed();
    for (const { key, value } of batch.compares) if ((this.#pairs.get(key) ?? null) !== value) return false;
    for (const { key, value } of batch.puts) this.#pairs.set(key, value);
    for (const key of batch.deletes) this.#pairs.delete(key);
    this.onBatch?.(batch);
    return true;
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  #refuseClosed(): void {
    if (this.#closed) throw new StorageError('UNAVAILABLE', 'the key-value store is closed');
  }
}
