// FLUSH of one image: everything acked so far on stable storage of its whole acting set.
//
//   round: take what is unflushed -> is any of it stale (its interval over)? hold new changes, wait for those in
//   flight, write the stale ones again, let go -> SYNC to every member of the PGs concerned, in parallel -> still not
//   stale? then it is flushed; else once more.
//
// Flushes asked for during a round share the next one.

import type { StorageError } from '../../proto/errors.ts';
import { Op } from '../../proto/frame.ts';
import { type Epoch, imageOfKey, numberOfKey } from '../../proto/ids.ts';
import type { Clock } from '../../proto/ports.ts';
import type { Done } from './image.ts';
import { ObjectOp, type OpOwner } from './object-op.ts';
import { type ObjectRouter, stoppedError } from './object-router.ts';
import type { Change, Unflushed } from './unflushed.ts';

/** Pause before a daemon that could not be asked to sync is asked again. */
const AGAIN_MS = 20;

/** What the flusher needs of the image. */
export interface FlushedImage {
  readonly order: number;
  readonly fence: number;
  /** Why nothing can be flushed any more, or null. */
  readonly failure: StorageError | null;
  /** Holds new changes back and calls `idle` when none is in flight. */
  hold(idle: () => void): void;
  release(): void;
}

export class Flusher {
  readonly #clock: Clock;
  readonly #router: ObjectRouter;
  readonly #image: FlushedImage;
  readonly #unflushed: Unflushed;
  #waiting: Done[] = [];
  #running = false;

  constructor(clock: Clock, router: ObjectRouter, image: FlushedImage, unflushed: Unflushed) {
    this.#clock = clock;
    this.#router = router;
    this.#image = image;
    this.#unflushed = unflushed;
  }

  flush(done: Done): void {
    this.#waiting.push(done);
    if (!this.#running) this.#round();
  }

  #round(): void {
    const asked = this.#waiting;
    if (asked.length === 0) return;
    this.#waiting = [];
    this.#running = true;
    const count = this.#unflushed.size;
    this.#make(count, (error) => {
      if (error === null) this.#unflushed.drop(count);
      this.#running = false;
      for (const done of asked) done(error);
      this.#round();
    });
  }

  /** Calls `done` from the event loop when the oldest `count` changes are durable. */
  #make(count: number, done: Done): void {
    const failure = this.#image.failure ?? (this.#router.stopped ? stoppedError() : null);
    if (failure !== null || count === 0) return this.#clock.soon(() => done(failure));
    const map = this.#router.map!;
    if (this.#unflushed.anyStale(map, count))
      return this.#replay((error) => (error === null ? this.#make(count, done) : done(error)));
    const daemons = new Set<number>();
    for (const pg of this.#unflushed.pgs(count)) for (const id of map.pgs.get(pg)!.acting) daemons.add(id);
    let awaited = daemons.size;
    let failed = false;
    for (const id of daemons)
      this.#router.syncDaemon(id, (synced) => {
        if (!synced) failed = true;
        if (--awaited > 0) return;
        if (failed) this.#clock.after(AGAIN_MS, () => this.#make(count, done));
        else if (this.#unflushed.anyStale(this.#router.map!, count)) this.#make(count, done);
        else done(null);
      });
  }

  #replay(done: Done): void {
    this.#image.hold(() => {
      const { stale, pieces } = this.#unflushed.replayPieces(this.#router.map!);
      const finish = (error: StorageError | null): void => {
        this.#image.release();
        done(error);
      };
      // What newer changes cover completely is as safe as those are: it lives in the same PG. The others stay stale until
      // they are written: reads go on meanwhile and must be shown them.
      const written = new Set(pieces.map((piece) => piece.change));
      for (const change of stale) if (!written.has(change)) change.since = this.#router.map!.pgs.get(change.pg)!.since;
      if (pieces.length === 0) return this.#clock.soon(() => finish(null));
      const owner = new Replay(pieces.length, finish);
      for (const { change, start, end } of pieces) {
        const data = change.payload?.subarray(start - change.start, end - change.start) ?? null;
        const place = {
          image: imageOfKey(change.key),
          object: numberOfKey(change.key),
          order: this.#image.order,
          fence: this.#image.fence,
        };
        const op = new ObjectOp(
          this.#router,
          owner,
          data === null ? Op.ZERO : Op.WRITE,
          place,
          start,
          end - start,
          0,
          data,
          false,
        );
        owner.changes.set(op, change);
        this.#router.submit(op);
      }
    });
  }
}

class Replay implements OpOwner {
  readonly changes = new Map<ObjectOp, Change>();
  /** The oldest interval that acked a piece of each change. */
  readonly #acked = new Map<Change, Epoch>();
  readonly #done: Done;
  #left: number;
  #error: StorageError | null = null;

  constructor(count: number, done: Done) {
    this.#left = count;
    this.#done = done;
  }

  onOpDone(op: ObjectOp, error: StorageError | null): void {
    const change = this.changes.get(op)!;
    // Two pieces of one change may be acked by different intervals: then it is stale again.
    const since = error === null ? op.since : 0;
    this.#acked.set(change, Math.min(since, this.#acked.get(change) ?? since));
    this.#error ??= error;
    if (--this.#left > 0) return;
    for (const [acked, interval] of this.#acked) acked.since = interval;
    this.#done(this.#error);
  }
}
