// A storage daemon: one directory, the PGs that the map gives it, and the connections that come in.
//
//   master --map--> Daemon --intervals it leads--> Interval -> Serving, Recovery
//                     ^  \--intervals it is in---> Members
//   frames from clients and from other daemons
//
// The daemon obeys the newest map it knows. A frame stamped with a newer epoch waits until that map has come; one of an
// older interval is refused with STALE and the epoch that explains it. A failed disk ends the process: see onFatal.

import type { ControlLink, PgInterval, PgReport, Subscription } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { Flag, type Frame, newFrame, Op, replyTo } from '../../proto/frame.ts';
import { type DaemonId, type Epoch, type PgId, poolOfPg } from '../../proto/ids.ts';
import { HEARTBEAT_MS } from '../../proto/limits.ts';
import { applyUpdate, type DaemonEntry, type MapUpdate, type PgEntry, type StorageMap } from '../../proto/map.ts';
import { PROTOCOL_VERSION } from '../../proto/peer-messages.ts';
import type { Clock, Listener, Log, Network } from '../../proto/ports.ts';
import type { Store } from '../store/store.ts';
import { type Inbound, Inbounds } from './inbound.ts';
import { Interval } from './interval.ts';
import { Leases } from './lease.ts';
import { Leftovers } from './leftovers.ts';
import { Members } from './member.ts';
import { PeerLink } from './peers.ts';
import { RecoveryQueue } from './recovery-queue.ts';
import { Reporter, reportOf } from './reporter.ts';
import { type Request, refuse } from './request.ts';
import type { SavedMap } from './saved-map.ts';
import { FindingsTable } from './scrub-findings.ts';
import { Scrubs } from './scrubs.ts';
import { testimonyOf } from './testimony.ts';
import { Throttle } from './throttle.ts';

/** Pause before the master, gone or refusing, is tried again. */
const MASTER_RETRY_MS = 300;
/** How long a frame may wait for the map it was stamped with. */
const MAP_WAIT_MS = 5_000;
/** Bytes of frames that wait for a map; more are refused for now. Any number may claim to be an epoch. */
const MAP_WAIT_BYTES_MAX = 256 * 1024 * 1024;
/** What a waiting frame costs besides its payload. */
const WAITER_BYTES = 1024;
/** How often a member that was full is asked whether it still is. */
const FULL_PROBE_MS = 1_000;

export interface DaemonIdentity {
  /** "" while the daemon belongs to no cluster yet. */
  clusterId: string;
  uuid: string;
  bootId: string;
  /** Addresses to listen on: "host:port", and "unix:/path" or "". */
  address: string;
  unixAddress: string;
  host: string;
  domain: string;
  weight: number;
  newestEpoch: Epoch;
}

export interface DaemonPorts {
  readonly clock: Clock;
  readonly network: Network;
  readonly control: ControlLink;
  readonly store: Store;
  readonly log: Log;
  readonly identity: DaemonIdentity;
  /** Most that recovery may send; 0 or absent: only the share of what clients move. */
  readonly recoveryBytesPerSecond?: number;
  /** The map that its directory had; null: none. */
  readonly savedMap?: SavedMap | null;
  /** The daemon joined a cluster, learned a map, or may take writes: to be remembered in its directory. */
  onMap?(clusterId: string, id: DaemonId, epoch: Epoch): void;
  /** The daemon must not go on. */
  onFatal(error: Error): void;
}

interface Pg {
  entry: PgEntry;
  /** What this daemon does as primary; null when it is only a member. */
  interval: Interval | null;
  /** The newest interval that the master allowed this process to take writes in. */
  allowed: Epoch;
  /** The newest interval that this process has said to be clean. */
  clean: Epoch;
  /** Requests that wait until the PG serves. */
  waiting: Request[];
}

