// Client sessions and the wait for fences.
//
// A session lives as long as its subscription. When that breaks, its locks may be taken at once: nearly always its
// process is dead, and a dead gateway must be replaceable without waiting. If it only lost the connection, nothing is at
// risk: the next owner gets a higher fence, which every up daemon obeys before the lock is granted, and the old owner's
// writes fail with FENCED.
//
// A daemon that is down is not waited for, though it may live, cut off together with the old owner, and not know the
// fence. That is safe: the new owner stamps its requests with the fence's epoch or a newer one, so whoever answers it
// obeys the fence, in an interval that all earlier ones have ended for: they needed every member's answer to a write, and
// one of their members is in the new one and refuses. So in each PG the old owner's last write comes before the new
// owner's first request; what the new owner finds is what it would find if the old one had died a moment later. Where all
// members are cut off, the new owner waits. (Reads of a cut-off daemon end with its leases: cluster/daemon/lease.ts.)
//
// After a restart of the master nobody is subscribed yet, so sessions that hold locks count as
// alive for GRACE_MS.

import { StorageError } from '../../proto/errors.ts';
import type { Epoch, SessionId } from '../../proto/ids.ts';
import type { Clock, Timer } from '../../proto/ports.ts';
import { FENCE_ACK_MS, GRACE_MS, SESSIONS_REMEMBERED } from './limits.ts';
import type { Follower } from './publisher.ts';

interface Session {
  readonly name: string;
  stream: Follower | null;
}

export class Sessions {
  readonly #clock: Clock;
  readonly #graceUntil: number;
  readonly #seen = new Map<SessionId, Session>();

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#graceUntil = clock.now() + GRACE_MS;
  }

  opened(session: SessionId, name: string): void {
    if (this.#seen.size >= SESSIONS_REMEMBERED) this.#forgetClosed();
    this.#seen.set(session, { name, stream: null });
  }

  /** Its subscription opened; returns the one it replaces. */
  subscribed(session: SessionId, stream: Follower): Follower | null {
    const known = this.#seen.get(session);
    const replaced = known?.stream ?? null;
    if (known === undefined) this.#seen.set(session, { name: '', stream });
    else known.stream = stream;
    return replaced;
  }

  unsubscribed(session: SessionId, stream: Follower): void {
    const known = this.#seen.get(session);
    if (known?.stream === stream) known.stream = null;
  }

  isSubscribed(session: SessionId): boolean {
    return (this.#seen.get(session)?.stream ?? null) !== null;
  }

  /** May it still hold what it locked? */
  isAlive(session: SessionId): boolean {
    const known = this.#seen.get(session);
    if (known === undefined) return session !== 0 && this.#clock.now() < this.#graceUntil;
    return known.stream !== null;
  }

  /** Was it opened before this master started, and has it still time to subscribe here? */
  mayComeBack(session: SessionId): boolean {
    return !this.#seen.has(session) && this.#clock.now() < this.#graceUntil;
  }

  /** Those whose subscription is not open; one of them that comes back has only lost its name. */
  #forgetClosed(): void {
    for (const [session, { stream }] of this.#seen) if (stream === null) this.#seen.delete(session);
  }

  nameOf(session: SessionId): string {
    return this.#seen.get(session)?.name ?? '';
  }
}

interface Waiter {
  readonly epoch: Epoch;
  readonly resolve: () => void;
  readonly timer: Timer;
}

/** Requests that wait until every up daemon obeys an epoch. */
export class FenceWait {
  readonly #clock: Clock;
  /** Up daemons that do not obey `epoch` yet, as words for people. */
  readonly #laggards: (epoch: Epoch) => string[];
  readonly #waiters = new Set<Waiter>();

  constructor(clock: Clock, laggards: (epoch: Epoch) => string[]) {
    this.#clock = clock;
    this.#laggards = laggards;
  }

  /** Rejects with UNAVAILABLE, naming who does not answer, after FENCE_ACK_MS. */
  until(epoch: Epoch): Promise<void> {
    if (this.#laggards(epoch).length === 0) return Promise.resolve();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const timer = this.#clock.after(FENCE_ACK_MS, () => {
      this.#waiters.delete(waiter);
      const who = this.#laggards(epoch).join(', ');
      reject(new StorageError('UNAVAILABLE', `${who}: up, but does not obey map epoch ${epoch} with the fence yet`));
    });
    const waiter: Waiter = { epoch, resolve, timer };
    this.#waiters.add(waiter);
    return promise;
  }

  /** A daemon obeys a newer epoch, or is down. */
  check(): void {
    for (const waiter of this.#waiters) {
      if (this.#laggards(waiter.epoch).length > 0) continue;
      this.#waiters.delete(waiter);
      waiter.timer.cancel();
      waiter.resolve();
    }
  }
}
