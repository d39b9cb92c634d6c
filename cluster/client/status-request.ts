// Where an image holds data: one STATUS per object, its bitmap cut to the range asked for, runs joined.

import type { StorageError } from '../../proto/errors.ts';
import { Op } from '../../proto/frame.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { ObjectExtent } from '../../proto/striping.ts';
import type { StatusDone } from './image.ts';
import type { ObjectOp, OpOwner } from './object-op.ts';
import type { PoolImage } from './pool-image.ts';

export class StatusRequest implements OpOwner {
  readonly #image: PoolImage;
  readonly #extents: ObjectExtent[];
  readonly #done: StatusDone;
  readonly #bitmaps: (Buffer | null)[];
  #left: number;
  #error: StorageError | null = null;

  constructor(image: PoolImage, extents: ObjectExtent[], done: StatusDone) {
    this.#image = image;
    this.#extents = extents;
    this.#done = done;
    this.#left = extents.length;
    this.#bitmaps = new Array(extents.length).fill(null);
  }

  begin(): void {
    for (let i = 0; i < this.#extents.length; i++)
      this.#image.submit(this.#image.newOp(this, Op.STATUS, this.#extents[i]!.object, 0, 0, i, null, false));
  }

  onOpDone(op: ObjectOp, error: StorageError | null): void {
    this.#error ??= error;
    this.#bitmaps[op.at] = error === null ? this.#image.restoreStatus(op) : null;
    if (--this.#left > 0) return;
    if (this.#error !== null) return this.#done(this.#error, null);
    const runs: { length: number; data: boolean }[] = [];
    for (let i = 0; i < this.#extents.length; i++) addRuns(runs, this.#extents[i]!, this.#bitmaps[i]!);
    this.#done(null, runs);
  }
}

function addRuns(runs: { length: number; data: boolean }[], extent: ObjectExtent, bits: Buffer | null): void {
  const end = extent.offset + extent.length;
  for (let at = extent.offset; at < end; ) {
    const block = Math.floor(at / BLOCK_BYTES);
    const next = bits === null ? end : Math.min(end, (block + 1) * BLOCK_BYTES);
    const data = bits !== null && ((bits[block >> 3] ?? 0) & (1 << (block & 7))) !== 0;
    const last = runs[runs.length - 1];
    if (last !== undefined && last.data === data) last.length += next - at;
    else runs.push({ length: next - at, data });
    at = next;
  }
}
