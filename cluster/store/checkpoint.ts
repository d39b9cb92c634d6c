// Checkpoints: moving what the log holds to its slots, little by little, so that the log can be used again.
//
//   begin    take a snapshot at R, sync the log, write a mark that says so, sync it       (records before R are durable
//   copy     log -> slots of what was written before R; metadata of what changed            and known to be, from disk)
//   sync     data files, metadata files, and the log once more
//   publish  one checkpoint file, sync; the other one, sync
//   commit   segments before R, retired slots and the other copies of metadata are free to be used
//
// Why in this order, and what a crash between any two steps leaves, is told in README.md. Copying takes turns with the
// store's work: at most CHECKPOINT_TURN_MS each. When writers fill the log faster than it is emptied, their `done` is
// held back (ackLimit); when it is full to the end, finishNow() completes the checkpoint blocking.

import { BLOCK_BYTES, OBJECT_ORDER_MAX } from '../../proto/limits.ts';
import { type Clock, DiskError, type DiskFile, type Log, type Timer } from '../../proto/ports.ts';
import { type Checkpoint, type CheckpointFiles, encodeCheckpoint, encodePgTable } from './checkpoint-file.ts';
import type { Content } from './content.ts';
import {
  CHECKPOINT_AFTER_MS,
  CHECKPOINT_LOG_SHARE,
  CHECKPOINT_RETRY_MS,
  CHECKPOINT_TURN_BYTES,
  CHECKPOINT_TURN_MS,
  RETIRED_BYTES_MAX,
  RETIRED_FREE_SHARE,
} from './limits.ts';
import type { StoreLog } from './log.ts';
import { censusOf, metaCopyBytes, metaPlace, metaUsedBytes } from './meta.ts';
import type { StoredObject } from './objects.ts';
import type { Slot } from './slots.ts';
import { Snapshot } from './snapshot.ts';

/** Work per turn follows what is written meanwhile, this many bytes copied per byte appended, but not less than this. */
const COPY_PER_APPENDED = 2;
const COPY_BYTES_MIN = 32 * 1024;
const ZEROS = Buffer.alloc(2 * metaCopyBytes(OBJECT_ORDER_MAX));

export class Checkpointer {
  private readonly content: Content;
  private readonly log: StoreLog;
  private readonly files: CheckpointFiles;
  private readonly clock: Clock;
  private readonly messages: Log;
  /** The newest one that is durable. */
  current: Checkpoint;

  private snapshot: Snapshot | null = null;
  /** Steps of a run that finishNow() overtook must not go on: they compare their number with this. */
  private run = 0;
  /** What is to be copied and saved: objects, then retired slots; and how far that is done. */
  private queue: StoredObject[] = [];
  private queueAt = 0;
  private blockAt = 0;
  private retiredQueue: Slot[] = [];
  private stepPosition = 0;
  /** Data and metadata files written since the last commit. */
  private readonly touched = new Set<DiskFile>();
  private timer: Timer | null = null;
  private retryTimer: Timer | null = null;
  private closed = false;
  private readonly scratch = Buffer.allocUnsafe(CHECKPOINT_TURN_BYTES);
  /** How many were committed; for tests and metrics. */
  committed = 0;

  constructor(
    content: Content,
    log: StoreLog,
    files: CheckpointFiles,
    clock: Clock,
    messages: Log,
    current: Checkpoint,
  ) {
    this.content = content;
    this.log = log;
    this.files = files;
    this.clock = clock;
    this.messages = messages;
    this.current = current;
    log.makeRoom = () => this.makeRoom();
    this.moveLimits();
  }

  /** Bytes of the log in use since the redo position, and in all. */
  get logUse(): number {
    return (this.log.position - this.current.redoPosition) / this.logBytes;
  }

  private get logBytes(): number {
    const { segmentBytes, segments } = this.log.geometry;
    return segmentBytes * segments;
  }

  /** Call after records were added: begins a checkpoint if it is time. */
  consider(): void {
    if (this.snapshot !== null || this.closed) return;
    if (this.logUse * CHECKPOINT_LOG_SHARE >= 1 || this.muchRetired()) {
      if (this.retryTimer === null) this.begin();
    } else if (this.timer === null)
      this.timer = this.clock.after(CHECKPOINT_AFTER_MS, () => {
        this.timer = null;
        if (this.snapshot === null && !this.closed && this.log.dead === null && this.content.changed) this.begin();
      });
  }

