// What a member of a PG lacks compared with the authority (the primary), computed while peering. Pure functions.
//
// Two ways, the first preferred:
//   by log    the member's newest entry, or a common ancestor of both logs, is in the authority's log: what the entries
//             after it touched is missing, extent by extent; what the member did beyond the ancestor (writes that never
//             became real) is undone by fetching the same extents too;
//   by list   no common ancestor, or an earlier recovery never finished: every object whose version differs is missing
//             as a whole. Versions are never given twice, so equal versions mean equal content.

import {
  compareVersions,
  type Epoch,
  type ObjectKey,
  objectKey,
  sameVersion,
  VERSION_ZERO,
  type Version,
} from '../../proto/ids.ts';
import type { ListedObject, LogMode, WirePgInfo } from '../../proto/peer-messages.ts';
import { EntryOp, type LogEntry } from '../store/store.ts';

/** An object that a member must fetch: all of it, or byte ranges [start, end) in order, disjoint. */
export interface MissingObject {
  readonly image: number;
  readonly object: number;
  readonly order: number;
  whole: boolean;
  extents: { start: number; end: number }[];
}
export type MissingSet = Map<ObjectKey, MissingObject>;

/** More extents than this in one object are fetched as the whole object. */
const EXTENTS_MAX = 64;

export interface CatchUp {
  readonly mode: LogMode;
  readonly version: Version;
  readonly entries: LogEntry[];
  readonly missing: MissingSet;
}

/** The member's log is a prefix of the authority's: `after` are the entries it lacks. */
export function catchUpByLog(last: Version, after: LogEntry[]): CatchUp {
  const missing: MissingSet = new Map();
  for (const entry of after) addEntry(missing, entry);
  return { mode: 'keep', version: last, entries: after, missing };
}

/**
 * The logs part somewhere: finds the newest common version and undoes what the member did after it. Null if there is
 * none to be found.
 * @param mine the authority's whole log, which begins after `myTail`
 * @param theirs the member's whole log, which begins after `theirTail`
 */
export function catchUpDiverged(
  mine: LogEntry[],
  myTail: Version,
  theirs: LogEntry[],
  theirTail: Version,
): CatchUp | null {
  const common = commonVersion(mine, myTail, theirs, theirTail);
  if (common === null) return null;
  const after = mine.filter((entry) => entry.version.seq > common.seq);
  const missing: MissingSet = new Map();
  for (const entry of theirs) if (entry.version.seq > common.seq) addEntry(missing, entry);
  for (const entry of after) addEntry(missing, entry);
  return { mode: 'truncate', version: common, entries: after, missing };
}

/** Compares listings: whatever differs is missing as a whole; what only the member has is missing too (to be removed). */
export function catchUpByList(last: Version, mine: Iterable<ListedObject>, theirs: readonly ListedObject[]): CatchUp {
  const missing: MissingSet = new Map();
  const versions = new Map<ObjectKey, ListedObject>();
  for (const info of theirs) versions.set(objectKey(info.image, info.object), info);
  for (const info of mine) {
    const key = objectKey(info.image, info.object);
    const other = versions.get(key);
    versions.delete(key);
    // A version of zero marks a half-copied object: it equals nothing.
    if (other !== undefined && sameVersion(other.version, info.version) && !sameVersion(info.version, VERSION_ZERO))
      continue;
    missing.set(key, wholeObject(info));
  }
  for (const [key, info] of versions) missing.set(key, wholeObject(info));
  return { mode: 'reset', version: last, entries: [], missing };
}

/**
 * Which of the infos is to be believed: the newest log among the complete members that were activated in the newest
 * interval that may have taken writes, or a later one. -1 if there is none: what was acked then is with somebody else.
 */
export function authorityAmong(infos: readonly WirePgInfo[], lastActive: Epoch): number {
  let best = -1;
  for (let i = 0; i < infos.length; i++) {
    const info = infos[i]!;
    if (!info.complete || info.les < lastActive) continue;
    if (best === -1 || isNewer(info, infos[best]!)) best = i;
  }
  return best;
}
function isNewer(a: WirePgInfo, b: WirePgInfo): boolean {
  return a.les !== b.les ? a.les > b.les : compareVersions(a.last, b.last) > 0;
}

function commonVersion(mine: LogEntry[], myTail: Version, theirs: LogEntry[], theirTail: Version): Version | null {
  const mySince = new Map<number, number>([[myTail.seq, myTail.since]]);
  for (const { version } of mine) mySince.set(version.seq, version.since);
  for (let i = theirs.length - 1; i >= 0; i--) {
    const { version } = theirs[i]!;
    if (mySince.get(version.seq) === version.since) return version;
  }
  return mySince.get(theirTail.seq) === theirTail.since ? theirTail : null;
}

function addEntry(missing: MissingSet, entry: LogEntry): void {
  const key = objectKey(entry.image, entry.object);
  let item = missing.get(key);
  if (item === undefined) {
    item = { image: entry.image, object: entry.object, order: entry.order, whole: false, extents: [] };
    missing.set(key, item);
  }
  if (entry.op === EntryOp.DELETE) item.whole = true;
  if (item.whole) return;
  item.extents = withExtent(item.extents, entry.offset, entry.offset + entry.length);
  if (item.extents.length > EXTENTS_MAX) item.whole = true;
  if (item.whole) item.extents = [];
}

function withExtent(
  extents: { start: number; end: number }[],
  start: number,
  end: number,
): { start: number; end: number }[] {
  const result: { start: number; end: number }[] = [];
  let placed = false;
  for (const extent of extents) {
    if (extent.end < start) result.push(extent);
    else if (extent.start > end) {
      if (!placed) result.push({ start, end });
      placed = true;
      result.push(extent);
    } else {
      start = Math.min(start, extent.start);
      end = Math.max(end, extent.end);
    }
  }
  if (!placed) result.push({ start, end });
  return result;
}

const wholeObject = (info: ListedObject): MissingObject => ({
  image: info.image,
  object: info.object,
  order: info.order,
  whole: true,
  extents: [],
});
