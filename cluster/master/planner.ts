// What follows from a change: every PG's target, and the intervals that begin.
//
// Runs once per commit, after all its operations: daemons that came, went, restarted or changed weight, new pools,
// activations and clean reports all end here, in one new interval per PG at most, durable in the same batch.

import type { DaemonId, PgId } from '../../proto/ids.ts';
import { poolOfPg } from '../../proto/ids.ts';
import { place, topologyOf } from '../../proto/placement.ts';
import { desiredActing, nextInterval, type PgRecord, sameOrder, withoutComplete } from './intervals.ts';
import { Change, type DaemonRecord, type Overlay, type State } from './state.ts';

export class Planner {
  #targets = new Map<PgId, readonly DaemonId[]>();

  constructor(state: State) {
    this.#place(new Change(state));
  }

  /** Where the PG belongs: daemons that are in, up or not, first the primary. */
  target(pg: PgId): readonly DaemonId[] {
    return this.#targets.get(pg) ?? [];
  }

  settle(change: Change): void {
    const membership = change.daemons.changed.size > 0 || change.pools.changed.size > 0;
    if (change.pools.changed.size > 0 || placementChanged(change.daemons)) this.#place(change);
    const concerned = membership
      ? change.pgs.values()
      : [...change.pgs.changed.keys()].map((pg) => change.pgs.get(pg)!);
    for (const record of [...concerned]) change.pgs.set(record.pg, this.#settled(change, record));
  }

  #settled(change: Change, before: PgRecord): PgRecord {
    let record = before;
    for (const daemon of change.rebooted) record = withoutComplete(record, daemon);
    const isUp = (id: DaemonId): boolean => change.daemons.get(id)?.entry.up ?? false;
    const acting = desiredActing(record, this.target(record.pg), isUp);
    const rebooted = record.acting.some((id) => change.rebooted.has(id));
    return rebooted || !sameOrder(acting, record.acting) ? nextInterval(record, acting, change.nextEpoch) : record;
  }

  #place(change: Change): void {
    const topology = topologyOf([...change.daemons.values()].map((record) => record.entry));
    this.#targets = new Map();
    for (const record of change.pgs.values())
      this.#targets.set(record.pg, place(topology, record.pg, change.pools.get(poolOfPg(record.pg))!.replicas));
  }
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
