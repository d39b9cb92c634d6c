// The PGs of a daemon: their state, the newest entries of their logs, and which objects are theirs.
//
// Entries stand encoded (48 bytes) in one ring per PG, found by sequence number, since these have no gaps. The ring
// grows by doubling up to a cap that shrinks as PGs get many; then the oldest entry gives way and the tail moves on.
// What makes this durable is the store's log, which holds the same entries; here is memory only.

import type { Version } from '../../proto/ids.ts';
import { PG_LOG_ENTRIES_MAX, PG_LOG_ENTRIES_MIN, PG_LOG_ENTRIES_TOTAL } from './limits.ts';
import type { StoredObject } from './objects.ts';
import type { LogRecord } from './record.ts';
import type { EntryOp, LogEntry, PgInfo } from './store.ts';

const ENTRY_BYTES = 48;
const ENTRIES_AT_FIRST = 16;
/** Sessions remembered per PG before the memory is made anew from the entries. */
const SESSIONS_MAX = 1024;

export class PgState {
  readonly pg: number;
  les = 0;
  complete = true;
  lastSince = 0;
  lastSeq = 0;
  tailSince = 0;
  tailSeq = 0;
  readonly objects = new Set<StoredObject>();
  /** Blocks that the objects hold. */
  blocks = 0;
  /** Slot of an entry: seq modulo capacity. */
  private ring: Buffer | null = null;
  private capacity = 0;
  /** Per session the highest request number seen: a newer request is known to be new without a search. */
  private newestRequest = new Map<number, number>();

  constructor(pg: number) {
    this.pg = pg;
  }

  info(): PgInfo {
    return {
      les: this.les,
      complete: this.complete,
      last: { since: this.lastSince, seq: this.lastSeq },
      tail: { since: this.tailSince, seq: this.tailSeq },
    };
  }

  /** Takes the entry that a record describes; the record's seq is the last one's + 1. */
  push(record: LogRecord, entriesMax: number): void {
    const count = record.seq - this.tailSeq;
    if (count > this.capacity && this.capacity < entriesMax) this.grow(entriesMax);
    while (this.lastSeq - this.tailSeq >= Math.min(this.capacity, entriesMax)) this.dropOldest();
    const ring = this.ring!;
    const at = (record.seq % this.capacity) * ENTRY_BYTES;
    ring[at] = record.op;
    ring[at + 1] = record.order;
    ring.writeUInt32LE(record.since, at + 4);
    ring.writeUInt32LE(record.image, at + 8);
    ring.writeUInt32LE(record.object, at + 12);
    ring.writeUInt32LE(record.offset, at + 16);
    ring.writeUInt32LE(record.length, at + 20);
    ring.writeDoubleLE(record.session, at + 24);
    ring.writeDoubleLE(record.sessionSeq, at + 32);
    this.lastSince = record.since;
    this.lastSeq = record.seq;
    this.remember(record.session, record.sessionSeq);
  }

  /** The log is empty and ends at the version. */
  reset(since: number, seq: number): void {
    this.lastSince = since;
    this.lastSeq = seq;
    this.tailSince = since;
    this.tailSeq = seq;
    this.newestRequest.clear();
  }

  /** Ends the log at a version that it holds; one that it does not hold (older than all of them) empties it. */
  truncate(since: number, seq: number): void {
    if (seq <= this.tailSeq || seq > this.lastSeq) return this.reset(since, seq);
    this.lastSince = since;
    this.lastSeq = seq;
  }

  holds(version: Version): boolean {
    if (version.seq === this.tailSeq) return version.since === this.tailSince;
    return version.seq > this.tailSeq && version.seq <= this.lastSeq && this.sinceOf(version.seq) === version.since;
  }

  after(version: Version): LogEntry[] | null {
    if (!this.holds(version)) return null;
    const entries: LogEntry[] = [];
    for (let seq = version.seq + 1; seq <= this.lastSeq; seq++) entries.push(this.entry(seq));
    return entries;
  }

  findRequest(session: number, sessionSeq: number): Version | null {
    const newest = this.newestRequest.get(session);
    if (newest === undefined || sessionSeq > newest) return null;
    for (let seq = this.lastSeq; seq > this.tailSeq; seq--) {
      const at = (seq % this.capacity) * ENTRY_BYTES;
      if (this.ring!.readDoubleLE(at + 32) === sessionSeq && this.ring!.readDoubleLE(at + 24) === session)
        return { since: this.sinceOf(seq), seq };
    }
    return null;
  }

  private entry(seq: number): LogEntry {
    const ring = this.ring!;
    const at = (seq % this.capacity) * ENTRY_BYTES;
    return {
      pg: this.pg,
      version: { since: ring.readUInt32LE(at + 4), seq },
      op: ring[at]! as EntryOp,
      image: ring.readUInt32LE(at + 8),
      object: ring.readUInt32LE(at + 12),
      order: ring[at + 1]!,
      offset: ring.readUInt32LE(at + 16),
      length: ring.readUInt32LE(at + 20),
      session: ring.readDoubleLE(at + 24),
      sessionSeq: ring.readDoubleLE(at + 32),
    };
  }

  private sinceOf(seq: number): number {
    return this.ring!.readUInt32LE((seq % this.capacity) * ENTRY_BYTES + 4);
  }

  private dropOldest(): void {
    this.tailSeq++;
    this.tailSince = this.sinceOf(this.tailSeq);
  }

  private grow(entriesMax: number): void {
    const old = this.ring;
    const oldCapacity = this.capacity;
    this.capacity = Math.min(entriesMax, Math.max(ENTRIES_AT_FIRST, oldCapacity * 2));
    this.ring = Buffer.allocUnsafeSlow(this.capacity * ENTRY_BYTES);
    for (let seq = this.tailSeq + 1; seq <= this.lastSeq; seq++) {
      const from = (seq % oldCapacity) * ENTRY_BYTES;
      old!.copy(this.ring, (seq % this.capacity) * ENTRY_BYTES, from, from + ENTRY_BYTES);
    }
  }

  private remember(session: number, sessionSeq: number): void {
    const newest = this.newestRequest.get(session);
    if (newest !== undefined && newest >= sessionSeq) return;
    this.newestRequest.set(session, sessionSeq);
    if (this.newestRequest.size <= SESSIONS_MAX) return;
    this.newestRequest = new Map();
    for (let seq = this.tailSeq + 1; seq <= this.lastSeq; seq++) {
      const { session, sessionSeq } = this.entry(seq);
      this.newestRequest.set(session, Math.max(sessionSeq, this.newestRequest.get(session) ?? 0));
    }
  }
}

export class PgTable {
  private readonly states = new Map<number, PgState>();
  /** Entries that one PG may keep now. */
  entriesMax = PG_LOG_ENTRIES_MAX;

  get(pg: number): PgState | undefined {
    return this.states.get(pg);
  }

  take(pg: number): PgState {
    let state = this.states.get(pg);
    if (state === undefined) {
      state = new PgState(pg);
      this.states.set(pg, state);
      const share = Math.floor(PG_LOG_ENTRIES_TOTAL / this.states.size);
      this.entriesMax = Math.max(PG_LOG_ENTRIES_MIN, Math.min(PG_LOG_ENTRIES_MAX, share));
    }
    return state;
  }

  get size(): number {
    return this.states.size;
  }

  all(): Iterable<PgState> {
    return this.states.values();
  }

  ids(): number[] {
    return [...this.states.keys()];
  }
}
