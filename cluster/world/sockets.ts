// The Network port on real sockets: TCP, or a unix socket between processes of one machine.
//
// Frames sent during one turn of the event loop leave together: headers, metas and small payloads are copied into one
// buffer, large payloads go as they are, and all of it is one writev. At depth 32 this is what keeps a 4 KiB request
// from costing a system call of its own.

import { existsSync, unlinkSync } from 'node:fs';
import { createServer, type Socket, connect as socketConnect } from 'node:net';
import { StorageError } from '../../proto/errors.ts';
import { encodeHeader, type Frame, HEADER_BYTES } from '../../proto/frame.ts';
import type { Connection, ConnectionEvents, Listener, Network } from '../../proto/ports.ts';
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
const UNIX = 'unix:';

export function createNetwork(): Network {
  return { listen, connect };
}

/** @param address "host:port" (port 0: any free one) or "unix:/path". Rejects with UNAVAILABLE, saying why. */
async function listen(address: string, accept: (connection: Connection) => void): Promise<Listener> {
  const server = createServer({ noDelay: true }, (socket) => accept(new SocketConnection(socket, describe(socket))));
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
  const bound = server.address();
  return {
    address: path !== null || bound === null || typeof bound === 'string' ? address : `${bound.address}:${bound.port}`,
    close: () => server.close(),
  };
}

function connect(address: string, events: ConnectionEvents): Connection {
  const path = address.startsWith(UNIX) ? address.slice(UNIX.length) : null;
  const socket = path !== null ? socketConnect({ path }) : socketConnect({ ...hostAndPort(address), noDelay: true });
  const connection = new SocketConnection(socket, address);
  connection.events = events;
  return connection;
}

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
  #queue: Frame[] = [];
  #closed = false;
  readonly #flushBound = () => this.#flush();

  constructor(socket: Socket, peer: string) {
    this.#socket = socket;
    this.peer = peer;
    this.#decoder = new FrameDecoder((frame) => this.events?.onFrame(frame));
    socket.on('data', (chunk: Buffer) => {
      const why = this.#decoder.push(chunk);
      if (why !== null) this.#end(why);
    });
    socket.on('error', (error) => this.#end(error.message));
    socket.on('close', () => this.#end('connection closed'));
  }

  send(frame: Frame): void {
    if (this.#closed) return;
    if (this.#queue.length === 0) setImmediate(this.#flushBound);
    this.#queue.push(frame);
  }

  close(): void {
    if (this.#closed) return;
    this.#flush();
    this.#closed = true;
    this.#decoder.stop();
    this.#socket.destroySoon();
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
    let copied = 0;
    for (const frame of frames) copied += HEADER_BYTES + (frame.meta?.length ?? 0) + smallPayloadBytes(frame);
    const slab = copied <= SLAB_BYTES;
    const buffer = slab ? (slabs.pop() ?? Buffer.allocUnsafeSlow(SLAB_BYTES)) : Buffer.allocUnsafeSlow(copied);
    // Called when all of it is sent, or can't be: writes of one socket end in order.
    const sent = (): void => {
      if (slab && slabs.length < SLABS_KEPT) slabs.push(buffer);
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
      if (frame.payload.length <= COPY_BYTES_MAX) at += frame.payload.copy(buffer, at);
      else {
        this.#socket.write(buffer.subarray(start, at));
        this.#socket.write(frame.payload, i === frames.length - 1 ? sent : undefined);
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
