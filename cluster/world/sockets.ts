// The Network port on real sockets: TCP, or a unix socket between processes of one machine.
//
// Frames sent during one turn of the event loop leave together, in one system call (proto/outbox.ts): at depth 32 this is
// what keeps a 4 KiB request from costing one of its own. At depth 1 waiting for the end of the turn brings nothing and
// costs a round of the loop: a connection whose waits were in vain sends at once for a while.
//
// Whoever does not read its answers gets to ask nothing more: an accepted connection with too much unsent stops reading
// until all of it is sent. The side that connected always reads, so the two never wait for each other.

import { existsSync, unlinkSync } from 'node:fs';
import { type AddressInfo, createServer, Socket, connect as socketConnect } from 'node:net';
import { StorageError } from '../../proto/errors.ts';
import { encodeHeader, type Frame, HEADER_BYTES } from '../../proto/frame.ts';
import { FRAME_PAYLOAD_MAX } from '../../proto/limits.ts';
import { Outbox, SlabPool } from '../../proto/outbox.ts';
import type { Connection, ConnectionEvents, Listener, Network } from '../../proto/ports.ts';
import { adoptSocket, type OnRead, READ_SLAB } from './adopt-socket.ts';
import { FrameDecoder } from './frame-decoder.ts';

/** Bytes of answers that may wait for one slow reader. Twice the largest payload. */
const UNSENT_BYTES_MAX = 2 * FRAME_PAYLOAD_MAX;
/** A peer that takes nothing of what is left to send gets so long after close(). */
const LINGER_MS = 5_000;
/** An idle connection is probed after this, so that a peer whose machine is gone does not stay for ever. */
const KEEPALIVE_MS = 30_000;
/** After so many waits in a row that no other frame came for, */
const VAIN_WAITS = 4;
/** so many sends do not wait. */
const HASTY_SENDS = 32;
const UNIX = 'unix:';
const slabs = new SlabPool();
const NOTHING = (): void => {};

export function createNetwork(): Network {
  return { listen, connect };
}

/** @param address "host:port" (port 0: any free one) or "unix:/path". Rejects with UNAVAILABLE, saying why. */
async function listen(address: string, accept: (connection: Connection) => void): Promise<Listener> {
  const options = { noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_MS };
  const server = createServer(options, (socket) => {
    const peer = describe(socket);
    accept(new SocketConnection((onread) => adoptSocket(socket, onread) ?? socket, peer, true));
  });
  const path = address.startsWith(UNIX) ? address.slice(UNIX.length) : null;
  if (path !== null) await removeStaleSocket(path);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) =>
      reject(new StorageError('UNAVAILABLE', `cannot listen on ${address}: ${cause.message}`, cause)),
    );
    server.once('listening', () => resolve());
    if (path !== null) server.listen(path);
    else server.listen(hostAndPort(address));
  });
  // Later errors are of single accepts, such as too many open files: those who connect try again.
  server.on('error', () => {});
  return {
    address: path !== null ? address : nameOf(server.address() as AddressInfo),
    close: () => server.close(),
  };
}

function connect(address: string, events: ConnectionEvents): Connection {
  const connection = new SocketConnection((onread) => openSocket(address, onread), address, false);
  connection.events = events;
  return connection;
}

/** An address that is none fails like one that nobody listens on: it may have come from the map. */
function openSocket(address: string, onread: OnRead): Socket {
  if (address.startsWith(UNIX)) return socketConnect({ path: address.slice(UNIX.length), onread });
  const keepAlive = { keepAlive: true, keepAliveInitialDelay: KEEPALIVE_MS };
  try {
    return socketConnect({ ...hostAndPort(address), ...keepAlive, noDelay: true, onread });
  } catch (error) {
    return new Socket().destroy(error as Error);
  }
}

