// What an image's writer must be able to say again: changes that were acked but are not known to be on stable storage.
//
// An ack means that every member of the acting set has the change in its page cache. If a member's machine loses power
// before the flush, the change is gone there; the interval ends, because the member's process did. So a change whose
// interval has ended is stale: it is written once more before a flush may succeed. Stale changes are replayed without
// the parts that newer changes have covered since, so that a replay never brings back old bytes. Until then they are
// laid over what reads find, so that nobody sees an acked change vanish and come back.

import { payloadPool } from '../../proto/buffer-pool.ts';
import type { Epoch, ObjectKey, PgId } from '../../proto/ids.ts';
import type { StorageMap } from '../../proto/map.ts';

export interface Change {
  readonly key: ObjectKey;
  readonly pg: PgId;
  /** Bytes [start, end) of the object, whole blocks. */
  readonly start: number;
  readonly end: number;
  /** null: zeroed. */
  readonly payload: Buffer | null;
  /** The interval that acked it. */
  since: Epoch;
}

/** What remembering a change costs besides its payload, about: zeroes must not pile up for ever either. */
const CHANGE_BYTES = 256;

/** A part of a stale change that nothing newer has covered. */
export interface ReplayPiece {
  readonly change: Change;
  readonly start: number;
  readonly end: number;
}

export class Unflushed {
  #changes: Change[] = [];
  #bytes = 0;

  get size(): number {
    return this.#changes.length;
  }
  /** Memory that is kept. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Changes of the same blocks are added in the order in which they took effect. */
  add(change: Change): void {
    this.#changes.push(change);
    this.#bytes += bytesOf(change);
  }

  /** The oldest `count` changes are on stable storage. */
  drop(count: number): void {
    for (let i = 0; i < count; i++) {
      const change = this.#changes[i]!;
      this.#bytes -= bytesOf(change);
      // Only memory that is all this change's: other parts of a request may be kept longer.
      const { payload } = change;
      if (payload !== null && payload.length === payload.buffer.byteLength) payloadPool.give(payload);
    }
    this.#changes = this.#changes.slice(count);
  }

  /** Is the interval of one of the oldest `count` changes over, as far as this map knows? */
  anyStale(map: StorageMap, count: number): boolean {
    for (let i = 0; i < count; i++) if (isStale(this.#changes[i]!, map)) return true;
    return false;
  }

  /** PGs of the oldest `count` changes. */
  pgs(count: number): Set<PgId> {
    const pgs = new Set<PgId>();
    for (let i = 0; i < count; i++) pgs.add(this.#changes[i]!.pg);
    return pgs;
  }

  /**
   * Parts of [start, end) of an object whose newest change was acked in another interval than `since`: a reader in that
   * interval may be shown what was there before them.
   */
  stalePieces(key: ObjectKey, start: number, end: number, since: Epoch): ReplayPiece[] {
    let over: Range[] = [];
    const pieces: ReplayPiece[] = [];
    for (let i = this.#changes.length - 1; i >= 0; i--) {
      const change = this.#changes[i]!;
      if (change.key !== key || change.end <= start || change.start >= end) continue;
      const range = { start: Math.max(start, change.start), end: Math.min(end, change.end) };
      if (change.since !== since) for (const part of without(range, over)) pieces.push({ change, ...part });
      over = joined(over, range);
    }
    return pieces;
  }

  /** What must be written again, oldest first. Nothing else may be in flight. */
  replayPieces(map: StorageMap): { stale: Change[]; pieces: ReplayPiece[] } {
    const covered = new Map<ObjectKey, Range[]>();
    const stale: Change[] = [];
    const pieces: ReplayPiece[] = [];
    for (let i = this.#changes.length - 1; i >= 0; i--) {
      const change = this.#changes[i]!;
      const over = covered.get(change.key) ?? [];
      if (isStale(change, map)) {
        stale.push(change);
        for (const { start, end } of without(change, over)) pieces.push({ change, start, end });
      }
      covered.set(change.key, joined(over, change));
    }
    return { stale, pieces: pieces.reverse() };
  }
}

const isStale = (change: Change, map: StorageMap): boolean => map.pgs.get(change.pg)?.since !== change.since;

const bytesOf = (change: Change): number => CHANGE_BYTES + (change.payload?.length ?? 0);

interface Range {
  readonly start: number;
  readonly end: number;
}

/** The parts of a range that none of `covers` (in order, disjoint) overlaps. */
function without({ start, end }: Range, covers: readonly Range[]): Range[] {
  const parts: Range[] = [];
  for (const cover of covers) {
    if (cover.end <= start) continue;
    if (cover.start >= end) break;
    if (cover.start > start) parts.push({ start, end: cover.start });
    start = cover.end;
  }
  if (start < end) parts.push({ start, end });
  return parts;
}

/** `ranges` (in order, disjoint, none touching the next) and one more, in the same form: never more than there are blocks. */
function joined(ranges: readonly Range[], { start, end }: Range): Range[] {
  const before = ranges.filter((range) => range.end < start);
  const after = ranges.filter((range) => range.start > end);
  for (let i = before.length; i < ranges.length - after.length; i++) {
    start = Math.min(start, ranges[i]!.start);
    end = Math.max(end, ranges[i]!.end);
  }
  return [...before, { start, end }, ...after];
}
