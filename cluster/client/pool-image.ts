// An open image on the pool: cuts requests into extents of objects, keeps changes of the same blocks in order, and
// remembers what is not flushed.
//
//   write -> extents -> Mutation each (block lock, read-modify-write) -> ObjectRouter -> Unflushed
//   read  -> extents -> ObjectOp each -> parts in order
//
// What a caller sees is described in image.ts.

import { StorageError } from '../../proto/errors.ts';
import { Op } from '../../proto/frame.ts';
import { type ObjectKey, objectKey } from '../../proto/ids.ts';
import { BLOCK_BYTES, REPLAY_BYTES_MAX } from '../../proto/limits.ts';
import type { ImageEntry } from '../../proto/map.ts';
import type { Clock } from '../../proto/ports.ts';
import { extentsOf, type ObjectExtent } from '../../proto/striping.ts';
import { BlockLocks } from './block-locks.ts';
import { type FlushedImage, Flusher } from './flusher.ts';
import type { Done, Image, ReadDone, StatusDone } from './image.ts';
import { LockedRead, type ReadTaker } from './locked-read.ts';
import { Mutation, type MutationOwner } from './mutation.ts';
import { ObjectOp, type OpOwner } from './object-op.ts';
import type { ObjectRouter } from './object-router.ts';
import { ReadRequest } from './read-request.ts';
import { StatusRequest } from './status-request.ts';
import { type ReplayPiece, Unflushed } from './unflushed.ts';

/** Pause before a flush that failed, because the pool is full say, is tried again to make room for new changes. */
const RELIEVE_AGAIN_MS = 1_000;

export class PoolImage implements Image, FlushedImage {
  readonly readOnly: boolean;
  readonly fence: number;
  onChange: ((lost: boolean) => void) | null = null;
  readonly #clock: Clock;
  readonly #router: ObjectRouter;
  readonly #unlock: () => Promise<void>;
  #entry: ImageEntry;
  readonly #locks = new BlockLocks();
  readonly #unflushed = new Unflushed();
  /** False: no unflushed change's interval is over, and reads need no second look. */
  #mayBeStale = false;
  readonly #flusher: Flusher;
  /** Changes that have their lock or wait for it. */
  #changing = 0;
  /** New changes wait: a replay needs to be alone, or too much is unflushed. */
  #held: Mutation[] = [];
  #holds = 0;
  #idle: (() => void) | null = null;
  /** Called when no change is in flight and none is held back. */
  #quiet: (() => void) | null = null;
  /** A flush is under way because much is unflushed. */
  #relieving = false;
  /** New changes are held back because too much is. */
  #full = false;
  #failure: StorageError | null = null;
  #closed = false;

  constructor(
    clock: Clock,
    router: ObjectRouter,
    entry: ImageEntry,
    options: { readOnly: boolean; fence: number; unlock: () => Promise<void> },
  ) {
    this.#clock = clock;
    this.#router = router;
    this.#entry = entry;
    this.readOnly = options.readOnly;
    this.fence = options.fence;
    this.#unlock = options.unlock;
    this.#flusher = new Flusher(clock, router, this, this.#unflushed);
  }

  get name(): string {
    return this.#entry.name;
  }
  get id(): number {
    return this.#entry.id;
  }
  get sizeBytes(): number {
    return this.#entry.sizeBytes;
  }
  get order(): number {
    return this.#entry.order;
  }
  get failure(): StorageError | null {
    return this.#failure;
  }

