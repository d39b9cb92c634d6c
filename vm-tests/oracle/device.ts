// One export under load: several connections, stamped changes and reads in flight on all of them, and audits.
//
//   worker (depth of them): pick a run of blocks that no other change holds -> journal (fsynced) -> request -> Expected
//   link   (connections):   opened again for ever; what it leaves unanswered is unknown
//
// A change of unknown outcome may still sit in a server's or a proxy's buffer: its blocks rest for SETTLE_MS before they
// are changed again, because a client that gives up on a connection can't know the order of what it sends on two of them.

import { Expected, type Promised } from './expected.ts';
import { Journal, loadJournal } from './journal.ts';
import { Command, Connection, FUA, Refused, type Target } from './nbd-wire.ts';
import { BLOCK, stampInto, type Verdict, verdictOf } from './stamps.ts';

export interface DeviceOptions {
  target: Target;
  journalPath: string;
  /** Blocks 0 to this are changed. */
  blocks: number;
  connections: number;
  depth: number;
  /** Requests per second, at most. */
  rate: number;
  seed: number;
  promise: Promised;
  /** A request that waits longer is given up: unknown. */
  answerMs: number;
}
export interface Counts {
  changes: number;
  reads: number;
  flushes: number;
  unknown: number;
  /** Connections lost, of any cause. */
  losses: number;
  /** Errors that the server answered with, by NBD's number. */
  refused: Record<string, number>;
}
export interface Audit {
  blocks: number;
  /** Sentences: what breaks a promise. */
  broken: string[];
  /** Sentences: what could not be read. */
  unreadable: string[];
}

const SETTLE_MS = 3_000;
const HANDSHAKE_MS = 5_000;
const RECONNECT_MS = 100;
const RUN_MAX = 64;
const AUDIT_BLOCKS = 64;
const AUDIT_READERS = 4;
const AUDIT_RETRIES = 40;
const AUDIT_RETRY_MS = 250;

export class Device {
  readonly counts: Counts = { changes: 0, reads: 0, flushes: 0, unknown: 0, losses: 0, refused: {} };
  /** Called with a sentence for each broken promise. */
  onViolation: (why: string) => void = () => {};
  readonly #options: DeviceOptions;
  readonly #expected: Expected;
  readonly #journal: Journal;
  readonly #volume: number;
  readonly #next: () => number;
  readonly #links: (Connection | null)[] = [];
  /** 1: a change of this block is under way, or its outcome is unknown since a short time. */
  readonly #busy: Uint8Array;
  readonly #workers: Promise<void>[] = [];
  readonly #sentAt = new Set<{ at: number }>();
  #working = 0;
  #paused = true;
  #stopped = false;
  #wake: (() => void)[] = [];
  #slowestMs = 0;
  #longestGapMs = 0;
  #answeredAt = performance.now();
  #resetAt = performance.now();
  #turnAt = 0;

  private constructor(options: DeviceOptions, volume: number, expected: Expected, journal: Journal) {
    this.#options = options;
    this.#volume = volume;
    this.#expected = expected;
    this.#journal = journal;
    this.#next = generator(options.seed);
    this.#busy = new Uint8Array(expected.blocks);
  }
  /** Goes on with the journal if there is one. Rejects if the export can't be opened. */
  static async open(options: DeviceOptions, isNew: boolean, volume: number): Promise<Device> {
    const { journalPath, blocks, promise } = options;
    const loaded = isNew ? { volume, expected: new Expected(blocks, promise) } : loadJournal(journalPath, promise);
    const journal = isNew ? Journal.create(journalPath, volume, blocks) : Journal.append(journalPath);
    const { expected } = loaded;
    const device = new Device(options, loaded.volume, expected, journal);
    const first = await Connection.open(options.target, HANDSHAKE_MS, options.answerMs);
    if (first.sizeBytes < expected.blocks * BLOCK) throw new Error('the export is smaller than the blocks to be used');
    const links = first.multiConn ? options.connections : 1;
    for (let i = 0; i < links; i++) void device.#keepOpen(i, i === 0 ? first : null);
    return device;
  }

