// Read leases: a primary that was left behind by a newer interval stops answering before that interval serves.
//
//   primary P ──LEASE, sent at s (P's clock)──> every other member M: promises, until now + GRANT_MS (M's clock)
//             <──answer, with M's epoch e─────  P may answer reads until s + LEASE_MS, if it obeys e
//   new primary Q ──PG_QUERY──> M: "P of interval L may still read for r ms" ──> Q waits so long before it serves,
//                                  unless P itself tells Q that it obeys the new map
//
// The promise. M grants at epoch e: "no interval newer than e, that I take part in, serves before this has run out."
// It is one promise per pair of daemons, not per PG. When the map takes M out of an interval, it remembers how long the
// primary of that interval may still read; what it grants later is granted at the newer epoch, and counts for P only
// once P obeys that epoch, that is when P knows itself that the old interval is over.
//
// Why it is enough. P reads in interval L under grants of all other members of L, and L was activated. A newer interval
// that serves has asked at least one member of L (no strays, see ARCHITECTURE.md). If that is P, it has ended L itself.
// Else it is some M that granted; its answer names P and the rest of the time, and Q waits for the longest. Of intervals
// before L there is nothing left: whoever led L waited for it. P counts from before it asked, M from after it was asked,
// and M adds CLOCK_DRIFT, as Q does when it waits: clocks may differ in speed by that much, not in what they show. (A
// machine that is suspended as a whole stops its monotonic clock: that is outside of what leases cover.)
//
// What M knows less, and what it knows better. An M that has restarted has forgotten whom it promised what: for GRANT_MS
// after its start it answers "somebody". A process whose successor has registered is dead (one process per directory) and
// reads nothing. One that gives a connection up forgets in the same turn what it was granted over it; so when a kernel
// says that the other end of a unix socket is closed, that counts no more, whether the process did it or died. A broken
// TCP connection proves nothing: something between the machines may have broken it.
//
// What needs a lease: reads, and whatever else is answered from this daemon alone. Writes do not: all members answer
// them, and a member that has left the interval refuses; an answer that P passes on late is of a write that every later
// interval has. The master plays no part, so I/O goes on without it; a primary alone in its acting set needs nobody.
//
// An idle cluster sends nothing: a lease is asked for when a read finds none (it waits for one round trip), or, while
// reads go on, when half of it is over.

import { newFrame, Op, replyTo } from '../../proto/frame.ts';
import type { DaemonId, PgId } from '../../proto/ids.ts';
import { CLOCK_DRIFT, LEASE_MS } from '../../proto/limits.ts';
import type { PgEntry } from '../../proto/map.ts';
import type { OldLease } from '../../proto/peer-messages.ts';
import type { Daemon } from './daemon.ts';
import type { Inbound } from './inbound.ts';
import type { Request } from './request.ts';

/** What a member promises, on its own clock. */
export const GRANT_MS = LEASE_MS * CLOCK_DRIFT;
/** A lease that has less than this left is asked for again. */
const RENEW_MS = LEASE_MS / 2;
/** Pause before a member that did not grant is asked again: it is ahead of this daemon by a map, or can't be reached. */
const AHEAD_MS = 10;
const LOST_MS = 200;
/** The holder of a lease that a restarted member does not remember. */
const ANYBODY = 0;

/** What one member granted to this process. */
interface Held {
  until: number;
  asked: boolean;
}
/** What this process granted to another. */
interface Granted {
  readonly bootId: string;
  readonly until: number;
  /** The connection over which it was asked for. */
  readonly over: Inbound;
}
/** An interval that this daemon has left while its primary may still read in it. */
interface Left extends Granted {
  readonly since: number;
  readonly holder: DaemonId;
}

/** All leases of one daemon: those it granted, those it holds, and those it must wait for. */
export class Leases {
  readonly #daemon: Daemon;
  readonly #bootedAt: number;
  readonly #granted = new Map<DaemonId, Granted>();
  readonly #left = new Map<PgId, Left[]>();
  readonly #held = new Map<DaemonId, Held>();
  readonly #readers = new Set<ReadLease>();
  #retrying = false;

