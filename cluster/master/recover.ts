// A lost master's records, worked out from what the storage daemons know. Pure: testimonies in, a state out.
//
// What each daemon brings: the newest map it kept (never newer than the master was; older by a second or so if it was
// connected to the end, by any time if not), and per PG what is on its stable storage: `les`, the newest interval that
// it was activated in. E is a PG's entry in the newest of all maps; "missing" are the daemons of that map that the
// operator said would not answer.
//
// Numbers. Nothing that the lost master gave out may be given out again. Every change that anybody can see took an
// epoch, and every epoch a commit on the master's disk (0.5 ms at the least): in the hours between the newest map that
// was kept and the end, there were fewer than EPOCHS_SKIPPED of them. So the new epoch is the newest seen plus
// EPOCHS_SKIPPED; each fence goes up by as many, since a fence took an epoch too; and should a daemon or client still
// come with a newer epoch, master.ts refuses to go on. Sessions take no epoch: the next is the highest in any log plus
// SESSIONS_SKIPPED.
//
// PGs. A copy is good if it is complete and its les is not smaller than the newest interval that took writes (N); a new
// interval serves only if a good copy takes part, which daemons check against `lastActive` (L), and this file must choose
// L >= N, or force whoever knows better to be present:
//   1. An interval is activated only when les of all its members is durable. So if N has a member that testified,
//      N <= max les of the testimonies.
//   2. If max les > E.since: N may be that interval. L = max les.
//   3. Else, if one of E's members testified a smaller les, or E could not serve (waitFor, too few members), E never took
//      writes: L = E.lastActive, which the master itself had recorded. It matters that L is not max les here: a peering
//      that was cut off may have left les behind on incomplete copies only, and the PG would wait for ever.
//   4. Else, if a member of E testified, E may have taken writes: L = E.since. If none did: E.lastActive, and 5 applies.
//   5. If N has only missing members, no testimony shows it. Its first such ancestor X needed a good copy of what came
//      before. If E is proven to have been activated (its primary remembers, or an entry was written in it), and no
//      member of E is missing, there is no such copy among the missing, and so no X. If the missing are fewer than the
//      pool's minimum size, X could not serve. In all other cases the PG must not serve before every missing daemon
//      takes part: each becomes a past interval of its own, and the PG waits for them by name. Whoever is present with
//      the newest les then leads, so nothing is lost. With `acceptDataLoss` this rule is left out, and 2 to 4 are
//      weakened to the newest les of a complete copy: what only a missing daemon has is given up.
// All holders of L or newer form one more past interval, so that every one of them that is up becomes a member.
//
// What can't be known: who held locks (all are free, and fenced), what was balanced by hand beyond the acting sets, and
// whether a daemon that was out was so by an operator (it stays out, and is named).

import type { PgTestimony, Testimony } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { type DaemonId, type Epoch, IMAGE_ID_MAX, type PgId, POOL_ID_MAX, pgName, poolOfPg } from '../../proto/ids.ts';
import { applyUpdate, type PgEntry, type PoolEntry, type StorageMap } from '../../proto/map.ts';
import { newPg, type PastInterval, type PgRecord } from './intervals.ts';
import { DAEMON_ID_MAX } from './limits.ts';
import { State } from './state.ts';

/** See "Numbers" above. 32 bits hold 255 of these steps. */
export const EPOCHS_SKIPPED = 2 ** 24;
export const SESSIONS_SKIPPED = 2 ** 24;
/** Images and daemons each take an epoch and a person: these many were not made since the newest map was kept. */
const IMAGES_SKIPPED = 1024;
const DAEMONS_SKIPPED = 16;
const UINT32_MAX = 2 ** 32 - 1;

export interface RecoverOptions {
  /** Daemons that need not testify. */
  readonly acceptMissing: readonly DaemonId[];
  /** What only a missing daemon, or an incomplete copy, may have is given up. */
  readonly acceptDataLoss: boolean;
}

export interface Recovered {
  readonly state: State;
  /** What the operator should know, in sentences. */
  readonly notes: string[];
}

/** The newest map that anybody kept. Throws NOT_FOUND if nobody has one, IDENTITY if they belong to different clusters. */
export function newestMap(testimonies: readonly Testimony[]): StorageMap {
  let newest: StorageMap | null = null;
  for (const { map, uuid } of testimonies) {
    if (map === null) continue;
    if (newest !== null && map.clusterId !== newest.clusterId)
      throw new StorageError(
        'IDENTITY',
        `daemon ${uuid} is of cluster ${map.clusterId}, others of ${newest.clusterId}: only daemons of one cluster can rebuild its master`,
      );
    if (newest === null || map.to > newest.epoch) newest = applyUpdate(null, map);
  }
  if (newest === null) throw new StorageError('NOT_FOUND', 'no daemon has kept a storage map: nothing can be rebuilt');
  return newest;
}

