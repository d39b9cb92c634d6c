// Bytes of a stream in, whole checked frames out (proto/frame.ts has the layout).
//
//   HEADER 96 bytes -> META -> PAYLOAD -> HEADER ...
//
// A frame's header is read in place where it lies whole in a chunk; meta and payload get memory of their own, the
// payload from payloadPool. So nobody keeps a view of a chunk, and one block of memory serves all reads of a process: a
// copy of 4 KiB costs 0.2 us, new memory for each read far more (BENCHMARKS.md). The rest of a large payload is not copied
// but read straight into target(). What is not a frame ends the stream: there is no way to find the next one's start.

import { payloadPool } from '../../proto/buffer-pool.ts';
import { hashBytes } from '../../proto/checksum.ts';
import {
  decodeFrame,
  type Frame,
  HEADER_BYTES,
  invalidHeader,
  metaBytesAt,
  metaChecksumAt,
  payloadBytesAt,
} from '../../proto/frame.ts';

/** A missing rest of a payload from this size on is worth a read of its own, straight into its place. */
const TARGET_BYTES_MIN = 32 * 1024;

export class FrameDecoder {
  readonly #onFrame: (frame: Frame) => void;
  readonly #header = Buffer.allocUnsafeSlow(HEADER_BYTES);
  #headerFill = 0;
  /** Of the frame whose header is in #header, while it is put together; null between frames, and if there is none. */
  #meta: Buffer | null = null;
  #payload: Buffer | null = null;
  /** Bytes of meta, then of payload, that have come. */
  #bodyFill = 0;
  #bodyBytes = 0;
  #stopped = false;
  #paused = false;
  /** A copy of what was pushed and not looked at when it was paused. */
  #rest: Buffer | null = null;

  constructor(onFrame: (frame: Frame) => void) {
    this.#onFrame = onFrame;
  }

  /** No frame comes out any more, not even of bytes already pushed. */
  stop(): void {
    this.#stopped = true;
  }

  /** No frame comes out, not even of bytes already pushed, until resume(); push() must not be called meanwhile. */
  pause(): void {
    this.#paused = true;
  }

  /** Goes on; returns what push() returns. */
  resume(): string | null {
    this.#paused = false;
    const rest = this.#rest;
    this.#rest = null;
    return rest === null ? null : this.push(rest);
  }

  /** Where the next bytes of the stream should go, if they are the rest of a large payload; then filled() says how many. */
  target(): Buffer | null {
    if (this.#payload === null || this.#paused || this.#bodyBytes - this.#bodyFill < TARGET_BYTES_MIN) return null;
    const metaBytes = this.#bodyBytes - this.#payload.length;
    return this.#bodyFill < metaBytes ? null : this.#payload.subarray(this.#bodyFill - metaBytes);
  }

  /** So many bytes were put where target() said. Returns what push() returns. */
  filled(bytes: number): string | null {
    this.#bodyFill += bytes;
    return this.#bodyFill === this.#bodyBytes ? this.#deliverBody() : null;
  }

  /** Takes the next bytes; nothing refers to `chunk` afterwards. Returns why the stream is broken, or null. */
  push(chunk: Buffer): string | null {
    let at = 0;
    while (at < chunk.length && !this.#stopped) {
      if (this.#paused) {
        this.#rest = Buffer.from(chunk.subarray(at));
        return null;
      }
      if (this.#headerFill === 0 && chunk.length - at >= HEADER_BYTES) {
        const why = invalidHeader(chunk, at);
        if (why !== null) return why;
        const metaBytes = metaBytesAt(chunk, at);
        const bodyBytes = metaBytes + payloadBytesAt(chunk, at);
        const metaAt = at + HEADER_BYTES;
        if (chunk.length - metaAt >= bodyBytes) {
          const payloadAt = metaAt + metaBytes;
          const end = metaAt + bodyBytes;
          let meta: Buffer | null = null;
          let payload: Buffer | null = null;
          if (metaBytes > 0) {
            meta = Buffer.allocUnsafe(metaBytes);
            chunk.copy(meta, 0, metaAt, payloadAt);
          }
          if (end > payloadAt) {
            payload = payloadPool.take(end - payloadAt);
            chunk.copy(payload, 0, payloadAt, end);
          }
          const bad = this.#deliver(chunk, at, meta, payload);
          if (bad !== null) return bad;
          at = end;
          continue;
        }
      }
      if (this.#headerFill < HEADER_BYTES) {
        at += this.#take(chunk, at, this.#header, this.#headerFill);
        if (this.#headerFill < HEADER_BYTES) return null;
        const why = invalidHeader(this.#header, 0);
        if (why !== null) return why;
        this.#beginBody();
      }
      const metaBytes = this.#meta?.length ?? 0;
      if (this.#bodyFill < metaBytes) at += this.#fill(chunk, at, this.#meta!, this.#bodyFill);
      if (this.#bodyFill >= metaBytes && this.#payload !== null)
        at += this.#fill(chunk, at, this.#payload, this.#bodyFill - metaBytes);
      if (this.#bodyFill === this.#bodyBytes) {
        const bad = this.#deliverBody();
        if (bad !== null) return bad;
      }
    }
    return null;
  }

  #take(chunk: Buffer, at: number, header: Buffer, fill: number): number {
    const bytes = Math.min(HEADER_BYTES - fill, chunk.length - at);
    chunk.copy(header, fill, at, at + bytes);
    this.#headerFill += bytes;
    return bytes;
  }

  #beginBody(): void {
    const metaBytes = metaBytesAt(this.#header, 0);
    const payloadBytes = payloadBytesAt(this.#header, 0);
    this.#meta = metaBytes === 0 ? null : Buffer.allocUnsafe(metaBytes);
    this.#payload = payloadBytes === 0 ? null : payloadPool.take(payloadBytes);
    this.#bodyBytes = metaBytes + payloadBytes;
    this.#bodyFill = 0;
  }

  #fill(chunk: Buffer, at: number, part: Buffer, fill: number): number {
    const bytes = Math.min(part.length - fill, chunk.length - at);
    chunk.copy(part, fill, at, at + bytes);
    this.#bodyFill += bytes;
    return bytes;
  }

  #deliverBody(): string | null {
    const meta = this.#meta;
    const payload = this.#payload;
    this.#meta = null;
    this.#payload = null;
    this.#headerFill = 0;
    return this.#deliver(this.#header, 0, meta, payload);
  }

  #deliver(header: Buffer, headerAt: number, meta: Buffer | null, payload: Buffer | null): string | null {
    if (meta !== null && hashBytes(meta) !== metaChecksumAt(header, headerAt)) return 'meta checksum is wrong';
    this.#onFrame(decodeFrame(header, headerAt, meta, payload));
    return null;
  }
}
