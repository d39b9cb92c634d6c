// A session's connection as the session sees it: a socket (socket-wire.ts), or a test.

import type { ByteSink } from '../../proto/outbox.ts';

export interface Wire extends ByteSink {
  /** For log lines: who is at the other end. */
  readonly peer: string;
  /** No bytes are handed in until resume(). */
  pause(): void;
  resume(): void;
  /** Closes when everything written is sent. */
  end(): void;
  /** Closes at once. */
  destroy(): void;
}
