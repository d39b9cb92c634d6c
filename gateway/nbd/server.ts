// The NBD server: listens on TCP and on a unix socket, gives each connection a Session, and counts what strangers take.
//
// It owns the sockets and the waits: connections in all, connections that have not chosen an export, the handshake's
// deadline, the lingering after the last word, the draining at the end. What is said on a connection is the Session's.

import { lstatSync, unlinkSync } from 'node:fs';
import { createServer, connect as netConnect, type Server, type Socket } from 'node:net';
import type { ImageClient } from '../../cluster/client/image.ts';
import { StorageError } from '../../proto/errors.ts';
import { HANDSHAKE_MS } from '../../proto/limits.ts';
import { SlabPool } from '../../proto/outbox.ts';
import type { Clock, Log, Timer } from '../../proto/ports.ts';
import { FailureLog } from './errno.ts';
import { ExportTable } from './export-table.ts';
import { CONNECTIONS_MAX, DRAIN_MS, HANDSHAKES_MAX, KEEP_ALIVE_MS } from './limits.ts';
import { Session, type SessionWorld } from './session.ts';
import { SocketWire } from './socket-wire.ts';

export interface NbdServerOptions {
  readonly client: ImageClient;
  /** Port 0: any free one. */
  readonly listen: { readonly host: string; readonly port: number } | null;
  readonly unixPath: string | null;
  /** Fence another writer of an image off instead of being refused. */
  readonly takeOver: boolean;
  readonly readOnly: boolean;
  readonly log: Log;
  readonly clock: Clock;
  /** Other limits than those of limits.ts. */
  readonly limits?: Partial<ServerLimits>;
}

export interface ServerLimits {
  readonly connectionsMax: number;
  readonly handshakesMax: number;
  readonly handshakeMs: number;
  readonly drainMs: number;
}

export interface NbdServer {
  /** "host:port" with the real port, or null without TCP. */
  readonly address: string | null;
  readonly unixPath: string | null;
  /**
   * Stops listening, refuses new requests, finishes those in flight, gives the images' locks back. Connections that are
   * not done after DRAIN_MS are cut.
   */
  close(): Promise<void>;
}

const LIMITS: ServerLimits = {
  connectionsMax: CONNECTIONS_MAX,
  handshakesMax: HANDSHAKES_MAX,
  handshakeMs: HANDSHAKE_MS,
  drainMs: DRAIN_MS,
};

/** Serves the client's images. Rejects with UNAVAILABLE, saying why, if an address can't be listened on. */
export async function startNbdServer(options: NbdServerOptions): Promise<NbdServer> {
  const gate = new Gate(options);
  const servers: Server[] = [];
  try {
    let address: string | null = null;
    if (options.listen !== null) {
      const server = gate.newServer();
      await listening(server, `${options.listen.host}:${options.listen.port}`, { ...options.listen });
      servers.push(server);
      address = addressOf(server);
    }
    if (options.unixPath !== null) {
      await removeStaleSocket(options.unixPath);
      const server = gate.newServer();
      await listening(server, `unix:${options.unixPath}`, { path: options.unixPath });
      servers.push(server);
    }
    return { address, unixPath: options.unixPath, close: () => gate.close(servers) };
  } catch (error) {
    for (const server of servers) server.close();
    throw error;
  }
}

function listening(
  server: Server,
  name: string,
  where: { host?: string; port?: number; path?: string },
): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const why = cause.code === 'EADDRINUSE' ? 'another process listens there; choose another address' : cause.message;
      reject(new StorageError('UNAVAILABLE', `can't serve NBD on ${name}: ${why}`, cause));
    });
    server.listen(where, resolve);
  });
}

function addressOf(server: Server): string | null {
  const bound = server.address();
  if (bound === null || typeof bound === 'string') return null;
  return bound.family === 'IPv6' ? `[${bound.address}]:${bound.port}` : `${bound.address}:${bound.port}`;
}

