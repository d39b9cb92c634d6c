// The daemon registry: numbers, processes, addresses and weights.

import type { ControlRequest } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { DaemonId } from '../../proto/ids.ts';
import type { DaemonEntry } from '../../proto/map.ts';
import { DAEMON_ID_MAX, NAME_LENGTH_MAX, WEIGHT_MAX } from './limits.ts';
import type { Change } from './state.ts';

/**
 * Takes in a daemon's process. A directory keeps its number for ever; a new boot id means that the old process is gone,
 * so the daemon is down until the new one subscribes, and all its PGs begin a new interval.
 */
export function registerDaemon(change: Change, request: ControlRequest<'register'>): DaemonId {
  const { uuid, bootId, address, unixAddress, host, domain, weight } = request;
  refuseUnlessJoining(change, request);
  const removed = [...change.removed.values()].find((daemon) => daemon.uuid === uuid);
  if (removed !== undefined)
    throw new StorageError(
      'IDENTITY',
      `daemon ${removed.id} (${uuid}) was removed from this cluster: its directory can't come back; start it on an empty one`,
    );
  const known = [...change.daemons.values()].find((record) => record.entry.uuid === uuid);
  if (known === undefined) {
    if (change.counters.daemon > DAEMON_ID_MAX)
      throw new StorageError('INVALID', `no daemon number is left: there were ${DAEMON_ID_MAX}`);
    const id = change.number('daemon');
    const entry = { id, uuid, bootId, address, unixAddress, host, domain, weight, up: false, in: false };
    change.daemons.set(id, { entry, outBy: 'new' });
    return id;
  }
  const { id } = known.entry;
  const restarted = known.entry.bootId !== bootId;
  if (restarted) change.rebooted.add(id);
  const entry: DaemonEntry = {
    ...known.entry,
    bootId,
    address,
    unixAddress,
    host,
    domain,
    up: known.entry.up && !restarted,
  };
  if (!sameEntry(entry, known.entry)) change.daemons.set(id, { ...known, entry });
  return id;
}

function refuseUnlessJoining(change: Change, request: ControlRequest<'register'>): void {
  if (request.clusterId !== '' && request.clusterId !== change.clusterId)
    throw new StorageError(
      'IDENTITY',
      `the daemon's directory belongs to cluster ${request.clusterId}, this master to ${change.clusterId}`,
    );
  for (const [what, text] of Object.entries({
    uuid: request.uuid,
    'boot id': request.bootId,
    address: request.address,
    'failure domain': request.domain,
  }))
    if (text === '' || text.length > NAME_LENGTH_MAX)
      throw new StorageError('INVALID', `a daemon's ${what} must have 1 to ${NAME_LENGTH_MAX} characters`);
  refuseWeight(request.weight);
}

/**
 * An operator changes a daemon's weight, drains it (out by hand, and it stays out) or ends that, or sets how fast it may
 * recover others.
 */
export function setDaemon(change: Change, request: ControlRequest<'setDaemon'>): DaemonEntry {
  const record = change.daemons.get(request.id);
  if (record === undefined) throw new StorageError('NOT_FOUND', `no daemon has the number ${request.id}`);
  if (request.weight !== undefined) refuseWeight(request.weight);
  const outBy = request.in === undefined ? record.outBy : request.in ? '' : 'operator';
  const entry: DaemonEntry = { ...record.entry, weight: request.weight ?? record.entry.weight, in: outBy === '' };
  const recoveryBytesPerSecond = request.recoveryBytesPerSecond ?? record.recoveryBytesPerSecond ?? 0;
  if (
    !sameEntry(entry, record.entry) ||
    outBy !== record.outBy ||
    recoveryBytesPerSecond !== (record.recoveryBytesPerSecond ?? 0)
  )
    change.daemons.set(request.id, {
      entry: sameEntry(entry, record.entry) ? record.entry : entry,
      outBy,
      recoveryBytesPerSecond,
    });
  return entry;
}

function refuseWeight(weight: number): void {
  if (!Number.isFinite(weight) || weight < 0 || weight > WEIGHT_MAX)
    throw new StorageError('INVALID', `a weight must be 0 to ${WEIGHT_MAX}, not ${weight}`);
}

function sameEntry(a: DaemonEntry, b: DaemonEntry): boolean {
  return (Object.keys(a) as (keyof DaemonEntry)[]).every((key) => a[key] === b[key]);
}
