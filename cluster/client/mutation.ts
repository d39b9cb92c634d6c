// One change of one object as part of a request: takes the blocks' lock, fills up partial blocks, and sends it.
//
//   lock -> whole blocks?  yes -> WRITE or ZERO
//                          no  -> READ the first and the last block -> lay the new bytes over them -> WRITE

import type { StorageError } from '../../proto/errors.ts';
import { Op } from '../../proto/frame.ts';
import { type ObjectKey, objectKey } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { ObjectExtent } from '../../proto/striping.ts';
import type { LockHolder } from './block-locks.ts';
import type { ObjectOp, OpOwner } from './object-op.ts';
import type { PoolImage } from './pool-image.ts';

/** Who wants to hear of each part of its request. */
export interface MutationOwner {
  onMutationDone(error: StorageError | null): void;
}

export class Mutation implements LockHolder, OpOwner {
  readonly key: ObjectKey;
  readonly object: number;
  /** The whole blocks that hold the change. */
  readonly start: number;
  readonly end: number;
  begun = false;
  readonly #image: PoolImage;
  readonly #owner: MutationOwner;
  readonly #extent: ObjectExtent;
  /** The new bytes; null: zeros. */
  #data: Buffer | null;
  readonly #fua: boolean;
  /** Edge blocks that are read first; null once they are laid over or if there are none. */
  #edges: ObjectOp[] | null = null;
  #edgesLeft = 0;
  #error: StorageError | null = null;

  constructor(image: PoolImage, owner: MutationOwner, extent: ObjectExtent, data: Buffer | null, fua: boolean) {
    this.#image = image;
    this.#owner = owner;
    this.#extent = extent;
    this.#data = data;
    this.#fua = fua;
    this.key = objectKey(image.id, extent.object);
    this.object = extent.object;
    this.start = extent.offset - (extent.offset % BLOCK_BYTES);
    this.end = Math.ceil((extent.offset + extent.length) / BLOCK_BYTES) * BLOCK_BYTES;
  }

  begin(): void {
    const { offset, length } = this.#extent;
    const headPartial = offset !== this.start;
    const tailPartial = offset + length !== this.end;
    if (!headPartial && !tailPartial) return this.#send();
    const edges: number[] = [];
    if (headPartial) edges.push(this.start);
    const last = this.end - BLOCK_BYTES;
    if (tailPartial && (last !== this.start || !headPartial)) edges.push(last);
    this.#edgesLeft = edges.length;
    this.#edges = edges.map((at) => this.#image.newOp(this, Op.READ, this.object, at, BLOCK_BYTES, 0, null, false));
    for (const op of this.#edges) this.#image.submit(op);
  }

  onOpDone(op: ObjectOp, error: StorageError | null): void {
    if (this.#edges !== null) {
      this.#error ??= error;
      if (error === null) this.#image.layOver(op);
      if (--this.#edgesLeft > 0) return;
      if (this.#error !== null) return this.#finish(this.#error);
      this.#layOver(this.#edges);
      this.#edges = null;
      return this.#send();
    }
    if (error === null) this.#image.noteChange(this.key, op);
    this.#finish(error);
  }

  #layOver(edges: ObjectOp[]): void {
    const whole = Buffer.alloc(this.end - this.start);
    for (const edge of edges) edge.payload?.copy(whole, edge.offset - this.start);
    const { offset, length } = this.#extent;
    if (this.#data !== null) this.#data.copy(whole, offset - this.start);
    else whole.fill(0, offset - this.start, offset - this.start + length);
    this.#data = whole;
  }

  #send(): void {
    const op = this.#data === null ? Op.ZERO : Op.WRITE;
    this.#image.submit(
      this.#image.newOp(this, op, this.object, this.start, this.end - this.start, 0, this.#data, this.#fua),
    );
  }

  #finish(error: StorageError | null): void {
    this.#image.mutationDone(this);
    this.#owner.onMutationDone(error);
  }
}
