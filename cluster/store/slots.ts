// Slots: the places of objects on disk, one pair of files per object size.
//
//   data-20: | slot 0: 1 MiB | slot 1: 1 MiB | ...      sparse; block b of slot s stands at (s << order) + b * 4096
//   meta-20: | slot 0: copy A, copy B | slot 1: ...      see meta.ts
//
// A slot is FREE (may be taken), USED by one object, or RETIRED: freed, but the newest durable checkpoint or a redo from
// it may still refer to it, so it is not taken again before the checkpoint that retired it is durable. `ground` remembers
// which blocks of a slot have been written ever: those take no new space on the disk when they are written again.

import assert from 'node:assert/strict';
import { BLOCK_BYTES, BLOCK_SHIFT, OBJECT_ORDER_MAX, OBJECT_ORDER_MIN } from '../../proto/limits.ts';
import { type Disk, DiskError, type DiskFile } from '../../proto/ports.ts';
import { metaCopyBytes } from './meta.ts';

export const SlotState = { FREE: 0, USED: 1, RETIRED: 2 } as const;
export type SlotState = (typeof SlotState)[keyof typeof SlotState];

export class Slot {
  readonly file: SlotFile;
  readonly number: number;
  state: SlotState = SlotState.FREE;
  /** Which copy of its metadata the newest durable checkpoint relies on; the next one is written over the other. */
  side: 0 | 1 = 1;
  /** The checkpoint that wrote that copy; 0: none has. */
  generation = 0;
  /** Its metadata will take space that is not taken yet, and that is accounted for. */
  promised = false;
  /** One bit per block: written ever. */
  ground: Buffer;

  constructor(file: SlotFile, number: number) {
    this.file = file;
    this.number = number;
    this.ground = Buffer.allocUnsafe(Math.max(1, file.blocks >> 3)).fill(0);
  }

  hasGround(block: number): boolean {
    return (this.ground[block >> 3]! & (1 << (block & 7))) !== 0;
  }

  /** Marks a block as written; false if it was. */
  layGround(block: number): boolean {
    const bit = 1 << (block & 7);
    if ((this.ground[block >> 3]! & bit) !== 0) return false;
    this.ground[block >> 3]! |= bit;
    return true;
  }

  groundCount(first: number, count: number): number {
    let found = 0;
    for (let block = first; block < first + count; block++) if (this.hasGround(block)) found++;
    return found;
  }

  /** Where a block of this slot stands in the data file. */
  placeOf(block: number): number {
    return this.number * (1 << this.file.order) + block * BLOCK_BYTES;
  }
}

export class SlotFile {
  readonly order: number;
  readonly blocks: number;
  readonly copyBytes: number;
  readonly data: DiskFile;
  readonly meta: DiskFile;
  readonly slots: Slot[] = [];
  /** Free slots that exist, the last one to be taken next. */
  private readonly free: Slot[] = [];

  constructor(order: number, data: DiskFile, meta: DiskFile) {
    this.order = order;
    this.blocks = 1 << (order - BLOCK_SHIFT);
    this.copyBytes = metaCopyBytes(order);
    this.data = data;
    this.meta = meta;
  }

  /** The slot that take() would give next; not taken yet. */
  candidate(): Slot {
    return this.free[this.free.length - 1] ?? new Slot(this, this.slots.length);
  }

  /** Would the candidate add a record to the meta file? */
  candidateIsNew(): boolean {
    return this.free.length === 0;
  }

  at(number: number): Slot {
    while (this.slots.length <= number) this.slots.push(new Slot(this, this.slots.length));
    return this.slots[number]!;
  }

  /** Makes the slot USED: the candidate, or during redo (when no list of free slots exists yet) the one the log names. */
  take(number: number): Slot {
    const slot = this.at(number);
    assert(slot.state === SlotState.FREE, 'the slot is in use');
    if (this.free[this.free.length - 1] === slot) this.free.pop();
    slot.state = SlotState.USED;
    return slot;
  }

  giveBack(slot: Slot): void {
    slot.state = SlotState.FREE;
    this.free.push(slot);
  }

  close(): void {
    this.data.close();
    this.meta.close();
  }

  /** After redo: whatever no object uses and no checkpoint must retire is free. Low numbers are taken first. */
  listFree(): void {
    for (let number = this.slots.length - 1; number >= 0; number--) {
      const slot = this.slots[number]!;
      if (slot.state === SlotState.FREE) this.free.push(slot);
    }
  }
}

/** The files of all object sizes, opened or made when first needed. */
export class SlotFiles {
  private readonly disk: Disk;
  private readonly byOrder: (SlotFile | undefined)[] = [];

  constructor(disk: Disk) {
    this.disk = disk;
  }

  /** Opens what exists; for the start. A process that died may have made names that no power cut has tried yet. */
  openExisting(): SlotFile[] {
    const found: SlotFile[] = [];
    for (let order = OBJECT_ORDER_MIN; order <= OBJECT_ORDER_MAX; order++)
      if (this.disk.exists(`meta-${order}`)) found.push(this.open(order));
    this.disk.syncDirectory();
    return found;
  }

  /** The files of an object size. Makes them if needed, durably, before anything refers to them. Throws DiskError. */
  of(order: number): SlotFile {
    return this.byOrder[order] ?? this.make(order);
  }

  private make(order: number): SlotFile {
    const file = this.open(order);
    try {
      this.disk.syncDirectory();
    } catch (error) {
      this.byOrder[order] = undefined;
      // Whatever its code: after a failed sync nothing may go on as if a later one made up for it.
      throw new DiskError('IO', `the names of new files may be lost: ${(error as Error).message}`, error);
    }
    return file;
  }

  private open(order: number): SlotFile {
    const file = new SlotFile(order, this.disk.open(`data-${order}`, true), this.disk.open(`meta-${order}`, true));
    this.byOrder[order] = file;
    return file;
  }

  all(): SlotFile[] {
    return this.byOrder.filter((file) => file !== undefined);
  }
}
