// What people look at: the state of every PG in words, and why something waits.
//
// Built from the durable records and the newest reports of primaries. A report counts only for the interval it was made
// in; a PG without one is peering. Durations come from the monotonic clock, so after a restart of the master they count
// from that restart.

import type { ClusterStatus, PgReport } from '../../proto/control.ts';
import { type DaemonId, type PgId, pgName, poolOfPg } from '../../proto/ids.ts';
import type { PoolEntry } from '../../proto/map.ts';
import { absentHolders, type PgRecord, waitForOf } from './intervals.ts';
import { NEARFULL_SHARE } from './limits.ts';
import type { Presences } from './presence.ts';
import { recoveryStatus } from './recovery-status.ts';
import { filledShare } from './room.ts';
import type { State } from './state.ts';

export interface StatusView {
  readonly state: State;
  readonly presences: Presences;
  readonly missingPeak: number;
  readonly inconsistent: number;
  readonly now: number;
  isAlive(session: number): boolean;
  /** Where a PG belongs. */
  target(pg: PgId): readonly DaemonId[];
}

/** The report of a PG that is true now. */
export function reportOf(record: PgRecord, presences: Presences): PgReport | null {
  const report = presences.get(record.acting[0] ?? 0)?.reports.get(record.pg);
  return report !== undefined && report.since === record.since ? report : null;
}

export function clusterStatus(view: StatusView): ClusterStatus {
  const { state, presences } = view;
  const pgs = [...state.pgs.values()].map((record) => pgReport(view, record));
  const pgStates: Record<string, number> = {};
  for (const { state: pgState } of pgs) pgStates[pgState] = (pgStates[pgState] ?? 0) + 1;
  const members = new Map<DaemonId, { pgs: number; primaries: number }>();
  for (const { acting } of state.pgs.values())
    acting.forEach((daemon, at) => {
      const count = members.get(daemon) ?? { pgs: 0, primaries: 0 };
      members.set(daemon, { pgs: count.pgs + 1, primaries: count.primaries + (at === 0 ? 1 : 0) });
    });
  const blocked = pgs.some((report) => report.state !== 'active');
  const degraded = [...state.pgs.values()].some((record, at) => isDegraded(state, record, pgs[at]!));
  return {
    clusterId: state.clusterId,
    epoch: state.epoch,
    health: blocked ? 'blocked' : degraded || view.inconsistent > 0 ? 'degraded' : 'clean',
    reasons: reasonsOf(view, pgs),
    daemons: [...state.daemons.values()].map(({ entry }) => ({
      ...entry,
      space: presences.get(entry.id)?.space ?? null,
      ...(members.get(entry.id) ?? { pgs: 0, primaries: 0 }),
    })),
    pools: [...state.pools.values()],
    images: [...state.images.values()].map(({ entry, owner, ownerName }) => ({
      ...entry,
      owner: view.isAlive(owner) ? ownerName || `session ${owner}` : '',
    })),
    pgStates,
    missing: sum(pgs, (report) => report.missing),
    missingPeak: view.missingPeak,
    objects: sum(pgs, (report) => report.objects),
    bytes: sum(pgs, (report) => report.bytes),
    recovery: recoveryStatus(state, presences, pgs),
    inconsistent: view.inconsistent,
    pgs,
  };
}

/** What a PG's state is, whoever knows it best: its primary, or the master while the primary may not serve. */
function pgReport({ state, presences }: StatusView, record: PgRecord): PgReport {
  const report = reportOf(record, presences);
  const waitFor = waitForOf(record);
  const minSize = state.pools.get(poolOfPg(record.pg))!.minSize;
  const base = report ?? {
    pg: record.pg,
    since: record.since,
    state: 'peering',
    missing: 0,
    missingBytes: 0,
    noSpace: [],
    objects: 0,
    bytes: 0,
    waitFor,
  };
  if (record.acting.length === 0) return { ...base, state: 'down', waitFor };
  if (waitFor.length > 0) return { ...base, state: 'incomplete', waitFor };
  // Members are here, and none of them has everything: the primary can't know who was in earlier intervals.
  if (base.state === 'incomplete') return { ...base, waitFor: absentHolders(record) };
  if (record.acting.length < minSize) return { ...base, state: 'undersized', waitFor: [] };
  return base;
}

const isShort = (state: State, record: PgRecord): boolean =>
  record.acting.length < state.pools.get(poolOfPg(record.pg))!.replicas;

function isDegraded(state: State, record: PgRecord, report: PgReport): boolean {
  return report.missing > 0 || isShort(state, record);
}

