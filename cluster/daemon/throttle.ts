// How fast a daemon may recover: a cap that people set, and a share of what clients move while there are clients.
//
//   idle (no client byte for IDLE_MS)   as fast as it goes, up to the cap
//   clients at work                     30 bytes of recovery for each 100 that clients move, never less than FLOOR a
//                                       second, up to the cap
//
// Two token buckets in bytes. A push is let go while both hold more than nothing and is charged afterwards, in full, so
// that a bucket may owe: pieces need not fit a bucket, and the rate is right all the same. What clients move is counted
// (one addition per request), not estimated: the share needs no measured throughput and follows it at once.
//
// The floor is there because a share of little is nothing: a client that asks for 100 KB/s leaves the machine idle, and
// copies that are missing are a danger that grows with time. What clients wait for themselves (an object that must be
// recovered before their write) is never held back, but is charged. This file decides; recovery.ts asks.

import type { Clock } from '../../proto/ports.ts';

/** Bytes of recovery per byte that clients move, while they do. */
export const CLIENT_SHARE = 0.3;
/** What recovery may have in any case: a hundredth of what a daemon can move. */
export const FLOOR_BYTES_PER_SECOND = 8 * 2 ** 20;
/** No client has moved a byte for so long: recovery need not hold back. */
export const IDLE_MS = 500;
/** A bucket holds what comes in so much time at the most: how long a burst may be. */
const BURST_MS = 100;
/** Between two looks: clients may have earned more meanwhile, or gone. */
const WAIT_LEAST_MS = 1;
const WAIT_MOST_MS = 50;

/** Bytes that may be spent: filled by time or by clients, owed below 0. */
class Bucket {
  #bytes = 0;

  /** Saves up no more than `most`, but what is there already stays. */
  fill(bytes: number, most: number): void {
    this.#bytes = Math.max(this.#bytes, Math.min(most, this.#bytes + bytes));
  }
  spend(bytes: number): void {
    this.#bytes -= bytes;
  }
  /** What is owed is forgiven: nobody is waiting for it to be paid. */
  forgive(): void {
    this.#bytes = Math.max(0, this.#bytes);
  }
  get isEmpty(): boolean {
    return this.#bytes < 0;
  }
  get owed(): number {
    return Math.max(0, -this.#bytes);
  }
}

export class Throttle {
  /** Bytes that clients have moved through this daemon and that have not been looked at. Added to by the data path. */
  clientBytes = 0;
  /** Bytes pushed since this process began, those that clients waited for included. */
  pushedBytes = 0;
  readonly #clock: Clock;
  readonly #capped = new Bucket();
  readonly #shared = new Bucket();
  #capBytesPerSecond = 0;
  #lookedAt: number;
  /** When a look last found that clients had moved something. */
  #clientsAt = Number.NEGATIVE_INFINITY;

  /** @param capBytesPerSecond 0: no cap */
  constructor(clock: Clock, capBytesPerSecond: number) {
    this.#clock = clock;
    this.#lookedAt = clock.now();
    this.cap(capBytesPerSecond);
  }

  /** Changes the cap; 0: none. */
  cap(bytesPerSecond: number): void {
    this.#look();
    this.#capBytesPerSecond = bytesPerSecond;
    if (bytesPerSecond === 0) this.#capped.forgive();
  }

  get capBytesPerSecond(): number {
    return this.#capBytesPerSecond;
  }

  /** Milliseconds until the next push may go; 0: now. */
  waitMs(): number {
    this.#look();
    let waitMs = 0;
    if (this.#capBytesPerSecond > 0 && this.#capped.isEmpty)
      waitMs = (this.#capped.owed / this.#capBytesPerSecond) * 1000;
    if (!this.#isIdle && this.#shared.isEmpty)
      // Clients may earn it sooner, or stop: so the wait is never long.
      waitMs = Math.max(waitMs, (this.#shared.owed / FLOOR_BYTES_PER_SECOND) * 1000);
    return waitMs === 0 ? 0 : Math.min(WAIT_MOST_MS, Math.max(WAIT_LEAST_MS, waitMs));
  }

  /** A push of so many bytes has gone to one member. */
  spend(bytes: number): void {
    this.pushedBytes += bytes;
    if (this.#capBytesPerSecond > 0) this.#capped.spend(bytes);
    if (!this.#isIdle) this.#shared.spend(bytes);
  }

  get #isIdle(): boolean {
    return this.#lookedAt - this.#clientsAt >= IDLE_MS;
  }

  #look(): void {
    const now = this.#clock.now();
    const seconds = (now - this.#lookedAt) / 1000;
    this.#lookedAt = now;
    const earned = this.clientBytes * CLIENT_SHARE;
    if (this.clientBytes > 0) this.#clientsAt = now;
    this.clientBytes = 0;
    if (this.#capBytesPerSecond > 0)
      this.#capped.fill(seconds * this.#capBytesPerSecond, (this.#capBytesPerSecond * BURST_MS) / 1000);
    if (this.#isIdle) return this.#shared.forgive();
    const filled = Math.max(earned, seconds * FLOOR_BYTES_PER_SECOND);
    this.#shared.fill(filled, Math.max(filled, (FLOOR_BYTES_PER_SECOND * BURST_MS) / 1000));
  }
}
