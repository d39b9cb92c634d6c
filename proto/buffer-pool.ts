// Memory for large payloads, used again: a fresh MiB costs 350 µs of page faults and, later, a garbage collection's
// attention; filling one that is warm costs 30 µs (measured, see BENCHMARKS.md).
//
//   take(n) -> whoever reads or receives a payload -> ... -> give(view), by the last one who looks at it
//
// Giving back is never a duty: what is not given is collected as any other buffer. But giving too early is corruption,
// so only few places do it, each the end of a payload's life: a reply that was sent (sockets.ts), an entry that is
// committed or logged (serving.ts, member.ts), a change that is flushed (unflushed.ts), an NBD reply that was sent
// (outbox.ts). What they hold may come from elsewhere (a view of a receive slab, a shared buffer of zeros): the pool
// knows its own and ignores the rest. In simulations given memory is overwritten, so that a late reader finds garbage.

/** Smaller ones are cheap to allocate; larger ones are rare. Powers of two between. */
const POOLED_BYTES_MIN = 32 * 1024;
const POOLED_BYTES_MAX = 4 * 1024 * 1024;
/** Free memory kept for reuse, all sizes together. */
const FREE_BYTES_MAX = 32 * 1024 * 1024;
/** What a given buffer is filled with when `poison` is on. */
const POISON = 0xdb;

export class BufferPool {
  /** For simulations: pool small payloads too, and overwrite what is given back. */
  poison = false;
  /** By log2 of their size. */
  readonly #free: Buffer[][] = [];
  #freeBytes = 0;
  readonly #taken = new WeakSet<ArrayBufferLike>();

  /** `lengthBytes` bytes, not filled. */
  take(lengthBytes: number): Buffer {
    if (lengthBytes > POOLED_BYTES_MAX) return Buffer.allocUnsafeSlow(lengthBytes);
    if (lengthBytes < (this.poison ? 1 : POOLED_BYTES_MIN)) return Buffer.allocUnsafe(lengthBytes);
    const order = 32 - Math.clz32(lengthBytes - 1);
    let buffer = this.#free[order]?.pop();
    if (buffer === undefined) buffer = Buffer.allocUnsafeSlow(2 ** order);
    else this.#freeBytes -= buffer.length;
    this.#taken.add(buffer.buffer);
    return buffer.length === lengthBytes ? buffer : buffer.subarray(0, lengthBytes);
  }

  /** Nobody looks any more at the memory that `view` is a part of. Ignored if it was not taken here, or given already. */
  give(view: Buffer | null): void {
    if (view === null || !this.#taken.delete(view.buffer)) return;
    const buffer = Buffer.from(view.buffer);
    if (this.poison) buffer.fill(POISON);
    if (this.#freeBytes + buffer.length > FREE_BYTES_MAX) return;
    const order = 31 - Math.clz32(buffer.length);
    let free = this.#free[order];
    if (free === undefined) {
      free = [];
      this.#free[order] = free;
    }
    free.push(buffer);
    this.#freeBytes += buffer.length;
  }
}

/** The process's pool. */
export const payloadPool = new BufferPool();
