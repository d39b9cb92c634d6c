// Who is alive: what the master hears from each storage daemon, kept in memory only.
//
// A daemon is up while its subscription is open, its heartbeats arrive, and it is not held down. It is marked down
//   - at once when the subscription breaks: its process died, or its machine refused the connection;
//   - after DOWN_AFTER_MS without a heartbeat: a stopped process or a dead machine;
//   - when its peers say so (reportFailure): at once if the master has not heard it for MUTE_MS either; or as soon as
//     two reporters agree; or, if one reporter alone complains, after COMPLAINT_MS of it. In the last two cases the
//     daemon does reach the master, so a bad link is the likely cause, and coming straight back would block its PGs
//     again: it is held down, for longer each time. A reporter that is down itself is not believed, so of two daemons
//     that accuse each other only one goes.
// This file says what should be; master.ts makes it durable.

import type { PgInterval, PgReport, SpaceReport } from '../../proto/control.ts';
import type { DaemonId, Epoch, PgId } from '../../proto/ids.ts';
import { DOWN_AFTER_MS } from '../../proto/limits.ts';
import { COMPLAINT_GAP_MS, COMPLAINT_MS, HOLD_FORGET_MS, HOLD_MOST_MS, HOLD_MS, MUTE_MS } from './limits.ts';
import type { Follower } from './publisher.ts';
import { Speed } from './recovery-status.ts';

export interface Presence {
  readonly id: DaemonId;
  /** The process that all of this is about. */
  bootId: string;
  /** Its subscription; null: none is open. */
  stream: Follower | null;
  /** The process that opened it. */
  streamBootId: string;
  /** When it was last heard: a heartbeat, or its subscription. */
  heardAt: number;
  /** Newest epoch it said it obeys. */
  ackedEpoch: Epoch;
  /** When it was last seen going down, or the master started; only meaningful while it is down. */
  downAt: number;
  /** Held down until then although it is heard. */
  heldUntil: number;
  holdMs: number;
  complaints: Map<DaemonId, { firstAt: number; lastAt: number }>;
  reports: Map<PgId, PgReport>;
  space: SpaceReport | null;
  /** The newest peering of each PG that it has spoken of. */
  readonly attempts: Map<PgId, number>;
  /** How fast it recovers others. */
  readonly speed: Speed;
}

export class Presences {
  readonly #byId = new Map<DaemonId, Presence>();

  /** @param now monotonic; the daemon counts as heard at that moment */
  of(id: DaemonId, bootId: string, now: number): Presence {
    let presence = this.#byId.get(id);
    if (presence === undefined) {
      presence = {
        id,
        bootId,
        stream: null,
        streamBootId: '',
        heardAt: now,
        ackedEpoch: 0,
        downAt: now,
        heldUntil: 0,
        holdMs: 0,
        complaints: new Map(),
        reports: new Map(),
        space: null,
        attempts: new Map(),
        speed: new Speed(),
      };
      this.#byId.set(id, presence);
    }
    if (presence.bootId !== bootId) {
      presence.bootId = bootId;
      presence.ackedEpoch = 0;
      presence.heldUntil = 0;
      presence.complaints.clear();
      presence.reports.clear();
      presence.attempts.clear();
    }
    return presence;
  }

  get(id: DaemonId): Presence | undefined {
    return this.#byId.get(id);
  }
  /** The daemon is no more. */
  forget(id: DaemonId): void {
    this.#byId.delete(id);
  }
  values(): Iterable<Presence> {
    return this.#byId.values();
  }
}

export const isSilent = (presence: Presence, now: number): boolean => now - presence.heardAt >= DOWN_AFTER_MS;
export const isHeld = (presence: Presence, now: number): boolean => now < presence.heldUntil;

/** Without what an earlier peering said than one that was heard already: calls may overtake each other. */
export function newestWords({ attempts }: Presence, pgs: readonly PgInterval[]): PgInterval[] {
  return pgs.filter(({ pg, attempt = 0 }) => {
    if (attempt < (attempts.get(pg) ?? 0)) return false;
    attempts.set(pg, attempt);
    return true;
  });
}

/**
 * A peer says that this daemon does not answer it. Returns why it must be marked down, or null if not yet.
 * @param reporters up daemons other than this one: whose complaints count
 */
export function complain(
  presence: Presence,
  reporter: DaemonId,
  isReporter: (daemon: DaemonId) => boolean,
  now: number,
): string | null {
  const { complaints } = presence;
  for (const [daemon, { lastAt }] of complaints)
    if (now - lastAt > COMPLAINT_GAP_MS || !isReporter(daemon)) complaints.delete(daemon);
  if (!isReporter(reporter)) return null;
  const complaint = complaints.get(reporter);
  if (complaint === undefined) complaints.set(reporter, { firstAt: now, lastAt: now });
  else complaint.lastAt = now;

  if (now - presence.heardAt > MUTE_MS) {
    complaints.clear();
    return `silent to daemon ${reporter} and to the master`;
  }
  const why =
    complaints.size >= 2
      ? `daemons ${[...complaints.keys()].join(' and ')} can't reach it`
      : complaint !== undefined && now - complaint.firstAt >= COMPLAINT_MS
        ? `daemon ${reporter} can't reach it for ${Math.round((now - complaint.firstAt) / 1000)} s`
        : null;
  if (why !== null) {
    complaints.clear();
    hold(presence, now);
  }
  return why;
}

function hold(presence: Presence, now: number): void {
  const forgotten = now - presence.heldUntil > HOLD_FORGET_MS;
  presence.holdMs = presence.holdMs === 0 || forgotten ? HOLD_MS : Math.min(2 * presence.holdMs, HOLD_MOST_MS);
  presence.heldUntil = now + presence.holdMs;
}
