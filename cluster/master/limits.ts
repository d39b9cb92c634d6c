// The master's own times and counts; those that others rely on stand in proto/limits.ts.

import assert from 'node:assert/strict';
import { DOWN_AFTER_MS, HEARTBEAT_MS } from '../../proto/limits.ts';

/** How often silence, reports and waiting are looked at. Bounds how late "down" is noticed. */
export const TICK_MS = 500;

/** A lock is granted when all up daemons obey its fence; a dead one is marked down before this, a mute one is named. */
export const FENCE_ACK_MS = 6_000;

/** A reported daemon whose last heartbeat is older than this is mute to the master too: the report is believed. */
export const MUTE_MS = 1.5 * HEARTBEAT_MS;
/** Reports of one reporter further apart than this are not one continuous complaint. */
export const COMPLAINT_GAP_MS = 3_000;
/** One reporter alone must complain for this long about a daemon that the master hears well. */
export const COMPLAINT_MS = DOWN_AFTER_MS;
/** A daemon marked down although the master heard it comes back after this, twice as long each time, up to the most. */
export const HOLD_MS = 5_000;
export const HOLD_MOST_MS = 300_000;
/** The hold starts again at HOLD_MS when nobody complained successfully for this long. */
export const HOLD_FORGET_MS = 600_000;

/**
 * A PG whose primary asked to be replaced keeps the one it preferred for at least this long, twice as long each time it
 * asks again, up to the most: under constant writes the intended primary may lack the newest one every time.
 */
export const PREFER_MS = 10_000;
export const PREFER_MOST_MS = 600_000;

/** After a restart of the master, daemons that were up and sessions that hold locks have this long to come back. */
export const GRACE_MS = DOWN_AFTER_MS;

/** Sessions remembered with their names; past it those that are not subscribed are forgotten. */
export const SESSIONS_REMEMBERED = 10_000;

/** Every PG is scrubbed so often: comparing costs little, and reading everything finds what nobody else reads. */
export const SCRUB_LIGHT_EVERY_MS = 24 * 3_600_000;
export const SCRUB_DEEP_EVERY_MS = 7 * SCRUB_LIGHT_EVERY_MS;

/** Longest names of images, pools, failure domains, sessions and hosts, in characters. */
export const NAME_LENGTH_MAX = 256;
/** Copies of an object; more have no use that another pool would not serve better. */
export const REPLICAS_MAX = 8;
/** As proto/ids.ts says of DaemonId. */
export const DAEMON_ID_MAX = 65_535;
/** Filled more than this, a disk is nearly full, and health says so: there is time to add one. */
export const NEARFULL_SHARE = 0.85;
/** What is moved to a disk must leave it below this. */
export const BACKFILL_FULL_SHARE = 0.9;
/** How often moves that wait for room are looked at again. */
export const ROOM_AGAIN_MS = 5_000;
/** Recovery's speed is taken over at least so long, and this much of the one before stays in it: about 5 s in all. */
export const RECOVERY_SPEED_SAMPLE_MS = 900;
export const RECOVERY_SPEED_KEPT = 0.7;
/** Weights are relative: any unit will do, such as gigabytes. */
export const WEIGHT_MAX = 1_000_000;
/** PGs a new pool may have: a full map must fit in one message. */
export const POOL_PGS_MAX = 16_384;

/** Masters that share a store: how long the lead outlives its leader. The rest of the 5 s in which another acts. */
export const LEASE_MS = 3_000;
/** A leader stops this much before its lease can end: its own timers may be late. */
export const LEASE_MARGIN_MS = 500;
export const RENEW_MS = 750;
/** Pause after a renewal that had no answer. */
export const RENEW_RETRY_MS = 200;
/** How often one who does not lead looks whether somebody does. */
export const FOLLOW_MS = 200;

assert(FENCE_ACK_MS > DOWN_AFTER_MS + TICK_MS);
assert(RENEW_MS + RENEW_RETRY_MS < LEASE_MS - LEASE_MARGIN_MS);
