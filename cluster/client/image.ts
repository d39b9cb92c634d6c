// An open image: what every gateway works with. Byte ranges in, callbacks out, no promise per request.
//
// Offsets and lengths are bytes, any alignment, inside [0, sizeBytes). Requests may be in flight together: two
// changes that overlap take effect in the order of the calls; a read sees every change whose callback came before it was
// asked for, and of those still in flight any. Callbacks come from the event
// loop, never from inside the call. Retries, map changes and fail-over happen underneath: a request waits rather than
// fails while its data may come back; it fails with FENCED when another writer took the image, NO_SPACE, IO, INVALID,
// READ_ONLY or, after close(), UNAVAILABLE.

import type { StorageError } from '../../proto/errors.ts';
import type { ImageEntry } from '../../proto/map.ts';

export type Done = (error: StorageError | null) => void;
/**
 * The bytes asked for, in order, in one or more parts to be sent as they are. Not to be changed; not to be kept long. Who
 * is done with a part may give it to payloadPool (proto/buffer-pool.ts).
 */
export type ReadDone = (error: StorageError | null, parts: Buffer[] | null) => void;
/** Runs that cover the range asked for, in order, neighbours differing in `data`. Without data: reads as zeros. */
export type StatusDone = (error: StorageError | null, runs: { length: number; data: boolean }[] | null) => void;

export interface Image {
  readonly name: string;
  /** May change while open: see onChange. */
  readonly sizeBytes: number;
  readonly readOnly: boolean;

  read(offset: number, length: number, done: ReadDone): void;
  /**
   * @param data the caller must not look at it again: it is kept until it is flushed, and then goes back to payloadPool
   * if it came from there
   * @param fua durable before done
   */
  write(offset: number, data: Buffer, fua: boolean, done: Done): void;
  /** The range reads as zeros afterwards and takes no space. */
  zero(offset: number, length: number, fua: boolean, done: Done): void;
  /** Every write and zero whose `done` was called before this call is on stable storage of its whole acting set. */
  flush(done: Done): void;
  status(offset: number, length: number, done: StatusDone): void;

  /** The image was resized, or its lock was lost (lost = true; every later write fails with FENCED). */
  onChange: ((lost: boolean) => void) | null;
  /** Flushes, gives the lock back, and ends. Requests in flight are finished first. */
  close(done: Done): void;
}

export interface ImageClient {
  /** Images as of the newest map, ordered by name. */
  images(): ImageEntry[];
  /** Rejects with NOT_FOUND, or BUSY while another writer holds it and takeOver is false. */
  open(name: string, options: { readOnly: boolean; takeOver: boolean }): Promise<Image>;
  close(): Promise<void>;
}
