// Stamped writes through NBD that go on while processes die: keeps the promises' record, and measures the longest time
// without any answer.

import { NbdClient } from './nbd-client.ts';
import { BLOCK, generationOf, Promises, stampedBlock } from './stamps.ts';
import { generator } from './tree.ts';

export interface LoadOptions {
  address: string;
  image: string;
  /** Blocks 0 to this are written, in no order. */
  blocks: number;
  depth: number;
  /** Every so many writes a flush. */
  flushEvery: number;
  seed: number;
}

export class Load {
  readonly promises: Promises;
  /** Longest time in which no request was answered, in milliseconds, since the load began or since resetGap(). */
  longestGapMs = 0;
  answers = 0;
  readonly errors: string[] = [];
  readonly #options: LoadOptions;
  readonly #client: NbdClient;
  readonly #done: Promise<void>[] = [];
  readonly #busy = new Set<number>();
  #answeredAt = performance.now();
  #stopping = false;

  private constructor(options: LoadOptions, client: NbdClient, promises: Promises) {
    this.#options = options;
    this.#client = client;
    this.promises = promises;
    const next = generator(options.seed);
    for (let i = 0; i < options.depth; i++) this.#done.push(this.#writer(next));
  }
  /** @param promises goes on from an earlier load's record */
  static async start(options: LoadOptions, promises = new Promises()): Promise<Load> {
    return new Load(options, await NbdClient.open(options.address, options.image), promises);
  }

  resetGap(): void {
    this.longestGapMs = 0;
    this.#answeredAt = performance.now();
  }
  /** Including the one that lasts now. */
  get gapMs(): number {
    return Math.max(this.longestGapMs, performance.now() - this.#answeredAt);
  }
  /** Ends it when all answers are there; flushes at the end. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.#done);
    if (this.errors.length > 0) return this.#client.destroy();
    await this.#flush();
    await this.#client.disconnect();
  }
  /** For a load whose server was killed: waits until every writer has noticed. */
  async wreck(): Promise<void> {
    this.#stopping = true;
    this.#client.destroy();
    await Promise.all(this.#done);
  }

  async #writer(next: () => number): Promise<void> {
    let writes = 0;
    while (!this.#stopping) {
      const number = next() % this.#options.blocks;
      if (this.#busy.has(number)) continue; // two writes of one block at once would have no order
      this.#busy.add(number);
      try {
        const generation = this.promises.next(number);
        const fua = next() % 50 === 0;
        await this.#client.write(number * BLOCK, stampedBlock(number, generation), fua);
        this.#answered();
        this.promises.ack(number, generation);
        if (fua) this.promises.flushed.set(number, generation);
        if (++writes % this.#options.flushEvery === 0) await this.#flush();
      } catch (error) {
        this.errors.push(String(error));
        return;
      } finally {
        this.#busy.delete(number);
      }
    }
  }
  async #flush(): Promise<void> {
    const flushed = this.promises.beforeFlush();
    await this.#client.flush();
    this.#answered();
    flushed();
  }
  #answered(): void {
    const now = performance.now();
    this.longestGapMs = Math.max(this.longestGapMs, now - this.#answeredAt);
    this.#answeredAt = now;
    this.answers++;
  }
}

const CHUNK_BLOCKS = 256;

/** Reads every block again and returns each promise that was broken. */
export async function brokenPromises(
  address: string,
  image: string,
  blocks: number,
  promises: Promises,
  atLeast: 'acked' | 'flushed',
): Promise<string[]> {
  const client = await NbdClient.open(address, image);
  const broken: string[] = [];
  for (let first = 0; first < blocks; first += CHUNK_BLOCKS) {
    const count = Math.min(CHUNK_BLOCKS, blocks - first);
    const bytes = await client.read(first * BLOCK, count * BLOCK);
    for (let i = 0; i < count; i++) {
      try {
        const found = generationOf(bytes.subarray(i * BLOCK, (i + 1) * BLOCK), first + i);
        const why = promises.broken(first + i, found, atLeast);
        if (why !== null) broken.push(why);
      } catch (error) {
        broken.push((error as Error).message);
      }
    }
  }
  await client.disconnect();
  return broken;
}
