// The storage daemon's process: options, directory, store, sockets; then the Daemon takes over.

import { randomUUID } from 'node:crypto';
import { join, resolve } from 'node:path';
import { StorageError } from '../../proto/errors.ts';
import type { Network } from '../../proto/ports.ts';
import { openDiskStore } from '../store/disk-store.ts';
import { LOG_BYTES_DEFAULT } from '../store/limits.ts';
import type { Store } from '../store/store.ts';
import { openClock, openRandom } from '../world/clock.ts';
import { lockDirectory } from '../world/directory-lock.ts';
import { openDirectory } from '../world/disk.ts';
import { openControlLink } from '../world/grpc-link.ts';
import { hostId } from '../world/host.ts';
import { type Life, ROLE_OPTIONS, type Running, runRole } from '../world/lifecycle.ts';
import { parseOptions, UsageError } from '../world/options.ts';
import { createNetwork, hostAndPort } from '../world/sockets.ts';
import { Daemon } from './daemon.ts';
import { openIdentity, readNewestEpoch, writeIdentity, writeNewestEpoch } from './identity.ts';
import { MapSaver, readSavedMap } from './saved-map.ts';

/** The newest epoch is noted this long after it came, so that a storm of maps is one write. */
const NOTE_EPOCH_MS = 1_000;

const options = parseOptions('daemon', 'run a storage daemon: one per disk', [
  ...ROLE_OPTIONS,
  { name: 'dir', kind: 'string', required: true, help: 'directory on the disk that this daemon fills' },
  { name: 'master', kind: 'string', default: '127.0.0.1:10800', help: 'address of the master, or of several: A,B,C' },
  { name: 'listen', kind: 'string', default: '127.0.0.1:0', help: 'data plane address' },
  {
    name: 'advertise',
    kind: 'string',
    default: '',
    help: 'HOST:PORT that others reach it under, if it is not where it listens',
  },
  { name: 'unix', kind: 'string', default: 'auto', help: 'unix socket for the same machine: a path, auto, or none' },
  { name: 'domain', kind: 'string', default: '', help: 'failure domain; the daemon itself unless given' },
  { name: 'weight', kind: 'integer', default: 100, help: 'share of the data relative to the other daemons' },
  {
    name: 'recovery-mb-per-second',
    kind: 'integer',
    default: 0,
    help: 'most that recovery may send, in MB/s; 0: no cap but 30 % of what clients move, while they do',
  },
  { name: 'log-size', kind: 'size', default: LOG_BYTES_DEFAULT, help: 'bytes of write-ahead log' },
]);

await runRole('daemon', options, start);

async function start({ log, fail }: Life): Promise<Running> {
  const directory = resolve(options.dir);
  const clock = openClock();
  const disk = openDirectory(directory);
  const unlock = lockDirectory(directory, 'daemon');
  const found = identify();
  const bootId = randomUUID();
  const store: Store = await openDiskStore({
    disk,
    clock,
    log,
    logBytes: options.logSize,
    random: openRandom(),
    onFatal: (error) => fail('the disk failed: this daemon stops, its peers go on', error),
  });
  const savedMap = readSavedMap(disk, log);
  let newestEpoch = Math.max(readNewestEpoch(disk), savedMap?.map.to ?? 0);
  let noted = newestEpoch;
  let identity = found;
  const network = options.advertise === '' ? createNetwork() : advertised(createNetwork(), options.advertise);
  const daemon = new Daemon({
    clock,
    network,
    control: openControlLink(options.master),
    store,
    log,
    recoveryBytesPerSecond: options.recoveryMbPerSecond * 1e6,
    identity: {
      clusterId: identity.clusterId,
      uuid: identity.uuid,
      bootId,
      address: options.listen,
      unixAddress: unixAddress(directory),
      host: hostId(),
      domain: options.domain === '' ? identity.uuid : options.domain,
      weight: options.weight,
      newestEpoch,
    },
    savedMap,
    onMap(clusterId, id, epoch) {
      saver.changed();
      if (identity.clusterId !== clusterId || identity.id !== id) {
        identity = { uuid: identity.uuid, clusterId, id };
        writeIdentity(disk, identity);
      }
      if (epoch <= newestEpoch) return;
      if (noted === newestEpoch) clock.after(NOTE_EPOCH_MS, noteEpoch);
      newestEpoch = epoch;
    },
    onFatal: (error) => fail('this daemon must not go on', error),
  });

  const saver = new MapSaver(disk, clock, log, () =>
    daemon.map === null ? null : { map: daemon.map, activated: daemon.activatedPgs() },
  );

  function noteEpoch(): void {
    noted = newestEpoch;
    writeNewestEpoch(disk, newestEpoch);
  }
  function identify() {
    try {
      return openIdentity(disk, randomUUID());
    } catch (error) {
      if (error instanceof StorageError) throw new UsageError(`--dir ${directory}: ${error.message}`);
      throw error;
    }
  }

  await daemon.start();
  return {
    listening: {
      address: daemon.identity.address,
      unix: daemon.identity.unixAddress,
      uuid: identity.uuid,
      dir: directory,
    },
    async stop() {
      daemon.stop();
      saver.close();
      await new Promise<void>((resolveClosed, reject) => {
        store.close((error) => (error === null ? resolveClosed() : reject(error)));
      });
      writeNewestEpoch(disk, newestEpoch);
      unlock();
    },
  };
}

/** A unix socket's path must be short (108 bytes, unix(7)): a directory that is too deep does without. */
function unixAddress(directory: string): string {
  const path = options.unix === 'auto' ? join(directory, 'daemon.sock') : options.unix;
  if (path === 'none' || path === '') return '';
  if (Buffer.byteLength(path) > 100) {
    if (options.unix === 'auto') return '';
    throw new UsageError(`--unix ${path}: the path of a unix socket can't be longer than 100 bytes`);
  }
  return `unix:${path}`;
}

/** Listens where it is told, and says that it listens at `address`. */
function advertised(network: Network, address: string): Network {
  try {
    hostAndPort(address);
  } catch (error) {
    throw new UsageError(`--advertise: ${(error as Error).message}`);
  }
  return {
    ...network,
    async listen(at, accept) {
      const listener = await network.listen(at, accept);
      return at.startsWith('unix:') ? listener : { address, close: () => listener.close() };
    },
  };
}
