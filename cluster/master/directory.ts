// Pools and images: what people make, with the checks that keep nonsense out of the map.
//
// Each function is an operation on a Change: it refuses with a StorageError that says what to do, or writes.

import type { ControlReply, ControlRequest } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { IMAGE_ID_MAX, OBJECT_NUMBER_MAX, POOL_ID_MAX, pgId } from '../../proto/ids.ts';
import { IMAGE_BYTES_MAX } from '../../proto/limits.ts';
import type { ImageEntry, PoolEntry } from '../../proto/map.ts';
import { invalidLayout, objectCount } from '../../proto/striping.ts';
import { newPg } from './intervals.ts';
import { NAME_LENGTH_MAX, POOL_PGS_MAX, REPLICAS_MAX } from './limits.ts';
import type { Change, ImageRecord } from './state.ts';

export function createPool(change: Change, request: ControlRequest<'createPool'>): PoolEntry {
  const { name, pgCount, replicas, durability } = request;
  refuseName('pool', name);
  for (const pool of change.pools.values())
    if (pool.name === name) throw new StorageError('EXISTS', `pool "${name}" exists already`);
  if (!Number.isInteger(pgCount) || pgCount < 1 || pgCount > POOL_PGS_MAX || !Number.isInteger(Math.log2(pgCount)))
    throw new StorageError('INVALID', `PG count must be a power of two from 1 to ${POOL_PGS_MAX}, not ${pgCount}`);
  if (!Number.isInteger(replicas) || replicas < 1 || replicas > REPLICAS_MAX)
    throw new StorageError('INVALID', `replicas must be 1 to ${REPLICAS_MAX}, not ${replicas}`);
  const minSize = request.minSize === 0 ? Math.max(1, replicas - 1) : request.minSize;
  if (!Number.isInteger(minSize) || minSize < 1 || minSize > replicas)
    throw new StorageError('INVALID', `minimum size must be 1 to the ${replicas} replicas, not ${minSize}`);
  if (durability !== 'flush' && durability !== 'sync')
    throw new StorageError('INVALID', `durability must be "flush" or "sync", not "${durability}"`);
  if (change.counters.pool > POOL_ID_MAX)
    throw new StorageError('INVALID', `no pool number is left: there were ${POOL_ID_MAX} pools`);
  const pool: PoolEntry = { id: change.number('pool'), name, pgCount, replicas, minSize, durability };
  change.pools.set(pool.id, pool);
  for (let index = 0; index < pgCount; index++) {
    const pg = pgId(pool.id, index);
    change.pgs.set(pg, newPg(pg, [], change.nextEpoch));
  }
  return pool;
}

export function createImage(change: Change, request: ControlRequest<'createImage'>): ImageEntry {
  const { name, sizeBytes, order, stripeUnit, stripeCount } = request;
  refuseName('image', name);
  for (const { entry } of change.images.values())
    if (entry.name === name)
      throw new StorageError(
        'EXISTS',
        `image "${name}" exists already${entry.state === 'removing' ? ': its removal is not finished' : ''}`,
      );
  const pool = [...change.pools.values()].find((p) => p.name === request.pool);
  if (pool === undefined) throw new StorageError('NOT_FOUND', `no pool is called "${request.pool}"`);
  const layout = { order, stripeUnit, stripeCount };
  const why = invalidLayout(layout);
  if (why !== null) throw new StorageError('INVALID', why);
  refuseSize(layout, sizeBytes);
  if (change.counters.image > IMAGE_ID_MAX)
    throw new StorageError('INVALID', `no image number is left: there were ${IMAGE_ID_MAX} images`);
  const entry: ImageEntry = {
    id: change.number('image'),
    name,
    pool: pool.id,
    sizeBytes,
    order,
    stripeUnit,
    stripeCount,
    fence: 0,
    state: 'ready',
  };
  change.images.set(entry.id, { entry, owner: 0, ownerName: '', fencedAt: 0 });
  return entry;
}

export function resizeImage(change: Change, request: ControlRequest<'resizeImage'>): ImageEntry {
  const record = imageOf(change, request.image);
  if (record.entry.state === 'removing')
    throw new StorageError('INVALID', `image "${record.entry.name}" is being removed`);
  refuseSize(record.entry, request.sizeBytes);
  if (record.entry.sizeBytes === request.sizeBytes) return record.entry;
  const entry: ImageEntry = { ...record.entry, sizeBytes: request.sizeBytes };
  change.images.set(entry.id, { ...record, entry });
  return entry;
}

/**
 * Step 1: nobody may open it any more, and its fence goes up so that late writes are refused. Step 2 (`done`): its
 * number is free of objects; it leaves the map. Repeating a step that was done does nothing.
 * @param isAlive does this session still hold what it locked?
 */
export function removeImage(
  change: Change,
  request: ControlRequest<'removeImage'>,
  isAlive: (session: number) => boolean,
): ControlReply<'removeImage'> {
  const record = change.images.get(request.image);
  if (request.done) {
    if (record === undefined) return {};
    if (record.entry.state !== 'removing')
      throw new StorageError(
        'INVALID',
        `image "${record.entry.name}" can't be forgotten before its objects are deleted`,
      );
    change.images.delete(request.image);
    return {};
  }
  const { entry, owner, ownerName } = imageOf(change, request.image);
  if (entry.state === 'removing') return {};
  if (isAlive(owner)) throw inUse(entry.name, owner, ownerName);
  change.images.set(entry.id, {
    entry: { ...entry, state: 'removing', fence: entry.fence + 1 },
    owner: 0,
    ownerName: '',
    fencedAt: change.nextEpoch,
  });
  return {};
}

export function inUse(image: string, owner: number, ownerName: string): StorageError {
  const who = ownerName === '' ? `session ${owner}` : `${ownerName} (session ${owner})`;
  return new StorageError('BUSY', `image "${image}" is in use by ${who}`);
}

export function imageOf(change: Change, id: number): ImageRecord {
  const record = change.images.get(id);
  if (record === undefined) throw new StorageError('NOT_FOUND', `no image has the number ${id}`);
  return record;
}

/** Names end up in URLs, paths and NBD exports: no control characters, no spaces at the ends, no slash at the front. */
function refuseName(kind: string, name: string): void {
  const why =
    name.length === 0
      ? 'is empty'
      : name.length > NAME_LENGTH_MAX
        ? `has ${name.length} characters; ${NAME_LENGTH_MAX} is the most`
        : /\p{C}/u.test(name)
          ? 'has characters that cannot be printed'
          : name !== name.trim() || name.startsWith('/')
            ? 'begins or ends with a space, or begins with a slash'
            : null;
  if (why !== null) throw new StorageError('INVALID', `${kind} name ${why}`);
}

function refuseSize(layout: { order: number; stripeUnit: number; stripeCount: number }, sizeBytes: number): void {
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 1 || sizeBytes > IMAGE_BYTES_MAX)
    throw new StorageError('INVALID', `image size must be 1 to ${IMAGE_BYTES_MAX} bytes, not ${sizeBytes}`);
  if (objectCount(layout, sizeBytes) > OBJECT_NUMBER_MAX)
    throw new StorageError(
      'INVALID',
      `${sizeBytes} bytes need more than ${OBJECT_NUMBER_MAX} objects: make objects larger`,
    );
}
