// Every size, count and time that both sides rely on, with a sentence for the number and the relations asserted.

import assert from 'node:assert/strict';

const KiB = 1024;
const MiB = 1024 * KiB;

/** Unit of checksums, allocation and atomicity. Everything on the data plane is a multiple of it. */
export const BLOCK_BYTES = 4 * KiB;
export const BLOCK_SHIFT = 12;

/** Object sizes: log2, 64 KiB to 32 MiB, 1 MiB unless an image says otherwise. */
export const OBJECT_ORDER_MIN = 16;
export const OBJECT_ORDER_MAX = 25;
export const OBJECT_ORDER_DEFAULT = 20;

/** Largest image: 2^32 objects of the smallest size would allow 256 TiB; NBD clients want less than 2^63 anyway. */
export const IMAGE_BYTES_MAX = 2 ** 32 * 2 ** OBJECT_ORDER_MIN;

/** Largest payload of one data-plane frame: one whole object of the largest size. */
export const FRAME_PAYLOAD_MAX = 2 ** OBJECT_ORDER_MAX;
/** Largest metadata part of a frame: block checksums of the largest payload, or a page of log entries or listings. */
export const FRAME_META_MAX = 1 * MiB;

/** NBD: largest READ or WRITE payload, the protocol's default maximum. */
export const NBD_PAYLOAD_MAX = 32 * MiB;

/** Requests one client session keeps in flight to all daemons together; more wait in the client. */
export const SESSION_INFLIGHT_MAX = 512;
/** Payload bytes of requests and answers in flight for one session: what a daemon and a client must hold at least. */
export const SESSION_INFLIGHT_BYTES_MAX = 64 * MiB;
/** Bytes of acked but unflushed writes that a client keeps to replay; past it the client flushes by itself. */
export const REPLAY_BYTES_MAX = 32 * MiB;

/** A daemon says hello to the master this often; silence for DOWN_AFTER_MS marks it down. */
export const HEARTBEAT_MS = 1_000;
export const DOWN_AFTER_MS = 4_000;
/**
 * A primary answers reads for this long after it asked the other members (cluster/daemon/lease.ts). A new primary may have
 * to wait it out, so it bounds how long a PG is away when its primary vanishes; members that are mute for so long hold up
 * its reads.
 */
export const LEASE_MS = 800;
/** How much faster one machine's monotonic clock may run than another's. */
export const CLOCK_DRIFT = 1.02;
/** A daemon that stays down this long is out: its data is copied elsewhere. */
export const OUT_AFTER_MS = 600_000;
/** A peer must finish its hello within this time. */
export const HANDSHAKE_MS = 10_000;
/** Map incrementals that the master keeps; a subscriber further behind gets a full map. */
export const MAP_INCREMENTALS_KEPT = 500;

assert(2 ** BLOCK_SHIFT === BLOCK_BYTES);
assert(2 ** OBJECT_ORDER_MIN >= BLOCK_BYTES);
assert((FRAME_PAYLOAD_MAX / BLOCK_BYTES) * 4 <= FRAME_META_MAX);
assert(FRAME_PAYLOAD_MAX <= SESSION_INFLIGHT_BYTES_MAX);
assert(DOWN_AFTER_MS >= 3 * HEARTBEAT_MS);
