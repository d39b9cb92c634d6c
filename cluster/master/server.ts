// A master in the real world: a store, a listening address, and the core between them.
//
//   etcd://...      shared with other masters, of which one leads (elected-master.ts)
//   dir/master.db   its own: everything the master knows (cluster/world/sqlite-kv.ts). The process that has it open locks it.
//
// `ashlar master backup` copies it from a running master. An old one put back is refused by the first daemon or client
// that has seen a newer map; `ashlar master recover` goes on from there.

import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { StorageError } from '../../proto/errors.ts';
import type { Log } from '../../proto/ports.ts';
import { openClock, openRandom } from '../world/clock.ts';
import { openEtcd, parseEtcdAddress } from '../world/etcd-client.ts';
import { serveGrpc } from '../world/grpc-server.ts';
import { UsageError } from '../world/options.ts';
import { SqliteKv } from '../world/sqlite-kv.ts';
import { ElectedMaster } from './elected-master.ts';
import type { Master } from './master.ts';
import { openMaster, type RestoredMaster } from './restored-master.ts';

export interface MasterServerOptions {
  /** Made if it is missing. */
  readonly dir: string;
  /** "host:port"; port 0 takes a free one. */
  readonly listen: string;
  readonly outAfterMs: number;
  readonly log: Log;
  /** The master must not go on; the process should end with this message. */
  readonly onFatal: (error: Error) => void;
}

export interface MasterServer {
  /** "host:port" with the real port. */
  readonly address: string;
  readonly clusterId: string;
  close(): Promise<void>;
}

export const STORE_FILE = 'master.db';

/**
 * Opens the directory and serves. Rejects with StorageError: BUSY if another master has the directory or the port,
 * UNSUPPORTED if the directory is something else's, INVALID for an impossible address.
 */
export async function startMaster(options: MasterServerOptions): Promise<MasterServer> {
  const { dir, listen, outAfterMs, log, onFatal } = options;
  const kv = new SqliteKv(storeIn(resolve(dir)));
  let master: Master | RestoredMaster;
  try {
    master = await openMaster({ clock: openClock(), random: openRandom(), log, kv, outAfterMs, onFatal });
  } catch (error) {
    await kv.close();
    throw error;
  }
  try {
    const server = await serveGrpc(master, listen, log);
    return {
      address: server.address,
      clusterId: master.clusterId,
      async close() {
        await master.close();
        await server.close();
      },
    };
  } catch (error) {
    await master.close();
    throw error;
  }
}

/** Every address of this machine, which is none that others could use. */
const WILDCARD = /^(0\.0\.0\.0|\[::\]|):/;

export interface SharedMasterOptions extends Omit<MasterServerOptions, 'dir'> {
  /** "etcd://HOST:PORT[,HOST:PORT...][/PREFIX]" */
  readonly store: string;
  /** "host:port" under which others reach it; "": where it listens. */
  readonly advertise: string;
}

/**
 * Serves, and leads whenever no other master of the store does; the store need not answer yet. Rejects with UsageError
 * for what is no address of a store, and like startMaster about the address to listen on.
 */
export async function startSharedMaster(options: SharedMasterOptions): Promise<Omit<MasterServer, 'clusterId'>> {
  const { listen, outAfterMs, log, onFatal } = options;
  const { endpoints, prefix } = parseEtcdAddress(options.store);
  if (options.advertise === '' && WILDCARD.test(listen))
    throw new UsageError(`--listen ${listen}: nobody can be sent there; say --advertise HOST:PORT as well`);
  const store = openEtcd(endpoints);
  const master = new ElectedMaster({
    clock: openClock(),
    random: openRandom(),
    log,
    store,
    prefix,
    outAfterMs,
    onFatal,
  });
  const server = await serveGrpc(master, listen, log);
  master.campaign(options.advertise === '' ? server.address : options.advertise);
  return {
    address: server.address,
    async close() {
      await master.close();
      await server.close();
      store.close();
    },
  };
}

function storeIn(dir: string): string {
  const path = join(dir, STORE_FILE);
  if (existsSync(path)) return path;
  const made = mkdirSync(dir, { recursive: true });
  if (made !== undefined) syncDirectory(dirname(made));
  const strangers = readdirSync(dir).filter((name) => name !== 'lost+found' && !name.startsWith(STORE_FILE));
  if (strangers.length > 0)
    throw new StorageError(
      'UNSUPPORTED',
      `${dir} is not a master's directory: it has no ${STORE_FILE} but holds ${strangers.slice(0, 3).join(', ')}`,
    );
  return path;
}

function syncDirectory(dir: string): void {
  const descriptor = openSync(dir, 'r');
  fsyncSync(descriptor);
  closeSync(descriptor);
}
