// A master in the real world: a directory, a listening address, and the core between them.
//
//   dir/master.db   everything the master knows (cluster/world/sqlite-kv.ts). The process that has it open locks it.
//
// Copying master.db while no master runs is a backup; putting an old one back is refused by the first daemon that has
// seen a newer map.

import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readdirSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { StorageError } from '../../proto/errors.ts';
import type { Log } from '../../proto/ports.ts';
import { openClock, openRandom } from '../world/clock.ts';
import { serveGrpc } from '../world/grpc-server.ts';
import { SqliteKv } from '../world/sqlite-kv.ts';
import { Master } from './master.ts';

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

const STORE_FILE = 'master.db';

/**
 * Opens the directory and serves. Rejects with StorageError: BUSY if another master has the directory or the port,
 * UNSUPPORTED if the directory is something else's, INVALID for an impossible address.
 */
export async function startMaster(options: MasterServerOptions): Promise<MasterServer> {
  const { dir, listen, outAfterMs, log, onFatal } = options;
  const kv = new SqliteKv(storeIn(resolve(dir)));
  let master: Master;
  try {
    master = await Master.open({ clock: openClock(), random: openRandom(), log, kv, outAfterMs, onFatal });
  } catch (error) {
    await kv.close();
    throw error;
  }
  try {
    const server = await serveGrpc(master, listen, log);
    return {
      address: server.address,
      clusterId: master.map.clusterId,
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
