// What one connection has to say, gathered to leave in one write.
//
//   slab:   [header][header + 4 KiB][header + 4 KiB][header]   [header] ...
//   sent:   ^--------------- one buffer -------------------^ [1 MiB part as it is] ^----- ...
//
// Headers and small data are copied into slabs (a copy of 4 KiB costs less than one more element of a writev); large
// parts are sent from where they are. A slab goes back to the pool when the socket has taken its bytes, so that at
// a steady load nothing is allocated. When to send is for the owner to say.

import { payloadPool } from './buffer-pool.ts';

/** What is small is gathered in blocks of this size. */
export const SLAB_BYTES = 256 * 1024;
/** Free blocks kept; more are left to the collector. */
const SLABS_KEPT = 16;
/** Data up to this size is copied next to its header; larger parts are sent as they are. */
export const COPY_BYTES_MAX = 16 * 1024;

/** Where the bytes go: a socket, or a test. */
export interface ByteSink {
  /** Sends the buffers in order. `sent` is called once, later, when they may be changed: also if the peer is gone. */
  write(buffers: readonly Buffer[], sent: () => void): void;
}

/** Slabs that are not in use. One pool serves all connections of a process. */
export class SlabPool {
  readonly #free: Buffer[] = [];
  /** Slabs taken and not given back: 0 when nobody has anything to send. */
  outstanding = 0;

  take(): Buffer {
    this.outstanding++;
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(SLAB_BYTES);
  }
  give(slab: Buffer): void {
    this.outstanding--;
    if (this.#free.length < SLABS_KEPT) this.#free.push(slab);
  }
}

/** What one write took along, and what is to be given back after it. Used again and again. */
interface Batch {
  readonly buffers: Buffer[];
  /** Those of the buffers that go back to payloadPool. */
  readonly given: Buffer[];
  readonly slabs: Buffer[];
  bytes: number;
  readonly sent: () => void;
}

export class Outbox {
  readonly #sink: ByteSink;
  readonly #pool: SlabPool;
  /** Called when bytes have left. */
  readonly #onSent: () => void;
  readonly #spare: Batch[] = [];
  #batch: Batch;
  #slab: Buffer | null = null;
  /** Bytes of the slab before this are in the batch already. */
  #start = 0;
  #at = 0;
  /** Bytes handed to the sink that it has not sent yet. */
  unsentBytes = 0;

  /** Bytes that wait for send(). */
  get waitingBytes(): number {
    return this.#batch.bytes + (this.#slab === null ? 0 : this.#at - this.#start);
  }

  constructor(sink: ByteSink, pool: SlabPool, onSent: () => void) {
    this.#sink = sink;
    this.#pool = pool;
    this.#onSent = onSent;
    this.#batch = this.#newBatch();
  }

  /** A slab with room for `bytes` (at most SLAB_BYTES) at `position`; call advance() with what was written. */
  room(bytes: number): Buffer {
    if (this.#slab === null || this.#at + bytes > SLAB_BYTES) {
      this.#cut();
      this.#slab = this.#pool.take();
      this.#batch.slabs.push(this.#slab);
      this.#start = 0;
      this.#at = 0;
    }
    return this.#slab;
  }
  get position(): number {
    return this.#at;
  }
  /** @param to what the function that wrote at `position` returned */
  advance(to: number): void {
    this.#at = to;
  }

  /**
   * Data behind what has been written so far; if it is large, not to be changed until it is sent.
   * @param give its memory goes back to payloadPool once nobody looks at it any more
   */
  append(part: Buffer, give: boolean): void {
    if (part.length <= COPY_BYTES_MAX) {
      const slab = this.room(part.length);
      part.copy(slab, this.#at);
      this.#at += part.length;
      if (give) payloadPool.give(part);
      return;
    }
    this.#cut();
    this.#batch.buffers.push(part);
    if (give) this.#batch.given.push(part);
    this.#batch.bytes += part.length;
  }

  /** Hands everything to the sink. */
  send(): void {
    this.#cut();
    this.#slab = null;
    const batch = this.#batch;
    if (batch.buffers.length === 0) return;
    this.#batch = this.#spare.pop() ?? this.#newBatch();
    this.unsentBytes += batch.bytes;
    this.#sink.write(batch.buffers, batch.sent);
  }

  /** Bytes of the slab that are written but not in the batch yet become one buffer of it. */
  #cut(): void {
    if (this.#slab === null || this.#at === this.#start) return;
    this.#batch.buffers.push(this.#slab.subarray(this.#start, this.#at));
    this.#batch.bytes += this.#at - this.#start;
    this.#start = this.#at;
  }

  #newBatch(): Batch {
    const batch: Batch = {
      buffers: [],
      given: [],
      slabs: [],
      bytes: 0,
      sent: () => {
        for (const slab of batch.slabs) this.#pool.give(slab);
        for (const part of batch.given) payloadPool.give(part);
        this.unsentBytes -= batch.bytes;
        batch.buffers.length = 0;
        batch.given.length = 0;
        batch.slabs.length = 0;
        batch.bytes = 0;
        this.#spare.push(batch);
        this.#onSent();
      },
    };
    return batch;
  }
}
