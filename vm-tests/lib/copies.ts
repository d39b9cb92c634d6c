// Are all copies equal, byte for byte? Looked at on the daemons' own disks, after they have stopped.

import { openDiskStore } from '../../cluster/store/disk-store.ts';
import { LOG_BYTES_DEFAULT } from '../../cluster/store/limits.ts';
import type { Store } from '../../cluster/store/store.ts';
import { openClock } from '../../cluster/world/clock.ts';
import { openDirectory } from '../../cluster/world/disk.ts';
import { pgName, versionName } from '../../proto/ids.ts';
import type { Log } from '../../proto/ports.ts';
import type { Cluster } from './cluster.ts';

const silent: Log = { debug() {}, info() {}, warn() {}, error() {} };

export interface Compared {
  /** Objects of which every copy was read and compared. */
  objects: number;
  bytes: number;
  /** Sentences; empty if all is well. */
  differences: string[];
}

/**
 * Stops the cluster and compares, for every PG, what each daemon that knows the PG holds: the same objects, the same
 * versions, the same bytes, on as many daemons as there are replicas. Meant for a clean cluster in which no daemon ever
 * was out: strays of a PG that moved would count as copies.
 */
export async function compareCopies(cluster: Cluster, replicas = 2): Promise<Compared> {
  const directories = cluster.daemonDirectories();
  await cluster.stop();
  return compareDirectories(directories, replicas);
}
/** The same for the directories of daemons that have stopped. */
export async function compareDirectories(directories: readonly string[], replicas = 2): Promise<Compared> {
  const stores = await Promise.all(directories.map(openStore));
  const result: Compared = { objects: 0, bytes: 0, differences: [] };
  for (const pg of new Set(stores.flatMap((store) => store.pgs()))) {
    const holders = stores.filter((store) => store.pgs().includes(pg) && [...store.objects(pg)].length > 0);
    if (holders.length === 0) continue;
    if (holders.length !== replicas)
      result.differences.push(`pg ${pgName(pg)} has objects on ${holders.length} daemons, not ${replicas}`);
    const listings = holders.map(listing(pg));
    for (const key of new Set(listings.flatMap((list) => [...list.keys()]))) {
      const infos = listings.map((list) => list.get(key));
      const versions = infos.map((info) => (info === undefined ? 'absent' : versionName(info.version)));
      if (new Set(versions).size !== 1) {
        result.differences.push(`pg ${pgName(pg)}, object ${key}: versions ${versions.join(', ')}`);
        continue;
      }
      const { image, object, order } = infos[0]!;
      const contents = await Promise.all(holders.map((store) => readObject(store, image, object, order)));
      result.objects++;
      result.bytes += 2 ** order;
      if (!contents.every((content) => content.equals(contents[0]!)))
        result.differences.push(`pg ${pgName(pg)}, object ${key}, version ${versions[0]}: the bytes differ`);
    }
  }
  await Promise.all(stores.map((store) => new Promise<void>((done) => store.close(() => done()))));
  return result;
}

const listing = (pg: number) => (store: Store) =>
  new Map([...store.objects(pg)].map((info) => [`${info.image}/${info.object}`, info]));

function openStore(directory: string): Promise<Store> {
  return openDiskStore({
    disk: openDirectory(directory),
    clock: openClock(),
    log: silent,
    logBytes: LOG_BYTES_DEFAULT,
    onFatal(error) {
      throw error;
    },
  });
}

/** A whole object; holes read as zeros. Rejects if a checksum is wrong. */
function readObject(store: Store, image: number, object: number, order: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    store.read(image, object, order, 0, 2 ** order, (error, _checks, payload) => {
      if (error !== null) reject(error);
      else resolve(payload ?? Buffer.alloc(2 ** order));
    });
  });
}
