// Blocks that say where they belong and which write made them, and a record of what a reader must find.
//
//   block: number u32 | generation u32 | 4088 bytes that follow from both
//
// A block whose write was never acked may hold any generation up to the newest one sent, but always one whole
// generation: half a block, or another block's bytes, is damage. A block that was flushed holds at least that
// generation.

import { generator } from './tree.ts';

export const BLOCK = 4096;

export function stampedBlock(number: number, generation: number): Buffer {
  const block = Buffer.allocUnsafe(BLOCK);
  block.writeUInt32LE(number, 0);
  block.writeUInt32LE(generation, 4);
  const next = generator(Math.imul(number + 1, 0x9e3779b1) ^ Math.imul(generation, 0x85ebca6b));
  for (let at = 8; at < BLOCK; at += 4) block.writeUInt32LE(next(), at);
  return block;
}

/** Generation of a block read from place `number`: 0 for one never written (zeros). Throws if it is damaged. */
export function generationOf(block: Buffer, number: number): number {
  if (block.every((byte) => byte === 0)) return 0;
  const generation = block.readUInt32LE(4);
  if (block.readUInt32LE(0) !== number)
    throw new Error(`block ${number} holds block ${block.readUInt32LE(0)}, generation ${generation}`);
  if (!block.equals(stampedBlock(number, generation)))
    throw new Error(`block ${number} is torn, generation ${generation}`);
  return generation;
}

/** What has been promised of each block. */
export class Promises {
  /** Newest generation sent, acked and flushed, by block. */
  readonly sent = new Map<number, number>();
  readonly acked = new Map<number, number>();
  readonly flushed = new Map<number, number>();

  /** The next generation to write to this block. */
  next(number: number): number {
    const generation = (this.sent.get(number) ?? 0) + 1;
    this.sent.set(number, generation);
    return generation;
  }
  ack(number: number, generation: number): void {
    if (generation > (this.acked.get(number) ?? 0)) this.acked.set(number, generation);
  }
  /** To be called before a flush is sent; call the result when it was answered. */
  beforeFlush(): () => void {
    const covered = new Map(this.acked);
    return () => {
      for (const [number, generation] of covered)
        if (generation > (this.flushed.get(number) ?? 0)) this.flushed.set(number, generation);
    };
  }
  /** Why `found` breaks a promise, or null. @param atLeast what must have survived */
  broken(number: number, found: number, atLeast: 'acked' | 'flushed'): string | null {
    const least = this[atLeast].get(number) ?? 0;
    const most = this.sent.get(number) ?? 0;
    if (found >= least && found <= most) return null;
    return `block ${number} holds generation ${found}; ${atLeast} ${least}, sent ${most}`;
  }
}
