// Reading the metadata of all slots at start: the objects as the newest durable checkpoint left them.
//
// A copy of a newer generation is what a crash left of a checkpoint that never came into force. It does not count now, nor
// later when generations have gone on: all records that led to it were durable before it was written, redo applies them
// again, so its slot is changed again and the next checkpoint writes over that very copy.

import { StorageError } from '../../proto/errors.ts';
import type { Checkpoint } from './checkpoint-file.ts';
import type { Content } from './content.ts';
import { censusOf, decodeMeta, type MetaCopy } from './meta.ts';
import { StoredObject } from './objects.ts';
import { type Slot, type SlotFile, type SlotFiles, SlotState } from './slots.ts';

const SCAN_BYTES = 1024 * 1024;

/** Throws IO if the metadata is not what the checkpoint counted. */
export function loadSlots(slots: SlotFiles, checkpoint: Checkpoint, content: Content): void {
  let census = 0;
  let saved = 0;
  for (const file of slots.openExisting()) {
    const bytes = file.meta.size();
    const slotBytes = 2 * file.copyBytes;
    const slotsAtOnce = Math.max(1, Math.min(Math.floor(SCAN_BYTES / slotBytes), Math.ceil(bytes / slotBytes)));
    const step = slotsAtOnce * slotBytes;
    const chunk = Buffer.alloc(step);
    for (let at = 0; at < bytes; at += step) {
      chunk.fill(0);
      file.meta.read(chunk, at);
      for (let inChunk = 0; inChunk < step && at + inChunk < bytes; inChunk += slotBytes) {
        const slot = file.at((at + inChunk) / slotBytes);
        loadSlot(slot, chunk.subarray(inChunk, inChunk + slotBytes), checkpoint.generation, content);
        census ^= censusOf(file.order, slot.number, slot.generation);
        if (slot.generation > 0) saved++;
      }
    }
  }
  if (census >>> 0 !== checkpoint.census || saved !== checkpoint.slotsSaved)
    throw new StorageError(
      'IO',
      `the metadata of ${saved} slots was found, the checkpoint has ${checkpoint.slotsSaved}, or some of it is old or ` +
        "damaged: this daemon's data can't be trusted; remove it and let it be copied anew",
    );
}

function loadSlot(slot: Slot, both: Buffer, generation: number, content: Content): void {
  const { file } = slot;
  let newest: MetaCopy | null = null;
  for (const side of [0, 1] as const) {
    const copy = decodeMeta(both.subarray(side * file.copyBytes, (side + 1) * file.copyBytes), file.order, slot.number);
    if (copy === null) continue;
    // One more is what a crash leaves of a checkpoint; two more came after one that was in force.
    if (copy.generation > generation + 1)
      throw new StorageError(
        'IO',
        `the metadata of slot ${slot.number} is newer than the checkpoint files, which are old copies`,
      );
    if (copy.generation > generation) continue;
    if (newest === null || copy.generation > newest.generation) {
      newest = copy;
      slot.side = side;
      slot.generation = copy.generation;
    }
  }
  if (newest !== null) newest.ground.copy(slot.ground);
  if (newest?.live) loadObject(slot, file, newest, content);
  else content.space.reusableBlocks += slot.groundCount(0, file.blocks);
}

function loadObject(slot: Slot, file: SlotFile, copy: MetaCopy, content: Content): void {
  slot.state = SlotState.USED;
  const object = new StoredObject(copy.image, copy.object, file.order, content.pgs.take(copy.pg), slot);
  copy.checks.copy(object.checks);
  object.since = copy.since;
  object.seq = copy.seq;
  for (let block = 0; block < file.blocks; block++) {
    if (object.check(block) === 0) continue;
    object.allocated++;
    // A block that was copied after the metadata was saved for the checkpoint.
    slot.layGround(block);
  }
  content.space.liveBlocks += object.allocated;
  content.index.add(object);
}
