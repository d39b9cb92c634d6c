// What the master remembers: the durable records, and a change to them on its way to the disk.
//
//   State (as of the last durable batch) <── read by everybody
//     Change: an overlay that operations write to ──batch()──> key-value store ──durable──> State.apply ──> subscribers
//
// One Change becomes one atomic batch: its records, and the next epoch if anybody can see a difference. Records are
// immutable; a change replaces them. Nothing here decides anything: see master.ts and intervals.ts.

import assert from 'node:assert/strict';
import { StorageError } from '../../proto/errors.ts';
import type { DaemonId, Epoch, ImageId, PgId, PoolId, SessionId } from '../../proto/ids.ts';
import { pgName } from '../../proto/ids.ts';
import type { KeyValueBatch, KeyValueStore } from '../../proto/kv.ts';
import type { DaemonEntry, ImageEntry, MapUpdate, PgEntry, PoolEntry, StorageMap } from '../../proto/map.ts';
import { type PgRecord, sameOrder, waitForOf } from './intervals.ts';

export interface DaemonRecord {
  readonly entry: DaemonEntry;
  /** Why placement does not use it: 'new' until it is up for the first time. '' when it is in. */
  readonly outBy: '' | 'new' | 'down' | 'operator';
  /** The most that its recovery may send, as people set it; absent or 0: as it was started. */
  readonly recoveryBytesPerSecond?: number;
}

/** A daemon that was removed: its directory must not come back, as what it holds was given up. */
export interface RemovedDaemon {
  readonly id: DaemonId;
  readonly uuid: string;
}

export interface ImageRecord {
  readonly entry: ImageEntry;
  /** Session that holds the lock; 0: nobody. */
  readonly owner: SessionId;
  readonly ownerName: string;
  /** Epoch that published the newest fence: a lock is granted when every up daemon obeys it. */
  readonly fencedAt: Epoch;
}

/** Numbers to hand out next; never given twice. */
export interface Counters {
  readonly daemon: DaemonId;
  readonly pool: PoolId;
  readonly image: ImageId;
  readonly session: SessionId;
}

/** Where balancing moved a PG away from what the hash says: a whole target, first the primary. */
export interface Override {
  readonly pg: PgId;
  readonly target: readonly DaemonId[];
}

export const STORE_FORMAT = 1;

export class State {
  readonly clusterId: string;
  epoch: Epoch = 0;
  readonly daemons = new Map<DaemonId, DaemonRecord>();
  readonly pools = new Map<PoolId, PoolEntry>();
  readonly pgs = new Map<PgId, PgRecord>();
  readonly images = new Map<ImageId, ImageRecord>();
  readonly overrides = new Map<PgId, Override>();
  readonly removed = new Map<DaemonId, RemovedDaemon>();
  counters: Counters = { daemon: 1, pool: 1, image: 1, session: 1 };

  constructor(clusterId: string) {
    this.clusterId = clusterId;
  }

  /** The storage map that these records make. */
  map(): StorageMap {
    return {
      clusterId: this.clusterId,
      epoch: this.epoch,
      daemons: new Map([...this.daemons].map(([id, record]) => [id, record.entry])),
      pools: new Map(this.pools),
      pgs: new Map([...this.pgs].map(([pg, record]) => [pg, pgEntryOf(record)])),
      images: new Map([...this.images].map(([id, record]) => [id, record.entry])),
    };
  }

  apply(change: Change): void {
    this.epoch = change.epoch;
    this.counters = change.counters;
    for (const kind of TABLES) {
      const table: Map<number, unknown> = this[kind];
      for (const [id, record] of change[kind].changed)
        if (record === null) table.delete(id);
        else table.set(id, record);
    }
  }
}

export const pgEntryOf = (record: PgRecord): PgEntry => ({
  pg: record.pg,
  acting: record.acting,
  since: record.since,
  waitFor: waitForOf(record),
  lastActive: record.lastActive,
});

