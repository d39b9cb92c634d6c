// The master's store as one file, and back.
//
//   ashlar master backup FILE    a running master's records as of one moment (its state is what is durable, never more),
//                                sealed with a checksum (proto/sealed.ts)
//   ashlar master restore FILE   the same records in the store of a master to come
//
// A restored store is as old as its backup: it is marked, and a master serves from it only after every daemon has shown
// that nothing has happened since (restored-master.ts); otherwise `ashlar master recover` goes on from the daemons. The
// command that writes the file is in gateway/cli/master.ts, the one that reads it in restore-main.ts.

import type { ControlReply } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { KeyValueStore } from '../../proto/kv.ts';
import { MASTER_BACKUP, unseal } from '../../proto/sealed.ts';
import { MemoryKv } from './memory-kv.ts';
import { SESSIONS_SKIPPED } from './recover.ts';
import { KEY_OF, loadState, STORE_FORMAT, type State, TABLES } from './state.ts';

export interface Pair {
  readonly key: string;
  readonly value: string;
}
export type Backup = ControlReply<'backup'>;

/** In the store from `restore` until its master has proven that it is the newest (restored-master.ts). */
export const RESTORED_KEY = '/restored';

/** Every record of a state, as the store holds them. */
export function pairsOf(state: State): Pair[] {
  const pairs: Pair[] = [
    { key: '/cluster', value: JSON.stringify({ id: state.clusterId, format: STORE_FORMAT }) },
    { key: '/epoch', value: String(state.epoch) },
    { key: '/next', value: JSON.stringify(state.counters) },
  ];
  for (const kind of TABLES)
    for (const [id, record] of state[kind]) pairs.push({ key: KEY_OF[kind](id), value: JSON.stringify(record) });
  return pairs;
}

/** The backup in a file's bytes. Rejects with UNSUPPORTED or CHECKSUM for anything but a whole one of this version. */
export async function decodeBackup(bytes: Buffer): Promise<Backup> {
  const backup = unseal(MASTER_BACKUP, bytes) as Backup;
  // What a master could not read must not become a store.
  const state = await loadState(new MemoryKv(backup.pairs.map(({ key, value }) => [key, value])), '');
  if (state.clusterId !== backup.clusterId || state.epoch !== backup.epoch)
    throw new StorageError('CHECKSUM', 'it contradicts itself: its records are of another cluster or epoch');
  return backup;
}

/**
 * The backup's records for a store to be served from. Sessions take no epoch, so some may have been opened since that
 * nobody can see: their numbers are skipped.
 */
export async function restoredPairs(backup: Backup): Promise<Pair[]> {
  const state = await loadState(new MemoryKv(backup.pairs.map(({ key, value }) => [key, value])), '');
  state.counters = { ...state.counters, session: state.counters.session + SESSIONS_SKIPPED };
  return [...pairsOf(state), { key: RESTORED_KEY, value: String(backup.epoch) }];
}

/** Fills an empty store, in one batch. Rejects with EXISTS if it holds anything. */
export async function fillStore(kv: KeyValueStore, pairs: readonly Pair[]): Promise<void> {
  const isEmpty = (await kv.range('/')).length === 0;
  const batch = { compares: [{ key: '/cluster', value: null }], puts: pairs, deletes: [] };
  if (!isEmpty || !(await kv.batch(batch)))
    throw new StorageError('EXISTS', 'the store holds a cluster already: choose an empty one');
}
