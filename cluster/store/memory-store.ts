// The store in memory: no disk, no crash to survive, as plain as can be. It is the reference that the disk store is
// compared with, and what a simulation uses where disks are not the point.
//
// Objects are arrays of blocks; an object exists exactly while it holds a block. Payloads are copied on the way in and
// out, so nobody sees a buffer change. Whoever keeps this object after its daemon "died" has a disk that lost nothing.

import { NO_DATA } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { objectKey, sameVersion, VERSION_ZERO, type Version } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { Clock } from '../../proto/ports.ts';
import { checkEntry, checkOrder, checkRecovered, invalidExtent, invalidSuccessor } from './check.ts';
import { PG_LOG_ENTRIES_MAX, RESERVE_SHARE } from './limits.ts';
import {
  type Done,
  EntryOp,
  type LogEntry,
  type ObjectInfo,
  type PgInfo,
  type ReadDone,
  type Recovered,
  type Store,
} from './store.ts';

interface MemoryObject {
  readonly pg: number;
  readonly image: number;
  readonly object: number;
  readonly order: number;
  version: Version;
  blocks: (Buffer | null)[];
  checks: Uint32Array;
  allocated: number;
}

interface MemoryPg {
  les: number;
  complete: boolean;
  last: Version;
  tail: Version;
  entries: LogEntry[];
  objects: Set<MemoryObject>;
}

export interface MemoryStoreOptions {
  /** Bytes of blocks it may hold; unbounded if left out. */
  capacityBytes?: number;
  logEntriesMax?: number;
}

export function createMemoryStore(clock: Clock, options: MemoryStoreOptions = {}): Store {
  return new MemoryStore(clock, options);
}

class MemoryStore implements Store {
  private readonly clock: Clock;
  private readonly capacityBytes: number;
  private readonly logEntriesMax: number;
  private readonly index = new Map<number, MemoryObject>();
  private readonly groups = new Map<number, MemoryPg>();
  private usedBytes = 0;

  constructor(clock: Clock, options: MemoryStoreOptions) {
    this.clock = clock;
    this.capacityBytes = options.capacityBytes ?? Number.POSITIVE_INFINITY;
    this.logEntriesMax = options.logEntriesMax ?? PG_LOG_ENTRIES_MAX;
  }

  append(entry: LogEntry, payload: Buffer | null, checks: Buffer | null, reserve: boolean, done: Done): void {
    checkEntry(entry, payload, checks, this.pgInfo(entry.pg).last);
    const known = this.index.get(objectKey(entry.image, entry.object));
    if (known !== undefined) checkOrder(known.order, entry.order);
    if (entry.op === EntryOp.WRITE) {
      this.makeRoom(known, entry.offset, entry.length, reserve);
      const object = known ?? this.create(entry.pg, entry.image, entry.object, entry.order);
      this.fill(object, entry.offset, payload, checks!);
      object.version = entry.version;
    } else if (known !== undefined) {
      if (entry.op === EntryOp.DELETE) this.remove(known);
      else {
        this.clear(known, entry.offset, entry.length);
        known.version = entry.version;
        if (known.allocated === 0) this.remove(known);
      }
    }
    this.log(this.group(entry.pg), entry);
    this.clock.soon(() => done(null));
  }

  sync(done: Done): void {
    this.clock.soon(() => done(null));
  }

  read(image: number, object: number, order: number, offset: number, length: number, done: ReadDone): void {
    const known = this.index.get(objectKey(image, object));
    const why = invalidExtent(image, object, order, offset, length);
    if (why !== null || (known !== undefined && known.order !== order))
      return done(new StorageError('INVALID', `read: ${why ?? 'the object has another size'}`), null, null);
    const count = length / BLOCK_BYTES;
    const first = offset / BLOCK_BYTES;
    const checks = Buffer.alloc(count * 4);
    let payload: Buffer | null = null;
    for (let i = 0; known !== undefined && i < count; i++) {
      const block = known.blocks[first + i];
      if (!block) continue;
      payload ??= Buffer.alloc(length);
      block.copy(payload, i * BLOCK_BYTES);
      checks.writeUInt32LE(known.checks[first + i]!, i * 4);
    }
    done(null, checks, payload);
  }

