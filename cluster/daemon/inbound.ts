// Connections that others open to this daemon: they must say hello first, to the right process of the right cluster.
//
// One connection per sender: when a client session or a daemon connects again, its older connection is closed and what
// is still in it is never read, so that a delayed old request can't land behind a newer one. An older connection whose
// hello itself was delayed, perhaps until after its sender gave it up and used another, is told by its number and refused.
// On one connection a client's changes come in the order of their numbers; one that does not is looked up in the log like
// one that says itself that it was sent before, so that a change that comes twice is not made twice.

import { StorageError, wireStatus } from '../../proto/errors.ts';
import { Flag, type Frame, Op, replyTo } from '../../proto/frame.ts';
import { HANDSHAKE_MS } from '../../proto/limits.ts';
import { decodeHello, encodeHello, type Hello, PROTOCOL_VERSION } from '../../proto/peer-messages.ts';
import type { Connection, ConnectionEvents, Timer } from '../../proto/ports.ts';
import type { Daemon } from './daemon.ts';

/** Connections that have not said hello yet; when there are more, the oldest goes: an honest one says it at once. */
const STRANGERS_MAX = 100;
/** Senders whose newest connection is remembered: more than were ever connected while one frame was on its way. */
const REMEMBERED_MAX = 10_000;

/** The kernel says that the other end was closed. A connection that this side gives up has another reason. */
const BY_PEER = /^connection closed|ECONNRESET/;

const nameOf = (hello: Hello): string => `${hello.role} ${hello.id}`;

export class Inbounds {
  readonly #daemon: Daemon;
  readonly #strangers = new Set<Inbound>();
  readonly #known = new Map<string, Inbound>();
  /** The newest connection of each sender, open or not, least recently opened first. */
  readonly #newest = new Map<string, { readonly bootId: string; readonly connection: number }>();

  constructor(daemon: Daemon) {
    this.#daemon = daemon;
  }

  readonly accept = (connection: Connection): void => this.#accept(connection, false);
  /** Of the unix socket: the other end is a process of this machine. */
  readonly acceptLocal = (connection: Connection): void => this.#accept(connection, true);

  #accept(connection: Connection, local: boolean): void {
    const inbound = new Inbound(this.#daemon, this, connection, local);
    connection.events = inbound;
    this.#strangers.add(inbound);
    if (this.#strangers.size <= STRANGERS_MAX) return;
    for (const oldest of this.#strangers) return oldest.close('too many connections without a hello');
  }

  introduced(inbound: Inbound, hello: Hello): void {
    this.#strangers.delete(inbound);
    const name = nameOf(hello);
    this.#newest.delete(name);
    this.#newest.set(name, { bootId: hello.bootId, connection: hello.connection });
    if (this.#newest.size > REMEMBERED_MAX)
      for (const oldest of this.#newest.keys()) {
        this.#newest.delete(oldest);
        break;
      }
    this.#known.get(name)?.close('the same peer has connected again');
    this.#known.set(name, inbound);
  }

  /** Why this hello comes too late, or null. */
  outdated(hello: Hello): string | null {
    const newest = this.#newest.get(nameOf(hello));
    if (newest === undefined || newest.bootId !== hello.bootId || newest.connection < hello.connection) return null;
    return 'a newer connection of the same process was here before';
  }

  gone(inbound: Inbound): void {
    this.#strangers.delete(inbound);
    if (inbound.hello === null) return;
    const name = nameOf(inbound.hello);
    if (this.#known.get(name) === inbound) this.#known.delete(name);
  }

  closeAll(): void {
    for (const inbound of [...this.#strangers, ...this.#known.values()]) inbound.close('the daemon stops');
  }
}

export class Inbound implements ConnectionEvents {
  hello: Hello | null = null;
  readonly #daemon: Daemon;
  readonly #inbounds: Inbounds;
  readonly #connection: Connection;
  readonly #local: boolean;
  readonly #handshake: Timer;
  /** Highest number of a change that came here. */
  #newestSeq = -1;
  #over = false;

  constructor(daemon: Daemon, inbounds: Inbounds, connection: Connection, local: boolean) {
    this.#daemon = daemon;
    this.#inbounds = inbounds;
    this.#connection = connection;
    this.#local = local;
    this.#handshake = daemon.clock.after(HANDSHAKE_MS, () => this.close('no hello in time'));
  }

  onFrame(frame: Frame): void {
    if (this.#over) return;
    if ((frame.flags & Flag.REPLY) !== 0) return this.close('an answer to a question that was not asked');
    if (frame.op === Op.HELLO) return this.#onHello(frame);
    if (this.hello === null) return this.close('spoke before its hello');
    if (frame.op === Op.PING) return this.#connection.send(replyTo(frame, 0, this.#daemon.epoch));
    if (frame.op === Op.WRITE || frame.op === Op.ZERO || frame.op === Op.DELETE) {
      if (frame.seq > this.#newestSeq) this.#newestSeq = frame.seq;
      else frame.flags |= Flag.RETRY;
    }
    this.#daemon.dispatch({ frame, from: this.#connection }, this);
  }

  onClose(reason: string): void {
    if (this.#over) return;
    if (this.hello === null) this.#daemon.log.debug('a stranger is gone', { peer: this.#connection.peer, why: reason });
    this.#end();
    if (this.#local && BY_PEER.test(reason)) this.#daemon.leases.gaveUp(this);
  }

  close(reason: string): void {
    if (this.#over) return;
    this.#daemon.log.info('closing a connection', { peer: this.#connection.peer, why: reason });
    this.#end();
    this.#connection.close();
  }

  #end(): void {
    this.#over = true;
    this.#handshake.cancel();
    this.#inbounds.gone(this);
  }

  #onHello(frame: Frame): void {
    const { identity, id, epoch } = this.#daemon;
    let hello: Hello;
    let why: string | null = null;
    try {
      hello = decodeHello(frame.meta);
      if (this.hello !== null) why = 'a second hello';
      else if (hello.protocol !== PROTOCOL_VERSION)
        why = `protocol ${hello.protocol}, this daemon speaks ${PROTOCOL_VERSION}`;
      else if (hello.clusterId !== identity.clusterId)
        why = `cluster ${hello.clusterId}, this daemon belongs to ${identity.clusterId}`;
      else if (hello.toBootId !== identity.bootId) why = 'this process is not the one you look for';
      else why = this.#impostor(hello) ?? this.#inbounds.outdated(hello);
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      why = error.message;
    }
    const reply = replyTo(frame, wireStatus(why === null ? 'OK' : 'IDENTITY'), epoch);
    if (why !== null) {
      reply.meta = Buffer.from(why);
      this.#connection.send(reply);
      return this.close(why);
    }
    this.#handshake.cancel();
    this.hello = hello!;
    this.#inbounds.introduced(this, this.hello);
    reply.meta = encodeHello({
      protocol: PROTOCOL_VERSION,
      clusterId: identity.clusterId,
      role: 'daemon',
      id,
      uuid: identity.uuid,
      bootId: identity.bootId,
      toBootId: this.hello.bootId,
      connection: 0,
    });
    this.#connection.send(reply);
  }

  /** A daemon's number belongs to one directory for ever; one that is not in the map yet can't be a primary either. */
  #impostor(hello: Hello): string | null {
    if (hello.role !== 'daemon') return null;
    const known = this.#daemon.map?.daemons.get(hello.id);
    return known === undefined || known.uuid === hello.uuid ? null : `daemon ${hello.id} is another directory`;
  }
}
