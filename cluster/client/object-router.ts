// Brings object operations to the primaries of their PGs, and brings them there again whenever something changes.
//
//   submit -> pg = hash(object) -> primary = map.pgs[pg].acting[0] -> link -> answer
//
// An operation is with one daemon at a time, or waits here: for a map in which its PG has a primary, for a newer map
// that a daemon told about, or a short moment before it knocks at a door that was shut. It is sent again, with the same
// sequence number and marked RETRY, when its connection breaks or its PG gets a new interval.

import { StorageError } from '../../proto/errors.ts';
import { newFrame, Op } from '../../proto/frame.ts';
import type { DaemonId, Epoch, SessionId } from '../../proto/ids.ts';
import { SESSION_INFLIGHT_BYTES_MAX, SESSION_INFLIGHT_MAX } from '../../proto/limits.ts';
import { pgOfObject, type StorageMap } from '../../proto/map.ts';
import { PROTOCOL_VERSION } from '../../proto/peer-messages.ts';
import type { Clock, Log, Network, Timer } from '../../proto/ports.ts';
import { DaemonLink } from './daemon-link.ts';
import { ObjectOp } from './object-op.ts';

/** Pause before an operation that was refused for now is sent again. */
const AGAIN_MS = 20;
/** How often connections are looked at that owe an answer. */
const CHECK_LINKS_MS = 1_000;

export class ObjectRouter {
  readonly #clock: Clock;
  readonly #network: Network;
  readonly #log: Log;
  readonly #host: string;
  readonly #clientId: string;
  session: SessionId = 0;
  map: StorageMap | null = null;
  readonly #links = new Map<DaemonId, DaemonLink>();
  /** Waiting for a map that gives their PG a primary, or for any newer map. */
  #parked = new Set<ObjectOp>();
  /** Waiting for room among SESSION_INFLIGHT_MAX and SESSION_INFLIGHT_BYTES_MAX. */
  readonly #queue: ObjectOp[] = [];
  #queueHead = 0;
  #admitted = 0;
  #admittedBytes = 0;
  #nextSeq = 1;
  /** Connections opened so far. */
  #connections = 0;
  #check: Timer | null = null;
  #stopped = false;

  constructor(clock: Clock, network: Network, log: Log, host: string, clientId: string) {
    this.#clock = clock;
    this.#network = network;
    this.#log = log;
    this.#host = host;
    this.#clientId = clientId;
  }

  /** No operation succeeds any more. */
  get stopped(): boolean {
    return this.#stopped;
  }

  submit(op: ObjectOp): void {
    if (this.#stopped) return void this.#clock.soon(() => op.owner.onOpDone(op, stoppedError()));
    if (this.#queueHead < this.#queue.length || !this.#hasRoom(op)) this.#queue.push(op);
    else this.#admit(op);
  }

  #hasRoom(op: ObjectOp): boolean {
    return this.#admitted < SESSION_INFLIGHT_MAX && this.#admittedBytes + op.carriedBytes <= SESSION_INFLIGHT_BYTES_MAX;
  }

  #admit(op: ObjectOp): void {
    this.#admitted += 1;
    this.#admittedBytes += op.carriedBytes;
    if (op.mutates) op.seq = this.#nextSeq++;
    this.#send(op);
  }