  allocation(image: number, object: number): Buffer | null {
    const known = this.index.get(objectKey(image, object));
    if (known === undefined) return null;
    const bits = Buffer.alloc(Math.ceil(known.blocks.length / 8));
    known.blocks.forEach((block, i) => {
      if (block !== null) bits[i >> 3]! |= 1 << (i & 7);
    });
    return bits;
  }

  checksums(image: number, object: number): Buffer | null {
    const known = this.index.get(objectKey(image, object));
    if (known === undefined) return null;
    const checks = Buffer.alloc(known.checks.length * 4);
    known.checks.forEach((check, i) => {
      checks.writeUInt32LE(check, i * 4);
    });
    return checks;
  }

  pgInfo(pg: number): PgInfo {
    const known = this.groups.get(pg);
    if (known === undefined) return { les: 0, complete: true, last: VERSION_ZERO, tail: VERSION_ZERO };
    return { les: known.les, complete: known.complete, last: known.last, tail: known.tail };
  }

  pgs(): number[] {
    return [...this.groups.keys()];
  }

  setPg(pg: number, les: number, complete: boolean): void {
    const group = this.group(pg);
    group.les = les;
    group.complete = complete;
  }

  logAfter(pg: number, version: Version): LogEntry[] | null {
    const group = this.groups.get(pg);
    if (group === undefined) return sameVersion(version, VERSION_ZERO) ? [] : null;
    if (sameVersion(version, group.tail)) return [...group.entries];
    const at = group.entries.findIndex((entry) => sameVersion(entry.version, version));
    return at < 0 ? null : group.entries.slice(at + 1);
  }

  findRequest(pg: number, session: number, sessionSeq: number): Version | null {
    const entries = this.groups.get(pg)?.entries ?? [];
    const found = entries.findLast((entry) => entry.session === session && entry.sessionSeq === sessionSeq);
    return found?.version ?? null;
  }

  mergeLog(pg: number, entries: readonly LogEntry[]): void {
    const group = this.group(pg);
    let { last } = group;
    for (const { version } of entries) {
      const why = invalidSuccessor(last, version);
      if (why !== null) throw new StorageError('INVALID', `mergeLog: ${why}`);
      last = version;
    }
    for (const entry of entries) this.log(group, entry);
  }

  resetLog(pg: number, last: Version): void {
    const group = this.group(pg);
    group.entries = [];
    group.tail = last;
    group.last = last;
  }

  truncateLog(pg: number, last: Version): void {
    const group = this.group(pg);
    const at = group.entries.findIndex((entry) => sameVersion(entry.version, last));
    if (at < 0 && !sameVersion(group.tail, last))
      throw new StorageError('INVALID', `truncateLog: PG ${pg} does not hold ${last.since}'${last.seq}`);
    group.entries.length = at + 1;
    group.last = last;
  }

  objects(pg: number): Iterable<ObjectInfo> {
    const members = this.groups.get(pg)?.objects ?? [];
    return [...members].map(({ image, object, order, version }) => ({ image, object, order, version }));
  }

  objectVersion(image: number, object: number): Version {
    return this.index.get(objectKey(image, object))?.version ?? VERSION_ZERO;
  }

  pgUsage(pg: number): { objects: number; bytes: number } {
    const members = this.groups.get(pg)?.objects ?? new Set<MemoryObject>();
    let blocks = 0;
    for (const member of members) blocks += member.allocated;
    return { objects: members.size, bytes: blocks * BLOCK_BYTES };
  }

