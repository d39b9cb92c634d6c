// Whose turn it is to be recovered: one queue for all PGs of a daemon, a few objects at a time, clients' objects first.

import type { ObjectKey } from '../../proto/ids.ts';
import type { Recovery } from './recovery.ts';

/** Objects that one daemon pushes at a time: enough to keep a link busy, few enough to leave clients the most of it. */
const ACTIVE_MAX = 4;

interface Turn {
  readonly recovery: Recovery;
  readonly key: ObjectKey;
}

export class RecoveryQueue {
  readonly #turns = new Turns();
  /** A client waits for these: they go first, and may exceed the limit by as many again. */
  readonly #urgent = new Turns();
  #active = 0;
  #handingOut = false;

  add(recovery: Recovery, key: ObjectKey, urgent: boolean): void {
    (urgent ? this.#urgent : this.#turns).push({ recovery, key });
    this.#next();
  }

  removeAll(recovery: Recovery): void {
    this.#turns.removeAll(recovery);
    this.#urgent.removeAll(recovery);
  }

  #next(): void {
    // A turn that is given back at once must not nest: the loop below sees it.
    if (this.#handingOut) return;
    this.#handingOut = true;
    for (;;) {
      const urgent = this.#urgent.length > 0;
      if (this.#active >= (urgent ? 2 * ACTIVE_MAX : ACTIVE_MAX)) break;
      const turn = urgent ? this.#urgent.shift() : this.#turns.shift();
      if (turn === undefined) break;
      this.#active += 1;
      turn.recovery.push(turn.key, () => {
        this.#active -= 1;
        this.#next();
      });
    }
    this.#handingOut = false;
  }
}

/** First in, first out. An array's own shift() moves all the rest: with 100,000 objects to recover, 0.2 ms each time. */
class Turns {
  #turns: Turn[] = [];
  #head = 0;

  get length(): number {
    return this.#turns.length - this.#head;
  }
  push(turn: Turn): void {
    this.#turns.push(turn);
  }
  shift(): Turn | undefined {
    if (this.length === 0) return undefined;
    const turn = this.#turns[this.#head++];
    if (this.#head * 2 > this.#turns.length) {
      this.#turns = this.#turns.slice(this.#head);
      this.#head = 0;
    }
    return turn;
  }
  removeAll(recovery: Recovery): void {
    this.#turns = this.#turns.slice(this.#head).filter((turn) => turn.recovery !== recovery);
    this.#head = 0;
  }
}
