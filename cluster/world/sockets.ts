// The Network port on real sockets: TCP, or a unix socket between processes of one machine.
//
// Frames sent during one turn of the event loop leave together: headers, metas and small payloads are copied into one
// buffer, large payloads go as they are, and all of it is one writev. At depth 32 this is what keeps a 4 KiB request
// from costing a system call of its own.
//
// Whoever does not read its answers gets to ask nothing more: an accepted connection with too much unsent stops reading
// until all of it is sent. The side that connected always reads, so the two never wait for each other.

import { existsSync, unlinkSync } from 'node:fs';
import { type AddressInfo, createServer, Socket, connect as socketConnect } from 'node:net';
import { payloadPool } from '../../proto/buffer-pool.ts';
import { StorageError } from '../../proto/errors.ts';
import { encodeHeader, type Frame, HEADER_BYTES } from '../../proto/frame.ts';
import { FRAME_PAYLOAD_MAX } from '../../proto/limits.ts';
import type { Connection, ConnectionEvents, Listener, Network } from '../../proto/ports.ts';
import { adoptSocket, type OnRead } from './adopt-socket.ts';
import { FrameDecoder } from './frame-decoder.ts';

/** Payloads up to this size are copied next to their header: one memcpy is cheaper than one more part of a writev. */
const COPY_BYTES_MAX = 16 * 1024;
/**
 * Sends are put together in slabs that are used again: buffers outside the JavaScript heap that come and go at a few
 * hundred MB/s would keep the garbage collector busy with a third of a core. A send that does not fit gets its own.
 */
const SLAB_BYTES = 256 * 1024;
const SLABS_KEPT = 16;
const slabs: Buffer[] = [];
/** Reads go into slabs too: what nobody keeps is overwritten by the next read, what is kept is stepped over. */
const READ_SLAB_BYTES = 256 * 1024;
/** A slab with less room than this is left to those who keep views of it. */
const READ_BYTES_MIN = 64 * 1024;
/** Payload bytes of answers that may wait for one slow reader. Twice the largest payload. */
const UNSENT_BYTES_MAX = 2 * FRAME_PAYLOAD_MAX;
/** A peer that takes nothing of what is left to send gets so long after close(). */
const LINGER_MS = 5_000;
/** An idle connection is probed after this, so that a peer whose machine is gone does not stay for ever. */
const KEEPALIVE_MS = 30_000;
const UNIX = 'unix:';
const NO_BYTES = Buffer.alloc(0);

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
  /** Where reads go; bytes before #readAt are kept by somebody. */
  #readSlab = NO_BYTES;
  #readAt = 0;
  /** The socket reads into the decoder's target at present, not into the slab. */
  #direct = false;
  #queue: Frame[] = [];
  #queuedBytes = 0;
  /** Too much is unsent: nothing is read. */
  #throttled = false;
  #closed = false;
  readonly #flushBound = () => this.#flush();

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
    if (target !== null) return target;
    if (this.#readSlab.length - this.#readAt < READ_BYTES_MIN) {
      this.#readSlab = Buffer.allocUnsafeSlow(READ_SLAB_BYTES);
      this.#readAt = 0;
    }
    return this.#readAt === 0 ? this.#readSlab : this.#readSlab.subarray(this.#readAt);
  }

  #onRead(bytes: number): boolean {
    if (this.#direct) this.#received(this.#decoder.filled(bytes));
    else {
      const end = this.#readAt + bytes;
      this.#received(this.#decoder.push(this.#readSlab.subarray(this.#readAt, end)));
      if (this.#decoder.kept) this.#readAt = (end + 7) & ~7;
    }
    return true;
  }

  send(frame: Frame): void {
    if (this.#closed) return;
    if (this.#queue.length === 0) setImmediate(this.#flushBound);
    this.#queue.push(frame);
    if (!this.#accepted || frame.payload === null) return;
    this.#queuedBytes += frame.payload.length;
    if (this.#throttled || this.#queuedBytes + this.#socket.writableLength <= UNSENT_BYTES_MAX) return;
    this.#throttled = true;
    this.#socket.pause();
    this.#decoder.pause();
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
    this.#queue.length = 0;
    this.#decoder.stop();
    this.#socket.destroy();
    this.events?.onClose(reason);
  }

  #flush(): void {
    const frames = this.#queue;
    if (this.#closed || frames.length === 0) return;
    this.#queue = [];
    this.#queuedBytes = 0;
    let copied = 0;
    for (const frame of frames) copied += HEADER_BYTES + (frame.meta?.length ?? 0) + smallPayloadBytes(frame);
    const slab = copied <= SLAB_BYTES;
    const buffer = slab ? (slabs.pop() ?? Buffer.allocUnsafeSlow(SLAB_BYTES)) : Buffer.allocUnsafeSlow(copied);
    // Called when all of it is sent, or can't be: writes of one socket end in order.
    const given: Buffer[] = [];
    const sent = (): void => {
      if (slab && slabs.length < SLABS_KEPT) slabs.push(buffer);
      for (const payload of given) payloadPool.give(payload);
    };
    let at = 0;
    let start = 0;
    this.#socket.cork();
    for (let i = 0; i < frames.length; i++) {
      const frame = frames[i]!;
      encodeHeader(buffer, at, frame);
      at += HEADER_BYTES;
      if (frame.meta !== null) at += frame.meta.copy(buffer, at);
      if (frame.payload === null) continue;
      if (frame.payload.length <= COPY_BYTES_MAX) {
        at += frame.payload.copy(buffer, at);
        if (frame.givePayload) payloadPool.give(frame.payload);
      } else {
        this.#socket.write(buffer.subarray(start, at));
        const { payload } = frame;
        if (frame.givePayload) given.push(payload);
        this.#socket.write(payload, i === frames.length - 1 ? sent : undefined);
        start = at;
      }
    }
    if (at > start) this.#socket.write(buffer.subarray(start, at), sent);
    this.#socket.uncork();
  }
}

function smallPayloadBytes(frame: Frame): number {
  return frame.payload !== null && frame.payload.length <= COPY_BYTES_MAX ? frame.payload.length : 0;
}