  recover(piece: Recovered, payload: Buffer | null, checks: Buffer | null, done: Done): void {
    checkRecovered(piece, payload, checks);
    const known = this.index.get(objectKey(piece.image, piece.object));
    if (known !== undefined && !piece.replace) checkOrder(known.order, piece.order);
    this.makeRoom(piece.replace ? undefined : known, piece.offset, payload === null ? 0 : piece.length, false);
    if (known !== undefined && piece.replace) this.remove(known);
    const object =
      this.index.get(objectKey(piece.image, piece.object)) ??
      this.create(piece.pg, piece.image, piece.object, piece.order);
    if (piece.length > 0) this.fill(object, piece.offset, payload, checks!);
    object.version = piece.version;
    if (object.allocated === 0) this.remove(object);
    this.clock.soon(() => done(null));
  }

  recoverDelete(pg: number, image: number, object: number, done: Done): void {
    this.group(pg);
    const known = this.index.get(objectKey(image, object));
    if (known !== undefined) this.remove(known);
    this.clock.soon(() => done(null));
  }

  space(): { usedBytes: number; freeBytes: number; full: boolean } {
    const freeBytes = Math.max(0, this.capacityBytes - this.reserveBytes() - this.usedBytes);
    return { usedBytes: this.usedBytes, freeBytes, full: freeBytes === 0 };
  }

  close(done: Done): void {
    this.clock.soon(() => done(null));
  }

  private reserveBytes(): number {
    return Number.isFinite(this.capacityBytes) ? this.capacityBytes / RESERVE_SHARE : 0;
  }

  private makeRoom(object: MemoryObject | undefined, offset: number, length: number, reserve: boolean): void {
    let need = 0;
    for (let at = offset; at < offset + length; at += BLOCK_BYTES)
      if (!object?.blocks[at / BLOCK_BYTES]) need += BLOCK_BYTES;
    if (need > 0 && this.usedBytes + need > this.capacityBytes - (reserve ? 0 : this.reserveBytes()))
      throw new StorageError('NO_SPACE', `${need} bytes asked, ${this.space().freeBytes} free`);
  }

  private group(pg: number): MemoryPg {
    let group = this.groups.get(pg);
    if (group === undefined) {
      group = { les: 0, complete: true, last: VERSION_ZERO, tail: VERSION_ZERO, entries: [], objects: new Set() };
      this.groups.set(pg, group);
    }
    return group;
  }

  private log(group: MemoryPg, entry: LogEntry): void {
    group.entries.push({ ...entry, version: { ...entry.version } });
    group.last = entry.version;
    if (group.entries.length > this.logEntriesMax) group.tail = group.entries.shift()!.version;
  }

  private create(pg: number, image: number, object: number, order: number): MemoryObject {
    const count = 2 ** order / BLOCK_BYTES;
    const blocks = new Array<Buffer | null>(count).fill(null);
    const checks = new Uint32Array(count);
    const created = { pg, image, object, order, version: VERSION_ZERO, blocks, checks, allocated: 0 };
    this.index.set(objectKey(image, object), created);
    this.group(pg).objects.add(created);
    return created;
  }

  private remove(object: MemoryObject): void {
    this.clear(object, 0, 2 ** object.order);
    this.index.delete(objectKey(object.image, object.object));
    this.groups.get(object.pg)!.objects.delete(object);
  }

  private fill(object: MemoryObject, offset: number, payload: Buffer | null, checks: Buffer): void {
    this.clear(object, offset, checks.length * (BLOCK_BYTES / 4));
    for (let i = 0; i < checks.length / 4; i++) {
      const check = checks.readUInt32LE(i * 4);
      if (check === NO_DATA) continue;
      const at = offset / BLOCK_BYTES + i;
      object.blocks[at] = Buffer.from(payload!.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES));
      object.checks[at] = check;
      object.allocated++;
      this.usedBytes += BLOCK_BYTES;
    }
  }

  private clear(object: MemoryObject, offset: number, length: number): void {
    for (let at = offset / BLOCK_BYTES; at < (offset + length) / BLOCK_BYTES; at++) {
      if (object.blocks[at] === null) continue;
      object.blocks[at] = null;
      object.checks[at] = NO_DATA;
      object.allocated--;
      this.usedBytes -= BLOCK_BYTES;
    }
  }
}
