// Who has room for data that moves: a disk that is nearly full must not be made full by the master.
//
//   0 %            85 nearfull                    90 backfill-full      100
//   |------ moves --|---- moves, and health says so --|-- no new moves --|
//
// Only moves ask: a PG with all its copies stays where it is until its new daemon has room. A PG that lacks copies takes
// any daemon that it can get, as a copy on a nearly full disk is better than none; what does not fit there waits at the
// primary (cluster/daemon/recovery.ts). What is promised to moves under way counts as used already, in full, so that many
// PGs that begin to move at once don't overfill a disk together. Who has not said how full it is, is taken for empty.

import type { SpaceReport } from '../../proto/control.ts';
import type { DaemonId, PgId } from '../../proto/ids.ts';
import type { PgRecord } from './intervals.ts';
import { BACKFILL_FULL_SHARE } from './limits.ts';
import type { Presences } from './presence.ts';
import { reportOf } from './status.ts';

/** How full a disk is, 0 to 1. */
export function filledShare({ usedBytes, freeBytes }: SpaceReport): number {
  const capacity = usedBytes + freeBytes;
  return capacity === 0 || !Number.isFinite(capacity) ? 0 : usedBytes / capacity;
}

/** What fits where, as of one moment; what is taken is gone. */
export class Room {
  readonly #presences: Presences;
  readonly #left = new Map<DaemonId, number>();
  readonly #bytes = new Map<PgId, number>();

  constructor(presences: Presences, records: Iterable<PgRecord>) {
    this.#presences = presences;
    for (const { id, space } of presences.values()) {
      if (space === null || !Number.isFinite(space.freeBytes)) continue;
      const capacity = space.usedBytes + space.freeBytes;
      this.#left.set(id, space.full ? 0 : capacity * BACKFILL_FULL_SHARE - space.usedBytes);
    }
    for (const record of records) {
      const bytes = reportOf(record, this.#presences)?.bytes ?? 0;
      this.#bytes.set(record.pg, bytes);
      for (const id of record.acting) if (!record.complete.includes(id)) this.#take(id, bytes);
    }
  }

  /** Takes room for a PG that moves there, if there is any. */
  take(pg: PgId, id: DaemonId): boolean {
    const bytes = this.#bytes.get(pg) ?? 0;
    const left = this.#left.get(id);
    if (left !== undefined && (left <= 0 || left < bytes)) return false;
    this.#take(id, bytes);
    return true;
  }

  #take(id: DaemonId, bytes: number): void {
    const left = this.#left.get(id);
    if (left !== undefined) this.#left.set(id, left - bytes);
  }
}