export const TABLES = ['daemons', 'pools', 'pgs', 'images', 'overrides', 'removed'] as const;

export const KEY_OF: Record<(typeof TABLES)[number], (id: number) => string> = {
  daemons: (id) => `/daemons/${id}`,
  pools: (id) => `/pools/${id}`,
  pgs: (pg) => `/pgs/${pgName(pg)}`,
  images: (id) => `/images/${id}`,
  overrides: (pg) => `/overrides/${pgName(pg)}`,
  removed: (id) => `/removed/${id}`,
};

/** Records of one kind as an operation sees them: those of the state, with its own changes on top. */
export class Overlay<V extends object> {
  readonly #base: ReadonlyMap<number, V>;
  /** null: removed. */
  readonly changed = new Map<number, V | null>();

  constructor(base: ReadonlyMap<number, V>) {
    this.#base = base;
  }
  get(id: number): V | undefined {
    const changed = this.changed.get(id);
    return changed === undefined ? this.#base.get(id) : (changed ?? undefined);
  }
  /** As of the last durable batch. */
  before(id: number): V | undefined {
    return this.#base.get(id);
  }
  set(id: number, record: V): void {
    if (this.get(id) !== record) this.changed.set(id, record);
  }
  delete(id: number): void {
    this.changed.set(id, null);
  }
  *values(): Iterable<V> {
    for (const [id, record] of this.#base) {
      const changed = this.changed.get(id);
      if (changed !== null) yield changed ?? record;
    }
    for (const [id, record] of this.changed) if (record !== null && !this.#base.has(id)) yield record;
  }
}

export class Change {
  readonly #state: State;
  readonly daemons: Overlay<DaemonRecord>;
  readonly pools: Overlay<PoolEntry>;
  readonly pgs: Overlay<PgRecord>;
  readonly images: Overlay<ImageRecord>;
  readonly overrides: Overlay<Override>;
  readonly removed: Overlay<RemovedDaemon>;
  counters: Counters;
  /** Daemons whose process was replaced: their PGs need a new interval whatever the acting set. */
  readonly rebooted = new Set<DaemonId>();
  /** The epoch that publishes this change, if it can be seen. */
  readonly nextEpoch: Epoch;
  #update: MapUpdate | null = null;

  constructor(state: State) {
    this.#state = state;
    this.daemons = new Overlay(state.daemons);
    this.pools = new Overlay(state.pools);
    this.pgs = new Overlay(state.pgs);
    this.images = new Overlay(state.images);
    this.overrides = new Overlay(state.overrides);
    this.removed = new Overlay(state.removed);
    this.counters = state.counters;
    this.nextEpoch = state.epoch + 1;
  }

  get clusterId(): string {
    return this.#state.clusterId;
  }

  /** Takes the next number of a kind. */
  number(kind: keyof Counters): number {
    const number = this.counters[kind];
    this.counters = { ...this.counters, [kind]: number + 1 };
    return number;
  }

  /** The epoch after this change. Only after seal(). */
  get epoch(): Epoch {
    return this.#update === null ? this.#state.epoch : this.nextEpoch;
  }

  /** Nothing is added any more: works out what others will see. Null: nothing, the epoch stays. */
  seal(): MapUpdate | null {
    const daemons = visible(this.daemons, (record) => record.entry, Object.is);
    const pools = visible(this.pools, (pool) => pool, Object.is);
    const pgs = visible(this.pgs, pgEntryOf, samePgEntry);
    const images = visible(this.images, (record) => record.entry, Object.is);
    const parts = [daemons, pools, pgs, images];
    if (parts.every((part) => part.set.length === 0 && part.removed.length === 0)) return null;
    this.#update = {
      clusterId: this.#state.clusterId,
      from: this.#state.epoch,
      to: this.nextEpoch,
      daemons: daemons.set,
      pools: pools.set,
      pgs: pgs.set,
      images: images.set,
      removedDaemons: daemons.removed,
      removedPools: pools.removed,
      removedPgs: pgs.removed,
      removedImages: images.removed,
    };
    return this.#update;
  }

