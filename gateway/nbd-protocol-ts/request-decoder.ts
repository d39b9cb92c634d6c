// Requests out of a byte stream: the server's side of the transmission phase.
//
//   header ──> payload ──> header ...      a WRITE that may be carried out
//      │  └──> drain ────> header ...      a WRITE that is refused: its payload must still be read
//      └─────> broken                      bad magic, or a WRITE too large even to drain
//
// A push parser: a header that lies whole in a chunk is read in place, a payload is put together in memory that the
// owner gives for it, so that nobody keeps a view of a chunk and one block of memory serves all reads. The rest of a large
// payload need not be copied: it may be read straight into `target`. One RequestHeader object serves all requests: who
// keeps anything of it copies it during the call.
// Every request reaches the sink exactly once, as request() or as refused(), in the order of arrival.

import assert from 'node:assert/strict';
import { Command, commandName, Magic, Size } from './constants.ts';
import { WRITE_DRAIN_MAX } from './limits.ts';
import { readU64 } from './numbers.ts';
import { type Refusal, type RequestRules, refusalOf } from './refusal.ts';

export interface RequestHeader {
  flags: number;
  command: number;
  /** The client's name for the request: 8 bytes without meaning. */
  cookieHigh: number;
  cookieLow: number;
  /** Infinity if it is 2^53 or more. */
  offset: number;
  lengthBytes: number;
}

export interface RequestSink {
  /** A request that is within the rules. @param payload what a WRITE writes, the sink's to keep; null for all others */
  request(header: RequestHeader, payload: Buffer | null): void;
  /** A request that must be answered with this error; its payload is behind us. */
  refused(header: RequestHeader, refusal: Refusal): void;
  /** The stream makes no sense any more: close it. Nothing follows. */
  broken(reason: string): void;
}

const State = { HEADER: 0, PAYLOAD: 1, DRAIN: 2, BROKEN: 3 } as const;

const NO_BYTES = Buffer.alloc(0);

