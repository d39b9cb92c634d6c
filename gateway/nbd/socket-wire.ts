// A session's Wire on a socket: how bytes get in with the fewest copies, and out in one call.
//
// In: the socket reads into blocks that we choose (net.Socket's `onread`), not into a new 64 KiB one for each read.
//
//   slab:  [chunk: requests only, gone ->][chunk with the data of WRITEs, kept][next read goes here ...    ]
//
// A chunk that the session does not need any more is overwritten by the next read; one that it keeps views of is
// stepped over. The rest of a large WRITE is read straight into its own buffer. If a future Node does not let a socket be
// adopted, the socket it made is used, and each read costs its block.

import type { Socket } from 'node:net';
import { adoptSocket } from '../../cluster/world/adopt-socket.ts';
import type { Clock, Log, Timer } from '../../proto/ports.ts';
import { LINGER_MS, READ_BYTES_MIN, READ_HANDSHAKE_BYTES, READ_SLAB_BYTES } from './limits.ts';
import type { Wire } from './outbox.ts';
import type { Session } from './session.ts';

const NO_BYTES = Buffer.alloc(0);

export class SocketWire implements Wire {
  readonly peer: string;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #accepted: Socket;
  #socket: Socket;
  #session: Session | null = null;
  /** Where reads go. Bytes before #at are kept by the session. */
  #slab: Buffer = NO_BYTES;
  #at = 0;
  /** The data of a WRITE that the socket reads into at present; null: the slab. */
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
    if (adopted === null) socket.on('data', (chunk: Buffer) => void session.receive(chunk));
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
    if (this.#target !== null) return this.#target;
    if (this.#slab.length - this.#at < READ_BYTES_MIN) {
      this.#slab = Buffer.allocUnsafeSlow(
        this.#session!.state === 'handshake' ? READ_HANDSHAKE_BYTES : READ_SLAB_BYTES,
      );
      this.#at = 0;
    }
    return this.#at === 0 ? this.#slab : this.#slab.subarray(this.#at);
  }

  #onRead(bytes: number): boolean {
    if (this.#target !== null) {
      this.#session!.filled(bytes);
      return true;
    }
    const end = this.#at + bytes;
    const kept = this.#session!.receive(this.#slab.subarray(this.#at, end));
    if (kept) this.#at = (end + 7) & ~7;
    return true;
  }
}