const nameOf = ({ address, port, family }: AddressInfo): string =>
  family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`;

/** "host:port", "[v6]:port" or ":port" (any interface) taken apart. Throws INVALID. */
export function hostAndPort(address: string): { host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:]*)):(\d{1,5})$/.exec(address);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535)
    throw new StorageError('INVALID', `"${address}" is not an address; write HOST:PORT, such as 127.0.0.1:7000`);
  return { host: match[1] ?? match[2] ?? '', port };
}

/** A socket file that nobody listens on is left over from a killed process; one that answers is somebody's. */
async function removeStaleSocket(path: string): Promise<void> {
  if (!existsSync(path)) return;
  const alive = await new Promise<boolean>((resolve) => {
    const probe = socketConnect({ path });
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (alive) throw new StorageError('UNAVAILABLE', `cannot listen on unix:${path}: another process does`);
  unlinkSync(path);
}

const describe = (socket: Socket): string =>
  socket.remoteAddress === undefined ? 'unix socket' : `${socket.remoteAddress}:${socket.remotePort}`;

class SocketConnection implements Connection {
  events: ConnectionEvents | null = null;
  readonly peer: string;
  readonly #socket: Socket;
  readonly #decoder: FrameDecoder;
  readonly #accepted: boolean;
  readonly #outbox = new Outbox(this, slabs, NOTHING);
  /** The socket reads into the decoder's target at present, not into READ_SLAB. */
  #direct = false;
  /** The outbox will be sent. */
  #flushing = false;
  /** Frames in the outbox, and those that were there when the wait for more began. */
  #frames = 0;
  #framesBefore = 0;
  #vainWaits = 0;
  #hastySends = 0;
  /** Too much is unsent: nothing is read. */
  #throttled = false;
  #closed = false;
  readonly #onCallbackEnd = () => this.#waitOrFlush();
  readonly #onTurnEnd = () => this.#endWait();

  /** @param open makes the socket, given what it must do with what it reads */
  constructor(open: (onread: OnRead) => Socket, peer: string, accepted: boolean) {
    this.#accepted = accepted;
    this.peer = peer;
    this.#decoder = new FrameDecoder((frame) => this.events?.onFrame(frame));
    this.#socket = open({ buffer: () => this.#nextTarget(), callback: (bytes) => this.#onRead(bytes) });
    const socket = this.#socket;
    // Comes only from a socket that could not be given `onread`.
    socket.on('data', (chunk: Buffer) => this.#received(this.#decoder.push(chunk)));
    socket.on('end', () => this.#end('connection closed'));
    socket.on('drain', () => this.#drained());
    socket.on('error', (error) => this.#end(error.message));
    socket.on('close', () => this.#end('connection closed'));
    socket.resume();
  }

  #nextTarget(): Buffer {
    const target = this.#decoder.target();
    this.#direct = target !== null;
    return target ?? READ_SLAB;
  }

  #onRead(bytes: number): boolean {
    this.#received(this.#direct ? this.#decoder.filled(bytes) : this.#decoder.push(READ_SLAB.subarray(0, bytes)));
    return true;
  }

  send(frame: Frame): void {
    if (this.#closed) return;
    const outbox = this.#outbox;
    const slab = outbox.room(HEADER_BYTES);
    const at = outbox.position;
    encodeHeader(slab, at, frame);
    outbox.advance(at + HEADER_BYTES);
    if (frame.meta !== null) outbox.append(frame.meta, false);
    if (frame.payload !== null) outbox.append(frame.payload, frame.givePayload);
    this.#frames += 1;
    if (!this.#flushing) {
      this.#flushing = true;
      queueMicrotask(this.#onCallbackEnd);
    }
    if (!this.#accepted || this.#throttled) return;
    if (outbox.waitingBytes + outbox.unsentBytes <= UNSENT_BYTES_MAX) return;
    this.#throttled = true;
    this.#socket.pause();
    this.#decoder.pause();
  }

  /** For the outbox. */
  write(buffers: readonly Buffer[], sent: () => void): void {
    const socket = this.#socket;
    const last = buffers.length - 1;
    if (last > 0) socket.cork();
    for (let i = 0; i < last; i++) socket.write(buffers[i]!);
    socket.write(buffers[last]!, sent);
    if (last > 0) socket.uncork();
  }

  close(): void {
    if (this.#closed) return;
    this.#flush();
    this.#closed = true;
    this.#decoder.stop();
    const linger = setTimeout(() => this.#socket.destroy(), LINGER_MS);
    this.#socket.once('close', () => clearTimeout(linger));
    this.#socket.destroySoon();
  }

  #received(why: string | null): void {
    if (why !== null) this.#end(why);
  }

  /** All that was written is sent. */
  #drained(): void {
    if (!this.#throttled || this.#closed) return;
    this.#throttled = false;
    this.#socket.resume();
    this.#received(this.#decoder.resume());
  }

  #end(reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#decoder.stop();
    this.#socket.destroy();
    this.events?.onClose(reason);
  }

  /** The callback that sent the first frame has returned; others of this turn of the loop may send more. */
  #waitOrFlush(): void {
    if (this.#hastySends > 0) {
      this.#hastySends -= 1;
      return this.#flush();
    }
    this.#framesBefore = this.#frames;
    setImmediate(this.#onTurnEnd);
  }

  #endWait(): void {
    if (this.#frames > this.#framesBefore) this.#vainWaits = 0;
    else if (++this.#vainWaits === VAIN_WAITS) {
      this.#vainWaits = 0;
      this.#hastySends = HASTY_SENDS;
    }
    this.#flush();
  }

  #flush(): void {
    this.#flushing = false;
    this.#frames = 0;
    if (!this.#closed) this.#outbox.send();
  }
}