  private muchRetired(): boolean {
    const bytes = this.content.retiredBlocks * BLOCK_BYTES;
    return (
      bytes >= RETIRED_BYTES_MAX || (bytes > 0 && bytes * RETIRED_FREE_SHARE >= this.content.space.availableBytes())
    );
  }

  /** Begins one now, unless one is under way. */
  begin(): void {
    if (this.snapshot !== null || this.log.dead !== null) return;
    const run = ++this.run;
    this.take();
    this.log.sync(() => {
      if (run !== this.run || !this.mark()) return;
      this.log.sync(() => {
        if (run === this.run) this.step(run);
      });
    });
  }

  private take(): void {
    this.timer?.cancel();
    this.timer = null;
    const { content, log } = this;
    log.submit();
    const generation = this.current.generation + 1;
    this.snapshot = new Snapshot(
      generation,
      log.position,
      log.chain,
      encodePgTable(content.pgs),
      content.dirty,
      content.retired,
    );
    content.dirty = new Set();
    content.retired = new Set();
    content.retiredBlocks = 0;
    content.changed = false;
    this.queue = [...this.snapshot.objects];
    this.retiredQueue = [...this.snapshot.retired];
    this.queueAt = 0;
    this.blockAt = 0;
    this.stepPosition = log.position;
  }

  private mark(): boolean {
    try {
      this.log.writeMark();
      return true;
    } catch {
      return false; // the log is dead and has told the owner
    }
  }

  private step(run: number): void {
    const appended = this.log.position - this.stepPosition;
    this.stepPosition = this.log.position;
    const budget = Math.min(CHECKPOINT_TURN_BYTES, Math.max(COPY_BYTES_MIN, appended * COPY_PER_APPENDED));
    if (!this.attempt(() => this.copy(budget))) return;
    this.clock.soon(() => {
      if (run !== this.run || this.log.dead !== null) return;
      if (this.copied) this.syncAll(run);
      else this.step(run);
    });
  }

  private get copied(): boolean {
    const { images } = this.snapshot!;
    return this.queueAt === this.queue.length && this.retiredQueue.length === 0 && images.length === 0;
  }

  /** Copies blocks and writes metadata until about `budget` bytes are done, or the time is over. */
  private copy(budget: number): void {
    const end = this.clock.now() + CHECKPOINT_TURN_MS;
    const snapshot = this.snapshot!;
    let left = budget;
    while (left > 0 && !this.copied) {
      if (this.queueAt < this.queue.length) left -= this.copyRun(this.queue[this.queueAt]!, snapshot);
      else if (this.retiredQueue.length > 0) left -= this.saveRetired(snapshot);
      const image = snapshot.images[snapshot.images.length - 1];
      if (image !== undefined) {
        left -= this.writeMeta(image.slot, image.bytes);
        snapshot.images.pop();
      }
      if (this.clock.now() >= end) return;
    }
  }

  /** Copies the object's next run of blocks that stand in the log before the snapshot; after the last, saves it. */
  private copyRun(object: StoredObject, snapshot: Snapshot): number {
    const { overlay } = object;
    const inLog = (block: number): boolean => {
      const place = overlay!.get(block);
      return place > 0 && place < snapshot.position;
    };
    let first = overlay === null ? -1 : overlay.next(this.blockAt);
    while (first >= 0 && !inLog(first)) first = overlay!.next(first + 1);
    if (first < 0) {
      this.queueAt++;
      this.blockAt = 0;
      return object.snapshot === snapshot ? this.saveObject(object, snapshot) : 0;
    }
    const most = Math.min(object.blocks, first + CHECKPOINT_TURN_BYTES / BLOCK_BYTES);
    let end = first + 1;
    while (end < most && inLog(end)) end++;
    this.copyBlocks(object, first, end);
    this.blockAt = end;
    return (end - first) * BLOCK_BYTES;
  }

