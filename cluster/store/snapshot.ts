// The state of the store at one position of the log, kept while a checkpoint writes it down little by little.
//
// Taking one is cheap: it marks the objects changed since the last one and encodes the PG table. From then on, whoever
// changes a marked object first calls save(), which encodes its metadata as it was at the position (1 KiB for an object
// of 1 MiB). So what a checkpoint writes is exactly the state at its position, and redo from there is exact as well.

import { encodeMeta } from './meta.ts';
import type { StoredObject } from './objects.ts';
import type { Slot } from './slots.ts';

/** The last batch before a position: what the first batch after it is chained to. */
export interface Chain {
  position: number;
  checksum: number;
}

export interface MetaImage {
  readonly slot: Slot;
  readonly bytes: Buffer;
}

export class Snapshot {
  readonly generation: number;
  /** Redo from a checkpoint of this snapshot begins here. */
  readonly position: number;
  readonly chain: Chain;
  readonly pgTable: Buffer;
  readonly objects: Set<StoredObject>;
  readonly retired: Set<Slot>;
  /** Saved because they were about to change; not yet written. */
  readonly images: MetaImage[] = [];
  /** Slots whose other copy belongs to this snapshot. */
  readonly saved: Slot[] = [];

  constructor(
    generation: number,
    position: number,
    chain: Chain,
    pgTable: Buffer,
    objects: Set<StoredObject>,
    retired: Set<Slot>,
  ) {
    this.generation = generation;
    this.position = position;
    this.chain = chain;
    this.pgTable = pgTable;
    this.objects = objects;
    this.retired = retired;
    for (const object of objects) {
      object.dirty = false;
      object.snapshot = this;
    }
  }

  /** Keeps the object's metadata as it is now. Called before its first change after the snapshot. */
  save(object: StoredObject): void {
    this.images.push({ slot: object.slot, bytes: this.encode(object) });
  }

  /** The object's metadata as it is now, which from now on it may change. */
  encode(object: StoredObject, into?: Buffer): Buffer {
    const { image, object: number, since, seq, checks, group, slot } = object;
    object.snapshot = null;
    this.saved.push(slot);
    return encodeMeta(slot, this.generation, { image, object: number, pg: group.pg, since, seq, checks }, into);
  }

  /** Metadata that says that a retired slot is free. */
  encodeFree(slot: Slot, into: Buffer): Buffer {
    this.saved.push(slot);
    return encodeMeta(slot, this.generation, null, into);
  }
}
