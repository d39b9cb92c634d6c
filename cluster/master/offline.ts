// What the master's commands that run without a master share: a store made in a new directory, and errors told.

import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { StorageError } from '../../proto/errors.ts';
import { ABSENT } from '../../proto/lease-store.ts';
import { openEtcd, parseEtcdAddress } from '../world/etcd-client.ts';
import { exitOnUsage, UsageError } from '../world/options.ts';
import { SqliteKv } from '../world/sqlite-kv.ts';
import { fillStore, type Pair } from './backup.ts';
import { LeaderKv, leaderKeyOf } from './leader-kv.ts';
import { STORE_FILE } from './server.ts';

/** Throws EXISTS if the directory holds a master's store: none is ever overwritten. */
export function refuseUsed(dir: string): void {
  if (existsSync(join(dir, STORE_FILE)))
    throw new StorageError('EXISTS', `${dir} holds a master's store already: choose a new directory, or move it away`);
}

/**
 * Makes a store in a directory that has none. It appears whole and durable or not at all: a half-made one would pass
 * for an empty cluster, and a master would found a new one in it.
 */
export async function makeStore(dir: string, pairs: readonly Pair[]): Promise<void> {
  const path = resolve(dir);
  refuseUsed(path);
  const made = mkdirSync(path, { recursive: true });
  if (made !== undefined) syncDirectory(dirname(made));
  const temporary = join(path, `${STORE_FILE}.new`);
  rmSync(temporary, { force: true }); // of an earlier try that was cut off
  const kv = new SqliteKv(temporary);
  try {
    await fillStore(kv, pairs);
  } finally {
    await kv.close();
  }
  refuseUsed(path);
  renameSync(temporary, join(path, STORE_FILE));
  syncDirectory(path);
}

/** Long enough to fill any store. */
const FILL_MS = 60_000;

/**
 * Fills what several masters share, wholly or not at all, while none of them runs. Rejects with BUSY if one does, EXISTS
 * if a cluster is there.
 */
export async function fillSharedStore(address: string, pairs: readonly Pair[]): Promise<void> {
  const { endpoints, prefix } = parseEtcdAddress(address);
  const store = openEtcd(endpoints);
  try {
    const key = leaderKeyOf(prefix);
    const { lease } = await store.grant(FILL_MS);
    try {
      const puts = [{ key, value: 'a restore', lease }];
      const claim = { compares: [{ key, created: ABSENT }], puts, deletes: [], otherwise: key };
      const outcome = await store.transact(claim);
      if (!outcome.done)
        throw new StorageError(
          'BUSY',
          `${outcome.found?.value ?? 'somebody'} leads on ${address}: stop all masters first`,
        );
      await fillStore(await LeaderKv.open({ store, prefix, created: outcome.created }), pairs);
    } finally {
      await store.revoke(lease);
    }
  } finally {
    store.close();
  }
}

/** Runs a command to its end: exit code 0, or 1 for what the world refuses, 2 for wrong usage. */
export async function runCommand(name: string, run: () => Promise<void>): Promise<void> {
  try {
    await run();
  } catch (error) {
    if (error instanceof UsageError) exitOnUsage(error, `ashlar ${name}`);
    if (!(error instanceof StorageError) && (error as NodeJS.ErrnoException).code === undefined) throw error;
    process.stderr.write(`ashlar ${name}: ${(error as Error).message}\n`);
    process.exit(1);
  }
}

function syncDirectory(dir: string): void {
  const descriptor = openSync(dir, 'r');
  fsyncSync(descriptor);
  closeSync(descriptor);
}