/** A socket file that nobody answers on was left behind by a killed process. Anything else stays. */
async function removeStaleSocket(path: string): Promise<void> {
  const present = lstatSync(path, { throwIfNoEntry: false });
  if (present === undefined) return;
  if (!present.isSocket())
    throw new StorageError('UNAVAILABLE', `can't serve NBD on unix:${path}: a file that is no socket has that name`);
  const answered = await new Promise<boolean>((resolve) => {
    const probe = netConnect({ path });
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (answered) throw new StorageError('UNAVAILABLE', `can't serve NBD on unix:${path}: another process listens there`);
  unlinkSync(path);
}

/** All connections of one server. */
class Gate {
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #limits: ServerLimits;
  readonly #world: SessionWorld;
  readonly #wires = new Map<SocketWire, Session>();
  /** Connections that have not chosen an export, and when they must have. */
  readonly #handshakes = new Map<Session, Timer>();
  #turnedAway = 0;
  #closing: Promise<void> | null = null;
  #onEmpty: () => void = () => {};

  constructor(options: NbdServerOptions) {
    this.#clock = options.clock;
    this.#log = options.log;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#world = {
      exports: new ExportTable(options.client, { readOnly: options.readOnly, takeOver: options.takeOver }, options.log),
      slabs: new SlabPool(),
      clock: options.clock,
      log: options.log,
      failures: new FailureLog(options.log, options.clock),
      onEstablished: (session) => this.#handshakeOver(session),
    };
  }

  newServer(): Server {
    return createServer(
      {
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: KEEP_ALIVE_MS,
        allowHalfOpen: true,
        pauseOnConnect: true,
      },
      (socket) => this.#accept(socket),
    );
  }

  close(servers: readonly Server[]): Promise<void> {
    this.#closing ??= this.#drain(servers);
    return this.#closing;
  }

  #accept(socket: Socket): void {
    const peer = socket.remoteAddress === undefined ? 'unix socket' : `${socket.remoteAddress}:${socket.remotePort}`;
    if (this.#wires.size >= this.#limits.connectionsMax || this.#handshakes.size >= this.#limits.handshakesMax) {
      this.#turnAway(socket, peer);
      return;
    }
    const wire = new SocketWire(socket, peer, this.#clock, this.#log);
    const session = new Session(this.#world, wire);
    this.#wires.set(wire, session);
    this.#armHandshake(session, wire);
    wire.start(session, () => {
      this.#wires.delete(wire);
      this.#handshakeOver(session);
      session.closed();
      if (this.#wires.size === 0) this.#onEmpty();
    });
    session.start();
  }

  #turnAway(socket: Socket, peer: string): void {
    this.#turnedAway++;
    // Not a line for each: this is what a flood looks like.
    if (Number.isInteger(Math.log2(this.#turnedAway)))
      this.#log.warn('too many connections: client turned away', {
        peer,
        connections: this.#wires.size,
        handshakes: this.#handshakes.size,
        turnedAway: this.#turnedAway,
      });
    socket.on('error', () => {});
    socket.destroy();
  }

  #armHandshake(session: Session, wire: SocketWire): void {
    const timer = this.#clock.after(this.#limits.handshakeMs, () => {
      // A client that waits for us to open its image is not late.
      if (session.opening) return this.#armHandshake(session, wire);
      this.#log.warn('client cut off: no export chosen in time', {
        peer: wire.peer,
        timeoutMs: this.#limits.handshakeMs,
      });
      wire.destroy();
    });
    this.#handshakes.set(session, timer);
  }

  #handshakeOver(session: Session): void {
    this.#handshakes.get(session)?.cancel();
    this.#handshakes.delete(session);
  }

  async #drain(servers: readonly Server[]): Promise<void> {
    const stopped = servers.map((server) => new Promise<void>((resolve) => server.close(() => resolve())));
    let deadline: Timer | null = null;
    const tooLate = new Promise<void>((resolve) => {
      deadline = this.#clock.after(this.#limits.drainMs, () => {
        this.#log.warn('requests are still in flight: connections are cut', { connections: this.#wires.size });
        this.#cutAll();
        resolve();
      });
    });
    for (const session of this.#wires.values()) session.shutDown();
    await Promise.race([this.#world.exports.drained(), tooLate]);
    // Who is haggling still has had the answer that the server is going; the others have had theirs.
    for (const [wire, session] of this.#wires) if (session.state === 'handshake') wire.destroy();
    if (this.#wires.size > 0)
      await new Promise<void>((resolve) => {
        this.#onEmpty = resolve;
      });
    deadline!.cancel();
    await Promise.all(stopped);
  }

  #cutAll(): void {
    for (const wire of this.#wires.keys()) wire.destroy();
  }
}
