// The data plane's frame: a fixed 96-byte header, then `meta`, then `payload`.
//
// Header, little endian:
//   0 magic u32 | 4 version u8 | 5 op u8 | 6 flags u16 | 8 status u16 | 10 order u8 | 11 zero u8 | 12 request u32
//  16 session u32 | 20 epoch u32 | 24 pg u32 | 28 image u32 | 32 object u32 | 36 fence u32
//  40 offset u32 | 44 length u32 | 48 seq u64 | 56 since u32 | 60 metaBytes u32 | 64 pgSeq u64
//  72 payloadBytes u32 | 76 metaChecksum u32 | 80 zero 12 bytes | 92 headerChecksum u32 (xxh32 of bytes 0 to 91)
//
// The header is believed only after its checksum; `meta` is covered by metaChecksum. `payload` is whole 4 KiB blocks
// and is covered by the block checksums in `meta` (proto/checksum.ts), which whoever made the data computed: the frame
// layer moves payload without looking at it. Replies carry the request's number and the sender's epoch.

import { hashBytes } from './checksum.ts';
import type { Epoch, ImageId, PgId, SessionId } from './ids.ts';
import { FRAME_META_MAX, FRAME_PAYLOAD_MAX } from './limits.ts';

export const FRAME_MAGIC = 0x4c485341; // "ASHL"
export const FRAME_VERSION = 1;
export const HEADER_BYTES = 96;

/** Operations. A reply has the request's op and the REPLY flag. Meta and payload of each are described in README.md. */
export const Op = {
  HELLO: 1,
  READ: 2,
  WRITE: 3,
  ZERO: 4,
  DELETE: 5,
  /** Which blocks of an object hold data: reply meta is a bitmap, one bit per block. */
  STATUS: 6,
  /** Put everything this daemon has acked on stable storage. */
  SYNC: 7,
  /** List the objects of an image in a PG. */
  LIST: 8,
  /** Are you there? Answered at once, whatever else waits. */
  PING: 9,
  /** Primary to member: apply this log entry. */
  REPLICATE: 16,
  /** Primary to member while peering: what do you have? */
  PG_QUERY: 17,
  /** Primary to member while peering: your log entries after a version. */
  PG_LOG: 18,
  /** Primary to member while peering: (object, version) of everything you have. */
  PG_LIST: 19,
  /** Primary to member: the interval is on; here is what your log lacks. */
  PG_ACTIVATE: 20,
  /** Primary to member: content of an object that the member misses. */
  PG_PUSH: 21,
  /** Primary to member: nothing is missing any more. */
  PG_COMPLETE: 22,
  /** Daemon to daemon: let me answer reads for a while (cluster/daemon/lease.ts). */
  LEASE: 28,
  /** Primary to member: a range of an object as you have it, to prove or disprove another copy. */
  PG_READ: 23,
  /** Primary to member: (object, version, digest of its checksums) of everything you have. */
  PG_SCRUB: 24,
  /** Primary to member: read a range of an object and say which blocks fail their checksums. */
  PG_VERIFY: 25,
} as const;
export type Op = (typeof Op)[keyof typeof Op];
const OPS_KNOWN = new Set<number>(Object.values(Op));

export const Flag = {
  REPLY: 1,
  /** The client sent this request before and knows no answer: look in the log before applying it. */
  RETRY: 2,
  /** Reply only when it is on stable storage of every member. */
  FUA: 4,
  /** READ reply: the whole range holds no data; there is no payload. */
  HOLE: 8,
  /** Reply: this member has little space left; the primary should refuse writes that need more. */
  FULL: 16,
  /** PG_PUSH: first and last frame of an object. */
  FIRST: 32,
  LAST: 64,
  /** READ: what came before failed its checksums, so the daemon is to check its own blocks. */
  VERIFY: 128,
} as const;

export interface Frame {
  op: Op;
  flags: number;
  /** wireStatus() of a reply; 0 in requests. */
  status: number;
  /** log2 of the object size. */
  order: number;
  /** Chosen by whoever asks; unique among its requests in flight on one connection. */
  request: number;
  session: SessionId;
  /** The newest map epoch the sender knows. */
  epoch: Epoch;
  pg: PgId;
  image: ImageId;
  object: number;
  /** The writer's lock epoch for the image. */
  fence: number;
  /** Bytes into the object, and how many. */
  offset: number;
  length: number;
  /** The session's sequence number of a write. */
  seq: number;
  /** The interval a message between members belongs to; in a write's reply, the interval that committed it. */
  since: Epoch;
  /** The PG's sequence number of a log entry. */
  pgSeq: number;
  meta: Buffer | null;
  payload: Buffer | null;
  /** Not on the wire: nobody needs the payload once it is sent (buffer-pool.ts). */
  givePayload: boolean;
}

/** A frame with every field at its zero, for the caller to fill: one shape for all, so the engine keeps it fast. */
export function newFrame(op: Op): Frame {
  return {
    op,
    flags: 0,
    status: 0,
    order: 0,
    request: 0,
    session: 0,
    epoch: 0,
    pg: 0,
    image: 0,
    object: 0,
    fence: 0,
    offset: 0,
    length: 0,
    seq: 0,
    since: 0,
    pgSeq: 0,
    meta: null,
    payload: null,
    givePayload: false,
  };
}

