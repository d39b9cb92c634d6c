// The Clock and Random ports of the real world.
//
// soon() is on the data path: all callbacks of one turn of the loop share one setImmediate and one array. Timers keep
// the process alive like any other handle: a role ends by process.exit when it has stopped, not by running dry.

import assert from 'node:assert/strict';
import { randomFillSync } from 'node:crypto';
import type { Clock, Random, Timer } from '../../proto/ports.ts';

/** setTimeout takes no more. */
const TIMER_MS_MAX = 2 ** 31 - 1;

/** Monotonic time of this process, by performance.now(). */
export function openClock(): Clock {
  let waiting: (() => void)[] = [];
  let spare: (() => void)[] = [];
  function runWaiting(): void {
    const batch = waiting;
    waiting = spare; // what a callback asks for now runs in the next turn
    for (let i = 0; i < batch.length; i++) batch[i]!();
    batch.length = 0;
    spare = batch;
  }
  return {
    now: () => performance.now(),
    after(ms, fire) {
      assert(ms >= 0 && ms <= TIMER_MS_MAX, `timer of ${ms} ms`);
      return new RealTimer(ms, fire);
    },
    soon(run) {
      if (waiting.push(run) === 1) setImmediate(runWaiting);
    },
  };
}

class RealTimer implements Timer {
  #handle: NodeJS.Timeout;
  constructor(ms: number, fire: () => void) {
    const due = performance.now() + ms;
    // setTimeout counts from the loop's cached time, which may be old: it can fire early. "At least ms" is our promise.
    const check = (): void => {
      const early = due - performance.now();
      if (early > 0) this.#handle = setTimeout(check, Math.ceil(early));
      else fire();
    };
    this.#handle = setTimeout(check, Math.ceil(ms));
  }
  cancel(): void {
    clearTimeout(this.#handle);
  }
}

const RANDOM_WORDS = 256;

/** Random numbers of the operating system, fetched 256 at a time. */
export function openRandom(): Random {
  const words = new Uint32Array(RANDOM_WORDS);
  let next = RANDOM_WORDS;
  return {
    u32() {
      if (next === RANDOM_WORDS) {
        randomFillSync(words);
        next = 0;
      }
      return words[next++]!;
    },
  };
}