  get name(): string {
    return this.#options.target.exportName;
  }
  get connections(): number {
    return this.#links.length;
  }
  /** Begins the load, or goes on after pause(). */
  resume(): void {
    this.#paused = false;
    this.resetTimes();
    while (this.#workers.length < this.#options.depth) this.#workers.push(this.#worker());
    this.#wakeAll();
  }
  /** Resolves when nothing is in flight. */
  async pause(): Promise<void> {
    this.#paused = true;
    while (this.#working > 0) await sleep(10);
  }
  /** What the server may have lost by now is what was not flushed. */
  async crash(): Promise<void> {
    this.#journal.crashed();
    await this.#journal.synced();
    this.#expected.crash();
  }
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#wakeAll();
    for (const link of this.#links) link?.close();
    await Promise.all(this.#workers);
    await this.#journal.close();
  }

  resetTimes(): void {
    this.#resetAt = performance.now();
    this.#slowestMs = 0;
    this.#longestGapMs = 0;
    this.#answeredAt = performance.now();
  }
  /** Since resetTimes(): the longest time without any good answer, and the longest that a request waited from then on. */
  get times(): { gapMs: number; slowestMs: number } {
    const now = performance.now();
    let oldest = now;
    for (const { at } of this.#sentAt) oldest = Math.min(oldest, Math.max(at, this.#resetAt));
    return {
      gapMs: Math.max(this.#longestGapMs, this.#paused ? 0 : now - this.#answeredAt),
      slowestMs: Math.max(this.#slowestMs, now - oldest),
    };
  }

  /** Pauses the load and reads every block. The load stays paused. */
  async audit(): Promise<Audit> {
    await this.pause();
    await this.#journal.synced();
    const { blocks } = this.#expected;
    const audit: Audit = { blocks: 0, broken: [], unreadable: [] };
    let next = 0;
    const readOn = async (): Promise<void> => {
      while (next < blocks) {
        const first = next;
        const count = Math.min(AUDIT_BLOCKS, blocks - first);
        next += count;
        const why = await this.#auditRead(first, count, audit);
        // Which of them? One bad block must not hide its neighbours.
        if (why !== null && count > 1)
          for (let i = first; i < first + count; i++) {
            const single = await this.#auditRead(i, 1, audit);
            if (single !== null) audit.unreadable.push(`${this.name}, block ${i}: ${single}`);
          }
        else if (why !== null) audit.unreadable.push(`${this.name}, block ${first}: ${why}`);
      }
    };
    await Promise.all(Array.from({ length: AUDIT_READERS }, readOn));
    return audit;
  }
  /** Returns why it could not be read, or null. */
  async #auditRead(first: number, count: number, audit: Audit): Promise<string | null> {
    for (let attempt = 1; ; attempt++) {
      try {
        audit.broken.push(...(await this.#read(first, count)));
        audit.blocks += count;
        return null;
      } catch (error) {
        if (error instanceof Refused || attempt === AUDIT_RETRIES) return (error as Error).message;
        await sleep(AUDIT_RETRY_MS);
      }
    }
  }

  async #worker(): Promise<void> {
    while (!this.#stopped) {
      if (this.#paused) {
        await new Promise<void>((resolve) => this.#wake.push(resolve));
        continue;
      }
      this.#working++;
      try {
        await this.#turn();
        if (!this.#paused) await this.#step();
      } finally {
        this.#working--;
      }
    }
  }
  async #step(): Promise<void> {
    const kind = this.#next() % 100;
    const count = this.#runLength();
    const first = this.#next() % (this.#expected.blocks - count + 1);
    try {
      if (kind < 50) await this.#change(first, count, Command.WRITE, kind < 5);
      else if (kind < 54) await this.#change(first, count, Command.WRITE_ZEROES, kind === 50);
      else if (kind < 58) await this.#change(first, count, Command.TRIM, kind === 54);
      else if (kind < 63) await this.#flush();
      else for (const why of await this.#read(first, count)) this.onViolation(why);
    } catch (error) {
      if (error instanceof Refused) {
        this.counts.refused[error.errno] = (this.counts.refused[error.errno] ?? 0) + 1;
        await sleep(50); // a server that refuses all must not be asked in a tight loop
      } else await sleep(RECONNECT_MS);
    }
  }
  #runLength(): number {
    const dice = this.#next() % 100;
    const longest = dice < 60 ? 1 : dice < 90 ? 4 : dice < 97 ? 16 : RUN_MAX;
    return Math.min(1 + (this.#next() % longest), this.#expected.blocks);
  }

  async #change(first: number, count: number, command: number, fua: boolean): Promise<void> {
    const end = first + count;
    for (let i = first; i < end; i++) if (this.#busy[i] !== 0) return;
    const stamp = this.#expected.newestStamp + 1;
    const zeros = command !== Command.WRITE;
    this.#busy.fill(1, first, end);
    this.#expected.issue(first, count, stamp, zeros);
    await this.#journal.issued(first, count, stamp, zeros);
    const payload = zeros ? null : Buffer.allocUnsafe(count * BLOCK);
    for (let i = 0; payload !== null && i < count; i++)
      stampInto(payload.subarray(i * BLOCK, (i + 1) * BLOCK), this.#volume, first + i, stamp);
    const link = this.#anyLink();
    if (link === null) {
      this.#busy.fill(0, first, end); // it was never sent
      return sleep(RECONNECT_MS);
    }
    try {
      await this.#timed(link.request(command, fua ? FUA : 0, first * BLOCK, count * BLOCK, payload));
    } catch (error) {
      this.counts.unknown++;
      setTimeout(() => this.#busy.fill(0, first, end), SETTLE_MS).unref();
      throw error;
    }
    this.counts.changes++;
    this.#expected.ack(first, count, stamp, fua);
    this.#journal.acked(first, count, stamp, fua);
    this.#busy.fill(0, first, end);
  }
  async #flush(): Promise<void> {
    const link = this.#anyLink();
    if (link === null) return sleep(RECONNECT_MS);
    const covered = this.#expected.beforeFlush();
    await this.#timed(link.request(Command.FLUSH, 0, 0, 0, null));
    this.counts.flushes++;
    this.#expected.flushed(covered);
    this.#journal.flushed(covered);
  }
  /** Resolves to what is wrong with the blocks read. */
  async #read(first: number, count: number): Promise<string[]> {
    const link = this.#anyLink();
    if (link === null) throw new Error('no connection');
    const reading = this.#expected.beginRead(first, count);
    let content: Buffer;
    try {
      content = await this.#timed(link.request(Command.READ, 0, first * BLOCK, count * BLOCK, null));
    } catch (error) {
      this.#expected.endRead(reading, null);
      throw error;
    }
    this.counts.reads++;
    const verdicts: Verdict[] = [];
    for (let i = 0; i < count; i++)
      verdicts.push(verdictOf(content.subarray(i * BLOCK, (i + 1) * BLOCK), this.#volume, first + i));
    return this.#expected.endRead(reading, verdicts).map((why) => `${this.name}, ${why}`);
  }
  async #timed(request: Promise<Buffer>): Promise<Buffer> {
    const sent = { at: performance.now() };
    this.#sentAt.add(sent);
    try {
      const content = await request;
      const now = performance.now();
      this.#slowestMs = Math.max(this.#slowestMs, now - Math.max(sent.at, this.#resetAt));
      this.#longestGapMs = Math.max(this.#longestGapMs, now - this.#answeredAt);
      this.#answeredAt = now;
      return content;
    } finally {
      this.#sentAt.delete(sent);
    }
  }

  #anyLink(): Connection | null {
    const open = this.#links.filter((link) => link !== null && !link.isBroken);
    return open[this.#next() % Math.max(open.length, 1)] ?? null;
  }
  async #keepOpen(i: number, first: Connection | null): Promise<void> {
    this.#links[i] = first;
    while (!this.#stopped) {
      const link = this.#links[i] ?? null;
      if (link === null || link.isBroken) {
        if (link !== null) this.counts.losses++;
        this.#links[i] = null;
        const opened = await Connection.open(this.#options.target, HANDSHAKE_MS, this.#options.answerMs).catch(
          () => null, // the server may be down: that is what this is for
        );
        if (this.#stopped) opened?.close();
        else this.#links[i] = opened;
      }
      await sleep(RECONNECT_MS);
    }
  }
  /** Keeps the rate. */
  async #turn(): Promise<void> {
    const now = performance.now();
    this.#turnAt = Math.max(now, this.#turnAt + 1000 / this.#options.rate);
    if (this.#turnAt > now + 1) await sleep(this.#turnAt - now);
  }
  #wakeAll(): void {
    const wake = this.#wake;
    this.#wake = [];
    for (const resolve of wake) resolve();
  }
}

const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

/** xorshift32: u32 numbers from a seed. */
function generator(seed: number): () => number {
  let state = seed >>> 0 || 1;
  for (let i = 0; i < 8; i++) state = turned(state);
  return () => {
    state = turned(state);
    return state;
  };
}
function turned(state: number): number {
  state ^= state << 13;
  state ^= state >>> 17;
  return (state ^ (state << 5)) >>> 0;
}
