// Bytes of a stream in, whole checked frames out (proto/frame.ts has the layout).
//
//   HEADER 96 bytes -> META -> PAYLOAD -> HEADER ...
//
// A frame that lies whole in one chunk is handed on as views of it, without a copy. One that crosses chunks is
// assembled: its header in a small buffer of the decoder's, meta and payload in one buffer of their exact size, each
// byte copied once, or not at all when the stream is read straight into target(). What is not a frame ends the stream: there is no way to find the next frame's start.

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

/** A missing rest of a body from this size on is worth a read of its own, straight into its place. */
const TARGET_BYTES_MIN = 32 * 1024;

export class FrameDecoder {
  readonly #onFrame: (frame: Frame) => void;
  readonly #header = Buffer.allocUnsafeSlow(HEADER_BYTES);
  #headerFill = 0;
  /** Meta and payload of the frame whose header is in #header; null while the header is incomplete. */
  #body: Buffer | null = null;
  #bodyFill = 0;
  #stopped = false;
  #paused = false;
  /** What was pushed and not looked at when it was paused. */
  #rest: Buffer | null = null;
  /** Somebody has views of the chunk that was pushed last: its memory must not be used again. */
  kept = false;

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

  /** Where the next bytes of the stream should go, if they are the rest of a large body; then filled() says how many. */
  target(): Buffer | null {
    if (this.#body === null || this.#paused || this.#body.length - this.#bodyFill < TARGET_BYTES_MIN) return null;
    return this.#body.subarray(this.#bodyFill);
  }

  /** So many bytes were put where target() said. Returns what push() returns. */
  filled(bytes: number): string | null {
    this.#bodyFill += bytes;
    return this.#body !== null && this.#bodyFill === this.#body.length ? this.#deliverBody(this.#body) : null;
  }

  /**
   * Takes the next bytes. Whether the chunk belongs to the decoder, or to those it gave views to, from now on, `kept`
   * says afterwards. Returns why the stream is broken, or null.
   */
  push(chunk: Buffer): string | null {
    let at = 0;
    this.kept = false;
    while (at < chunk.length && !this.#stopped) {
      if (this.#paused) {
        this.#rest = chunk.subarray(at);
        this.kept = true;
        return null;
      }
      if (this.#body === null && this.#headerFill === 0 && chunk.length - at >= HEADER_BYTES) {
        const why = invalidHeader(chunk, at);
        if (why !== null) return why;
        const bodyBytes = metaBytesAt(chunk, at) + payloadBytesAt(chunk, at);
        if (chunk.length - at - HEADER_BYTES >= bodyBytes) {
          if (bodyBytes > 0) this.kept = true;
          const bad = this.#deliver(chunk, at, chunk, at + HEADER_BYTES);
          if (bad !== null) return bad;
          at += HEADER_BYTES + bodyBytes;
          continue;
        }
      }
      if (this.#body === null) {
        const take = Math.min(HEADER_BYTES - this.#headerFill, chunk.length - at);
        chunk.copy(this.#header, this.#headerFill, at, at + take);
        this.#headerFill += take;
        at += take;
        if (this.#headerFill < HEADER_BYTES) return null;
        const why = invalidHeader(this.#header, 0);
        if (why !== null) return why;
        this.#body = payloadPool.take(metaBytesAt(this.#header, 0) + payloadBytesAt(this.#header, 0));
        this.#bodyFill = 0;
      }
      const take = Math.min(this.#body.length - this.#bodyFill, chunk.length - at);
      chunk.copy(this.#body, this.#bodyFill, at, at + take);
      this.#bodyFill += take;
      at += take;
      if (this.#bodyFill === this.#body.length) {
        const bad = this.#deliverBody(this.#body);
        if (bad !== null) return bad;
      }
    }
    return null;
  }

  #deliverBody(body: Buffer): string | null {
    this.#body = null;
    this.#headerFill = 0;
    return this.#deliver(this.#header, 0, body, 0);
  }

  #deliver(header: Buffer, headerAt: number, body: Buffer, bodyAt: number): string | null {
    const metaBytes = metaBytesAt(header, headerAt);
    const payloadBytes = payloadBytesAt(header, headerAt);
    const meta = metaBytes === 0 ? null : body.subarray(bodyAt, bodyAt + metaBytes);
    if (meta !== null && hashBytes(meta) !== metaChecksumAt(header, headerAt)) return 'meta checksum is wrong';
    const payloadAt = bodyAt + metaBytes;
    const payload = payloadBytes === 0 ? null : body.subarray(payloadAt, payloadAt + payloadBytes);
    this.#onFrame(decodeFrame(header, headerAt, meta, payload));
    return null;
  }
}
