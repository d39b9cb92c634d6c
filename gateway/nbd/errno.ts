// The last step of a failure: from a StorageError to one of the eight numbers that NBD knows.
//
// The number says little; the error behind it is logged before it is thrown away. A failing image fails every request,
// so the log takes a few lines per second and counts the rest.

import type { StorageError } from '../../proto/errors.ts';
import type { Clock, Log } from '../../proto/ports.ts';
import { commandName, Errno } from '../nbd-protocol-ts/index.ts';
import { FAILURE_LINES_PER_SECOND } from './limits.ts';

/** The error a client gets. ENOTSUP is not among them: NBD keeps it for FAST_ZERO. */
export function errnoOf(error: StorageError): Errno {
  switch (error.code) {
    case 'NO_SPACE':
      return Errno.ENOSPC;
    case 'INVALID':
    case 'UNSUPPORTED':
      return Errno.EINVAL;
    case 'READ_ONLY':
      return Errno.EPERM;
    case 'UNAVAILABLE':
      return Errno.ESHUTDOWN;
    default:
      return Errno.EIO;
  }
}

/** Writes what failed, on what and why, at most so many times a second. */
export class FailureLog {
  readonly #log: Log;
  readonly #clock: Clock;
  #second = 0;
  #lines = 0;
  #suppressed = 0;

  constructor(log: Log, clock: Clock) {
    this.#log = log;
    this.#clock = clock;
  }

  record(exportName: string, command: number, offset: number, lengthBytes: number, error: StorageError): void {
    const second = Math.floor(this.#clock.now() / 1_000);
    if (second !== this.#second) {
      this.#second = second;
      this.#lines = 0;
    }
    if (this.#lines === FAILURE_LINES_PER_SECOND) {
      this.#suppressed++;
      return;
    }
    this.#lines++;
    this.#log.error(`${commandName(command)} failed: ${error.message}`, {
      export: exportName,
      offset,
      lengthBytes,
      code: error.code,
      errno: errnoOf(error),
      error,
      notLoggedBefore: this.#suppressed,
    });
    this.#suppressed = 0;
  }
}
