// Keeps changes of the same blocks in the order in which they were asked for.
//
// A change holds its byte range of its object while it is in flight; one that overlaps an earlier one, in flight or
// waiting, waits for it. This is what makes sending again safe (no newer write can have been applied in between) and
// what makes read-modify-write of a part of a block atomic.

import type { ObjectKey } from '../../proto/ids.ts';

export interface LockHolder {
  readonly key: ObjectKey;
  /** Bytes [start, end) of the object. */
  readonly start: number;
  readonly end: number;
  /** The range is its own now. May be called from inside acquire(). */
  begin(): void;
  begun: boolean;
}

export class BlockLocks {
  readonly #holders = new Map<ObjectKey, LockHolder[]>();

  acquire(holder: LockHolder): void {
    const same = this.#holders.get(holder.key);
    if (same === undefined) this.#holders.set(holder.key, [holder]);
    else {
      same.push(holder);
      if (!this.#isFirst(same, same.length - 1)) return;
    }
    holder.begun = true;
    holder.begin();
  }

  release(holder: LockHolder): void {
    const same = this.#holders.get(holder.key)!;
    if (same.length === 1) {
      this.#holders.delete(holder.key);
      return;
    }
    same.splice(same.indexOf(holder), 1);
    // begin() may change the list; look again from the start after each.
    for (let i = 0; i < same.length; i++) {
      const next = same[i]!;
      if (next.begun || !this.#isFirst(same, i)) continue;
      next.begun = true;
      next.begin();
      i = -1;
    }
  }

  /** Does anybody hold a part of this range now? */
  isHeld(key: ObjectKey, start: number, end: number): boolean {
    const same = this.#holders.get(key);
    return same?.some((holder) => holder.begun && holder.start < end && holder.end > start) ?? false;
  }

  /** No earlier one overlaps it. */
  #isFirst(same: LockHolder[], index: number): boolean {
    const { start, end } = same[index]!;
    for (let i = 0; i < index; i++) if (same[i]!.start < end && same[i]!.end > start) return false;
    return true;
  }
}
