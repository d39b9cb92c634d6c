// A read done again with its blocks to itself: no change of them is in flight meanwhile.
//
// Where acked changes must be laid over what a read finds (PoolImage.restore), a change in flight makes it undecidable
// whether the daemon's bytes are older than the acked ones or newer. This waits for such changes, reads, and lays over.

import type { StorageError } from '../../proto/errors.ts';
import { type ObjectKey, objectKey } from '../../proto/ids.ts';
import type { LockHolder } from './block-locks.ts';
import type { ObjectOp, OpOwner } from './object-op.ts';
import type { PoolImage } from './pool-image.ts';

/** Whoever wanted the bytes; called once, with acked changes laid over them. */
export interface ReadTaker {
  take(op: ObjectOp, error: StorageError | null): void;
}

export class LockedRead implements LockHolder, OpOwner {
  readonly key: ObjectKey;
  readonly start: number;
  readonly end: number;
  begun = false;
  readonly #image: PoolImage;
  readonly #first: ObjectOp;
  readonly #taker: ReadTaker;

  /** @param first the read whose result could not be used */
  constructor(image: PoolImage, first: ObjectOp, taker: ReadTaker) {
    this.#image = image;
    this.#first = first;
    this.#taker = taker;
    this.key = objectKey(first.image, first.object);
    this.start = first.offset;
    this.end = first.offset + first.length;
  }

  begin(): void {
    const { op, object, offset, length, at } = this.#first;
    this.#image.submit(this.#image.newOp(this, op, object, offset, length, at, null, false));
  }

  onOpDone(op: ObjectOp, error: StorageError | null): void {
    if (error === null) this.#image.layOver(op);
    this.#image.lockedReadDone(this);
    this.#taker.take(op, error);
  }
}
