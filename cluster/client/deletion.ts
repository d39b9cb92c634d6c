// Deletes the objects of an image from a number on: what removing and shrinking an image need.
//
//   LIST of every PG of the pool, a few at a time -> DELETE of each object that is there, many at a time
//
// A listing knows what the primary holds now. While a PG recovers there may be more: the caller repeats the whole until
// nothing was found and nothing is missing. Repeating is safe.

import type { StorageError } from '../../proto/errors.ts';
import { Op } from '../../proto/frame.ts';
import { type PgId, pgId } from '../../proto/ids.ts';
import type { ImageEntry } from '../../proto/map.ts';
import { ObjectOp, type OpOwner } from './object-op.ts';
import type { ObjectRouter } from './object-router.ts';

/** PGs that are listed, and objects that are deleted, at the same time. */
const LISTS_MAX = 8;
const DELETES_MAX = 64;

/**
 * Resolves, when every object found with a number of `first` or more is durably gone, with how many those were. Rejects
 * with the first error, such as FENCED.
 * @param fence the newest lock of the image, or the one that its removal made
 * @param progress told now and then: objects deleted, objects found so far
 */
export function deleteObjectsFrom(
  router: ObjectRouter,
  image: ImageEntry,
  first: number,
  fence: number,
  progress: (deleted: number, found: number) => void,
): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  new Deletion(router, image, first, fence, progress, (error, deleted) => {
    if (error === null) resolve(deleted);
    else reject(error);
  }).goOn();
  return promise;
}

class Deletion implements OpOwner {
  readonly #router: ObjectRouter;
  readonly #image: ImageEntry;
  readonly #first: number;
  readonly #fence: number;
  readonly #progress: (deleted: number, found: number) => void;
  readonly #done: (error: StorageError | null, deleted: number) => void;
  readonly #pgs: PgId[] = [];
  readonly #objects: number[] = [];
  #lists = 0;
  #deletes = 0;
  #found = 0;
  #deleted = 0;
  #over = false;

  constructor(
    router: ObjectRouter,
    image: ImageEntry,
    first: number,
    fence: number,
    progress: (deleted: number, found: number) => void,
    done: (error: StorageError | null, deleted: number) => void,
  ) {
    this.#router = router;
    this.#image = image;
    this.#first = first;
    this.#fence = fence;
    this.#progress = progress;
    this.#done = done;
    const pool = router.map!.pools.get(image.pool)!;
    for (let index = 0; index < pool.pgCount; index++) this.#pgs.push(pgId(pool.id, index));
  }

  goOn(): void {
    while (this.#deletes < DELETES_MAX && this.#objects.length > 0) {
      this.#deletes++;
      this.#router.submit(this.#op(Op.DELETE, this.#objects.pop()!));
    }
    // Listing waits while there is enough to delete: an image of any size takes bounded memory.
    while (this.#lists < LISTS_MAX && this.#pgs.length > 0 && this.#objects.length < DELETES_MAX) {
      this.#lists++;
      const list = this.#op(Op.LIST, 0);
      list.pg = this.#pgs.pop()!;
      this.#router.submit(list);
    }
    if (this.#lists === 0 && this.#deletes === 0) this.#end(null);
  }

  onOpDone(op: ObjectOp, error: StorageError | null): void {
    if (this.#over) return;
    if (error !== null) return this.#end(error);
    if (op.op === Op.LIST) {
      this.#lists--;
      for (const page of op.metas) if (page !== null) this.#take(page);
    } else {
      this.#deletes--;
      this.#deleted++;
    }
    this.#progress(this.#deleted, this.#found);
    this.goOn();
  }

  /** Object numbers, u32 little endian each. */
  #take(page: Buffer): void {
    for (let at = 0; at < page.length; at += 4) {
      const object = page.readUInt32LE(at);
      if (object < this.#first) continue;
      this.#objects.push(object);
      this.#found++;
    }
  }

  #op(op: typeof Op.LIST | typeof Op.DELETE, object: number): ObjectOp {
    const place = { image: this.#image.id, object, order: this.#image.order, fence: this.#fence };
    return new ObjectOp(this.#router, this, op, place, 0, 0, 0, null, op === Op.DELETE);
  }

  #end(error: StorageError | null): void {
    this.#over = true;
    this.#done(error, this.#deleted);
  }
}
