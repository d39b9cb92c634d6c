// Intervals of a placement group: who holds it, since when, and who must be asked before it may serve again.
//
// An interval is a span of epochs with one acting set (its members, their order, their processes). All its writes are
// on all its members. Only an interval whose primary was `activated` can have taken writes; those since the PG was last
// clean are its history, and no later interval may serve unless one member of each of them takes part.
//
//   clean [A,B] --target becomes [A,C]--> [A,B,C]  history {[A,B]}      old holders stay until C has everything
//               --clean reported--------> [A,C]    history {[A,B,C]}    B leaves: A and C have all there is
//               --activated, clean------> [A,C]    history {}
//
// `complete` is what makes the second step sound, and a fixed point: the daemons known to have everything, that is who
// was in the acting set at the last clean report, in every interval activated since, and did not restart meanwhile.
// While the whole target is up and complete the acting set is the target; otherwise it is a union that keeps every old
// holder that is up, so that no stray copies exist and no good copy is given up while another one is awaited. The one
// exception is a daemon that has run full while data was moved to it: it goes while enough daemons are complete, each of
// which has every acked write. Pure functions; nothing here knows the time or the disk.

import type { DaemonId, Epoch, PgId } from '../../proto/ids.ts';

export interface PastInterval {
  readonly since: Epoch;
  readonly acting: readonly DaemonId[];
}

/** What the master keeps durably of one PG. */
export interface PgRecord {
  readonly pg: PgId;
  readonly acting: readonly DaemonId[];
  readonly since: Epoch;
  /** The primary was told that it may take writes in this interval. */
  readonly activated: boolean;
  /** Activated intervals since the PG was last clean, oldest first. */
  readonly history: readonly PastInterval[];
  /** Daemons that hold everything the PG has. Empty and no history: nothing was ever written. */
  readonly complete: readonly DaemonId[];
  /** Epoch of the newest activated interval before this one; 0: none. Outlives the history. */
  readonly lastActive: Epoch;
  /** Member that asked to be the primary because its log is the newest; 0: none. */
  readonly prefer: DaemonId;
  /** Daemons were given up since the PG was last clean: that there is no history does not mean that nothing was written. */
  readonly lossAccepted?: boolean;
}

export function newPg(pg: PgId, acting: readonly DaemonId[], since: Epoch): PgRecord {
  return { pg, acting, since, activated: false, history: [], complete: [], lastActive: 0, prefer: 0 };
}

/** Can never have taken a write. */
export const isFresh = (record: PgRecord): boolean => !record.activated && isPlain(record);
/** Serves, and nothing of earlier intervals is needed any more. */
export const isSettled = (record: PgRecord): boolean => record.activated && isPlain(record);
const isPlain = (record: PgRecord): boolean => record.history.length === 0 && record.lossAccepted !== true;

/** What bounds the moves of a PG. */
export interface Moves {
  /** Copies that the pool wants: a holder is not given up for a target that is shorter. */
  readonly replicas: number;
  /** May the PG move to this daemon, which has nothing of it? Not asked while copies are lacking. */
  hasRoom(daemon: DaemonId): boolean;
  /** Has the daemon no space left? A move to it that is not done yet is given up: it would hold up clients' writes. */
  isFull(daemon: DaemonId): boolean;
}
const ANYWHERE: Moves = { replicas: 1, hasRoom: () => true, isFull: () => false };

/** The acting set that the PG should have now. A fixed point: asked again with nothing changed, it says the same. */
export function desiredActing(
  record: PgRecord,
  target: readonly DaemonId[],
  isUp: (daemon: DaemonId) => boolean,
  { replicas, hasRoom, isFull }: Moves = ANYWHERE,
): DaemonId[] {
  const upTarget = target.filter(isUp);
  const noneToRecover = upTarget.length > 0 && target.every((d) => isUp(d) && record.complete.includes(d));
  const spare = record.acting.some((d) => isUp(d) && !target.includes(d));
  const reached = noneToRecover && (target.length >= replicas || !spare);
  // Whoever of these has everything stays or comes back; so the answer is the same when it is asked again.
  const holders = union(record, upTarget, isUp).filter((d) => record.complete.includes(d));
  const enough = holders.length >= replicas;
  const mayStay = (d: DaemonId): boolean => isUp(d) && !(enough && !record.complete.includes(d) && isFull(d));
  const isKnown = (d: DaemonId): boolean => record.acting.includes(d) || record.complete.includes(d);
  const admitted = upTarget.filter((d) => mayStay(d) && (isKnown(d) || !enough || hasRoom(d)));
  const acting = isFresh(record) || reached ? upTarget : union(record, admitted, mayStay);
  const preferred = acting.indexOf(record.prefer);
  if (preferred > 0) {
    acting.splice(preferred, 1);
    acting.unshift(record.prefer);
  }
  return acting;
}

