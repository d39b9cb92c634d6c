// What a storage daemon asks of its disk: a log of operations and the objects that they make.
//
// One append is atomic: after any crash it is there whole (data, checksums, version, log entry) or not at all, and if
// it is there, so is everything appended before it. Two backends implement this (disk-store.ts, memory-store.ts) and
// pass one conformance suite (conformance.ts).
//
// The store knows nothing of epochs' meaning, peers or clients. Its caller orders conflicting operations.

import type { Epoch, ImageId, PgId, SessionId, Version } from '../../proto/ids.ts';

/** What an entry does to its object. */
export const EntryOp = {
  /** Bytes [offset, offset + length) get the payload. */
  WRITE: 1,
  /** The blocks of [offset, offset + length) hold no data afterwards and read as zeros. */
  ZERO: 2,
  /** The object is gone. */
  DELETE: 3,
} as const;
export type EntryOp = (typeof EntryOp)[keyof typeof EntryOp];

/** One operation on one object, as the PG's log remembers it. offset and length are whole 4 KiB blocks. */
export interface LogEntry {
  readonly pg: PgId;
  readonly version: Version;
  readonly op: EntryOp;
  readonly image: ImageId;
  readonly object: number;
  /** log2 of the object size. */
  readonly order: number;
  readonly offset: number;
  readonly length: number;
  /** Who asked, and its number: finds a repeated request. */
  readonly session: SessionId;
  readonly sessionSeq: number;
}

/** What a daemon knows durably of one PG. A PG never heard of: {les: 0, complete: true, last: ZERO, tail: ZERO}. */
export interface PgInfo {
  /** The newest interval ("last epoch started") this daemon was activated in. */
  readonly les: Epoch;
  /** Has every object as of `last`; false from the moment a peering finds something missing until it is recovered. */
  readonly complete: boolean;
  /** Version of the newest entry. */
  readonly last: Version;
  /** The log holds every entry after this version (and none at or before it). */
  readonly tail: Version;
}

export interface ObjectInfo {
  readonly image: ImageId;
  readonly object: number;
  readonly order: number;
  readonly version: Version;
}

/** A piece of recovered content. It changes an object without being an entry of the log. */
export interface Recovered {
  readonly pg: PgId;
  readonly image: ImageId;
  readonly object: number;
  readonly order: number;
  /** Forget the object's present content first. */
  readonly replace: boolean;
  readonly offset: number;
  /** Bytes of payload, whole blocks; blocks whose checksum is NO_DATA become holes. May be 0. */
  readonly length: number;
  /**
   * The version the object has from now on. VERSION_ZERO until the last piece, so that a half-copied object equals
   * no real one.
   */
  readonly version: Version;
}

/** checks: u32 LE per block, NO_DATA for holes. payload: null if all of it is holes; else zeros where there is a hole. */
export type ReadDone = (error: Error | null, checks: Buffer | null, payload: Buffer | null) => void;
export type Done = (error: Error | null) => void;

export interface Store {
  // --- data path. Errors thrown: StorageError NO_SPACE (nothing changed), INVALID. A failed write or sync of the log
  // --- is fatal: `onFatal` is called once and no `done` is called any more.

  /**
   * Appends an entry and its data. `done` is called when it will survive the death of this process (it is in the page
   * cache), in append order; the new content is what read() sees from now on. Entries of a PG come with seq growing by 1.
   * @param payload the bytes of a WRITE, `entry.length` of them, not to be changed until `done`; null for other ops
   * @param checks one u32 LE per block, already verified against the payload
   * @param reserve may dip into the space kept for what must not fail: members' copies, zeroes, deletes
   */
  append(entry: LogEntry, payload: Buffer | null, checks: Buffer | null, reserve: boolean, done: Done): void;
  /** Everything whose `done` was called before this call is on stable storage when `done` is called. */
  sync(done: Done): void;
  /** Reads whole blocks. An absent object is a hole. May call `done` before it returns. Error: StorageError IO. */
  read(image: ImageId, object: number, order: number, offset: number, length: number, done: ReadDone): void;
  /** One bit per block of the object, least significant first, 1 = holds data; null for an absent object. */
  allocation(image: ImageId, object: number): Buffer | null;
  /** The checksums that the object's blocks must have, u32 LE each, without reading a block; null for an absent object. */
  checksums(image: ImageId, object: number): Buffer | null;

  // --- peering and recovery

  pgInfo(pg: PgId): PgInfo;
  /** PGs that this store knows anything of. */
  pgs(): PgId[];
  /** Sets les and complete; survives a power cut after the next sync. */
  setPg(pg: PgId, les: Epoch, complete: boolean): void;
  /** Entries after `version` in order, or null if the log no longer reaches back to it or does not hold it. */
  logAfter(pg: PgId, version: Version): LogEntry[] | null;
  /** Finds a client's request among the PG's entries: its version, or null. */
  findRequest(pg: PgId, session: SessionId, sessionSeq: number): Version | null;
  /** Takes entries that another member has, without data: objects keep their content and version. */
  mergeLog(pg: PgId, entries: readonly LogEntry[]): void;
  /** Forgets the PG's entries: the log is empty and ends at `last`. Drops entries that another history made void. */
  resetLog(pg: PgId, last: Version): void;
  /** Forgets the entries after `last`, which the log holds (or is its tail). Objects keep their content and version. */
  truncateLog(pg: PgId, last: Version): void;
  /** Every object of a PG, any order. */
  objects(pg: PgId): Iterable<ObjectInfo>;
  /** VERSION_ZERO if it is absent. */
  objectVersion(image: ImageId, object: number): Version;
  /** Objects of one PG and the bytes allocated in them, kept as counters. */
  pgUsage(pg: PgId): { objects: number; bytes: number };
  recover(piece: Recovered, payload: Buffer | null, checks: Buffer | null, done: Done): void;
  /** Removes an object that the authority does not have. */
  recoverDelete(pg: PgId, image: ImageId, object: number, done: Done): void;

  // --- life

  space(): { usedBytes: number; freeBytes: number; full: boolean };
  /** Syncs, writes a checkpoint and closes. */
  close(done: Done): void;
}
