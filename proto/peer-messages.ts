// The meta parts of frames between daemons, and the hello that opens every connection. All little endian.
//
//   log entry (44 bytes): since u32 | seq u64 | op u8 | order u8 | zero u16 | image u32 | object u32 | offset u32
//                         | length u32 | session u32 | sessionSeq u64      (the PG is the frame's)
//   PG_QUERY reply (32):  les u32 | complete u8 | zero 3 bytes | last since u32, seq u64 | tail since u32, seq u64
//                         | leases that are outstanding, 12 bytes each: since u32 | holder u32 | restMs u32
//   PG_LOG reply:         log entries, oldest first
//   PG_LIST reply (24 each, several frames, the last one flagged LAST):
//                         image u32 | object u32 | order u32 | version since u32, seq u64
//   PG_ACTIVATE request:  mode u8 | complete u8 | zero u16 | version since u32, seq u64 | log entries
//   REPLICATE request:    the entry's block checksums; entry fields ride in the frame's header, with `status` = op
//   LIST reply:           object numbers u32, several frames, the last one flagged LAST

import { StorageError } from './errors.ts';
import { readU64, writeU64 } from './frame.ts';
import type { DaemonId, Epoch, ImageId, PgId, SessionId, Version } from './ids.ts';
import { FRAME_META_MAX } from './limits.ts';

/** Version of what is said inside frames; both sides must speak the same. */
export const PROTOCOL_VERSION = 1;

/** Longest text in a hello. */
const HELLO_TEXT_MAX = 256;

/** Says who connects, to whom it believes to speak, and (in the reply) who answers. JSON in a HELLO's meta. */
export interface Hello {
  protocol: number;
  clusterId: string;
  role: 'client' | 'daemon';
  /** Daemon number or session number of the sender. */
  id: DaemonId | SessionId;
  uuid: string;
  bootId: string;
  /** Process that the sender means to reach. */
  toBootId: string;
  /** Grows with every connection that the sender's process opens: an older one that arrives late must not win. */
  connection: number;
}
export const encodeHello = (hello: Hello): Buffer => Buffer.from(JSON.stringify(hello));
/** Throws INVALID on anything but a hello. */
export function decodeHello(meta: Buffer | null): Hello {
  let hello: unknown;
  try {
    hello = JSON.parse(meta?.toString('utf8') ?? '');
  } catch (cause) {
    throw new StorageError('INVALID', 'hello is not JSON', cause);
  }
  if (typeof hello !== 'object' || hello === null) throw new StorageError('INVALID', 'hello is not an object');
  const fields = hello as Record<string, unknown>;
  for (const name of ['clusterId', 'uuid', 'bootId', 'toBootId']) {
    const text = fields[name];
    if (typeof text !== 'string') throw new StorageError('INVALID', `hello without ${name}`);
    if (text.length > HELLO_TEXT_MAX)
      throw new StorageError('INVALID', `hello with a ${name} of ${text.length} characters`);
  }
  if (fields.role !== 'client' && fields.role !== 'daemon')
    throw new StorageError('INVALID', 'hello with an unknown role');
  for (const name of ['id', 'protocol', 'connection'])
    if (!Number.isSafeInteger(fields[name])) throw new StorageError('INVALID', `hello without ${name}`);
  return fields as unknown as Hello;
}

/** One entry as it travels; the PG is the frame's. Same fields as the store's LogEntry. */
export interface WireEntry {
  readonly pg: PgId;
  readonly version: Version;
  readonly op: number;
  readonly image: ImageId;
  readonly object: number;
  readonly order: number;
  readonly offset: number;
  readonly length: number;
  readonly session: SessionId;
  readonly sessionSeq: number;
}
const ENTRY_BYTES = 44;

export function encodeEntries(
  entries: readonly WireEntry[],
  target = Buffer.alloc(entries.length * ENTRY_BYTES),
  start = 0,
): Buffer {
  let at = start;
  for (const entry of entries) {
    target.writeUInt32LE(entry.version.since, at);
    writeU64(target, entry.version.seq, at + 4);
    target[at + 12] = entry.op;
    target[at + 13] = entry.order;
    target.writeUInt32LE(entry.image, at + 16);
    target.writeUInt32LE(entry.object, at + 20);
    target.writeUInt32LE(entry.offset, at + 24);
    target.writeUInt32LE(entry.length, at + 28);
    target.writeUInt32LE(entry.session, at + 32);
    writeU64(target, entry.sessionSeq, at + 36);
    at += ENTRY_BYTES;
  }
  return target;
}

export function decodeEntries<E extends WireEntry>(pg: PgId, from: Buffer | null, start = 0): E[] {
  const entries: WireEntry[] = [];
  if (from === null) return [];
  if ((from.length - start) % ENTRY_BYTES !== 0) throw new StorageError('INVALID', 'log entries of a broken length');
  for (let at = start; at < from.length; at += ENTRY_BYTES)
    entries.push({
      pg,
      version: readVersion(from, at),
      op: from[at + 12]!,
      order: from[at + 13]!,
      image: from.readUInt32LE(at + 16),
      object: from.readUInt32LE(at + 20),
      offset: from.readUInt32LE(at + 24),
      length: from.readUInt32LE(at + 28),
      session: from.readUInt32LE(at + 32),
      sessionSeq: readSeq(from, at + 36),
    });
  return entries as E[];
}

