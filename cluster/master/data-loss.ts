// An operator gives up what a daemon holds of a PG that waits for it: the one way past "incomplete".
//
// The daemon is struck off the intervals that the PG waits for; of what is left the same rules ask as before. Only when
// nobody is left who is down and might have more do the copies that are here count as they are (lastActive 0, see
// missing.ts). What the daemon brings back one day was activated in an older interval than those that serve from then on:
// it is brought to their state like any copy that was away. If it comes back before that, nothing is lost.
//
// A daemon that is alive and cut off, together with all members of its interval, may still answer clients that are cut
// off with it: whoever gives a daemon up has to see to it that it is dead.

import type { ControlReply, ControlRequest } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { pgName } from '../../proto/ids.ts';
import { givenUp, nextInterval, waitForOf } from './intervals.ts';
import type { Change } from './state.ts';

/** Throws NOT_FOUND; INVALID if the PG serves or does not wait for that daemon, BUSY if the daemon is up. */
export function acceptDataLoss(
  change: Change,
  { pg, daemon }: ControlRequest<'acceptDataLoss'>,
): ControlReply<'acceptDataLoss'> {
  const record = change.pgs.get(pg);
  const known = change.daemons.get(daemon);
  if (record === undefined) throw new StorageError('NOT_FOUND', `no PG has the name ${pgName(pg)}`);
  if (known === undefined) throw new StorageError('NOT_FOUND', `no daemon has the number ${daemon}`);
  if (record.activated) throw new StorageError('INVALID', `pg ${pgName(pg)} serves: it waits for nobody`);
  if (!record.history.some(({ acting }) => acting.includes(daemon)))
    throw new StorageError('INVALID', `pg ${pgName(pg)} does not wait for daemon ${daemon}`);
  if (known.entry.up) throw new StorageError('BUSY', `daemon ${daemon} is up: what it holds is not lost`);
  const isUp = (id: number): boolean => change.daemons.get(id)?.entry.up ?? false;
  const next = nextInterval(givenUp(record, daemon, isUp), record.acting, change.nextEpoch);
  change.pgs.set(pg, next);
  return { waitFor: waitForOf(next) };
}