  read(offset: number, length: number, done: ReadDone): void {
    const why = this.#invalid(offset, length);
    if (why !== null) return this.#clock.soon(() => done(why, null));
    if (length === 0) return this.#clock.soon(() => done(null, []));
    new ReadRequest(this, extentsOf(this.#entry, offset, length), done).begin();
  }

  write(offset: number, data: Buffer, fua: boolean, done: Done): void {
    this.#change(offset, data.length, data, fua, done);
  }

  zero(offset: number, length: number, fua: boolean, done: Done): void {
    this.#change(offset, length, null, fua, done);
  }

  flush(done: Done): void {
    this.#flusher.flush(done);
  }

  status(offset: number, length: number, done: StatusDone): void {
    const why = this.#invalid(offset, length);
    if (why !== null) return this.#clock.soon(() => done(why, null));
    if (length === 0) return this.#clock.soon(() => done(null, []));
    new StatusRequest(this, extentsOf(this.#entry, offset, length), done).begin();
  }

  close(done: Done): void {
    if (this.#closed) return this.#clock.soon(() => done(null));
    this.#closed = true;
    this.#whenQuiet(() =>
      this.flush((error) => {
        this.#unlock().then(
          () => done(error),
          () => done(error), // The master frees the lock when this session ends.
        );
      }),
    );
  }

  // --- for the parts of requests

  /** An operation on one of this image's objects. */
  newOp(
    owner: OpOwner,
    op: Op,
    object: number,
    offset: number,
    length: number,
    at: number,
    data: Buffer | null,
    fua: boolean,
  ): ObjectOp {
    const place = { image: this.#entry.id, object, order: this.#entry.order, fence: this.fence };
    return new ObjectOp(this.#router, owner, op, place, offset, length, at, data, fua);
  }

  submit(op: ObjectOp): void {
    this.#router.submit(op);
  }

  /**
   * Lays acked changes over what a READ brought, where the interval that acked them is over: if all its members lost
   * power, they are gone there until the next flush writes them again. False: a change of the same blocks is in flight,
   * and `taker` gets the bytes once that is over.
   */
  restore(op: ObjectOp, taker: ReadTaker): boolean {
    if (!this.#mayBeStale) return true;
    const end = op.offset + op.length;
    if (this.#stalePieces(op, op.offset, end).length === 0) return true;
    if (this.#locks.isHeld(objectKey(op.image, op.object), op.offset, end)) {
      this.#locks.acquire(new LockedRead(this, op, taker));
      return false;
    }
    this.layOver(op);
    return true;
  }

  lockedReadDone(read: LockedRead): void {
    this.#locks.release(read);
  }

  /** The same, for a READ that holds the lock of its blocks. */
  layOver(op: ObjectOp): void {
    for (const { change, start, end } of this.#stalePieces(op, op.offset, op.offset + op.length)) {
      op.payload ??= Buffer.alloc(op.length);
      if (change.payload === null) op.payload.fill(0, start - op.offset, end - op.offset);
      else change.payload.copy(op.payload, start - op.offset, start - change.start, end - change.start);
    }
  }

  /** The same for the bitmap that a STATUS brought: acked data is never called a hole. */
  restoreStatus(op: ObjectOp): Buffer | null {
    let bits = op.metas[0] ?? null;
    for (const { change, start, end } of this.#stalePieces(op, 0, 2 ** op.order)) {
      if (change.payload === null) continue;
      bits ??= Buffer.alloc(Math.ceil(2 ** op.order / BLOCK_BYTES / 8));
      for (let block = start / BLOCK_BYTES; block < end / BLOCK_BYTES; block++) bits[block >> 3]! |= 1 << (block & 7);
    }
    return bits;
  }

  #stalePieces(op: ObjectOp, start: number, end: number): ReplayPiece[] {
    if (!this.#mayBeStale) return [];
    const pieces = this.#unflushed.stalePieces(objectKey(op.image, op.object), start, end, op.since);
    if (pieces.length === 0) this.#noteStale();
    return pieces;
  }

  #noteStale(): void {
    const { map } = this.#router;
    this.#mayBeStale = map === null || this.#unflushed.anyStale(map, this.#unflushed.size);
  }

  /** A change was acked. */
  noteChange(key: ObjectKey, op: ObjectOp): void {
    const payload = op.op === Op.WRITE ? op.payload : null;
    this.#unflushed.add({ key, pg: op.pg, start: op.offset, end: op.offset + op.length, payload, since: op.since });
    this.#relieve();
  }

  /** Keeps what is unflushed within bounds, however long a flush takes. */
  #relieve(): void {
    const { bytes } = this.#unflushed;
    if (bytes > 2 * REPLAY_BYTES_MAX && !this.#full) {
      this.#full = true;
      this.#holds += 1;
    }
    if (bytes <= REPLAY_BYTES_MAX || this.#relieving) return;
    this.#relieving = true;
    this.flush((error) => {
      // A full pool can't be flushed where something must be written again; what is kept must not grow meanwhile.
      if (error === null || this.#failure !== null || this.#router.stopped) this.#relieved();
      else this.#clock.after(RELIEVE_AGAIN_MS, () => this.#relieved());
    });
  }

  #relieved(): void {
    this.#relieving = false;
    if (
      this.#full &&
      (this.#unflushed.bytes <= 2 * REPLAY_BYTES_MAX || this.#failure !== null || this.#router.stopped)
    ) {
      this.#full = false;
      this.release();
    }
    if (this.#full) this.#relieve();
  }

  mutationDone(mutation: Mutation): void {
    this.#changing -= 1;
    this.#locks.release(mutation);
    if (this.#changing > 0) return;
    const idle = this.#idle;
    this.#idle = null;
    idle?.();
    this.#checkQuiet();
  }

  hold(idle: () => void): void {
    this.#holds += 1;
    this.#whenIdle(idle);
  }

  release(): void {
    this.#holds -= 1;
    if (this.#holds > 0) return;
    const held = this.#held;
    this.#held = [];
    for (const mutation of held) this.#start(mutation);
    this.#checkQuiet();
  }

  /** A newer map: the image may have another size, another writer, or be gone. */
  onMap(entry: ImageEntry | undefined): void {
    this.#noteStale();
    if (entry === undefined || (!this.readOnly && entry.fence > this.fence)) {
      if (this.#failure !== null) return;
      this.#failure =
        entry === undefined
          ? new StorageError('NOT_FOUND', `image ${this.name} was removed`)
          : new StorageError('FENCED', `image ${this.name} has another writer now`);
      this.onChange?.(true);
      return;
    }
    const resized = entry.sizeBytes !== this.#entry.sizeBytes;
    this.#entry = entry;
    if (resized) this.onChange?.(false);
  }

  #change(offset: number, length: number, data: Buffer | null, fua: boolean, done: Done): void {
    const why =
      this.#invalid(offset, length) ??
      (this.readOnly ? new StorageError('READ_ONLY', `image ${this.name} is open for reading`) : this.#failure);
    if (why !== null || length === 0) return this.#clock.soon(() => done(why));
    const extents = extentsOf(this.#entry, offset, length);
    const owner = new ChangeRequest(extents.length, done);
    for (const extent of extents) {
      const part = data === null ? null : partOf(data, extent);
      const mutation = new Mutation(this, owner, extent, part, fua);
      if (this.#holds > 0) this.#held.push(mutation);
      else this.#start(mutation);
    }
  }

  #start(mutation: Mutation): void {
    this.#changing += 1;
    this.#locks.acquire(mutation);
  }

  #whenIdle(idle: () => void): void {
    if (this.#changing === 0) return this.#clock.soon(idle);
    const before = this.#idle;
    this.#idle =
      before === null
        ? idle
        : () => {
            before();
            idle();
          };
  }

  #whenQuiet(quiet: () => void): void {
    this.#quiet = quiet;
    this.#clock.soon(() => this.#checkQuiet());
  }

  #checkQuiet(): void {
    if (this.#changing > 0 || this.#held.length > 0) return;
    const quiet = this.#quiet;
    this.#quiet = null;
    quiet?.();
  }

  #invalid(offset: number, length: number): StorageError | null {
    if (this.#closed) return new StorageError('UNAVAILABLE', `image ${this.name} is closed`);
    if (offset >= 0 && length >= 0 && offset <= this.sizeBytes && length <= this.sizeBytes - offset) return null;
    const range = `${length} bytes at ${offset}`;
    return new StorageError('INVALID', `image ${this.name} has ${this.sizeBytes} bytes: ${range} is outside`);
  }
}

/** The part of a request's bytes that goes to one extent. */
function partOf(data: Buffer, extent: ObjectExtent): Buffer {
  return extent.length === data.length ? data : data.subarray(extent.at, extent.at + extent.length);
}

class ChangeRequest implements MutationOwner {
  readonly #done: Done;
  #left: number;
  #error: StorageError | null = null;

  constructor(parts: number, done: Done) {
    this.#left = parts;
    this.#done = done;
  }

  onMutationDone(error: StorageError | null): void {
    this.#error ??= error;
    if (--this.#left === 0) this.#done(this.#error);
  }
}
