// Inputs that are almost right: a valid sample with a few changes, two samples joined, or plain noise.
//
//   sample ──copy──► scratch ──1 to 4 of: flip a bit, set a byte, an interesting number, cut, repeat, remove, splice──► input
//
// Everything follows from the seed, and nothing is allocated per input but one view: a million inputs are a matter of
// a second. The input is a view of the scratch, good until the next one is made.

export type Random = (below: number) => number;

/** xorshift32. @returns uniform enough whole numbers from 0 to below - 1 */
export function randomOf(seed: number): Random {
  let state = Math.imul(seed + 1, 0x9e3779b1) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
}

/** What breaks parsers: ends of ranges, and lengths just beyond limits. */
const INTERESTING = [
  0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 43, 44, 63, 64, 95, 96, 127, 128, 255, 256, 511, 512, 4095, 4096, 4097, 65_535,
  65_536, 65_537, 0xf_ffff, 0x10_0000, 0x10_0001, 0x1f_ffff, 0x20_0000, 0x1ff_ffff, 0x200_0000, 0x200_0001, 0x7fff_ffff,
  0x8000_0000, 0xffff_fffe, 0xffff_ffff,
];
/** One input in so many is noise from beginning to end. */
const NOISE_EVERY = 16;
const CHANGES_MOST = 4;
/** An input grows by at most so much over its sample. */
const GROWTH_BYTES = 256;

export class Mutator {
  readonly random: Random;
  readonly #samples: readonly Buffer[];
  readonly #scratch: Buffer;

  constructor(samples: readonly Buffer[], seed: number) {
    this.random = randomOf(seed);
    this.#samples = samples;
    this.#scratch = Buffer.alloc(Math.max(64, ...samples.map((sample) => sample.length)) + GROWTH_BYTES);
  }

  /** The next input: a view of memory that the next call overwrites. */
  next(): Buffer {
    const { random } = this;
    const scratch = this.#scratch;
    if (random(NOISE_EVERY) === 0) {
      const length = random(Math.min(256, scratch.length));
      for (let at = 0; at < length; at++) scratch[at] = random(256);
      return scratch.subarray(0, length);
    }
    const sample = this.#samples[random(this.#samples.length)]!;
    sample.copy(scratch);
    let length = sample.length;
    for (let changes = random(CHANGES_MOST); changes >= 0; changes--) length = this.#change(length);
    return scratch.subarray(0, length);
  }

  #change(length: number): number {
    const { random } = this;
    const scratch = this.#scratch;
    if (length === 0) return length;
    const at = random(length);
    switch (random(10)) {
      case 0:
      case 1:
        scratch[at]! ^= 1 << random(8);
        return length;
      case 2:
        scratch[at] = random(256);
        return length;
      case 3:
      case 4:
        return this.#number(at, length);
      case 5: {
        // Numbers are mostly at multiples of 4.
        const aligned = at & ~3;
        return this.#number(aligned, length);
      }
      case 6:
        return at;
      case 7: {
        const bytes = Math.min(1 + random(32), length - at);
        scratch.copyWithin(at, at + bytes, length);
        return length - bytes;
      }
      case 8: {
        const bytes = Math.min(1 + random(64), length - at, scratch.length - length);
        scratch.copyWithin(at + bytes, at, length);
        return length + bytes;
      }
      default: {
        const other = this.#samples[random(this.#samples.length)]!;
        if (other.length === 0) return length;
        const from = random(other.length);
        const bytes = Math.min(other.length - from, scratch.length - at);
        other.copy(scratch, at, from, from + bytes);
        return Math.max(length, at + bytes);
      }
    }
  }

  #number(at: number, length: number): number {
    const { random } = this;
    const scratch = this.#scratch;
    const value = INTERESTING[random(INTERESTING.length)]!;
    const big = random(2) === 0;
    if (random(3) === 0 && at + 2 <= length) {
      if (big) scratch.writeUInt16BE(value & 0xffff, at);
      else scratch.writeUInt16LE(value & 0xffff, at);
    } else if (at + 4 <= length) {
      if (big) scratch.writeUInt32BE(value, at);
      else scratch.writeUInt32LE(value, at);
    } else scratch[at] = value & 0xff;
    return length;
  }
}
