// Seeded randomness for the simulation: one seed gives the same numbers for ever.
//
// A stream is sfc32 (Chris Doty-Humphrey, PractRand), seeded through splitmix32. Streams form a tree: fork(label)
// depends on the seed of its parent and on the label alone, never on how much was drawn before. So one more draw in
// the network does not shift what the workload does, and a failing seed stays close to itself while code changes.

import assert from 'node:assert/strict';
import type { Random } from '../../proto/ports.ts';

export class SimRandom implements Random {
  readonly #seed: number;
  #a: number;
  #b: number;
  #c: number;
  #counter = 1;

  constructor(seed: number) {
    this.#seed = seed >>> 0;
    this.#a = splitmix32(this.#seed, 1);
    this.#b = splitmix32(this.#seed, 2);
    this.#c = splitmix32(this.#seed, 3);
    for (let i = 0; i < 12; i++) this.u32();
  }

  /** A stream of its own, for ever the same for this seed and label. */
  fork(label: string): SimRandom {
    let h = 0x811c9dc5;
    for (let i = 0; i < label.length; i++) h = Math.imul(h ^ label.charCodeAt(i), 0x01000193);
    return new SimRandom(splitmix32(this.#seed ^ h, label.length + 7));
  }

  u32(): number {
    const sum = (this.#a + this.#b + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + sum) | 0;
    return sum >>> 0;
  }

  /** Uniform in [0, 1). */
  unit(): number {
    return this.u32() / 2 ** 32;
  }

  /** Uniform integer in [0, limit). */
  below(limit: number): number {
    assert(limit >= 1);
    return Math.floor(this.unit() * limit);
  }

  /** Uniform integer in [first, last]. */
  between(first: number, last: number): number {
    return first + this.below(last - first + 1);
  }

  chance(probability: number): boolean {
    return this.unit() < probability;
  }

  /** Exponentially distributed around `mean`: mostly short, sometimes long, as real delays are. */
  exponential(mean: number): number {
    return -Math.log(1 - this.unit()) * mean;
  }

  pick<T>(choices: readonly T[]): T {
    assert(choices.length > 0);
    return choices[this.below(choices.length)]!;
  }

  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      const kept = items[i]!;
      items[i] = items[j]!;
      items[j] = kept;
    }
    return items;
  }
}

/** The `step`-th output of splitmix32 from `seed`: neighbouring seeds give unrelated numbers. */
function splitmix32(seed: number, step: number): number {
  let z = (seed + Math.imul(step, 0x9e3779b9)) | 0;
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
  return (z ^ (z >>> 16)) >>> 0;
}
