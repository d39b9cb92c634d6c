// Replies of one turn of the loop, gathered to leave the connection in one write.
//
//   slab:   [reply][reply + 4 KiB][reply + 4 KiB][header]   [reply] ...
//   sent:   ^------------- one buffer ------------------^ [1 MiB part as it is] ^----- ...
//
// Headers and small data are copied into slabs (a copy of 4 KiB costs less than one more element of a writev); large
// parts are sent from where they are. A slab goes back to the pool when the socket has taken its bytes, so that at
// a steady load nothing is allocated.

import { payloadPool } from '../../proto/buffer-pool.ts';
import { COPY_BYTES_MAX, SLAB_BYTES, SLABS_KEPT } from './limits.ts';

/** Where a session's bytes go: a socket, or a test. */
export interface Wire {
  /** For log lines: who is at the other end. */
  readonly peer: string;
  /** Sends the buffers in order. `sent` is called once, later, when they may be changed: also if the peer is gone. */
  write(buffers: readonly Buffer[], sent: () => void): void;
  /** No bytes are handed in until resume(). */
  pause(): void;
  resume(): void;
  /** Closes when everything written is sent. */
  end(): void;
  /** Closes at once. */
  destroy(): void;
}

/** Slabs that are not in use. One pool serves all connections of a server. */
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
  /** Those of the buffers that are parts of data as they were handed in. */
  readonly parts: Buffer[];
  readonly slabs: Buffer[];
  bytes: number;
  readonly sent: () => void;
}

export class Outbox {
  readonly #wire: Wire;
  readonly #pool: SlabPool;
  /** Called when bytes have left: there may be room for more requests. */
  readonly #onSent: () => void;
  readonly #spare: Batch[] = [];
  #batch: Batch;
  #slab: Buffer | null = null;
  /** Bytes of the slab before this are in the batch already. */
  #start = 0;
  #at = 0;
  /** Bytes handed to the wire that it has not sent yet. */
  unsentBytes = 0;

  constructor(wire: Wire, pool: SlabPool, onSent: () => void) {
    this.#wire = wire;
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

  /** Data behind what has been written so far. Not to be changed; its memory goes back to the pool when it is sent. */
  append(part: Buffer): void {
    if (part.length <= COPY_BYTES_MAX) {
      const slab = this.room(part.length);
      slab.set(part, this.#at);
      this.#at += part.length;
      payloadPool.give(part);
      return;
    }
    this.#cut();
    this.#batch.buffers.push(part);
    this.#batch.parts.push(part);
    this.#batch.bytes += part.length;
  }

  /** Hands everything to the wire. */
  send(): void {
    this.#cut();
    this.#slab = null;
    const batch = this.#batch;
    if (batch.buffers.length === 0) return;
    this.#batch = this.#spare.pop() ?? this.#newBatch();
    this.unsentBytes += batch.bytes;
    this.#wire.write(batch.buffers, batch.sent);
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
      parts: [],
      slabs: [],
      bytes: 0,
      sent: () => {
        for (const slab of batch.slabs) this.#pool.give(slab);
        for (const part of batch.parts) payloadPool.give(part);
        this.unsentBytes -= batch.bytes;
        batch.buffers.length = 0;
        batch.parts.length = 0;
        batch.slabs.length = 0;
        batch.bytes = 0;
        this.#spare.push(batch);
        this.#onSent();
      },
    };
    return batch;
  }
}
