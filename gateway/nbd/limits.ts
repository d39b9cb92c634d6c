// What clients may take from the gateway. The codec's own limits (options, strings, payloads) stand in
// gateway/nbd-protocol-ts/limits.ts.

import assert from 'node:assert/strict';
import { NBD_PAYLOAD_MAX, OBJECT_ORDER_MAX } from '../../proto/limits.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

/** Clients at once; more are turned away at the door. */
export const CONNECTIONS_MAX = 1_024;
/** Connections that have not chosen an export yet: strangers, as far as anybody knows. */
export const HANDSHAKES_MAX = 100;
/** After the last word to a client, its own end of the connection may stay open this long. */
export const LINGER_MS = 1_000;
/** A stopping server waits this long for requests in flight before it cuts the connections. */
export const DRAIN_MS = 20_000;
/** TCP asks after a client that has been silent this long. */
export const KEEP_ALIVE_MS = 60_000;

/** Payload bytes of one connection that are in flight or not yet sent; past it, no more requests are read. */
export const INFLIGHT_BYTES_MAX = 32 * MiB;
/** Requests of one connection that are in flight; past it, no more are read. */
export const INFLIGHT_REQUESTS_MAX = 1_024;

/** The rest of a WRITE's data is read straight to its place if it is at least this long. */
export const READ_DIRECT_BYTES_MIN = 32 * KiB;

/** TRIM and WRITE_ZEROES make holes of this size at a time: a multiple of every object size. */
export const HOLE_PIECE_BYTES = 64 * MiB;
/** WRITE_ZEROES with NO_HOLE writes this much at a time. */
export const ZERO_PIECE_BYTES = 4 * MiB;
/** BLOCK_STATUS looks at this much; the client asks again behind it. */
export const STATUS_BYTES_MAX = 256 * MiB;
/** Failed requests that are logged in one second; the others are counted. */
export const FAILURE_LINES_PER_SECOND = 10;

export const PREFERRED_BLOCK_BYTES = 4 * KiB;

assert(HANDSHAKES_MAX <= CONNECTIONS_MAX);
assert(NBD_PAYLOAD_MAX <= INFLIGHT_BYTES_MAX);
assert(HOLE_PIECE_BYTES % 2 ** OBJECT_ORDER_MAX === 0);
assert(ZERO_PIECE_BYTES <= NBD_PAYLOAD_MAX);
