// What a member of a PG lacks compared with the authority (the primary), computed while peering. Pure functions.
//
// Two ways, the first preferred:
//   by log    the member's newest entry, or a common ancestor of both logs, is in the authority's log: what the entries
//             after it touched is missing, extent by extent; what the member did beyond the ancestor (writes that never
//             became real) is undone by fetching the same extents too;
//   by list   no common ancestor, or an earlier recovery never finished: every object whose version differs is missing:
//             the extents of the entries after the member's version of it where the authority's log still has that very
//             entry, else as a whole.
//
// Why extents are enough. Versions are never given twice, and an object gets one only when it is whole: from an entry,
// which a primary lets through only for objects that nobody misses, or with the last piece of a push. A half-pushed
// object has version zero, which equals nothing. So a member's object at version v holds what the authority's held at v,
// and whatever changed since is in the extents of the authority's entries for this object after v, provided that the log
// holds them all. By log, the common version stands for v of every object: nothing in the member is newer but by its own
// entries, whose extents are added. A DELETE among the entries makes the object missing as a whole: what it left (or did
// not) is not worth a proof. While anything of an object is missing, writes to it wait (recovery.ts), so extents never
// meet an entry half way; a block in them that holds nothing any more is pushed as a hole.

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
import { type Extent, extentBytes, joinedExtents } from './extents.ts';

/** An object that a member must fetch: all of it, or byte ranges [start, end) in order, disjoint. */
export interface MissingObject {
  readonly image: number;
  readonly object: number;
  readonly order: number;
  whole: boolean;
  extents: Extent[];
}
export type MissingSet = Map<ObjectKey, MissingObject>;

/** More extents than this in one object are fetched as the whole object, */
const EXTENTS_MAX = 64;
/** and so are extents that make up more of it than this. */
const EXTENTS_SHARE_MAX = 0.5;

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

/**
 * Compares listings: whatever differs is missing; what only the member has is missing too (to be removed).
 * @param log the authority's whole log
 */
export function catchUpByList(
  last: Version,
  mine: Iterable<ListedObject>,
  theirs: readonly ListedObject[],
  log: readonly LogEntry[],
): CatchUp {
  const missing: MissingSet = new Map();
  const entriesOf = Map.groupBy(log, (entry) => objectKey(entry.image, entry.object));
  const versions = new Map<ObjectKey, ListedObject>();
  for (const info of theirs) versions.set(objectKey(info.image, info.object), info);
  for (const info of mine) {
    const key = objectKey(info.image, info.object);
    const other = versions.get(key);
    versions.delete(key);
    // A version of zero marks a half-copied object: it equals nothing.
    if (other !== undefined && sameVersion(other.version, info.version) && !sameVersion(info.version, VERSION_ZERO))
      continue;
    const after = other === undefined ? [] : entriesAfter(other.version, entriesOf.get(key) ?? []);
    if (after.length === 0) missing.set(key, wholeObject(info));
    for (const entry of after) addEntry(missing, entry);
  }
  for (const [key, info] of versions) missing.set(key, wholeObject(info));
  return { mode: 'reset', version: last, entries: [], missing };
}

/**
 * Which of the infos is to be believed: the newest log among the complete members that were activated in the newest
 * interval that may have taken writes, or a later one. -1 if there is none: what was acked then is with somebody else.
 * With lastActive 0 nothing was ever acked, or an operator has given up whoever had more: then any copy will do, a
 * complete one before one that is not, and that before none.
 */
export function authorityAmong(infos: readonly WirePgInfo[], lastActive: Epoch): number {
  let best = -1;
  for (let i = 0; i < infos.length; i++) {
    const info = infos[i]!;
    if (lastActive > 0 && (!info.complete || info.les < lastActive)) continue;
    if (best === -1 || isBetter(info, infos[best]!)) best = i;
  }
  return best;
}
function isBetter(a: WirePgInfo, b: WirePgInfo): boolean {
  const [wholeA, wholeB] = [a.complete && a.les > 0, b.complete && b.les > 0];
  return wholeA !== wholeB ? wholeA : isNewer(a, b);
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

/** What was done to an object after one of its entries gave it this version; none if no entry did. */
function entriesAfter(version: Version, entries: readonly LogEntry[]): readonly LogEntry[] {
  const at = entries.findIndex((entry) => sameVersion(entry.version, version));
  return at === -1 ? [] : entries.slice(at + 1);
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
  item.extents = joinedExtents([...item.extents, { start: entry.offset, end: entry.offset + entry.length }]);
  if (item.extents.length > EXTENTS_MAX || extentBytes(item.extents) > EXTENTS_SHARE_MAX * 2 ** item.order)
    item.whole = true;
  if (item.whole) item.extents = [];
}

const wholeObject = (info: ListedObject): MissingObject => ({
  image: info.image,
  object: info.object,
  order: info.order,
  whole: true,
  extents: [],
});
