// Removing a storage daemon for ever, and what stands in the way of it.
//
//   up     drained: out by hand, member of no PG, and nothing left on its disk (what has moved, it deletes itself)
//   down   out, and every PG clean without it: settled in an interval that it is no member of, with all its copies
//
// Its number is never given again. Its directory is remembered as removed: what it holds was given up, and a process
// that comes back with it is refused for as long as this store lives.

import type { SpaceReport } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { type DaemonId, pgName, poolOfPg } from '../../proto/ids.ts';
import { isFresh, isSettled, type PgRecord } from './intervals.ts';
import type { Change } from './state.ts';

const NAMES_SHOWN = 3;

/** @param space what the daemon last said of its disk; null: nothing yet. Throws StorageError NOT_FOUND, or BUSY. */
export function removeDaemon(change: Change, id: DaemonId, space: SpaceReport | null): void {
  const record = change.daemons.get(id);
  if (record === undefined) throw new StorageError('NOT_FOUND', `no daemon has the number ${id}`);
  const { up, in: isIn, weight, uuid } = record.entry;
  const refuse = (why: string): never => {
    throw new StorageError('BUSY', `daemon ${id} can't be removed: ${why}`);
  };
  if (isIn && weight > 0) refuse(`it takes data; drain it first (daemon-admin drain ${id} --wait)`);
  const pgs = [...change.pgs.values()];
  const held = pgs.filter((pg) => pg.acting.includes(id));
  if (held.length > 0)
    refuse(`it still holds ${names(held)}; wait until they have moved (daemon-admin drain ${id} --wait)`);
  const needed = pgs.filter((pg) => pg.history.some(({ acting }) => acting.includes(id)));
  if (needed.length > 0) refuse(`${names(needed)} may need what it holds`);
  if (up && (space === null || space.usedBytes > 0))
    refuse('it has not deleted all of what has moved yet; it does so within seconds');
  // A daemon that is down can't say what it holds: everything must be elsewhere.
  const unsafe = up ? [] : pgs.filter((pg) => !isWholeWithout(change, pg));
  if (unsafe.length > 0)
    refuse(`it is down, and ${names(unsafe)} ${unsafe.length > 1 ? 'are' : 'is'} not clean without it`);
  change.daemons.delete(id);
  change.removed.set(id, { id, uuid });
}

function isWholeWithout(change: Change, record: PgRecord): boolean {
  if (isFresh(record)) return true;
  const { replicas } = change.pools.get(poolOfPg(record.pg))!;
  return (
    isSettled(record) &&
    record.acting.length >= replicas &&
    record.acting.every((member) => record.complete.includes(member))
  );
}

function names(pgs: readonly PgRecord[]): string {
  const shown = pgs.slice(0, NAMES_SHOWN).map(({ pg }) => pgName(pg));
  const more = pgs.length - shown.length;
  return `${pgs.length > 1 ? 'pgs' : 'pg'} ${shown.join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
}
