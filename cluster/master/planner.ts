// What follows from a change: every PG's target, and the intervals that begin.
//
// Runs once per commit, after all its operations: daemons that came, went, restarted or changed weight, new pools,
// activations and clean reports all end here, in one new interval per PG at most, durable in the same batch.

import type { DaemonId, PgId } from '../../proto/ids.ts';
import { pgId, poolOfPg } from '../../proto/ids.ts';
import type { PoolEntry } from '../../proto/map.ts';
import { place, type Topology, topologyOf } from '../../proto/placement.ts';
import { balancePool, type Targets } from './balance.ts';
import { desiredActing, nextInterval, type PgRecord, sameOrder, withoutComplete } from './intervals.ts';
import type { Room } from './room.ts';
import type { Change, DaemonRecord, Overlay, State } from './state.ts';

export class Planner {
  #hashed: Targets;
  #targets: Targets;
  #weights: ReadonlyMap<DaemonId, number>;
  /** PGs that stay where they are until the daemon they belong to has room. */
  readonly #held = new Set<PgId>();
  #full: ReadonlySet<DaemonId> = new Set();
  readonly #roomNow: () => Room;

  /**
   * Targets as they were when the state was saved: the hash says them again, but where an override differs.
   * @param roomNow who has room for moves
   */
  constructor(state: State, roomNow: () => Room) {
    this.#roomNow = roomNow;
    for (const pg of state.pgs.keys()) this.#held.add(pg);
    const topology = topologyOf([...state.daemons.values()].map(({ entry }) => entry));
    this.#hashed = new Map([...state.pools.values()].flatMap((pool) => [...hashedPgs(topology, pool)]));
    this.#targets = new Map([...this.#hashed].map(([pg, placed]) => [pg, state.overrides.get(pg)?.target ?? placed]));
    this.#weights = new Map(topology.daemons.map(({ id, weight }) => [id, weight]));
  }

  /** Where the PG belongs: daemons that are in, up or not, first the primary. */
  target(pg: PgId): readonly DaemonId[] {
    return this.#targets.get(pg) ?? [];
  }

  /** Are there moves that wait for room, or such to daemons that are full? Every settle() looks at them again. */
  get holds(): boolean {
    return this.#held.size > 0;
  }

  isNewlyFull(full: readonly DaemonId[]): boolean {
    return full.some((id) => !this.#full.has(id));
  }

  /** These daemons have no space left, and these are all PGs: those that move there are looked at again. */
  setFull(full: readonly DaemonId[], records: Iterable<PgRecord>): void {
    this.#full = new Set(full);
    for (const { pg, acting, complete } of records)
      if (acting.some((id) => this.#full.has(id) && !complete.includes(id))) this.#held.add(pg);
  }

  settle(change: Change): void {
    const membership = change.daemons.changed.size > 0 || change.pools.changed.size > 0;
    if (change.pools.changed.size > 0 || placementChanged(change.daemons)) this.#place(change);
    const concerned = membership
      ? change.pgs.values()
      : [...new Set([...change.pgs.changed.keys(), ...this.#held])].flatMap((pg) => change.pgs.get(pg) ?? []);
    let room: Room | null = null;
    const roomNow = (): Room => {
      room ??= this.#roomNow();
      return room;
    };
    for (const record of [...concerned]) change.pgs.set(record.pg, this.#settled(change, record, roomNow));
  }

  #settled(change: Change, before: PgRecord, roomNow: () => Room): PgRecord {
    let record = before;
    for (const daemon of change.rebooted) record = withoutComplete(record, daemon);
    const isUp = (id: DaemonId): boolean => change.daemons.get(id)?.entry.up ?? false;
    const { replicas } = change.pools.get(poolOfPg(record.pg))!;
    const target = this.target(record.pg);
    const acting = desiredActing(record, target, isUp, {
      replicas,
      hasRoom: (id) => roomNow().take(record.pg, id),
      isFull: (id) => this.#full.has(id),
    });
    if (target.some((id) => isUp(id) && !acting.includes(id))) this.#held.add(record.pg);
    else this.#held.delete(record.pg);
    const rebooted = record.acting.some((id) => change.rebooted.has(id));
    return rebooted || !sameOrder(acting, record.acting) ? nextInterval(record, acting, change.nextEpoch) : record;
  }

  /** New targets for every pool: the hash, then balancing from where the PGs belonged. */
  #place(change: Change): void {
    const candidates = [...change.daemons.values()].map(({ entry }) => entry);
    const topology = topologyOf(candidates);
    const weightBefore = (id: DaemonId): number => this.#weights.get(id) ?? 0;
    const hashed = new Map<PgId, DaemonId[]>();
    const targets = new Map<PgId, readonly DaemonId[]>();
    for (const pool of change.pools.values()) {
      const ofPool = hashedPgs(topology, pool);
      const before = { hashedBefore: this.#hashed, targetsBefore: this.#targets };
      const balanced = balancePool({ topology, replicas: pool.replicas, hashed: ofPool, ...before, weightBefore });
      for (const [pg, target] of balanced) {
        targets.set(pg, target);
        override(change, pg, target, ofPool.get(pg)!);
      }
      for (const [pg, placed] of ofPool) hashed.set(pg, placed);
    }
    this.#hashed = hashed;
    this.#targets = targets;
    this.#weights = new Map(topology.daemons.map(({ id, weight }) => [id, weight]));
  }
}

function hashedPgs(topology: Topology, pool: PoolEntry): Map<PgId, DaemonId[]> {
  const hashed = new Map<PgId, DaemonId[]>();
  for (let index = 0; index < pool.pgCount; index++) {
    const pg = pgId(pool.id, index);
    hashed.set(pg, place(topology, pg, pool.replicas));
  }
  return hashed;
}

/** Remembers a target that differs from what the hash says, and forgets one that no longer does. */
function override({ overrides }: Change, pg: PgId, target: readonly DaemonId[], hashed: readonly DaemonId[]): void {
  const known = overrides.get(pg);
  if (sameOrder(target, hashed)) {
    if (known !== undefined) overrides.delete(pg);
  } else if (known === undefined || !sameOrder(known.target, target)) overrides.set(pg, { pg, target });
}

function placementChanged(daemons: Overlay<DaemonRecord>): boolean {
  for (const [id, after] of daemons.changed) {
    const before = daemons.before(id)?.entry;
    const entry = after?.entry;
    if (before?.in !== entry?.in || (entry?.in && (before?.weight !== entry.weight || before.domain !== entry.domain)))
      return true;
  }
  return false;
}
