// What primaries say of their PGs, as operations on a Change: it may take writes, it is clean, another should lead.
//
// A word counts only for the interval it was said in, from its primary's very process, and only while the PG need not
// wait for anybody. If an interval ends in the same batch, what was said of it is still durable: planner.ts then begins
// the next one from it.

import type { ControlRequest, PgInterval, PgReport } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { type DaemonId, type PgId, pgName } from '../../proto/ids.ts';
import type { DaemonEntry } from '../../proto/map.ts';
import { activated, cleaned, isSettled, type PgRecord, waitForOf, withoutComplete } from './intervals.ts';
import type { Change } from './state.ts';

/** These PGs may take writes from now on. Returns those for which that is true. */
export function activatePgs(change: Change, request: ControlRequest<'activate'>): PgId[] {
  return mark(change, request, (record, { behind = [] }) => behind.reduce(withoutComplete, activated(record)));
}

/** Every member of these PGs has everything. Returns those for which that was believed. */
export function cleanPgs(change: Change, request: ControlRequest<'clean'>): PgId[] {
  return mark(change, request, (record) => (record.activated ? cleaned(record) : null));
}

/**
 * Does the primary say that none of the members has everything, although some were believed to? They did when the PG was
 * last clean; since then they may have been peered anew, and half given what was under way.
 */
export function isMistaken(record: PgRecord | undefined, report: PgReport, reporter: DaemonId): boolean {
  if (report.state !== 'incomplete' || record?.since !== report.since || record.acting[0] !== reporter) return false;
  return !record.activated && record.complete.length > 0 && waitForOf(record).length === 0;
}

/** Believes nobody any more to have everything: whoever is up and was in the PG's history becomes a member again. */
export function doubt(change: Change, reports: readonly PgReport[], reporter: DaemonId): void {
  for (const report of reports) {
    const record = change.pgs.get(report.pg);
    if (record !== undefined && isMistaken(record, report, reporter))
      change.pgs.set(record.pg, { ...record, complete: [] });
  }
}

/** PGs that need nothing of what the daemon, which has left them, still holds. Changes nothing. */
export function forgettablePgs(change: Change, { id, pgs }: ControlRequest<'forget'>): PgId[] {
  return pgs
    .filter(({ pg, since }) => {
      const record = change.pgs.get(pg);
      if (record === undefined || record.since !== since || !isSettled(record)) return false;
      return !record.acting.includes(id) && record.acting.every((member) => record.complete.includes(member));
    })
    .map(({ pg }) => pg);
}

function mark(
  change: Change,
  { id, bootId, pgs }: ControlRequest<'activate'>,
  marked: (record: PgRecord, said: PgInterval) => PgRecord | null,
): PgId[] {
  const daemon = change.daemons.get(id)?.entry;
  if (daemon === undefined || daemon.bootId !== bootId || change.rebooted.has(id)) return [];
  const accepted: PgId[] = [];
  for (const interval of pgs) {
    const record = change.pgs.get(interval.pg);
    if (record === undefined || !leads(daemon, record, interval)) continue;
    const next = marked(record, interval);
    if (next === null) continue;
    change.pgs.set(record.pg, next);
    accepted.push(record.pg);
  }
  return accepted;
}

function leads(daemon: DaemonEntry, record: PgRecord, interval: PgInterval): boolean {
  return record.since === interval.since && record.acting[0] === daemon.id && waitForOf(record).length === 0;
}

/** Throws STALE if the PG has a newer interval, or one without that member. */
export function preferPrimary(change: Change, request: ControlRequest<'preferPrimary'>): void {
  const record = change.pgs.get(request.pg);
  if (record === undefined) throw new StorageError('NOT_FOUND', `no PG has the number ${request.pg}`);
  if (record.since !== request.since || !record.acting.includes(request.daemon))
    throw new StorageError('STALE', `pg ${pgName(request.pg)} has a newer interval`);
  change.pgs.set(record.pg, { ...record, prefer: request.daemon });
}
