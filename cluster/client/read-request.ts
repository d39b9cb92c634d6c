// A read of any byte range: one operation per extent, whole blocks, cut to the bytes asked for when it is back.

import type { StorageError } from '../../proto/errors.ts';
import { Op } from '../../proto/frame.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { ObjectExtent } from '../../proto/striping.ts';
import type { ReadDone } from './image.ts';
import type { ReadTaker } from './locked-read.ts';
import type { ObjectOp, OpOwner } from './object-op.ts';
import type { PoolImage } from './pool-image.ts';

/** What stands for holes; sent in pieces of at most this size. */
const ZEROS = Buffer.alloc(1024 * 1024);

export class ReadRequest implements OpOwner, ReadTaker {
  readonly #image: PoolImage;
  readonly #extents: ObjectExtent[];
  readonly #done: ReadDone;
  readonly #found: (Buffer | null)[];
  #left: number;
  #error: StorageError | null = null;

  constructor(image: PoolImage, extents: ObjectExtent[], done: ReadDone) {
    this.#image = image;
    this.#extents = extents;
    this.#done = done;
    this.#left = extents.length;
    this.#found = new Array(extents.length).fill(null);
  }

  begin(): void {
    for (let i = 0; i < this.#extents.length; i++) {
      const { object, offset, length } = this.#extents[i]!;
      const start = offset - (offset % BLOCK_BYTES);
      const end = Math.ceil((offset + length) / BLOCK_BYTES) * BLOCK_BYTES;
      this.#image.submit(this.#image.newOp(this, Op.READ, object, start, end - start, i, null, false));
    }
  }

  onOpDone(op: ObjectOp, error: StorageError | null): void {
    if (error !== null || this.#image.restore(op, this)) this.take(op, error);
  }

  take(op: ObjectOp, error: StorageError | null): void {
    this.#error ??= error;
    this.#found[op.at] = op.payload;
    if (--this.#left > 0) return;
    if (this.#error !== null) return this.#done(this.#error, null);
    const parts: Buffer[] = [];
    for (let i = 0; i < this.#extents.length; i++) {
      const { offset, length } = this.#extents[i]!;
      const bytes = this.#found[i]!;
      if (bytes === null) pushZeros(parts, length);
      else {
        const skip = offset % BLOCK_BYTES;
        parts.push(bytes.length === length ? bytes : bytes.subarray(skip, skip + length));
      }
    }
    this.#done(null, parts);
  }
}

function pushZeros(parts: Buffer[], length: number): void {
  for (let left = length; left > 0; left -= ZEROS.length)
    parts.push(left >= ZEROS.length ? ZEROS : ZEROS.subarray(0, left));
}