/** Sentences, most urgent first: what is blocked, what is short of copies, what is being copied, who is down. */
function reasonsOf(view: StatusView, pgs: readonly PgReport[]): string[] {
  const { state } = view;
  const sentences = new Sentences();
  for (const report of pgs) {
    const record = state.pgs.get(report.pg)!;
    const pool = state.pools.get(poolOfPg(report.pg))!;
    const why = blockedBecause(view, record, report, pool);
    if (why !== null) sentences.add(0, report.pg, why);
    else if (isShort(state, record))
      sentences.add(
        1,
        report.pg,
        (many) => `${many ? 'have' : 'has'} ${copies(record.acting.length)} of ${pool.replicas}`,
      );
    else if (report.missing > 0) sentences.add(2, report.pg, (many) => `${many ? 'are' : 'is'} recovering`);
    for (const id of report.noSpace)
      sentences.add(
        1,
        report.pg,
        (many) => `can't recover daemon ${id}, which has no space for what ${many ? 'they' : 'it'} would send`,
      );
    for (const id of heldMoves(view, record))
      sentences.add(
        3,
        report.pg,
        (many) => `${many ? 'stay' : 'stays'} where ${many ? 'they are' : 'it is'} until daemon ${id} has room`,
      );
  }
  const reasons = sentences.toStrings();
  const missing = sum(pgs, (report) => report.missing);
  const { degraded, misplaced } = recoveryStatus(state, view.presences, pgs);
  if (degraded > 0) reasons.push(`${degraded} object ${degraded === 1 ? 'copy is' : 'copies are'} degraded`);
  if (misplaced > 0) reasons.push(`${misplaced} object ${misplaced === 1 ? 'copy is' : 'copies are'} misplaced`);
  if (missing > 0) reasons.push(`${missing} of at most ${view.missingPeak} object copies are still to be made`);
  if (view.inconsistent > 0)
    reasons.push(
      `${view.inconsistent} inconsistent object${view.inconsistent === 1 ? '' : 's'}: see ashlar scrub describe`,
    );
  for (const { entry, outBy } of state.daemons.values()) {
    if (!entry.up && outBy !== 'new') reasons.push(`${daemonWords(view, entry.id)}${entry.in ? '' : ', out'}`);
    const space = view.presences.get(entry.id)?.space ?? null;
    if (space?.full) reasons.push(`daemon ${entry.id} is full`);
    else if (space !== null && filledShare(space) >= NEARFULL_SHARE)
      reasons.push(`daemon ${entry.id} is nearly full (${Math.floor(100 * filledShare(space))} %)`);
  }
  return reasons;
}

/** Daemons that the PG belongs to and that it does not move to, for want of room there. */
function heldMoves({ state, target }: StatusView, { pg, acting }: PgRecord): DaemonId[] {
  return target(pg).filter((id) => state.daemons.get(id)?.entry.up && !acting.includes(id));
}

type Words = (many: boolean) => string;

function blockedBecause(view: StatusView, record: PgRecord, report: PgReport, pool: PoolEntry): Words | null {
  const whom = (ids: readonly DaemonId[]): string => ids.map((id) => daemonWords(view, id)).join(' or ');
  const wait = (many: boolean): string => (many ? 'wait' : 'waits');
  switch (report.state) {
    case 'active':
      return null;
    case 'down':
      return report.waitFor.length > 0
        ? (many) => `${wait(many)} for ${whom(report.waitFor)}`
        : (many) => `${many ? 'have' : 'has'} no storage daemon: start one`;
    case 'incomplete':
      return report.waitFor.length > 0
        ? (many) => `${wait(many)} for ${whom(report.waitFor)}`
        : (many) => `${wait(many)} for a member that has every acked write`;
    case 'undersized':
      return (many) =>
        `${many ? 'have' : 'has'} ${copies(record.acting.length)}, below the ${pool.minSize} that pool "${pool.name}" needs to serve`;
    case 'peering':
      return report.waitFor.length > 0
        ? (many) => `${many ? 'are' : 'is'} peering, and ${wait(many)} for ${whom(report.waitFor)}`
        : (many) => `${many ? 'are' : 'is'} peering under daemon ${record.acting[0]}`;
  }
}

function daemonWords({ state, presences, now }: StatusView, id: DaemonId): string {
  const entry = state.daemons.get(id)?.entry;
  if (entry === undefined) return `daemon ${id} (unknown)`;
  if (entry.up) return `daemon ${id} (up)`;
  const presence = presences.get(id);
  return presence === undefined
    ? `daemon ${id} (down)`
    : `daemon ${id} (down since ${duration(now - presence.downAt)})`;
}

/** "12 s", "3 min 5 s", "2 h 10 min", "4 d 3 h". */
export function duration(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

const copies = (count: number): string => (count === 1 ? '1 copy' : `${count} copies`);
const sum = <T>(items: readonly T[], value: (item: T) => number): number =>
  items.reduce((total, item) => total + value(item), 0);

const NAMES_SHOWN = 3;

/** Joins what is true of many PGs into one sentence: "pgs 1.0, 1.1, 1.2 and 61 more wait for daemon 3 (...)". */
class Sentences {
  readonly #groups = new Map<string, { urgency: number; words: Words; pgs: PgId[] }>();

  add(urgency: number, pg: PgId, words: Words): void {
    const key = words(false);
    const group = this.#groups.get(key);
    if (group === undefined) this.#groups.set(key, { urgency, words, pgs: [pg] });
    else group.pgs.push(pg);
  }

  toStrings(): string[] {
    const groups = [...this.#groups.values()].sort((a, b) => a.urgency - b.urgency || b.pgs.length - a.pgs.length);
    return groups.map(({ words, pgs }) => {
      const names = pgs.slice(0, NAMES_SHOWN).map(pgName).join(', ');
      const more = pgs.length - NAMES_SHOWN;
      return `${pgs.length > 1 ? 'pgs' : 'pg'} ${names}${more > 0 ? ` and ${more} more` : ''} ${words(pgs.length > 1)}`;
    });
  }
}