  private copyBlocks(object: StoredObject, first: number, end: number): void {
    const { overlay, slot } = object;
    const bytes = this.scratch.subarray(0, (end - first) * BLOCK_BYTES);
    for (let block = first; block < end; ) {
      const position = overlay!.get(block);
      let count = 1;
      while (block + count < end && overlay!.get(block + count) === position + count * BLOCK_BYTES) count++;
      const at = (block - first) * BLOCK_BYTES;
      const part = bytes.subarray(at, at + count * BLOCK_BYTES);
      const file = this.log.segmentAt(position);
      if (file.read(part, position % this.log.geometry.segmentBytes) !== part.length)
        throw new DiskError('IO', `${file.name} is shorter than it was made`);
      block += count;
    }
    slot.file.data.write([bytes], slot.placeOf(first));
    this.touched.add(slot.file.data);
    for (let block = first; block < end; block++) this.content.settle(object, block);
  }

  private saveObject(object: StoredObject, snapshot: Snapshot): number {
    const { slot } = object;
    return this.writeMeta(slot, snapshot.encode(object, this.metaScratch(slot)));
  }

  private saveRetired(snapshot: Snapshot): number {
    const slot = this.retiredQueue.pop()!;
    return this.writeMeta(slot, snapshot.encodeFree(slot, this.metaScratch(slot)));
  }

  private metaScratch(slot: Slot): Buffer {
    return this.scratch.subarray(0, metaUsedBytes(slot.file.order));
  }

  /** Writes a copy of a slot's metadata, not over the one that counts. */
  private writeMeta(slot: Slot, bytes: Buffer): number {
    const { meta, order, copyBytes } = slot.file;
    const first = slot.generation === 0;
    // The first time both copies get their space, so that no later checkpoint needs any.
    const rest = (first ? 2 : 1) * copyBytes - bytes.length;
    meta.write([bytes, ZEROS.subarray(0, rest)], metaPlace(order, slot.number, first ? 0 : 1 - slot.side));
    this.touched.add(meta);
    return copyBytes;
  }

  private syncAll(run: number): void {
    let left = 1 + this.touched.size;
    const onSynced = (error: Error | null): void => {
      if (error !== null) this.log.fail(error);
      else if (--left === 0 && run === this.run && this.log.dead === null) this.publish(run);
    };
    for (const file of this.touched) file.sync(onSynced);
    // What overwrote a block before it was copied must not get lost: its old content was not copied.
    this.log.sync(onSynced);
  }

  /** What the checkpoint files will say. */
  private next(snapshot: Snapshot): Checkpoint {
    let { census, slotsSaved } = this.current;
    for (const slot of snapshot.saved) {
      if (slot.generation === 0) slotsSaved++;
      census ^= censusOf(slot.file.order, slot.number, slot.generation);
      census ^= censusOf(slot.file.order, slot.number, snapshot.generation);
    }
    return {
      ...this.current,
      sequence: this.current.sequence + 1,
      generation: snapshot.generation,
      redoPosition: snapshot.position,
      chain: snapshot.chain,
      incarnation: this.log.incarnation,
      durablePosition: this.log.durable,
      census: census >>> 0,
      slotsSaved,
      pgTable: snapshot.pgTable,
    };
  }

  private publish(run: number): void {
    const next = this.next(this.snapshot!);
    const bytes = encodeCheckpoint(next);
    if (!this.attempt(() => this.files.writeFirst(bytes))) return;
    this.files.first.sync((error) => {
      if (error !== null) this.log.fail(error);
      if (this.log.dead !== null || run !== this.run) return;
      if (!this.attempt(() => this.files.writeSecond(bytes))) return;
      this.files.second.sync((error) => {
        if (error !== null) this.log.fail(error);
        if (this.log.dead === null && run === this.run) this.commit(next);
      });
    });
  }

