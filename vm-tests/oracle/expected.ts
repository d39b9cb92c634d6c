// What each block may hold: the window between what was promised and what was sent.
//
//   per block   changes in order of their stamps:  [floor ... newest], each data or zeros
//   acked       the oracle's server keeps acked writes (every machine keeps power): an ack moves the floor
//   flushed     only a flush or FUA moves it: what was acked before the flush was sent
//   seen        a value that was read moves the floor too: later reads never go back
//
// Changes of one block follow one another (Device sees to it), reads may overlap them: a read is judged against the
// window from its beginning to its end. A crash that loses unflushed writes takes the floor back to what was flushed;
// the first value read after it is pinned: what came between is gone and must stay so. A change without an answer stays
// possible until a later one moves the floor past it. No I/O here.

import type { Verdict } from './stamps.ts';

export type Promised = 'acked' | 'flushed';

interface Change {
  stamp: number;
  zeros: boolean;
}
interface Block {
  /** In order of stamps; those below every floor in use are dropped. */
  changes: Change[];
  newest: number;
  acked: number;
  durable: number;
  seen: number;
  /** Newest stamp when a crash lost something, until a read shows what survived; else 0. */
  crashedAt: number;
  readers: number;
}
/** A read in flight: the floors when it began. */
export interface Reading {
  readonly first: number;
  readonly floors: number[];
}

/** Before anything is written a device reads as zeros: change 0. */
const FRESH: Change = { stamp: 0, zeros: true };

export class Expected {
  readonly blocks: number;
  readonly promise: Promised;
  newestStamp = 0;
  readonly #blocks: Block[] = [];
  /** Acked since the last flush was sent, by block. */
  #unflushed = new Map<number, number>();

  constructor(blocks: number, promise: Promised) {
    this.blocks = blocks;
    this.promise = promise;
    for (let i = 0; i < blocks; i++)
      this.#blocks.push({ changes: [FRESH], newest: 0, acked: 0, durable: 0, seen: 0, crashedAt: 0, readers: 0 });
  }

  /** A change is about to be sent. @param stamp newer than all before */
  issue(first: number, count: number, stamp: number, zeros: boolean): void {
    if (stamp <= this.newestStamp) throw new Error(`stamp ${stamp} was given already`);
    this.newestStamp = stamp;
    for (let i = first; i < first + count; i++) {
      const block = this.#blocks[i]!;
      block.changes.push({ stamp, zeros });
      block.newest = stamp;
    }
  }
  /** It was answered with success. @param fua it is on stable storage */
  ack(first: number, count: number, stamp: number, fua: boolean): void {
    for (let i = first; i < first + count; i++) {
      const block = this.#blocks[i]!;
      block.acked = Math.max(block.acked, stamp);
      if (fua) block.durable = Math.max(block.durable, stamp);
      else this.#unflushed.set(i, stamp);
      this.#trim(block);
    }
  }
  /** A flush is about to be sent; the result is to be given to flushed() when it was answered with success. */
  beforeFlush(): ReadonlyMap<number, number> {
    return new Map(this.#unflushed);
  }
  flushed(covered: ReadonlyMap<number, number>): void {
    for (const [i, stamp] of covered) {
      const block = this.#blocks[i]!;
      block.durable = Math.max(block.durable, stamp);
      if (this.#unflushed.get(i) === stamp) this.#unflushed.delete(i);
      this.#trim(block);
    }
  }
  /** The server may have lost what was not flushed. */
  crash(): void {
    this.#unflushed.clear();
    for (const block of this.#blocks) {
      if (this.promise === 'acked') continue;
      block.acked = block.durable;
      block.seen = block.durable;
      block.crashedAt = block.newest;
    }
  }

  /** Oldest stamp that a read which begins now may return. */
  floor(i: number): number {
    const { acked, durable, seen } = this.#blocks[i]!;
    return Math.max(durable, seen, acked);
  }
  /** Newest change that is promised to survive what the promise is about. */
  promised(i: number): number {
    const { acked, durable } = this.#blocks[i]!;
    return this.promise === 'acked' ? Math.max(acked, durable) : durable;
  }
  newest(i: number): number {
    return this.#blocks[i]!.newest;
  }

  beginRead(first: number, count: number): Reading {
    const floors: number[] = [];
    for (let i = first; i < first + count; i++) {
      this.#blocks[i]!.readers++;
      floors.push(this.floor(i));
    }
    return { first, floors };
  }
  /**
   * The read was answered, or given up (verdicts null). Returns a sentence for each block that breaks a promise.
   */
  endRead({ first, floors }: Reading, verdicts: readonly Verdict[] | null): string[] {
    const broken: string[] = [];
    for (let at = 0; at < floors.length; at++) {
      const i = first + at;
      const block = this.#blocks[i]!;
      if (verdicts !== null) {
        const why = this.#judge(block, floors[at]!, verdicts[at]!);
        if (why !== null) broken.push(`block ${i}: ${why}`);
      }
      block.readers--;
      this.#trim(block);
    }
    return broken;
  }

  #judge(block: Block, floor: number, verdict: Verdict): string | null {
    const window = `[${floor} .. ${block.newest}]`;
    if (verdict.is === 'damage') return `${verdict.why}; expected ${window}`;
    const found = block.changes.find((change) =>
      verdict.is === 'zeros' ? change.zeros && change.stamp >= floor : change.stamp === verdict.stamp,
    );
    const name = verdict.is === 'zeros' ? 'zeros' : `stamp ${verdict.stamp}`;
    if (found === undefined || found.zeros !== (verdict.is === 'zeros') || found.stamp < floor) {
      if (verdict.is === 'stamp' && verdict.stamp > block.newest) return `${name} was never sent; expected ${window}`;
      const was = verdict.is === 'stamp' && verdict.stamp > floor ? 'a change that a crash had undone' : 'stale';
      return `${name} is ${was}; expected ${window}: ${this.#candidates(block, floor)}`;
    }
    block.seen = Math.max(block.seen, found.stamp);
    if (block.crashedAt > 0) {
      // What survived is chosen once, and was read from a disk.
      if (found.stamp <= block.crashedAt) block.durable = Math.max(block.durable, found.stamp);
      block.changes = block.changes.filter(({ stamp }) => stamp <= found.stamp || stamp > block.crashedAt);
      block.crashedAt = 0;
    }
    return null;
  }
  #candidates(block: Block, floor: number): string {
    const names = block.changes
      .filter(({ stamp }) => stamp >= floor)
      .map(({ stamp, zeros }) => (zeros ? `zeros ${stamp}` : `${stamp}`));
    return names.slice(-8).join(', ');
  }
  /** Readers in flight may still be answered with what was true when they began; a crash goes back to what was flushed. */
  #trim(block: Block): void {
    if (block.readers > 0) return;
    const { acked, durable, seen } = block;
    const floor = this.promise === 'acked' ? Math.max(acked, durable, seen) : durable;
    while (block.changes.length > 1 && block.changes[0]!.stamp < floor) block.changes.shift();
  }
}