  constructor(daemon: Daemon) {
    this.#daemon = daemon;
    this.#bootedAt = daemon.clock.now();
  }

  // --- as a member

  /** Another daemon asks for a lease; the map that its frame was stamped with is obeyed here. */
  grant(request: Request, over: Inbound): void {
    const { id, bootId } = over.hello!;
    this.#granted.set(id, { bootId, until: this.#daemon.clock.now() + GRANT_MS, over });
    request.from.send(replyTo(request.frame, 0, this.#daemon.epoch));
  }

  /** A process of this machine has closed the connection, or has died: either way what was granted over it is over. */
  gaveUp(over: Inbound): void {
    for (const [id, granted] of this.#granted) if (granted.over === over) this.#granted.delete(id);
    for (const [pg, left] of this.#left)
      this.#left.set(
        pg,
        left.filter((one) => one.over !== over),
      );
  }

  /** The PG's interval `entry` is over for this daemon. */
  leave(entry: PgEntry): void {
    const holder = entry.acting[0];
    if (holder === undefined || holder === this.#daemon.id) return;
    const now = this.#daemon.clock.now();
    const unexpired = (this.#left.get(entry.pg) ?? []).filter(({ until }) => until > now);
    const granted = this.#granted.get(holder);
    if (granted !== undefined && granted.until > now) unexpired.push({ ...granted, since: entry.since, holder });
    if (unexpired.length > 0) this.#left.set(entry.pg, unexpired);
    else this.#left.delete(entry.pg);
  }

  /** Leases of earlier intervals that the primary of this one must wait for. Members of it answer for themselves. */
  outstanding({ pg, acting }: PgEntry): OldLease[] {
    const { clock, map, store } = this.#daemon;
    const now = clock.now();
    const leases: OldLease[] = [];
    for (const { since, holder, bootId, until } of this.#left.get(pg) ?? [])
      if (until > now && !acting.includes(holder) && map?.daemons.get(holder)?.bootId === bootId)
        leases.push({ since, holder, restMs: Math.ceil(until - now) });
    const forgottenMs = this.#bootedAt + GRANT_MS - now;
    const { les } = store.pgInfo(pg);
    if (forgottenMs > 0 && les > 0) leases.push({ since: les, holder: ANYBODY, restMs: Math.ceil(forgottenMs) });
    return leases;
  }

  // --- as a new primary

  /**
   * Calls `done` when nobody can read any more in the newest interval that served before this one; at once if that is so.
   * @param leases what all members, this daemon included, said is outstanding
   */
  waitOut({ since, acting, lastActive }: PgEntry, leases: readonly OldLease[], done: () => void): void {
    const rests = new Map<DaemonId, number>();
    for (const { since: of, holder, restMs } of leases) {
      const counts = holder === ANYBODY ? of >= lastActive : !acting.includes(holder);
      // Nobody grants for longer, whatever a frame says.
      if (counts) rests.set(holder, Math.max(Math.min(restMs, GRANT_MS), rests.get(holder) ?? 0));
    }
    let awaited = rests.size;
    if (awaited === 0) return done();
    for (const [holder, restMs] of rests) {
      let over = false;
      const released = (): void => {
        if (over) return;
        over = true;
        timer.cancel();
        if (--awaited === 0) done();
      };
      const timer = this.#daemon.clock.after(restMs * CLOCK_DRIFT, released);
      this.#askHolder(holder, since, released);
    }
  }

  /** One that is up need not be waited for: it answers when it obeys the map that ended its interval. */
  #askHolder(holder: DaemonId, since: number, released: () => void): void {
    if (this.#daemon.map?.daemons.get(holder)?.up !== true) return;
    const frame = newFrame(Op.LEASE);
    frame.epoch = this.#daemon.epoch;
    this.#daemon.peer(holder).request(frame, {
      onReply: (reply) => {
        if (reply.status === 0 && reply.epoch >= since) released();
      },
      onLost: () => {},
    });
  }

  // --- as a primary

  /** The leases of one active PG. */
  reader(others: readonly DaemonId[], handle: (request: Request) => void): ReadLease {
    const reader = new ReadLease(this.#daemon, others, handle, () => this.#readers.delete(reader));
    this.#readers.add(reader);
    return reader;
  }

  /** Until when that member lets this daemon answer reads. */
  heldFrom(id: DaemonId): number {
    return this.#held.get(id)?.until ?? -Infinity;
  }

  /** Asks the member for a lease, unless an answer is still awaited. */
  ask(id: DaemonId): void {
    const { clock } = this.#daemon;
    const link = this.#daemon.peer(id);
    const held = this.#held.get(id) ?? { until: -Infinity, asked: false };
    this.#held.set(id, held);
    if (held.asked) return;
    held.asked = true;
    const sentAt = clock.now();
    // Stamped with no epoch: whatever map the member obeys, it can promise at once.
    link.request(newFrame(Op.LEASE), {
      onReply: (reply) => {
        held.asked = false;
        // Granted at an epoch that this daemon does not know: an interval it reads in may be over already.
        if (reply.status !== 0 || reply.epoch > this.#daemon.epoch) return this.#againLater(AHEAD_MS);
        held.until = sentAt + LEASE_MS;
        this.#renewed();
      },
      onLost: () => this.#againLater(LOST_MS),
    });
  }

  /** The connection to that member has ended, and what it granted with it. */
  lost(id: DaemonId): void {
    if (!this.#held.delete(id)) return;
    for (const reader of this.#readers) reader.forget();
  }

  #againLater(pauseMs: number): void {
    if (this.#retrying) return;
    this.#retrying = true;
    this.#daemon.clock.after(pauseMs, () => {
      this.#retrying = false;
      this.#renewed();
    });
  }

  #renewed(): void {
    for (const reader of [...this.#readers]) reader.renewed();
  }
}

/** Whether one active PG may answer from this daemon alone; keeps the requests that have to wait. */
export class ReadLease {
  readonly #daemon: Daemon;
  readonly #others: readonly DaemonId[];
  readonly #handle: (request: Request) => void;
  readonly #onEnd: () => void;
  /** Before this moment all is well and nothing need be renewed: the one comparison that a read costs. */
  #freshUntil = -Infinity;
  #parked: Request[] = [];

  constructor(daemon: Daemon, others: readonly DaemonId[], handle: (request: Request) => void, onEnd: () => void) {
    this.#daemon = daemon;
    this.#others = others;
    this.#handle = handle;
    this.#onEnd = onEnd;
  }

  /** May the request be answered now? If not, it is kept, and handled again when it may. */
  covers(request: Request): boolean {
    const now = this.#daemon.clock.now();
    return now < this.#freshUntil || this.#isHeld(now, request);
  }

  #isHeld(now: number, request: Request): boolean {
    const { leases } = this.#daemon;
    let until = Infinity;
    for (const id of this.#others) {
      const held = leases.heldFrom(id);
      if (held - now < RENEW_MS) leases.ask(id);
      until = Math.min(until, held);
    }
    this.#freshUntil = until - RENEW_MS;
    if (now < until) return true;
    this.#parked.push(request);
    return false;
  }

  /** A lease that was counted on is gone. */
  forget(): void {
    this.#freshUntil = -Infinity;
  }

  /** Some member has granted again, or is to be asked again. */
  renewed(): void {
    if (this.#parked.length === 0) return;
    const parked = this.#parked;
    this.#parked = [];
    for (const request of parked) this.#handle(request);
  }

  /** The interval is over; hands back what still waits, oldest first. */
  end(): Request[] {
    this.#onEnd();
    return this.#parked.splice(0);
  }
}
