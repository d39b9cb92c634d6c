// Objects in memory: which slot holds each, its blocks' checksums, and which blocks are newer in the log than in the slot.
//
// An object exists exactly while it holds a block. `overlay` says per block where to read: 0 = in the slot; p > 0 = in
// the log at position p; -p = the block is a hole since position p, and what stands in the slot may still be needed by
// a redo that begins before p, so nothing may be written there directly until a checkpoint from p or later is durable.

import { type ImageId, objectKey } from '../../proto/ids.ts';
import { BLOCK_SHIFT } from '../../proto/limits.ts';
import type { PgState } from './pg-log.ts';
import type { Slot } from './slots.ts';
import type { Snapshot } from './snapshot.ts';

const LEAF_SHIFT = 6;
const LEAF_BLOCKS = 1 << LEAF_SHIFT;

/** Leaves that nobody uses, all zeros: objects get dirty and clean again all the time. */
const spareLeaves: Float64Array[] = [];
const SPARE_LEAVES_MAX = 16_384;

/** Numbers per block, most of them 0: leaves of 64 blocks made when one of theirs is set. */
export class Overlay {
  readonly leaves: (Float64Array | null)[];
  /** Blocks whose number is not 0. */
  count = 0;

  constructor(blocks: number) {
    this.leaves = new Array<Float64Array | null>(Math.ceil(blocks / LEAF_BLOCKS)).fill(null);
  }

  get(block: number): number {
    const leaf = this.leaves[block >> LEAF_SHIFT]!;
    return leaf === null ? 0 : leaf[block & (LEAF_BLOCKS - 1)]!;
  }

  set(block: number, value: number): void {
    let leaf = this.leaves[block >> LEAF_SHIFT]!;
    if (leaf === null) {
      if (value === 0) return;
      leaf = spareLeaves.pop() ?? new Float64Array(LEAF_BLOCKS);
      this.leaves[block >> LEAF_SHIFT] = leaf;
    }
    const before = leaf[block & (LEAF_BLOCKS - 1)]!;
    if (before === 0 && value !== 0) this.count++;
    else if (before !== 0 && value === 0) this.count--;
    leaf[block & (LEAF_BLOCKS - 1)] = value;
  }

  /** Gives the leaves back; all numbers are 0 by now. */
  release(): void {
    for (const leaf of this.leaves) if (leaf !== null && spareLeaves.length < SPARE_LEAVES_MAX) spareLeaves.push(leaf);
    this.leaves.fill(null);
  }

  /** The first block at or after `block` with a number other than 0; -1 if there is none. */
  next(block: number): number {
    for (let index = block >> LEAF_SHIFT; index < this.leaves.length; index++) {
      const leaf = this.leaves[index]!;
      const from = index === block >> LEAF_SHIFT ? block & (LEAF_BLOCKS - 1) : 0;
      for (let i = from; leaf !== null && i < LEAF_BLOCKS; i++) if (leaf[i] !== 0) return (index << LEAF_SHIFT) + i;
    }
    return -1;
  }
}

export class StoredObject {
  readonly image: ImageId;
  readonly object: number;
  readonly order: number;
  readonly group: PgState;
  slot: Slot;
  since = 0;
  seq = 0;
  /** Blocks that hold data. */
  allocated = 0;
  /** u32 LE per block; NO_DATA for a hole. */
  checks: Buffer;
  overlay: Overlay | null = null;
  /** Changes whenever a block's content or place does: a read off the event loop compares it before and after. */
  stamp = 0;
  /** Changed since the last snapshot was taken. */
  dirty = false;
  /** The snapshot that must save this object before it changes. */
  snapshot: Snapshot | null = null;

  constructor(image: ImageId, object: number, order: number, group: PgState, slot: Slot) {
    this.image = image;
    this.object = object;
    this.order = order;
    this.group = group;
    this.slot = slot;
    this.checks = Buffer.allocUnsafe(4 * this.blocks).fill(0);
  }

  get blocks(): number {
    return 1 << (this.order - BLOCK_SHIFT);
  }

  check(block: number): number {
    return this.checks.readUInt32LE(block * 4);
  }

  /** Blocks of [first, first + count) that hold data. */
  allocatedIn(first: number, count: number): number {
    let found = 0;
    for (let block = first; block < first + count; block++) if (this.check(block) !== 0) found++;
    return found;
  }
}

/** All objects by image and number, and by PG. */
export class ObjectIndex {
  private readonly byKey = new Map<number, StoredObject>();

  get(image: ImageId, object: number): StoredObject | undefined {
    return this.byKey.get(objectKey(image, object));
  }

  add(object: StoredObject): void {
    this.byKey.set(objectKey(object.image, object.object), object);
    object.group.objects.add(object);
    object.group.blocks += object.allocated;
  }

  remove(object: StoredObject): void {
    this.byKey.delete(objectKey(object.image, object.object));
    object.group.objects.delete(object);
    object.group.blocks -= object.allocated;
  }

  ofPg(group: PgState | undefined): StoredObject[] {
    return group === undefined ? [] : [...group.objects];
  }

  all(): Iterable<StoredObject> {
    return this.byKey.values();
  }

  get size(): number {
    return this.byKey.size;
  }
}