export class Daemon {
  readonly clock: Clock;
  readonly control: ControlLink;
  readonly store: Store;
  readonly log: Log;
  readonly reporter: Reporter;
  readonly recoveryQueue = new RecoveryQueue();
  readonly throttle: Throttle;
  /** Members that said they are nearly full. */
  readonly fullPeers = new Set<DaemonId>();
  /** What is wrong with copies in the PGs it leads. */
  readonly findings = new FindingsTable();
  readonly identity: DaemonIdentity;
  readonly leases: Leases;
  map: StorageMap | null = null;
  id: DaemonId = 0;
  readonly #ports: DaemonPorts;
  readonly #members = new Members(this);
  readonly #leftovers = new Leftovers(this);
  readonly #scrubs = new Scrubs(this);
  readonly #inbounds: Inbounds;
  readonly #pgs = new Map<PgId, Pg>();
  readonly #links = new Map<DaemonId, PeerLink>();
  /** Connections to other daemons opened so far. */
  #connections = 0;
  #attempts = 0;
  #waitingForMap: { request: Request; from: Inbound }[] = [];
  #waitingBytes = 0;
  #listeners: Listener[] = [];
  #subscription: Subscription | null = null;
  #reported = new Map<PgId, string>();
  /** An update did not fit: only a whole map will do. */
  #lostTrack = false;
  #stopped = false;

  constructor(ports: DaemonPorts) {
    this.#ports = ports;
    this.clock = ports.clock;
    this.control = ports.control;
    this.store = ports.store;
    this.log = ports.log;
    this.identity = { ...ports.identity };
    this.throttle = new Throttle(ports.clock, ports.recoveryBytesPerSecond ?? 0);
    this.reporter = new Reporter(ports.clock, ports.control, ports.identity.bootId, () => this.id);
    this.#inbounds = new Inbounds(this);
    this.leases = new Leases(this);
  }

  get epoch(): Epoch {
    return this.map?.epoch ?? 0;
  }

  /** Is this daemon a member of the PG? */
  holds(pg: PgId): boolean {
    return this.#pgs.has(pg);
  }

  /** Little space left: clients' writes are refused, members say so in their answers. */
  get full(): boolean {
    return this.store.space().full;
  }

  /** Listens, and joins the cluster in the background. Rejects if an address is taken. */
  async start(): Promise<void> {
    const { accept, acceptLocal } = this.#inbounds;
    const tcp = await this.#ports.network.listen(this.identity.address, accept);
    this.#listeners.push(tcp);
    this.identity.address = tcp.address;
    if (this.identity.unixAddress !== '')
      this.#listeners.push(await this.#ports.network.listen(this.identity.unixAddress, acceptLocal));
    this.#join();
    this.#heartbeatLater();
    this.#leftovers.begin();
    this.#scrubs.begin();
  }

