// Image locks, as operations on a Change: one writer per image, each with a higher fence than all before it.

import type { ControlRequest } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { Epoch } from '../../proto/ids.ts';
import { imageOf, inUse } from './directory.ts';
import type { Sessions } from './sessions.ts';
import type { Change } from './state.ts';

export interface Lock {
  readonly fence: number;
  /** Epoch that publishes the fence: the lock is good when every up daemon obeys it. */
  readonly fencedAt: Epoch;
}

/**
 * Makes the session the image's writer; the owner who asks again keeps its fence. Throws BUSY while another live session
 * is, unless it is to be taken over; UNAVAILABLE if the session is not subscribed, for then nobody would see it die.
 */
export function lockImage(change: Change, request: ControlRequest<'lockImage'>, sessions: Sessions): Lock {
  const { session, image, takeOver } = request;
  if (!sessions.isSubscribed(session))
    throw new StorageError('UNAVAILABLE', `session ${session} is not subscribed to the map: subscribe, then lock`);
  const record = imageOf(change, image);
  if (record.owner === session) return { fence: record.entry.fence, fencedAt: record.fencedAt };
  if (!takeOver && sessions.isAlive(record.owner)) throw inUse(record.entry.name, record.owner, record.ownerName);
  const fence = record.entry.fence + 1;
  const fencedAt = change.nextEpoch;
  const ownerName = sessions.nameOf(session);
  change.images.set(image, { entry: { ...record.entry, fence }, owner: session, ownerName, fencedAt });
  return { fence, fencedAt };
}

/** Gives the lock back. The fence stays; one who is not the owner, or was under an older fence, changes nothing. */
export function unlockImage(change: Change, request: ControlRequest<'unlockImage'>): Record<string, never> {
  const record = change.images.get(request.image);
  if (record !== undefined && record.owner === request.session && record.entry.fence === request.fence)
    change.images.set(request.image, { ...record, owner: 0, ownerName: '' });
  return {};
}