  /** What makes it durable; null: nothing changed at all. Compares the epoch, so that only one master can write. */
  batch(): KeyValueBatch | null {
    const puts: { key: string; value: string }[] = [];
    const deletes: string[] = [];
    for (const kind of TABLES)
      for (const [id, record] of this[kind].changed)
        if (record === null) deletes.push(KEY_OF[kind](id));
        else puts.push({ key: KEY_OF[kind](id), value: JSON.stringify(record) });
    if (this.counters !== this.#state.counters) puts.push({ key: '/next', value: JSON.stringify(this.counters) });
    if (puts.length === 0 && deletes.length === 0) return null;
    if (this.epoch !== this.#state.epoch) puts.push({ key: '/epoch', value: String(this.epoch) });
    return { compares: [{ key: '/epoch', value: String(this.#state.epoch) }], puts, deletes };
  }
}

function visible<V extends object, E>(
  overlay: Overlay<V>,
  entryOf: (record: V) => E,
  same: (a: E, b: E) => boolean,
): { set: E[]; removed: number[] } {
  const set: E[] = [];
  const removed: number[] = [];
  for (const [id, record] of overlay.changed) {
    const before = overlay.before(id);
    if (record === null) {
      if (before !== undefined) removed.push(id);
    } else {
      const entry = entryOf(record);
      if (before === undefined || !same(entry, entryOf(before))) set.push(entry);
    }
  }
  return { set, removed };
}

const samePgEntry = (a: PgEntry, b: PgEntry): boolean =>
  a.since === b.since && sameOrder(a.acting, b.acting) && sameOrder(a.waitFor, b.waitFor);

/**
 * Reads everything back, or makes a new cluster called `newClusterId` in an empty store. Throws StorageError
 * UNSUPPORTED for a store of another kind or format.
 */
export async function loadState(kv: KeyValueStore, newClusterId: string): Promise<State> {
  const cluster = await kv.get('/cluster');
  if (cluster === null) {
    if ((await kv.range('/')).length > 0)
      throw new StorageError('UNSUPPORTED', 'the store holds something else than a cluster of Ashlar');
    const puts = [
      { key: '/cluster', value: JSON.stringify({ id: newClusterId, format: STORE_FORMAT }) },
      { key: '/epoch', value: '1' },
    ];
    if (!(await kv.batch({ compares: [{ key: '/cluster', value: null }], puts, deletes: [] })))
      throw new StorageError('BUSY', 'another master is making a cluster in the same store');
    const state = new State(newClusterId);
    state.epoch = 1;
    return state;
  }
  const { id, format } = JSON.parse(cluster) as { id: string; format: number };
  if (format !== STORE_FORMAT)
    throw new StorageError('UNSUPPORTED', `the store has format ${format}; this version reads ${STORE_FORMAT}`);
  const state = new State(id);
  state.epoch = Number(await kv.get('/epoch'));
  assert(state.epoch >= 1, 'a store with a cluster has an epoch');
  const counters = await kv.get('/next');
  if (counters !== null) state.counters = JSON.parse(counters) as Counters;
  const read = async <V>(prefix: string, take: (record: V) => void): Promise<void> => {
    for (const { value } of await kv.range(prefix)) take(JSON.parse(value) as V);
  };
  await read<DaemonRecord>('/daemons/', (record) => state.daemons.set(record.entry.id, record));
  await read<PoolEntry>('/pools/', (pool) => state.pools.set(pool.id, pool));
  await read<PgRecord>('/pgs/', (record) => state.pgs.set(record.pg, record));
  await read<ImageRecord>('/images/', (record) => state.images.set(record.entry.id, record));
  await read<Override>('/overrides/', (override) => state.overrides.set(override.pg, override));
  await read<RemovedDaemon>('/removed/', (daemon) => state.removed.set(daemon.id, daemon));
  return state;
}
