// One request in flight. Records are used again and again: the three callbacks that an Image calls are made once per
// record, so that a request costs no closure and no promise.

import assert from 'node:assert/strict';
import type { Done, ReadDone, StatusDone } from '../../cluster/client/image.ts';
import type { StorageError } from '../../proto/errors.ts';
import {
  Allocation,
  CommandFlag,
  DESCRIPTORS_MAX,
  type Descriptor,
  type RequestHeader,
} from '../nbd-protocol-ts/index.ts';

/** Who waits for the end of a request, or for its next step. */
export interface RequestOwner {
  /** A step has ended without error. */
  onStep(request: NbdRequest): void;
  /** It has failed. The owner logs and answers. */
  onFailure(request: NbdRequest, error: StorageError): void;
}

export class NbdRequest {
  command = 0;
  flags = 0;
  cookieHigh = 0;
  cookieLow = 0;
  offset = 0;
  lengthBytes = 0;
  /** Errno of the reply; 0 is success. */
  error = 0;
  /** Text for an error reply. */
  message = '';
  /** Payload bytes this request counts for in its connection's limit. */
  costBytes = 0;
  /** TRIM and WRITE_ZEROES: bytes that are zeroed or being zeroed. */
  zeroedBytes = 0;
  /** And then: they are being flushed. */
  flushing = false;
  /** READ: the data to send. */
  parts: Buffer[] | null = null;
  /** BLOCK_STATUS: the answer. */
  descriptors: Descriptor[] | null = null;

  readonly onDone: Done;
  readonly onRead: ReadDone;
  readonly onStatus: StatusDone;

  constructor(owner: RequestOwner) {
    this.onDone = (error) => {
      if (error !== null) owner.onFailure(this, error);
      else owner.onStep(this);
    };
    this.onRead = (error, parts) => {
      if (error !== null) return owner.onFailure(this, error);
      let bytes = 0;
      for (const part of parts!) bytes += part.length;
      assert(bytes === this.lengthBytes, `the image read ${bytes} bytes instead of ${this.lengthBytes}`);
      this.parts = parts;
      owner.onStep(this);
    };
    this.onStatus = (error, runs) => {
      if (error !== null) return owner.onFailure(this, error);
      this.descriptors = describe(runs!, (this.flags & CommandFlag.REQ_ONE) !== 0);
      owner.onStep(this);
    };
  }

  /** Begins a new life. */
  begin(header: RequestHeader, costBytes: number): void {
    this.command = header.command;
    this.flags = header.flags;
    this.cookieHigh = header.cookieHigh;
    this.cookieLow = header.cookieLow;
    this.offset = header.offset;
    this.lengthBytes = header.lengthBytes;
    this.costBytes = costBytes;
    this.error = 0;
    this.zeroedBytes = 0;
    this.flushing = false;
  }

  /** Lets go of what it holds. */
  end(): void {
    this.parts = null;
    this.descriptors = null;
    this.message = '';
  }
}

/** Runs as base:allocation descriptors: neighbours merged, empty ones left out, only the first with REQ_ONE. */
function describe(runs: readonly { length: number; data: boolean }[], one: boolean): Descriptor[] {
  const descriptors: Descriptor[] = [];
  let last: Descriptor | null = null;
  for (const run of runs) {
    if (run.length === 0) continue;
    const flags = run.data ? 0 : Allocation.HOLE | Allocation.ZERO;
    if (last !== null && last.flags === flags) {
      last.lengthBytes += run.length;
      continue;
    }
    if (descriptors.length === (one ? 1 : DESCRIPTORS_MAX)) break;
    last = { lengthBytes: run.length, flags };
    descriptors.push(last);
  }
  assert(last !== null, 'the image has no status for a range that is not empty');
  return descriptors;
}
