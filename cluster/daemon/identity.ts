// Who a daemon's directory belongs to: two small files next to the store's.
//
//   identity.json   uuid (made once) and cluster (set when the daemon first joins one); always whole and on stable
//                   storage, replaced by rename
//   newest-epoch    the newest map epoch seen, so that a master restored from an old backup is found out; only a guard,
//                   so it is written without waiting for the disk, and reads as 0 when it is broken
//
// A third one, the newest map itself, is in saved-map.ts.

import { StorageError } from '../../proto/errors.ts';
import type { DaemonId, Epoch } from '../../proto/ids.ts';
import { type Disk, DiskError } from '../../proto/ports.ts';

const IDENTITY = 'identity.json';
const NEWEST_EPOCH = 'newest-epoch';
const FORMAT = 1;

export interface Identity {
  readonly uuid: string;
  /** "" until the daemon has joined a cluster. */
  readonly clusterId: string;
  /** 0 until then. */
  readonly id: DaemonId;
}

/**
 * The directory's identity; an empty directory gets the new `uuid`. Throws IDENTITY for a directory that holds something
 * else, or an identity that can't be read.
 */
export function openIdentity(disk: Disk, uuid: string): Identity {
  if (!disk.exists(IDENTITY)) {
    const others = disk.list().filter((name) => !name.startsWith('.') && name !== 'lock' && name !== 'lost+found');
    if (others.length > 0)
      throw new StorageError('IDENTITY', `the directory is not empty and not a daemon's: it holds ${others[0]}`);
    const fresh = { uuid, clusterId: '', id: 0 };
    writeIdentity(disk, fresh);
    return fresh;
  }
  try {
    const { format, ...identity } = JSON.parse(readText(disk, IDENTITY)) as Identity & { format: number };
    if (format !== FORMAT) throw new Error(`format ${format}, this version knows ${FORMAT}`);
    if (typeof identity.uuid !== 'string' || typeof identity.clusterId !== 'string')
      throw new Error('fields are missing');
    return identity;
  } catch (error) {
    throw new StorageError('IDENTITY', `${IDENTITY} can't be used: ${(error as Error).message}`, error);
  }
}

/** Makes a new identity durable before it returns. */
export function writeIdentity(disk: Disk, identity: Identity): void {
  replace(disk, IDENTITY, JSON.stringify({ format: FORMAT, ...identity }), true);
}

export function readNewestEpoch(disk: Disk): Epoch {
  if (!disk.exists(NEWEST_EPOCH)) return 0;
  const epoch = Number(readText(disk, NEWEST_EPOCH));
  return Number.isSafeInteger(epoch) ? epoch : 0;
}

/** A full disk is no reason to stop: the guard just stays older. */
export function writeNewestEpoch(disk: Disk, epoch: Epoch): void {
  try {
    replace(disk, NEWEST_EPOCH, String(epoch), false);
  } catch (error) {
    if (!(error instanceof DiskError) || error.code !== 'NO_SPACE') throw error;
  }
}

function readText(disk: Disk, name: string): string {
  const file = disk.open(name, false);
  try {
    const bytes = Buffer.alloc(file.size());
    file.read(bytes, 0);
    return bytes.toString('utf8');
  } finally {
    file.close();
  }
}

function replace(disk: Disk, name: string, text: string, durable: boolean): void {
  const temporary = `.${name}.new`;
  const file = disk.open(temporary, true);
  try {
    file.truncate(0);
    file.write([Buffer.from(text)], 0);
    if (durable) file.syncNow();
  } finally {
    file.close();
  }
  disk.rename(temporary, name);
  if (durable) disk.syncDirectory();
}
