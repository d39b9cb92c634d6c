// Reading: which pieces of which files make up a range of an object, and whether to block for them.
//
// A read of what the page cache has costs 1 us blocking and 5 us off the event loop, so reads block, and each is timed.
// One that took long came from the disk (or the process lost its turn): for a while reads go to the thread pool then,
// until one is tried blocking again; the while doubles as long as the tried ones are slow.
// A read in the pool races with writers and checkpoints; it compares the object's stamp afterwards and begins anew if the
// object changed. No hashing here: the client checks what it gets.

import { payloadPool } from '../../proto/buffer-pool.ts';
import { StorageError } from '../../proto/errors.ts';
import { BLOCK_BYTES, BLOCK_SHIFT } from '../../proto/limits.ts';
import type { Clock, DiskFile } from '../../proto/ports.ts';
import type { Content } from './content.ts';
import { COLD_READ_MS, COLD_SPELL_FIRST_MS, COLD_SPELL_MS, READ_RETRIES_MAX } from './limits.ts';
import type { StoreLog } from './log.ts';
import type { StoredObject } from './objects.ts';
import type { ReadDone } from './store.ts';

type RunFound = (file: DiskFile, position: number, target: Buffer) => void;

export class Reader {
  private readonly content: Content;
  private readonly log: StoreLog;
  private readonly clock: Clock;
  private coldUntil = 0;
  private spellMs = COLD_SPELL_FIRST_MS;
  /** Reads in the thread pool. */
  inFlight = 0;
  /** How many reads went to the thread pool; for tests and metrics. */
  later = 0;

  constructor(content: Content, log: StoreLog, clock: Clock) {
    this.content = content;
    this.log = log;
    this.clock = clock;
  }

  read(image: number, number: number, order: number, offset: number, length: number, done: ReadDone): void {
    const object = this.content.index.get(image, number);
    const blocks = length >> BLOCK_SHIFT;
    if (object === undefined) return done(null, Buffer.alloc(blocks * 4), null);
    if (object.order !== order) return done(new StorageError('INVALID', 'the object has another size'), null, null);
    this.readObject(object, offset >> BLOCK_SHIFT, blocks, 0, done);
  }

  private readObject(object: StoredObject, first: number, blocks: number, retries: number, done: ReadDone): void {
    const checks = Buffer.allocUnsafe(blocks * 4);
    object.checks.copy(checks, 0, first * 4, (first + blocks) * 4);
    if (isZero(checks)) return done(null, checks, null);
    const payload = payloadPool.take(blocks * BLOCK_BYTES);
    try {
      if (this.clock.now() < this.coldUntil && retries <= READ_RETRIES_MAX)
        return this.readLater(object, first, payload, checks, retries, done);
      this.forEachRun(object, first, payload, this.readNow);
    } catch (error) {
      return done(ioError(error), null, null);
    }
    done(null, checks, payload);
  }

  private readLater(
    object: StoredObject,
    first: number,
    payload: Buffer,
    checks: Buffer,
    retries: number,
    done: ReadDone,
  ): void {
    const { stamp } = object;
    const blocks = checks.length / 4;
    let failure: Error | null = null;
    let left = 1;
    const onRead = (): void => {
      if (--left > 0) return;
      this.inFlight--;
      if (object.stamp !== stamp) {
        const { image, object: number, order } = object;
        if (this.content.index.get(image, number) === object) this.readObject(object, first, blocks, retries + 1, done);
        else this.read(image, number, order, first << BLOCK_SHIFT, blocks << BLOCK_SHIFT, done);
      } else if (failure !== null) done(ioError(failure), null, null);
      else done(null, checks, payload);
    };
    this.inFlight++;
    this.later++;
    this.forEachRun(object, first, payload, (file, position, target) => {
      left++;
      file.readLater(target, position, (error, bytes) => {
        if (error !== null) failure = error;
        else if (bytes < target.length) failure = shortRead(file, position);
        onRead();
      });
    });
    // Some ports may answer at once: the count that stands for this function itself goes last, in its own turn.
    this.clock.soon(onRead);
  }

  private readonly readNow: RunFound = (file, position, target) => {
    const start = this.clock.now();
    if (file.read(target, position) !== target.length) throw shortRead(file, position);
    const end = this.clock.now();
    if (end - start <= COLD_READ_MS) this.spellMs = COLD_SPELL_FIRST_MS;
    else {
      this.coldUntil = end + this.spellMs;
      this.spellMs = Math.min(COLD_SPELL_MS, this.spellMs * 2);
    }
  };

  /** Blocks of an object as they are, blocking. */
  readBlocks(object: StoredObject, first: number, count: number): Buffer {
    const bytes = Buffer.allocUnsafe(count * BLOCK_BYTES);
    try {
      this.forEachRun(object, first, bytes, this.readNow);
    } catch (error) {
      throw ioError(error);
    }
    return bytes;
  }

  /** Calls `found` for each run of blocks that are together in one file; fills holes with zeros. */
  private forEachRun(object: StoredObject, first: number, payload: Buffer, found: RunFound): void {
    const { overlay, slot } = object;
    const blocks = payload.length >> BLOCK_SHIFT;
    for (let i = 0; i < blocks; ) {
      let count = 1;
      if (object.check(first + i) === 0) {
        while (i + count < blocks && object.check(first + i + count) === 0) count++;
        payload.fill(0, i << BLOCK_SHIFT, (i + count) << BLOCK_SHIFT);
        i += count;
        continue;
      }
      const place = overlay === null ? 0 : overlay.get(first + i);
      if (place <= 0) {
        while (
          i + count < blocks &&
          object.check(first + i + count) !== 0 &&
          (overlay === null || overlay.get(first + i + count) === 0)
        )
          count++;
        found(slot.file.data, slot.placeOf(first + i), part(payload, i, count));
      } else {
        while (i + count < blocks && overlay!.get(first + i + count) === place + count * BLOCK_BYTES) count++;
        if (this.log.isOpen(place)) this.log.submit();
        found(this.log.segmentAt(place), place % this.log.geometry.segmentBytes, part(payload, i, count));
      }
      i += count;
    }
  }
}

const part = (payload: Buffer, block: number, count: number): Buffer =>
  payload.length === count << BLOCK_SHIFT
    ? payload
    : payload.subarray(block << BLOCK_SHIFT, (block + count) << BLOCK_SHIFT);

const shortRead = (file: DiskFile, position: number): Error => new Error(`${file.name} ends before ${position}`);

const ioError = (error: unknown): StorageError =>
  error instanceof StorageError
    ? error
    : new StorageError('IO', `read failed: ${error instanceof Error ? error.message : String(error)}`, error);

function isZero(checks: Buffer): boolean {
  for (let at = 0; at < checks.length; at += 4) if (checks.readUInt32LE(at) !== 0) return false;
  return true;
}