  #send(op: ObjectOp): void {
    const map = this.map;
    const image = map?.images.get(op.image);
    const pool = image === undefined ? undefined : map?.pools.get(image.pool);
    if (map === null || pool === undefined) {
      if (map === null) this.#parked.add(op);
      else {
        // The image is gone from the newest map: nobody would take the operation.
        const error = new StorageError('NOT_FOUND', `image ${op.image} does not exist any more`);
        this.#clock.soon(() => this.done(op, error));
      }
      return;
    }
    if (op.op !== Op.LIST) op.pg = pgOfObject(pool, op.image, op.object);
    const entry = map.pgs.get(op.pg);
    const primary = entry?.acting[0];
    if (entry === undefined || primary === undefined || entry.waitFor.length > 0) {
      this.#parked.add(op);
      return;
    }
    const link = this.linkTo(primary);
    if (link === null) {
      this.#parked.add(op);
      return;
    }
    op.since = entry.since;
    op.link = link;
    op.request = link.send(op.frame(map.epoch, this.session), op);
    op.retry = true;
  }

  /** A daemon would not take it, or is gone. @param epoch the map that explains why, 0 if unknown */
  again(op: ObjectOp, epoch: Epoch): void {
    if (this.#stopped) return this.done(op, stoppedError());
    if (epoch > (this.map?.epoch ?? 0)) {
      this.#parked.add(op);
      return;
    }
    this.#clock.after(AGAIN_MS, () => {
      if (this.#stopped) this.done(op, stoppedError());
      else this.#send(op);
    });
  }

  done(op: ObjectOp, error: StorageError | null): void {
    this.#admitted -= 1;
    this.#admittedBytes -= op.carriedBytes;
    op.owner.onOpDone(op, error);
    if (this.#stopped) return;
    while (this.#queueHead < this.#queue.length && this.#hasRoom(this.#queue[this.#queueHead]!))
      this.#admit(this.#queue[this.#queueHead++]!);
    if (this.#queueHead === this.#queue.length) {
      this.#queue.length = 0;
      this.#queueHead = 0;
    }
  }

  onMap(map: StorageMap): void {
    this.map = map;
    for (const [id, link] of this.#links) {
      const entry = map.daemons.get(id);
      if (entry?.up !== true || entry.bootId !== link.entry.bootId) link.end('the map says that it is gone');
    }
    for (const link of this.#links.values())
      for (const op of link.waiting()) {
        if (!(op instanceof ObjectOp) || map.pgs.get(op.pg)?.since === op.since) continue;
        link.forget(op.request);
        op.link = null;
        this.#parked.add(op);
      }
    const parked = [...this.#parked].sort((a, b) => a.seq - b.seq);
    this.#parked = new Set();
    for (const op of parked) this.#send(op);
  }

  /** The connection to the daemon's present process; null while the map says that it is down. */
  linkTo(id: DaemonId): DaemonLink | null {
    const open = this.#links.get(id);
    if (open !== undefined && !open.over) return open;
    if (this.#stopped) return null;
    const entry = this.map?.daemons.get(id);
    if (entry?.up !== true) return null;
    const hello = {
      protocol: PROTOCOL_VERSION,
      clusterId: this.map!.clusterId,
      role: 'client' as const,
      id: this.session,
      uuid: this.#clientId,
      bootId: this.#clientId,
      toBootId: entry.bootId,
      connection: ++this.#connections,
    };
    const link = new DaemonLink(this.#network, entry, entry.host === this.#host, hello, (lost, reason) => {
      if (this.#links.get(id) === lost) this.#links.delete(id);
      if (!this.#stopped) this.#log.info('lost the connection to a daemon', { daemon: id, why: reason });
    });
    this.#links.set(id, link);
    this.#checkLinksLater();
    return link;
  }

  #checkLinksLater(): void {
    this.#check ??= this.#clock.after(CHECK_LINKS_MS, () => {
      this.#check = null;
      for (const link of [...this.#links.values()]) link.check();
      if (this.#links.size > 0) this.#checkLinksLater();
    });
  }

  /** Asks a daemon to put everything it has acked on stable storage. */
  syncDaemon(id: DaemonId, done: (synced: boolean) => void): void {
    const link = this.linkTo(id);
    if (link === null) return done(false);
    const frame = newFrame(Op.SYNC);
    frame.session = this.session;
    frame.epoch = this.map!.epoch;
    link.send(frame, { onReply: (reply) => done(reply.status === 0), onLost: () => done(false) });
  }

  stop(): void {
    this.#stopped = true;
    this.#check?.cancel();
    this.#check = null;
    for (const link of [...this.#links.values()]) link.end('the client stops');
    const parked = [...this.#parked];
    this.#parked.clear();
    for (const op of parked) this.done(op, stoppedError());
    // These were never admitted.
    const queued = this.#queue.slice(this.#queueHead);
    this.#queue.length = 0;
    this.#queueHead = 0;
    for (const op of queued) op.owner.onOpDone(op, stoppedError());
  }
}

export const stoppedError = (): StorageError => new StorageError('UNAVAILABLE', 'the client is closed');