export class RequestDecoder {
  readonly rules: RequestRules;
  readonly #sink: RequestSink;
  readonly #allocate: (bytes: number) => Buffer;
  readonly #header: RequestHeader = {
    flags: 0,
    command: 0,
    cookieHigh: 0,
    cookieLow: 0,
    offset: 0,
    lengthBytes: 0,
  };
  /** A header that chunks have cut. */
  readonly #partial = Buffer.alloc(Size.REQUEST);
  #partialBytes = 0;
  #payload: Buffer = NO_BYTES;
  #payloadBytes = 0;
  #drainBytes = 0;
  #refusal: Refusal | null = null;
  #state: number = State.HEADER;
  #held = false;

  /** @param allocate gives memory for a payload, not filled; the sink's to keep */
  constructor(sink: RequestSink, rules: RequestRules, allocate: (bytes: number) => Buffer = Buffer.allocUnsafeSlow) {
    this.#allocate = allocate;
    this.#sink = sink;
    this.rules = rules;
  }

  /** No request is half read: the peer may go without losing anything. */
  get atBoundary(): boolean {
    return this.#state === State.HEADER && this.#partialBytes === 0;
  }

  /** Called from inside the sink: push() returns after this request. Goes on with the next push(). */
  hold(): void {
    this.#held = true;
  }

  /** Where the next bytes of the stream belong while a payload is being put together: read there, then call filled(). */
  get target(): Buffer | null {
    return this.#state === State.PAYLOAD ? this.#payload.subarray(this.#payloadBytes) : null;
  }

  /** The next `bytes` of the stream have been put at the beginning of `target`. */
  filled(bytes: number): void {
    assert(this.#state === State.PAYLOAD && bytes <= this.#payload.length - this.#payloadBytes);
    this.#payloadBytes += bytes;
    if (this.#payloadBytes === this.#payload.length) this.#onPayload();
  }

  /**
   * Takes bytes of `chunk` from `at` on. Returns the position behind the last one taken: the end of the chunk, unless
   * the sink called hold() or the stream is broken. Nothing refers to the chunk afterwards.
   */
  push(chunk: Buffer, at: number): number {
    this.#held = false;
    const end = chunk.length;
    while (at < end && !this.#held) {
      if (this.#state === State.HEADER) {
        if (this.#partialBytes === 0 && end - at >= Size.REQUEST) {
          at = this.#onHeader(chunk, at, at + Size.REQUEST, chunk);
        } else {
          const taken = Math.min(end - at, Size.REQUEST - this.#partialBytes);
          chunk.copy(this.#partial, this.#partialBytes, at, at + taken);
          this.#partialBytes += taken;
          at += taken;
          if (this.#partialBytes < Size.REQUEST) return at;
          this.#partialBytes = 0;
          at = this.#onHeader(this.#partial, 0, at, chunk);
        }
      } else if (this.#state === State.PAYLOAD) {
        const taken = Math.min(end - at, this.#payload.length - this.#payloadBytes);
        chunk.copy(this.#payload, this.#payloadBytes, at, at + taken);
        this.#payloadBytes += taken;
        at += taken;
        if (this.#payloadBytes === this.#payload.length) this.#onPayload();
      } else if (this.#state === State.DRAIN) {
        const taken = Math.min(end - at, this.#drainBytes);
        this.#drainBytes -= taken;
        at += taken;
        if (this.#drainBytes === 0) this.#onDrained();
      } else {
        return at;
      }
    }
    return at;
  }

  /**
   * Reads the header at `from` of `source`; the payload, if any, begins at `at` of `chunk`.
   * Returns where the next request begins, as far as this chunk tells.
   */
  #onHeader(source: Buffer, from: number, at: number, chunk: Buffer): number {
    if (source.readUInt32BE(from) !== Magic.REQUEST) {
      this.#break('no request where one must begin');
      return at;
    }
    const header = this.#header;
    header.flags = source.readUInt16BE(from + 4);
    header.command = source.readUInt16BE(from + 6);
    header.cookieHigh = source.readUInt32BE(from + 8);
    header.cookieLow = source.readUInt32BE(from + 12);
    header.offset = readU64(source, from + 16);
    header.lengthBytes = source.readUInt32BE(from + 24);
    const refusal = refusalOf(header, this.rules);
    if (header.command !== Command.WRITE || header.lengthBytes === 0) {
      if (refusal === null) this.#sink.request(header, header.command === Command.WRITE ? NO_BYTES : null);
      else this.#sink.refused(header, refusal);
      return at;
    }
    const { lengthBytes } = header;
    if (refusal !== null) {
      if (lengthBytes > WRITE_DRAIN_MAX) {
        this.#break(`${commandName(header.command)} of ${lengthBytes} bytes`);
        return at;
      }
      this.#refusal = refusal;
      this.#drainBytes = lengthBytes;
      this.#state = State.DRAIN;
      return at;
    }
    if (chunk.length - at >= lengthBytes) {
      const payload = this.#allocate(lengthBytes);
      chunk.copy(payload, 0, at, at + lengthBytes);
      this.#sink.request(header, payload);
      return at + lengthBytes;
    }
    this.#payload = this.#allocate(lengthBytes);
    this.#payloadBytes = 0;
    this.#state = State.PAYLOAD;
    return at;
  }

  #onPayload(): void {
    const payload = this.#payload;
    this.#payload = NO_BYTES;
    this.#state = State.HEADER;
    this.#sink.request(this.#header, payload);
  }

  #onDrained(): void {
    const refusal = this.#refusal!;
    this.#refusal = null;
    this.#state = State.HEADER;
    this.#sink.refused(this.#header, refusal);
  }

  #break(reason: string): void {
    this.#state = State.BROKEN;
    this.#sink.broken(reason);
  }
}