export interface WirePgInfo {
  readonly les: Epoch;
  readonly complete: boolean;
  readonly last: Version;
  readonly tail: Version;
}
/** A read lease that a member granted to the primary of an earlier interval. */
export interface OldLease {
  readonly since: Epoch;
  /** 0: the member does not remember whom. */
  readonly holder: DaemonId;
  /** How much longer it holds, on the member's clock. */
  readonly restMs: number;
}
const INFO_BYTES = 32;
const LEASE_BYTES = 12;

export function encodePgInfo(info: WirePgInfo, leases: readonly OldLease[] = []): Buffer {
  const target = Buffer.alloc(INFO_BYTES + leases.length * LEASE_BYTES);
  target.writeUInt32LE(info.les, 0);
  target[4] = info.complete ? 1 : 0;
  writeVersion(target, info.last, 8);
  writeVersion(target, info.tail, 20);
  leases.forEach(({ since, holder, restMs }, i) => {
    const at = INFO_BYTES + i * LEASE_BYTES;
    target.writeUInt32LE(since, at);
    target.writeUInt32LE(holder, at + 4);
    target.writeUInt32LE(restMs, at + 8);
  });
  return target;
}
/** The leases at the end of a PG info that decodePgInfo() has accepted. */
export function decodeOldLeases(from: Buffer): OldLease[] {
  const leases: OldLease[] = [];
  for (let at = INFO_BYTES; at < from.length; at += LEASE_BYTES)
    leases.push({
      since: from.readUInt32LE(at),
      holder: from.readUInt32LE(at + 4),
      restMs: from.readUInt32LE(at + 8),
    });
  return leases;
}
export function decodePgInfo(from: Buffer | null): WirePgInfo {
  if (from === null || from.length < INFO_BYTES || (from.length - INFO_BYTES) % LEASE_BYTES !== 0)
    throw new StorageError('INVALID', 'PG info of a wrong length');
  return {
    les: from.readUInt32LE(0),
    complete: from[4] === 1,
    last: readVersion(from, 8),
    tail: readVersion(from, 20),
  };
}

export interface ListedObject {
  readonly image: ImageId;
  readonly object: number;
  readonly order: number;
  readonly version: Version;
}
const LISTED_BYTES = 24;
/** Listings per frame. */
export const LISTED_MAX = Math.floor(FRAME_META_MAX / LISTED_BYTES);
export function encodeListing(objects: readonly ListedObject[]): Buffer {
  const target = Buffer.alloc(objects.length * LISTED_BYTES);
  let at = 0;
  for (const { image, object, order, version } of objects) {
    target.writeUInt32LE(image, at);
    target.writeUInt32LE(object, at + 4);
    target.writeUInt32LE(order, at + 8);
    writeVersion(target, version, at + 12);
    at += LISTED_BYTES;
  }
  return target;
}
export function decodeListing(from: Buffer | null): ListedObject[] {
  const objects: ListedObject[] = [];
  if (from === null) return objects;
  if (from.length % LISTED_BYTES !== 0) throw new StorageError('INVALID', 'object listing of a broken length');
  for (let at = 0; at < from.length; at += LISTED_BYTES)
    objects.push({
      image: from.readUInt32LE(at),
      object: from.readUInt32LE(at + 4),
      order: from.readUInt32LE(at + 8),
      version: readVersion(from, at + 12),
    });
  return objects;
}

/**
 * What a member must do to its log before it takes the entries: nothing, forget those after `version` (they never
 * became real), or forget all and start anew at `version`.
 */
export type LogMode = 'keep' | 'truncate' | 'reset';
const LOG_MODES: readonly LogMode[] = ['keep', 'truncate', 'reset'];
export interface Activation<E extends WireEntry> {
  mode: LogMode;
  version: Version;
  /** Nothing is missing at this member. */
  complete: boolean;
  entries: E[];
}
export function encodeActivation(activation: Activation<WireEntry>): Buffer {
  const target = Buffer.alloc(16 + activation.entries.length * ENTRY_BYTES);
  target[0] = LOG_MODES.indexOf(activation.mode);
  target[1] = activation.complete ? 1 : 0;
  writeVersion(target, activation.version, 4);
  return encodeEntries(activation.entries, target, 16);
}
export function decodeActivation<E extends WireEntry>(pg: PgId, from: Buffer | null): Activation<E> {
  const mode = from === null || from.length < 16 ? undefined : LOG_MODES[from[0]!];
  if (from === null || mode === undefined) throw new StorageError('INVALID', 'activation is malformed');
  return { mode, complete: from[1] === 1, version: readVersion(from, 4), entries: decodeEntries<E>(pg, from, 16) };
}

function writeVersion(target: Buffer, version: Version, at: number): void {
  target.writeUInt32LE(version.since, at);
  writeU64(target, version.seq, at + 4);
}
function readVersion(from: Buffer, at: number): Version {
  return { since: from.readUInt32LE(at), seq: readSeq(from, at + 4) };
}
function readSeq(from: Buffer, at: number): number {
  const seq = readU64(from, at);
  if (Number.isNaN(seq)) throw new StorageError('INVALID', 'sequence number above 2^53 - 1');
  return seq;
}
