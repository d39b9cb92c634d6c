// Memory for payloads, used again: a fresh MiB costs 350 µs of page faults, one that is warm 30; and fresh memory of any
// size, at some hundred MB/s, makes the garbage collector look at everything several times a second (BENCHMARKS.md).
//
//   take(n) -> whoever reads or receives a payload -> ... -> give(view), by the last one who looks at it
//
// Giving back is never a duty: what is not given is collected as any other buffer. But giving too early is corruption,
// so only few places do it, each the end of a payload's life: a reply that was sent (sockets.ts), an entry that is
// committed or logged (serving.ts, member.ts), a change that is flushed (unflushed.ts). What they hold may come from elsewhere (a client's own buffer, a shared buffer of zeros): the pool
// knows its own and ignores the rest. In simulations given memory is overwritten, so that a late reader finds garbage.

/** Smaller ones are cheap to allocate; larger ones are rare. Powers of two between. */
const POOLED_BYTES_MIN = 4 * 1024;
const POOLED_BYTES_MAX = 4 * 1024 * 1024;
/** Free memory kept for reuse, all sizes together: a flush gives back up to REPLAY_BYTES_MAX at once. */
const FREE_BYTES_MAX = 32 * 1024 * 1024;
/** What a given buffer is filled with when `poison` is on. */
const POISON = 0xdb;

/** Memory of the pool, with the pool's own notes on it: a look-up by a weak map costs as much as copying a block. */
interface PooledMemory extends ArrayBuffer {
  /** All of it. Undefined: not of a pool. */
  whole?: Buffer;
  taken?: boolean;
}

export class BufferPool {
  /** For simulations: pool small payloads too, and overwrite what is given back. */
  poison = false;
  /** By log2 of their size. */
  readonly #free: Buffer[][] = Array.from({ length: 32 }, () => []);
  #freeBytes = 0;
  /** When each size was last asked for, by the count of all takes. */
  readonly #taken: number[] = new Array(32).fill(0);
  #takes = 0;

  /** `lengthBytes` bytes, not filled. */
  take(lengthBytes: number): Buffer {
    if (lengthBytes > POOLED_BYTES_MAX) return Buffer.allocUnsafeSlow(lengthBytes);
    if (lengthBytes < (this.poison ? 1 : POOLED_BYTES_MIN)) return Buffer.allocUnsafe(lengthBytes);
    const order = 32 - Math.clz32(lengthBytes - 1);
    this.#taken[order] = ++this.#takes;
    let whole = this.#free[order]!.pop();
    if (whole === undefined) {
      whole = Buffer.allocUnsafeSlow(2 ** order);
      (whole.buffer as PooledMemory).whole = whole;
    } else this.#freeBytes -= whole.length;
    (whole.buffer as PooledMemory).taken = true;
    return whole.length === lengthBytes ? whole : whole.subarray(0, lengthBytes);
  }

  /** Nobody looks any more at the memory that `view` is a part of. Ignored if it was not taken here, or given already. */
  give(view: Buffer | null): void {
    if (view === null) return;
    const memory = view.buffer as PooledMemory;
    if (memory.taken !== true) return;
    memory.taken = false;
    const whole = memory.whole!;
    if (this.poison) whole.fill(POISON);
    this.#free[31 - Math.clz32(whole.length)]!.push(whole);
    this.#freeBytes += whole.length;
    while (this.#freeBytes > FREE_BYTES_MAX) this.#dropOne();
  }

  /** Of the size that was asked for longest ago: what one kind of load has left behind makes room for the next kind. */
  #dropOne(): void {
    let oldest = -1;
    for (let order = 0; order < this.#free.length; order++)
      if (this.#free[order]!.length > 0 && (oldest === -1 || this.#taken[order]! < this.#taken[oldest]!))
        oldest = order;
    this.#freeBytes -= this.#free[oldest]!.pop()!.length;
  }
}

/** The process's pool. */
export const payloadPool = new BufferPool();
