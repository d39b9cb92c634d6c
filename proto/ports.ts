// The only ways a core touches the world: time, randomness, disk, network, log. Real ones live in `*/main.ts` and in
// adapters named after what they wrap; simulated ones in cluster/sim. A test forbids everything else in core code.
//
// All callbacks come from the event loop, never from inside the call that asked for them, unless a line says otherwise.

import type { Frame } from './frame.ts';

/** Monotonic time. There is no wall clock in a core: nothing may be decided by one. */
export interface Clock {
  /** Milliseconds, with fractions, since some fixed moment; never goes back. */
  now(): number;
  /** Calls `fire` once after at least `ms`. */
  after(ms: number, fire: () => void): Timer;
  /** Calls `run` once when what is already waiting to be handled has been handled (end of this turn of the loop). */
  soon(run: () => void): void;
}
export interface Timer {
  cancel(): void;
}

export interface Random {
  /** Uniform, 0 to 2^32 - 1. */
  u32(): number;
}

/** Where a core says what it sees. Fields are flat and small; nothing secret. */
export interface Log {
  debug(message: string, fields?: Record<string, unknown>): void;
  info(message: string, fields?: Record<string, unknown>): void;
  warn(message: string, fields?: Record<string, unknown>): void;
  error(message: string, fields?: Record<string, unknown>): void;
}

/**
 * A directory with flat file names. Methods throw DiskError; after one from write() or sync() what is on the disk is
 * unknown, and the owner must stop (never sync again and believe it).
 */
export interface Disk {
  /** Opens for reading and writing. With `create`, makes the file if it is missing (durable after syncDirectory). */
  open(name: string, create: boolean): DiskFile;
  exists(name: string): boolean;
  list(): string[];
  rename(from: string, to: string): void;
  remove(name: string): void;
  /** Makes creations, renames and removals durable. Blocks; used at start and on rare paths only. */
  syncDirectory(): void;
  /** Bytes that can still be written before NO_SPACE, as the file system tells. */
  freeBytes(): number;
}
export interface DiskFile {
  readonly name: string;
  size(): number;
  /** Reads up to target.length bytes at `position` and returns how many; short only at the end of the file. Blocks. */
  read(target: Uint8Array, position: number): number;
  /** The same off the event loop. `done` gets the byte count. */
  readLater(target: Uint8Array, position: number, done: (error: DiskError | null, bytes: number) => void): void;
  /** Writes all parts one after the other at `position` into the page cache. Blocks. Throws NO_SPACE or IO. */
  write(parts: readonly Uint8Array[], position: number): void;
  /** fdatasync: all writes that returned before this call are on stable storage when `done` gets null. */
  sync(done: (error: DiskError | null) => void): void;
  /** The same, blocking: for start-up only. */
  syncNow(): void;
  truncate(sizeBytes: number): void;
  close(): void;
}
export class DiskError extends Error {
  readonly code: 'NO_SPACE' | 'IO' | 'NOT_FOUND';
  constructor(code: 'NO_SPACE' | 'IO' | 'NOT_FOUND', message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'DiskError';
    this.code = code;
  }
}

/** Framed, ordered, reliable-until-it-breaks connections: TCP or unix sockets in the world, queues in the simulator. */
export interface Network {
  /** Starts to listen. `accept` must set `connection.events` before it returns. Rejects if the address is taken. */
  listen(address: string, accept: (connection: Connection) => void): Promise<Listener>;
  /**
   * Connects in the background: frames sent before it is up are queued. Failure to connect is onClose.
   * @param address "host:port" or "unix:/path"
   */
  connect(address: string, events: ConnectionEvents): Connection;
}
export interface Listener {
  /** The address with the real port where 0 was asked. */
  readonly address: string;
  close(): void;
}
export interface Connection {
  events: ConnectionEvents | null;
  /** For log lines: who is at the other end. */
  readonly peer: string;
  /**
   * Queues one frame; all frames of one turn of the loop leave together. The frame's meta and payload belong to the
   * connection until they are sent: the caller must not change them. After close(), does nothing.
   */
  send(frame: Frame): void;
  /** Ends it at once. onClose of this side does not follow. */
  close(): void;
}
export interface ConnectionEvents {
  /** One whole, checked frame. Its meta and payload are the receiver's to keep. */
  onFrame(frame: Frame): void;
  /** The other side is gone, or said something that is not a frame. Nothing follows. */
  onClose(reason: string): void;
}