/** Daemons of the map that have not testified. */
export function silent(map: StorageMap, testimonies: readonly Testimony[]): DaemonId[] {
  const heard = new Set(testimonies.map(({ uuid }) => uuid));
  return [...map.daemons.values()].filter(({ uuid }) => !heard.has(uuid)).map(({ id }) => id);
}

/** Throws UNAVAILABLE while a daemon is silent that was not said to be missing, INVALID for numbers that can't be. */
export function recoverState(testimonies: readonly Testimony[], options: RecoverOptions): Recovered {
  const map = newestMap(testimonies);
  const missing = silent(map, testimonies);
  const awaited = missing.filter((id) => !options.acceptMissing.includes(id));
  if (awaited.length > 0)
    throw new StorageError('UNAVAILABLE', `daemons ${awaited.join(', ')} have not testified, nor were they given up`);
  const state = new State(map.clusterId);
  const newest = Math.max(map.epoch, ...testimonies.map(({ newestEpoch }) => newestEpoch));
  state.epoch = skipped(newest, EPOCHS_SKIPPED, 'epoch');
  const notes: string[] = [];
  takeDaemons(state, map, testimonies, notes);
  takeImages(state, map);
  takePgs(state, map, { testimonies, missing, ...options }, notes);
  setCounters(state, testimonies, notes);
  return { state, notes };
}

function takeDaemons(state: State, map: StorageMap, testimonies: readonly Testimony[], notes: string[]): void {
  for (const entry of map.daemons.values()) {
    // All are down until they register. Why one was out is not in the map: it must not come back in by itself.
    const outBy = entry.in ? '' : 'operator';
    state.daemons.set(entry.id, { entry: { ...entry, up: false }, outBy });
    if (!entry.in) notes.push(`daemon ${entry.id} was out and stays out: bring it back with "daemon-admin in"`);
  }
  const known = new Set([...map.daemons.values()].map(({ uuid }) => uuid));
  for (const { uuid, id } of testimonies)
    if (!known.has(uuid)) notes.push(`daemon ${uuid} (once ${id || 'new'}) is in no map that was kept: it joins anew`);
}

function takeImages(state: State, map: StorageMap): void {
  for (const pool of map.pools.values()) state.pools.set(pool.id, pool);
  for (const image of map.images.values()) {
    const entry = { ...image, fence: skipped(image.fence, EPOCHS_SKIPPED, 'fence') };
    state.images.set(image.id, { entry, owner: 0, ownerName: '', fencedAt: state.epoch });
  }
}

interface Evidence extends RecoverOptions {
  readonly testimonies: readonly Testimony[];
  readonly missing: readonly DaemonId[];
}

function takePgs(state: State, map: StorageMap, evidence: Evidence, notes: string[]): void {
  const witnesses = witnessesOf(map, evidence.testimonies);
  const without: string[] = [];
  const waiting = new Map<string, number>();
  for (const entry of map.pgs.values()) {
    const pool = map.pools.get(poolOfPg(entry.pg))!;
    const { record, hasGood, suspects } = recoverPg(entry, pool, state.epoch, witnesses.get(entry.pg) ?? [], evidence);
    state.pgs.set(entry.pg, record);
    if (suspects.length > 0) waiting.set(suspects.join(', '), (waiting.get(suspects.join(', ')) ?? 0) + 1);
    else if (!hasGood) without.push(pgName(entry.pg));
    if (entry.acting.length === pool.replicas && entry.acting.every((id) => map.daemons.get(id)?.in === true))
      state.overrides.set(entry.pg, { pg: entry.pg, target: entry.acting });
  }
  for (const [daemons, pgs] of waiting)
    notes.push(
      `${pgs} of ${map.pgs.size} pgs wait until daemon ${daemons} is back, which may have newer writes; if it never comes: --accept-data-loss`,
    );
  if (without.length > 0)
    notes.push(`no complete copy of pg ${without.join(', ')} testified: they serve when one comes, or never`);
}

/** A daemon's word on one PG. */
export interface Witness extends PgTestimony {
  readonly id: DaemonId;
  /** It led interval `since` of the PG, and the master allowed it. */
  readonly allowed: Epoch;
}