  /** Stops serving at once. The store stays open: its owner closes it. */
  stop(): void {
    this.#stopped = true;
    this.#leftovers.stop();
    this.#scrubs.stop();
    this.#subscription?.close();
    for (const listener of this.#listeners) listener.close();
    for (const pg of this.#pgs.values()) pg.interval?.end();
    for (const link of this.#links.values()) link.drop();
    this.#inbounds.closeAll();
  }

  // --- the master

  #join(): void {
    if (this.#stopped) return;
    const { identity } = this;
    this.control.call('register', { ...identity, newestEpoch: Math.max(identity.newestEpoch, this.epoch) }).then(
      ({ clusterId, id, recovering }) => {
        if (this.#stopped) return;
        if (recovering === true) return this.#testify();
        identity.clusterId = clusterId;
        this.id = id;
        this.#ports.onMap?.(clusterId, id, this.epoch);
        this.#reported.clear();
        this.#subscription = this.control.subscribe(
          { role: 'daemon', id, bootId: identity.bootId, epoch: this.#lostTrack ? 0 : this.epoch },
          {
            onUpdate: (update) => this.#onUpdate(update),
            onClose: (reason) => {
              this.#subscription = null;
              this.#joinLater(`lost the master: ${reason}`);
            },
          },
        );
      },
      (error: unknown) => {
        if (this.#stopped) return;
        if (error instanceof StorageError && error.code === 'IDENTITY') return this.#ports.onFatal(error);
        this.#joinLater(`cannot reach the master: ${String(error)}`);
      },
    );
  }

  /** The master was lost, and is rebuilt from what the daemons know. */
  #testify(): void {
    testimonyOf(this, this.#ports.savedMap ?? null)
      .then((testimony) => this.control.call('testify', testimony))
      .then(
        () => this.#joinLater('told a master that is being rebuilt what this daemon knows'),
        (error: unknown) => this.#joinLater(`can't testify: ${String(error)}`),
      );
  }

  #joinLater(reason: string): void {
    if (this.#stopped) return;
    this.log.warn(reason);
    this.clock.after(MASTER_RETRY_MS, () => this.#join());
  }

  #heartbeatLater(): void {
    this.clock.after(HEARTBEAT_MS, () => {
      if (this.#stopped) return;
      this.#heartbeat();
      this.#reportSilentPeers();
      this.#heartbeatLater();
    });
  }

  #heartbeat(): void {
    if (this.#subscription === null) return;
    const changed: PgReport[] = [];
    for (const { interval } of this.#pgs.values()) {
      if (interval === null) continue;
      const report = reportOf(interval);
      const text = JSON.stringify(report);
      if (this.#reported.get(report.pg) === text) continue;
      this.#reported.set(report.pg, text);
      changed.push(report);
    }
    const request = {
      id: this.id,
      bootId: this.identity.bootId,
      epoch: this.epoch,
      pgs: changed,
      space: this.store.space(),
      recoveredBytes: this.throttle.pushedBytes,
    };
    const heard = this.control.call('heartbeat', request).then(({ recoveryBytesPerSecond }) => {
      const cap = recoveryBytesPerSecond || (this.#ports.recoveryBytesPerSecond ?? 0);
      if (cap !== this.throttle.capBytesPerSecond) this.throttle.cap(cap);
    });
    heard.catch((error: unknown) => {
      for (const { pg } of changed) this.#reported.delete(pg);
      // The master takes another process for this daemon, while the stream of this one is still open.
      if (!(error instanceof StorageError) || error.code !== 'IDENTITY' || this.#subscription === null) return;
      this.#subscription.close();
      this.#subscription = null;
      this.#joinLater(`the master does not know this process: ${error.message}`);
    });
  }

  #onUpdate(update: MapUpdate): void {
    if (this.#stopped) return;
    const before = this.map;
    let map: StorageMap;
    try {
      map = applyUpdate(before, update);
    } catch (error) {
      // A gap: ask again from nothing, and obey the old map until then.
      this.log.warn('map update does not fit, asking for the whole map', { why: String(error) });
      this.#subscription?.close();
      this.#subscription = null;
      this.#lostTrack = true;
      return this.#joinLater('map update does not fit');
    }
    this.#lostTrack = false;
    if (map === before) return;
    this.map = map;
    this.#ports.onMap?.(map.clusterId, this.id, map.epoch);
    const oldLinks = this.#takeOldLinks(map);
    const entries = update.from === 0 ? map.pgs.values() : update.pgs;
    for (const entry of entries) this.#applyPg(entry);
    for (const pg of [...this.#pgs.keys()]) if (!map.pgs.has(pg)) this.#leavePg(pg);
    // After the intervals that used them are over: who still waits for an answer hears that there will be none.
    for (const link of oldLinks) link.drop();
    const waiting = this.#waitingForMap;
    this.#waitingForMap = [];
    this.#waitingBytes = 0;
    for (const { request, from } of waiting) this.dispatch(request, from);
    // A fence waits for every daemon to say that it obeys this map; and status wants to know soon.
    this.#heartbeat();
  }

  #applyPg(entry: PgEntry): void {
    const member = entry.acting.includes(this.id);
    let pg = this.#pgs.get(entry.pg);
    if (!member) return pg === undefined ? undefined : this.#leavePg(entry.pg);
    if (pg === undefined) {
      pg = { entry, interval: null, allowed: 0, clean: 0, waiting: [] };
      this.#pgs.set(entry.pg, pg);
    } else if (pg.entry.since === entry.since && pg.entry.waitFor.length === entry.waitFor.length) return;
    else this.#members.leave(pg.entry);
    pg.entry = entry;
    this.#startInterval(pg);
  }

  #leavePg(id: PgId): void {
    const pg = this.#pgs.get(id);
    if (pg === undefined) return;
    this.#members.leave(pg.entry);
    this.#pgs.delete(id);
    this.#reported.delete(id);
    this.#endInterval(pg);
    for (const request of pg.waiting) refuse(request, 'NOT_PRIMARY', this.epoch);
  }

  // --- intervals that this daemon leads

  #startInterval(pg: Pg): void {
    this.#endInterval(pg);
    if (pg.entry.acting[0] !== this.id) {
      for (const request of pg.waiting.splice(0)) refuse(request, 'NOT_PRIMARY', this.epoch);
      return;
    }
    const pool = this.map!.pools.get(poolOfPg(pg.entry.pg));
    if (pool === undefined) return;
    pg.interval = new Interval(this, pg.entry, pool);
    pg.interval.begin();
  }

  /** Ends the interval; what was unanswered waits in front of what came later. */
  #endInterval(pg: Pg): void {
    const { interval } = pg;
    if (interval === null) return;
    pg.interval = null;
    pg.waiting = [...(interval.serving?.end() ?? []), ...(interval.recovery?.end() ?? []), ...pg.waiting];
    interval.end();
  }

  /** A member failed or an answer was lost: peer once more in the same interval. */
  restartInterval(interval: Interval): void {
    const pg = this.#pgs.get(interval.entry.pg);
    if (pg === undefined || pg.interval !== interval || this.#stopped) return;
    this.#startInterval(pg);
  }

  /** Did this very process lead the newest interval that served before this one? */
  ledBefore(interval: Interval): boolean {
    const { pg, lastActive } = interval.entry;
    return lastActive > 0 && this.#pgs.get(pg)?.allowed === lastActive;
  }

  /** What this daemon does as primary of the PG; null if it is not. */
  intervalOf(pg: PgId): Interval | null {
    return this.#pgs.get(pg)?.interval ?? null;
  }

  /** Did the master allow writes in this interval before it had to be peered anew? Then it need not be asked again. */
  isAllowed(interval: Interval): boolean {
    return this.#pgs.get(interval.entry.pg)?.allowed === interval.entry.since;
  }

  /** Has this process said that the interval is clean, before it had to be peered anew? */
  saidClean(interval: Interval): boolean {
    return this.#pgs.get(interval.entry.pg)?.clean === interval.entry.since;
  }

  onClean(interval: Interval): void {
    const pg = this.#pgs.get(interval.entry.pg);
    if (pg?.interval === interval) pg.clean = interval.entry.since;
  }

  /** Numbers the peerings of this process. */
  nextAttempt(): number {
    return ++this.#attempts;
  }

  /** The PG serves: what waited goes first. */
  onActive(interval: Interval): void {
    const pg = this.#pgs.get(interval.entry.pg);
    if (pg?.interval !== interval) return;
    pg.allowed = interval.entry.since;
    this.#ports.onMap?.(this.identity.clusterId, this.id, this.epoch);
    for (const request of pg.waiting.splice(0)) interval.serving!.handle(request);
  }

  /** Intervals that this process leads and that the master allowed to take writes. */
  activatedPgs(): PgInterval[] {
    return [...this.#pgs].filter(([, { allowed }]) => allowed > 0).map(([pg, { allowed }]) => ({ pg, since: allowed }));
  }

  // --- frames

  /** A frame from a peer that has said hello. */
  dispatch(request: Request, from: Inbound): void {
    const { frame } = request;
    if (this.map === null || frame.epoch > this.epoch) return this.#waitForMap(request, from);
    if (frame.op === Op.SYNC) return this.#sync(request);
    if (frame.op === Op.LEASE && from.hello?.role === 'daemon') return this.leases.grant(request, from);
    if (frame.op >= Op.REPLICATE) {
      if (from.hello?.role === 'daemon') return this.#members.handle(request, from.hello.id);
      return refuse(request, 'INVALID', this.epoch);
    }
    this.throttle.clientBytes += frame.length;
    const pg = this.#pgs.get(frame.pg);
    if (pg === undefined || pg.entry.acting[0] !== this.id) return refuse(request, 'NOT_PRIMARY', this.epoch);
    if (frame.epoch < pg.entry.since) return refuse(request, 'STALE', this.epoch);
    const serving = pg.interval?.serving ?? null;
    if (serving !== null) serving.handle(request);
    else pg.waiting.push(request);
  }

  #sync(request: Request): void {
    this.store.sync((error) => {
      if (error !== null) return;
      const reply = replyTo(request.frame, 0, this.epoch);
      if (this.full) reply.flags |= Flag.FULL;
      request.from.send(reply);
    });
  }

  #waitForMap(request: Request, from: Inbound): void {
    const bytes = WAITER_BYTES + (request.frame.payload?.length ?? 0);
    if (this.#waitingBytes + bytes > MAP_WAIT_BYTES_MAX) return refuse(request, 'UNAVAILABLE', this.epoch);
    const waiter = { request, from };
    this.#waitingForMap.push(waiter);
    this.#waitingBytes += bytes;
    this.clock.after(MAP_WAIT_MS, () => {
      const at = this.#waitingForMap.indexOf(waiter);
      if (at === -1) return;
      this.#waitingForMap.splice(at, 1);
      this.#waitingBytes -= bytes;
      refuse(request, 'UNAVAILABLE', this.epoch);
    });
  }

  // --- other daemons

  /** The connection to another daemon, opened if there is none. */
  peer(id: DaemonId): PeerLink {
    let link = this.#links.get(id);
    if (link !== undefined) return link;
    const entry = this.map!.daemons.get(id)!;
    link = new PeerLink(
      this.#ports.network,
      entry,
      entry.host === this.identity.host,
      this.#helloTo(entry),
      (lost, reason) => {
        if (this.#links.get(id) === lost) this.#forgetLink(id);
        if (this.#stopped) return;
        this.log.warn('lost the connection to a daemon', { daemon: id, why: reason });
        if (lost.inVain) this.#reportFailure(id, entry.bootId, reason);
      },
    );
    this.#links.set(id, link);
    return link;
  }

  #forgetLink(id: DaemonId): void {
    this.#links.delete(id);
    this.leases.lost(id);
  }

  #helloTo(entry: DaemonEntry) {
    const { clusterId, uuid, bootId } = this.identity;
    return {
      protocol: PROTOCOL_VERSION,
      clusterId,
      role: 'daemon' as const,
      id: this.id,
      uuid,
      bootId,
      toBootId: entry.bootId,
      connection: ++this.#connections,
    };
  }

  /** Takes out the connections to processes that are gone, as far as this map knows. */
  #takeOldLinks(map: StorageMap): PeerLink[] {
    const old: PeerLink[] = [];
    for (const [id, link] of this.#links) {
      const entry = map.daemons.get(id);
      if (entry?.up === true && entry.bootId === link.entry.bootId) continue;
      this.#forgetLink(id);
      old.push(link);
    }
    // Whether it has space again is asked when it is back.
    for (const id of this.fullPeers) if (map.daemons.get(id)?.up !== true) this.fullPeers.delete(id);
    return old;
  }

  #reportSilentPeers(): void {
    for (const [id, link] of [...this.#links])
      if (link.isSilent()) this.#reportFailure(id, link.entry.bootId, 'it does not answer');
  }

  #reportFailure(daemon: DaemonId, bootId: string, reason: string): void {
    this.control.call('reportFailure', { reporter: this.id, daemon, bootId, reason }).catch(() => {});
  }

  /** A member is nearly full: refuse writes to its PGs, and ask it from time to time. */
  peerFull(id: DaemonId): void {
    if (this.fullPeers.has(id)) return;
    this.fullPeers.add(id);
    this.log.warn('a member has little space left, writes are refused', { daemon: id });
    this.#probeFull(id);
  }

  #probeFull(id: DaemonId): void {
    this.clock.after(FULL_PROBE_MS, () => {
      if (this.#stopped || !this.fullPeers.has(id) || this.map?.daemons.get(id)?.up !== true) return;
      const frame: Frame = newFrame(Op.SYNC);
      frame.epoch = this.epoch;
      this.peer(id).request(frame, {
        onReply: (reply) => {
          if ((reply.flags & Flag.FULL) === 0) this.fullPeers.delete(id);
          else this.#probeFull(id);
        },
        onLost: () => this.#probeFull(id),
      });
    });
  }
}