/** The reply to `request`, with its op, number, place and PG. */
export function replyTo(request: Frame, status: number, epoch: Epoch): Frame {
  const reply = newFrame(request.op);
  reply.flags = Flag.REPLY;
  reply.status = status;
  reply.request = request.request;
  reply.epoch = epoch;
  reply.pg = request.pg;
  reply.image = request.image;
  reply.object = request.object;
  reply.offset = request.offset;
  reply.length = request.length;
  return reply;
}

/** Writes the header of `frame` into `target` at `at`. */
export function encodeHeader(target: Buffer, at: number, frame: Frame): void {
  target.writeUInt32LE(FRAME_MAGIC, at);
  target[at + 4] = FRAME_VERSION;
  target[at + 5] = frame.op;
  target.writeUInt16LE(frame.flags, at + 6);
  target.writeUInt16LE(frame.status, at + 8);
  target[at + 10] = frame.order;
  target[at + 11] = 0;
  target.writeUInt32LE(frame.request, at + 12);
  target.writeUInt32LE(frame.session, at + 16);
  target.writeUInt32LE(frame.epoch, at + 20);
  target.writeUInt32LE(frame.pg, at + 24);
  target.writeUInt32LE(frame.image, at + 28);
  target.writeUInt32LE(frame.object, at + 32);
  target.writeUInt32LE(frame.fence, at + 36);
  target.writeUInt32LE(frame.offset, at + 40);
  target.writeUInt32LE(frame.length, at + 44);
  writeU64(target, frame.seq, at + 48);
  target.writeUInt32LE(frame.since, at + 56);
  target.writeUInt32LE(frame.meta === null ? 0 : frame.meta.length, at + 60);
  writeU64(target, frame.pgSeq, at + 64);
  target.writeUInt32LE(frame.payload === null ? 0 : frame.payload.length, at + 72);
  target.writeUInt32LE(frame.meta === null ? 0 : hashBytes(frame.meta), at + 76);
  target.writeUInt32LE(0, at + 80);
  target.writeUInt32LE(0, at + 84);
  target.writeUInt32LE(0, at + 88);
  target.writeUInt32LE(hashBytes(target, at, at + 92), at + 92);
}

/** Why the 96 bytes at `at` are not a header that we speak, or null if they are. */
export function invalidHeader(from: Buffer, at: number): string | null {
  if (from.readUInt32LE(at) !== FRAME_MAGIC) return 'not an Ashlar frame';
  if (from.readUInt32LE(at + 92) !== hashBytes(from, at, at + 92)) return 'header checksum is wrong';
  if (from[at + 4] !== FRAME_VERSION) return `frame version ${from[at + 4]}, this side speaks ${FRAME_VERSION}`;
  if (!OPS_KNOWN.has(from[at + 5]!)) return `unknown operation ${from[at + 5]}`;
  // A sequence number that is none of ours would read as NaN, and NaN passes comparisons that it should fail.
  if (Number.isNaN(readU64(from, at + 48)) || Number.isNaN(readU64(from, at + 64))) return 'number above 2^53 - 1';
  if (metaBytesAt(from, at) > FRAME_META_MAX) return `meta of ${metaBytesAt(from, at)} bytes`;
  const payload = payloadBytesAt(from, at);
  if (payload > FRAME_PAYLOAD_MAX) return `payload of ${payload} bytes`;
  return null;
}
export const metaBytesAt = (from: Buffer, at: number): number => from.readUInt32LE(at + 60);
export const payloadBytesAt = (from: Buffer, at: number): number => from.readUInt32LE(at + 72);
export const metaChecksumAt = (from: Buffer, at: number): number => from.readUInt32LE(at + 76);

/** The header at `at`, already found valid, with its parts attached. */
export function decodeFrame(from: Buffer, at: number, meta: Buffer | null, payload: Buffer | null): Frame {
  return {
    op: from[at + 5] as Op,
    flags: from.readUInt16LE(at + 6),
    status: from.readUInt16LE(at + 8),
    order: from[at + 10]!,
    request: from.readUInt32LE(at + 12),
    session: from.readUInt32LE(at + 16),
    epoch: from.readUInt32LE(at + 20),
    pg: from.readUInt32LE(at + 24),
    image: from.readUInt32LE(at + 28),
    object: from.readUInt32LE(at + 32),
    fence: from.readUInt32LE(at + 36),
    offset: from.readUInt32LE(at + 40),
    length: from.readUInt32LE(at + 44),
    seq: readU64(from, at + 48),
    since: from.readUInt32LE(at + 56),
    pgSeq: readU64(from, at + 64),
    meta,
    payload,
    givePayload: false,
  };
}

/** 64-bit little endian as a Number. A value above 2^53 - 1 can't be ours: it reads as NaN, for the caller to refuse. */
export function readU64(from: Buffer, at: number): number {
  const high = from.readUInt32LE(at + 4);
  return high < 2 ** 21 ? high * 2 ** 32 + from.readUInt32LE(at) : Number.NaN;
}
export function writeU64(target: Buffer, value: number, at: number): void {
  target.writeUInt32LE(value % 2 ** 32, at);
  target.writeUInt32LE(Math.floor(value / 2 ** 32), at + 4);
}