  private commit(next: Checkpoint): void {
    const snapshot = this.snapshot!;
    const { content } = this;
    this.files.swap();
    this.current = next;
    this.snapshot = null;
    this.queue = [];
    this.retiredQueue = [];
    this.queueAt = 0;
    this.touched.clear();
    this.committed++;
    content.redoPosition = next.redoPosition;
    for (const slot of snapshot.saved) {
      slot.side = slot.generation === 0 || slot.side === 1 ? 0 : 1;
      if (slot.promised) content.space.promisedMetaBytes -= 2 * slot.file.copyBytes;
      slot.promised = false;
      slot.generation = snapshot.generation;
    }
    for (const slot of snapshot.retired) slot.file.giveBack(slot);
    for (const object of snapshot.objects) content.prune(object);
    if (content.space.blocked) this.messages.info('the store has room again');
    content.space.blocked = false;
    content.space.refresh();
    this.moveLimits();
    this.consider();
  }

  private moveLimits(): void {
    const { segmentBytes, segments } = this.log.geometry;
    const { redoPosition } = this.current;
    const limit = (Math.floor(redoPosition / segmentBytes) + segments) * segmentBytes;
    const hold = this.content.space.blocked ? Number.POSITIVE_INFINITY : redoPosition + this.logBytes * 0.75;
    this.log.setLimits(limit, hold);
  }

  /** Runs a step that writes. A full disk gives up the checkpoint, anything else is fatal; false: do not go on. */
  private attempt(step: () => void): boolean {
    try {
      step();
      return true;
    } catch (error) {
      if (this.log.dead !== null) return false;
      if (error instanceof DiskError && error.code === 'NO_SPACE') this.giveUp(error);
      else this.log.fail(error as Error);
      return false;
    }
  }

  /** The disk is full: nothing is lost, since redo still begins where it did; all is as if this one had not begun. */
  private giveUp(cause: DiskError): void {
    const snapshot = this.snapshot!;
    const { content } = this;
    this.run++;
    this.snapshot = null;
    this.queue = [];
    this.retiredQueue = [];
    this.queueAt = 0;
    for (const object of snapshot.objects) {
      object.snapshot = null;
      if (object.dirty || content.index.get(object.image, object.object) !== object) continue;
      object.dirty = true;
      content.dirty.add(object);
    }
    for (const slot of snapshot.retired) {
      content.retired.add(slot);
      content.retiredBlocks += slot.groundCount(0, slot.file.blocks);
    }
    content.changed = true;
    if (!content.space.blocked) this.messages.warn('the disk is full: no checkpoint', { cause: cause.message });
    content.space.blocked = true;
    content.space.refresh();
    this.moveLimits();
    this.retryTimer?.cancel();
    this.retryTimer = this.clock.after(CHECKPOINT_RETRY_MS, () => {
      this.retryTimer = null;
      if (!this.closed) this.begin();
    });
  }

  /** For a log that is full. Throws NO_SPACE if the disk is. */
  private makeRoom(): void {
    const before = this.log.limit;
    // A checkpoint under way may have begun too early to make enough room; one that begins now does.
    this.finishNow();
    if (this.log.limit === before || this.log.position + this.log.geometry.segmentBytes > this.log.limit)
      this.finishNow();
    if (this.log.limit === before) throw this.content.space.fullError(0);
  }

  /** Completes the checkpoint under way, or a new one, before it returns. A full disk gives it up: see space.blocked. */
  finishNow(): void {
    const { log } = this;
    if (log.dead !== null) throw log.dead;
    this.run++;
    if (this.snapshot === null) this.take();
    log.syncNow();
    log.writeMark();
    log.syncNow();
    const finished = this.attempt(() => {
      while (!this.copied) this.copy(Number.POSITIVE_INFINITY);
      for (const file of this.touched) this.syncNow(file);
      log.syncNow();
      const next = this.next(this.snapshot!);
      const bytes = encodeCheckpoint(next);
      this.files.writeFirst(bytes);
      this.syncNow(this.files.first);
      this.files.writeSecond(bytes);
      this.syncNow(this.files.second);
      this.commit(next);
    });
    if (!finished && log.dead !== null) throw log.dead;
  }

  /** A failed sync is the end whatever its code: blocks were copied that neither log nor slot is sure to keep. */
  private syncNow(file: DiskFile): void {
    try {
      file.syncNow();
    } catch (error) {
      throw this.log.fail(error as Error);
    }
  }

  close(): void {
    this.closed = true;
    this.run++;
    this.timer?.cancel();
    this.retryTimer?.cancel();
  }
}
