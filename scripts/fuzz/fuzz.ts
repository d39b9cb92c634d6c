// Runs a decoder over many inputs and holds it to what every decoder promises: a typed error or a result, within a time
// and within the memory that its limits allow.
//
//   scripts/test fuzz                                a million inputs per decoder, ten thousand conversations
//   scripts/test fuzz --inputs 50000000 --seed 7     more of them, and others
//
// A failure names the seed, the number of the input and its bytes. That both outcomes occurred is part of the test: a
// decoder that refuses everything was not tested, and one that takes everything checks nothing.

import type { ExecutionContext } from 'ava';
import { StorageError } from '../../proto/errors.ts';
import { Mutator, type Random } from './mutator.ts';

export const INPUTS = Number(process.env.ASHLAR_INPUTS ?? 1_000_000);
export const SEED = Number(process.env.ASHLAR_SEED ?? 1);
/** One input that takes longer hangs, however loaded the machine is. */
const INPUT_MS_MAX = 2_000;
/** All inputs of a test together, at a million each. More inputs need more: the runner's own limit is what ends them. */
const TEST_MS_MAX = Math.max(1, INPUTS / 1_000_000) * 600_000;
/** Bytes that any decoder may allocate besides what `capBytes` says: views, messages, results. */
const SLACK_BYTES = 64 * 1024;

export interface Target {
  /** Valid inputs. */
  readonly samples: readonly Buffer[];
  /** Most bytes of buffers that one input may make it allocate, beyond a small multiple of the input itself. */
  readonly capBytes: number;
  /** Decodes; false: refused without an error. Throws StorageError to refuse; anything else is a failure. */
  decode(input: Buffer, random: Random): boolean;
  /** Errors besides StorageError that count as a refusal. */
  readonly isTyped?: (error: unknown) => boolean;
  /** Share of inputs that is run: decoders that need a stage per input are slower. 1 unless given. */
  readonly share?: number;
}

export function fuzz(t: ExecutionContext, target: Target): void {
  t.timeout(TEST_MS_MAX);
  const inputs = Math.ceil(INPUTS * (target.share ?? 1));
  const mutator = new Mutator(target.samples, SEED);
  const meter = new AllocationMeter();
  let taken = 0;
  let refused = 0;
  const started = performance.now();
  let before = started;
  meter.begin();
  // Most inputs end in an error: where it was made is of no interest, and costs more than all the rest.
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = 0;
  try {
    for (let number = 1; number <= inputs; number++) {
      const input = mutator.next();
      const original = Buffer.from(input);
      meter.bytes = 0;
      try {
        if (target.decode(input, mutator.random)) taken++;
        else refused++;
      } catch (error) {
        if (!(error instanceof StorageError) && target.isTyped?.(error) !== true)
          return t.fail(`${where(number, original)}: ${stackOf(target, original, mutator.random) ?? String(error)}`);
        refused++;
      }
      if (meter.bytes > target.capBytes + 8 * input.length + SLACK_BYTES)
        return t.fail(`${where(number, original)}: ${meter.bytes} bytes were allocated, at most ${target.capBytes}`);
      const now = performance.now();
      if (now - before > INPUT_MS_MAX) return t.fail(`${where(number, original)}: took ${now - before} ms`);
      before = now;
    }
  } finally {
    Error.stackTraceLimit = stackTraceLimit;
    meter.end();
  }
  t.log(`${inputs} inputs, ${taken} taken, ${refused} refused, in ${Math.round(performance.now() - started)} ms`);
  t.true(refused > inputs / 100, `${refused} of ${inputs} were refused`);
  t.true(taken > inputs / 1000, `${taken} of ${inputs} were taken`);
}

/** The same once more, with a stack; null if it passes the second time, as chance plays its part. */
function stackOf(target: Target, input: Buffer, random: Random): string | null {
  Error.stackTraceLimit = 20;
  try {
    target.decode(Buffer.from(input), random);
    return null;
  } catch (error) {
    return (error as Error).stack ?? null;
  }
}

const where = (number: number, input: Buffer): string =>
  `seed ${SEED}, input ${number}, ${input.length} bytes ${input.subarray(0, 400).toString('hex')}`;

/** Counts the bytes of all buffers that are asked for between begin() and end(). */
class AllocationMeter {
  bytes = 0;
  readonly #originals = { alloc: Buffer.alloc, unsafe: Buffer.allocUnsafe, slow: Buffer.allocUnsafeSlow };

  begin(): void {
    const { alloc, unsafe, slow } = this.#originals;
    Buffer.alloc = ((bytes: number, ...rest: [never]) => {
      this.bytes += bytes;
      return alloc(bytes, ...rest);
    }) as typeof Buffer.alloc;
    Buffer.allocUnsafe = ((bytes: number) => {
      this.bytes += bytes;
      return unsafe(bytes);
    }) as typeof Buffer.allocUnsafe;
    Buffer.allocUnsafeSlow = ((bytes: number) => {
      this.bytes += bytes;
      return slow(bytes);
    }) as typeof Buffer.allocUnsafeSlow;
  }
  end(): void {
    const { alloc, unsafe, slow } = this.#originals;
    Object.assign(Buffer, { alloc, allocUnsafe: unsafe, allocUnsafeSlow: slow });
  }
}