function union(record: PgRecord, admitted: readonly DaemonId[], mayStay: (daemon: DaemonId) => boolean): DaemonId[] {
  const members = new Set(record.acting.filter(mayStay));
  for (const past of record.history.toReversed())
    for (const daemon of past.acting) if (mayStay(daemon)) members.add(daemon);
  for (const daemon of admitted) members.add(daemon);
  return [...members];
}

/** The PG at the start of a new interval. */
export function nextInterval(record: PgRecord, acting: readonly DaemonId[], since: Epoch): PgRecord {
  return {
    ...record,
    acting,
    since,
    activated: false,
    history: record.activated ? withInterval(record.history, record) : record.history,
    lastActive: record.activated ? record.since : record.lastActive,
    prefer: acting.includes(record.prefer) ? record.prefer : 0,
  };
}

/**
 * History with one more interval. An older one of the very same members goes: whoever satisfies the newer satisfies
 * it too, and a daemon that comes and goes must not make the record grow for ever.
 */
function withInterval(history: readonly PastInterval[], { since, acting }: PastInterval): PastInterval[] {
  const others = history.filter((past) => !sameMembers(past.acting, acting));
  return [...others, { since, acting }];
}

/** A daemon's process was replaced: what it had not yet put on stable storage may be gone. */
export function withoutComplete(record: PgRecord, daemon: DaemonId): PgRecord {
  if (!record.complete.includes(daemon)) return record;
  return { ...record, complete: record.complete.filter((d) => d !== daemon) };
}

/** The primary may take writes from now on: whoever is not in the acting set will miss some. */
export function activated(record: PgRecord): PgRecord {
  if (record.activated) return record;
  const complete = isFresh(record) ? record.acting : record.complete.filter((d) => record.acting.includes(d));
  return { ...record, activated: true, complete };
}

/** Every member has everything, durably. */
export function cleaned(record: PgRecord): PgRecord {
  const { lossAccepted: _, ...rest } = record;
  return { ...rest, history: [], complete: record.acting };
}

/**
 * The PG without what `daemon`, which is down, may have of it. Only when nobody is left who is down as well and may have
 * more, any copy will do (lastActive 0).
 */
export function givenUp(record: PgRecord, daemon: DaemonId, isUp: (daemon: DaemonId) => boolean): PgRecord {
  const without = (ids: readonly DaemonId[]): DaemonId[] => ids.filter((id) => id !== daemon);
  const history = record.history
    .map(({ since, acting }) => ({ since, acting: without(acting) }))
    .filter(({ acting }) => acting.length > 0);
  const isHopeful = history.some(({ acting }) => !acting.every(isUp));
  return {
    ...record,
    history,
    complete: without(record.complete),
    lastActive: isHopeful ? Math.max(...history.map(({ since }) => since)) : 0,
    lossAccepted: true,
  };
}

/** Daemons that are no members now and were in an interval that the PG may need: one of them may have what it lacks. */
export function absentHolders(record: PgRecord): DaemonId[] {
  const absent = new Set<DaemonId>();
  for (const { acting } of record.history)
    for (const daemon of acting) if (!record.acting.includes(daemon)) absent.add(daemon);
  return [...absent].sort((a, b) => a - b);
}

/**
 * Whom the PG must wait for: the members of past intervals of which nobody is in the acting set. Any one member of each
 * such interval would do. Empty: it need not wait.
 */
export function waitForOf(record: PgRecord): DaemonId[] {
  const missing = new Set<DaemonId>();
  for (const past of record.history)
    if (!past.acting.some((d) => record.acting.includes(d))) for (const daemon of past.acting) missing.add(daemon);
  return [...missing].sort((a, b) => a - b);
}

export function sameOrder(a: readonly DaemonId[], b: readonly DaemonId[]): boolean {
  return a.length === b.length && a.every((daemon, at) => daemon === b[at]);
}

function sameMembers(a: readonly DaemonId[], b: readonly DaemonId[]): boolean {
  return a.length === b.length && a.every((daemon) => b.includes(daemon));
}
