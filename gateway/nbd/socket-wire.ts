// A session's Wire on a socket: how bytes get in with the fewest copies, and out in one call.
//
// In: all sockets of a process read into one block of memory (net.Socket's `onread`), since a session keeps nothing of
// it; the rest of a large WRITE is read straight into its own buffer. If a future Node does not let a socket be adopted,
// the socket it made is used, and each read costs a block of its own.

import type { Socket } from 'node:net';
import { adoptSocket, READ_SLAB } from '../../cluster/world/adopt-socket.ts';
import type { Clock, Log, Timer } from '../../proto/ports.ts';
import { LINGER_MS } from './limits.ts';
import type { Session } from './session.ts';
import type { Wire } from './wire.ts';

export class SocketWire implements Wire {
  readonly peer: string;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #accepted: Socket;
  #socket: Socket;
  #session: Session | null = null;
  /** The data of a WRITE that the socket reads into at present; null: READ_SLAB. */
  #target: Buffer | null = null;
  #lingering: Timer | null = null;

  constructor(accepted: Socket, peer: string, clock: Clock, log: Log) {
    this.#accepted = accepted;
    this.#socket = accepted;
    this.peer = peer;
    this.#clock = clock;
    this.#log = log;
  }

  /** Begins to read. @param closed called once, when the connection is gone */
  start(session: Session, closed: () => void): void {
    this.#session = session;
    const adopted = adoptSocket(this.#accepted, {
      buffer: () => this.#nextTarget(),
      callback: (bytes) => this.#onRead(bytes),
    });
    this.#socket = adopted ?? this.#accepted;
    const socket = this.#socket;
    if (adopted === null) socket.on('data', (chunk: Buffer) => session.receive(chunk));
    socket.on('end', () => session.streamEnded());
    socket.on('error', (error) => this.#log.debug(`connection failed: ${error.message}`, { peer: this.peer }));
    socket.on('close', () => {
      this.#lingering?.cancel();
      closed();
    });
    socket.resume();
  }

  write(buffers: readonly Buffer[], sent: () => void): void {
    const socket = this.#socket;
    const last = buffers.length - 1;
    if (last > 0) socket.cork();
    for (let index = 0; index < last; index++) socket.write(buffers[index]!);
    socket.write(buffers[last]!, sent);
    if (last > 0) socket.uncork();
  }
  pause(): void {
    this.#socket.pause();
  }
  resume(): void {
    this.#socket.resume();
  }
  end(): void {
    this.#socket.end();
    // Reads to the end, so that closing does not throw away what the peer has not read yet.
    this.#socket.resume();
    this.#lingering ??= this.#clock.after(LINGER_MS, () => this.#socket.destroy());
  }
  destroy(): void {
    this.#socket.destroy();
  }

  /** Called by the socket after each read. */
  #nextTarget(): Buffer {
    this.#target = this.#session!.target();
    return this.#target ?? READ_SLAB;
  }

  #onRead(bytes: number): boolean {
    if (this.#target !== null) this.#session!.filled(bytes);
    else this.#session!.receive(READ_SLAB.subarray(0, bytes));
    return true;
  }
}