function witnessesOf(map: StorageMap, testimonies: readonly Testimony[]): Map<PgId, Witness[]> {
  const ids = new Map([...map.daemons.values()].map(({ uuid, id }) => [uuid, id]));
  const witnesses = new Map<PgId, Witness[]>();
  for (const { uuid, pgs, activated } of testimonies) {
    const id = ids.get(uuid);
    if (id === undefined) continue;
    const allowed = new Map(activated.map(({ pg, since }) => [pg, since]));
    const spoken = new Map(pgs.map((word) => [word.pg, word]));
    // One that says nothing of a PG holds nothing of it: that is a word too.
    for (const pg of map.pgs.keys()) {
      const word = spoken.get(pg) ?? { pg, les: 0, complete: true, lastSince: 0 };
      const list = witnesses.get(pg) ?? [];
      list.push({ ...word, id, allowed: allowed.get(pg) ?? 0 });
      witnesses.set(pg, list);
    }
  }
  return witnesses;
}

/** One PG, as the argument at the top says. */
export function recoverPg(
  entry: PgEntry,
  pool: PoolEntry,
  since: Epoch,
  witnesses: readonly Witness[],
  { missing, acceptDataLoss }: { missing: readonly DaemonId[]; acceptDataLoss: boolean },
): { record: PgRecord; hasGood: boolean; suspects: readonly DaemonId[] } {
  const newestLes = Math.max(0, ...witnesses.map(({ les }) => les));
  const ofEntry = witnesses.filter(({ id }) => entry.acting.includes(id));
  const neverServed =
    entry.waitFor.length > 0 || entry.acting.length < pool.minSize || ofEntry.some(({ les }) => les < entry.since);
  let lastActive: Epoch;
  if (newestLes > entry.since) lastActive = newestLes;
  else if (neverServed || ofEntry.length === 0) lastActive = entry.lastActive;
  else lastActive = entry.since;

  const proven =
    newestLes <= entry.since &&
    witnesses.some(({ allowed, lastSince }) => allowed === entry.since || lastSince === entry.since);
  const ruledOut =
    missing.length < pool.minSize || (proven && !entry.acting.some((id) => missing.includes(id))) || acceptDataLoss;
  const suspects = ruledOut ? [] : missing;
  if (acceptDataLoss) {
    // One that never held the PG is complete in its way; it must not win over a broken copy that has something.
    const complete = Math.max(0, ...witnesses.filter((word) => word.complete).map(({ les }) => les));
    if (complete > 0) lastActive = Math.min(lastActive, complete);
  }

  const good = witnesses.filter((word) => word.complete && word.les >= lastActive);
  const holders = good.length > 0 ? good : witnesses.filter(({ les }) => les > 0);
  const history: PastInterval[] = suspects.map((id) => ({ since: entry.since, acting: [id] }));
  // Never activated, nobody holds anything: it is as new as it was, and may be given to anybody.
  const isNew = lastActive === 0 && newestLes === 0;
  if (!isNew && holders.length > 0) history.push({ since: lastActive, acting: holders.map(({ id }) => id) });
  const record: PgRecord = { ...newPg(entry.pg, [], since), history, lastActive };
  return { record, hasGood: isNew || good.length > 0, suspects };
}

function setCounters(state: State, testimonies: readonly Testimony[], notes: string[]): void {
  const highest = (numbers: readonly number[]): number => numbers.reduce((most, number) => Math.max(most, number), 0);
  const poolsHeld = new Set(testimonies.flatMap(({ pgs }) => pgs.map(({ pg }) => poolOfPg(pg))));
  for (const id of poolsHeld)
    if (!state.pools.has(id)) notes.push(`pool ${id} is in no map that was kept, but daemons hold data of it`);
  const images = highest([...state.images.keys(), ...testimonies.map(({ imageMost }) => imageMost)]);
  const sessions = highest(testimonies.map(({ sessionMost }) => sessionMost));
  state.counters = {
    daemon: Math.min(
      DAEMON_ID_MAX + 1,
      highest([...state.daemons.keys(), ...testimonies.map(({ id }) => id)]) + DAEMONS_SKIPPED,
    ),
    pool: Math.min(POOL_ID_MAX + 1, highest([...state.pools.keys(), ...poolsHeld]) + 1),
    image: Math.min(IMAGE_ID_MAX + 1, images + IMAGES_SKIPPED),
    session: skipped(sessions, SESSIONS_SKIPPED, 'session'),
  };
}

function skipped(number: number, step: number, what: string): number {
  const next = number + step;
  if (next > UINT32_MAX - step)
    throw new StorageError('INVALID', `no ${what} number is left after ${number}: this cluster was rebuilt too often`);
  return next;
}
