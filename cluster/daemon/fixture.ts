// A cluster in the test's process: master, daemons and clients on real loopback sockets, stores that outlive daemons.
//
//   Cluster -> Master on a MemoryKv           a switch lets the master be away
//           -> Host per daemon: Store, Wire, Daemon (killed and started again at will)
//           -> PoolClient per client, each with a Wire
//
// A Wire is the process's Network with a hand on it: frames can be watched, held back, lost, and connections reset.

import assert from 'node:assert/strict';
import type { ExecutionContext } from 'ava';
import type { ControlLink, Subscriber, Subscription, SubscriptionEvents } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { Frame } from '../../proto/frame.ts';
import { compareVersions, type PgId, sameVersion } from '../../proto/ids.ts';
import type { PgEntry, StorageMap } from '../../proto/map.ts';
import type { Clock, Connection, ConnectionEvents, Listener, Log, Network, Timer } from '../../proto/ports.ts';
import { PoolClient } from '../client/client.ts';
import type { Image } from '../client/image.ts';
import type { PgRecord } from '../master/intervals.ts';
import { Master } from '../master/master.ts';
import { MemoryKv } from '../master/memory-kv.ts';
import { createMemoryStore, type MemoryStoreOptions } from '../store/memory-store.ts';
import type { ObjectInfo, Store } from '../store/store.ts';
import { openClock, openRandom } from '../world/clock.ts';
import { openLog } from '../world/log.ts';
import { createNetwork } from '../world/sockets.ts';
import { Daemon } from './daemon.ts';

export const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until it is so; throws after `limitMs` saying what it waited for. */
export async function until(what: string, isSo: () => boolean | Promise<boolean>, limitMs = 15_000): Promise<void> {
  const begun = performance.now();
  while (!(await isSo())) {
    if (performance.now() - begun > limitMs) throw new Error(`waited ${limitMs} ms in vain: ${what}`);
    await pause(10);
  }
}

export class Wire implements Network {
  /** False: the frame is held back until release(), or for ever. */
  onSend: ((frame: Frame, peer: string) => boolean) | null = null;
  /** False: the frame is lost. */
  onReceive: ((frame: Frame, peer: string) => boolean) | null = null;
  readonly connections = new Set<WireConnection>();
  held: { connection: WireConnection; frame: Frame }[] = [];
  readonly #network = createNetwork();

  listen(address: string, accept: (connection: Connection) => void): Promise<Listener> {
    return this.#network.listen(address, (inner) => accept(new WireConnection(this, inner)));
  }
  connect(address: string, events: ConnectionEvents): Connection {
    const connection = new WireConnection(this, null);
    connection.events = events;
    connection.open(this.#network.connect(address, connection));
    return connection;
  }
  /** Sends what was held back, in order, and holds nothing more. */
  release(): void {
    this.onSend = null;
    for (const { connection, frame } of this.held.splice(0)) connection.inner.send(frame);
  }
  /** Breaks the connections; both ends hear of it. */
  reset(which: (connection: WireConnection) => boolean = () => true): void {
    for (const connection of [...this.connections]) if (which(connection)) connection.reset();
  }
}

export class WireConnection implements Connection, ConnectionEvents {
  events: ConnectionEvents | null = null;
  inner!: Connection;
  readonly #wire: Wire;
  constructor(wire: Wire, inner: Connection | null) {
    this.#wire = wire;
    wire.connections.add(this);
    if (inner === null) return;
    inner.events = this;
    this.open(inner);
  }
  open(inner: Connection): void {
    this.inner = inner;
  }
  get peer(): string {
    return this.inner.peer;
  }
  send(frame: Frame): void {
    if (this.#wire.onSend?.(frame, this.peer) === false) this.#wire.held.push({ connection: this, frame });
    else this.inner.send(frame);
  }
  close(): void {
    this.#wire.connections.delete(this);
    this.inner.close();
  }
  onFrame(frame: Frame): void {
    if (this.#wire.onReceive?.(frame, this.peer) !== false) this.events?.onFrame(frame);
  }
  onClose(reason: string): void {
    this.#wire.connections.delete(this);
    this.events?.onClose(reason);
  }
  reset(): void {
    this.close();
    setImmediate(() => this.events?.onClose('reset by the test'));
  }
}

export interface Host {
  /** Daemon number, from 1. */
  readonly id: number;
  readonly store: Store;
  readonly wire: Wire;
  daemon: Daemon | null;
}

export interface ClusterOptions {
  daemons?: number;
  replicas?: number;
  minSize?: number;
  pgCount?: number;
  durability?: 'flush' | 'sync';
  store?: MemoryStoreOptions;
  wrapStore?: (store: Store, id: number) => Store;
  /** Times are so much shorter. */
  speed?: number;
}

export class Cluster {
  readonly clock: Clock;
  readonly log: Log = openLog('test', process.env.ASHLAR_TEST_LOG ?? 'silent');
  kv = new MemoryKv();
  readonly hosts: Host[] = [];
  /** Nobody reaches the master. */
  masterAway = false;
  master!: Master;
  readonly #streams = new Set<{ subscription: Subscription; events: SubscriptionEvents }>();
  readonly #clients: PoolClient[] = [];
  /** Not fired yet: none may keep the test's process alive. */
  readonly #timers = new Set<Timer>();
  #boots = 0;

  /** Closed when the test is over. */
  static async start(t: ExecutionContext, options: ClusterOptions = {}): Promise<Cluster> {
    const { daemons = 3, replicas = 2, minSize = 0, pgCount = 8, durability = 'flush' } = options;
    const cluster = new Cluster(options.speed ?? 1);
    t.teardown(() => cluster.close());
    const { clock, log } = cluster;
    cluster.master = await Master.open({ clock, log, random: openRandom(), kv: cluster.kv, onFatal: fail });
    for (let id = 1; id <= daemons; id++) {
      const memory = createMemoryStore(clock, options.store);
      const store = options.wrapStore?.(memory, id) ?? memory;
      cluster.hosts.push({ id, store, wire: new Wire(), daemon: null });
      await cluster.startDaemon(id);
      await until('the daemon is up', () => cluster.map.daemons.get(id)?.up === true);
    }
    await cluster.master.handle('createPool', { name: 'pool', pgCount, replicas, minSize, durability });
    return cluster;
  }

  private constructor(speed: number) {
    const clock = openClock();
    this.clock = {
      now: () => clock.now() * speed,
      after: (ms, fire) => {
        const timer = clock.after(ms / speed, () => {
          this.#timers.delete(timer);
          fire();
        });
        this.#timers.add(timer);
        return timer;
      },
      soon: (run) => clock.soon(run),
    };
  }

  get map(): StorageMap {
    return this.master.map;
  }
  host(id: number): Host {
    return this.hosts[id - 1]!;
  }
  /** The only PG, or the one with this index. */
  pg(index = 0): PgEntry {
    return [...this.map.pgs.values()].sort((a, b) => a.pg - b.pg)[index]!;
  }
  primary(index = 0): Host {
    return this.host(this.pg(index).acting[0]!);
  }
  /** The first member that is not the primary. */
  member(index = 0): Host {
    return this.host(this.pg(index).acting[1]!);
  }

  link(): ControlLink {
    return {
      call: async (method, request) => {
        await pause(0);
        if (this.masterAway) throw new StorageError('UNAVAILABLE', 'the master is away');
        return structuredClone(await this.master.handle(method, structuredClone(request)));
      },
      subscribe: (subscriber, events) => this.#subscribe(subscriber, events),
    };
  }

  #subscribe(subscriber: Subscriber, events: SubscriptionEvents): Subscription {
    try {
      if (this.masterAway) throw new StorageError('UNAVAILABLE', 'the master is away');
      const subscription = this.master.subscribe(subscriber, events);
      const stream = { subscription, events };
      this.#streams.add(stream);
      return {
        close: () => {
          this.#streams.delete(stream);
          subscription.close();
        },
      };
    } catch (error) {
      setImmediate(() => events.onClose(String(error)));
      return { close: () => {} };
    }
  }

  /** The master's process is killed; its store stays. */
  async killMaster(): Promise<void> {
    this.masterAway = true;
    await this.master.close();
  }
  async startMaster(): Promise<void> {
    const { clock, log } = this;
    this.kv = this.kv.copy();
    this.master = await Master.open({ clock, log, random: openRandom(), kv: this.kv, onFatal: fail });
    this.masterAway = false;
  }

  /** The daemon's process is gone, with its connections; what it appended is still in its store. */
  kill(id: number): void {
    const host = this.host(id);
    host.daemon!.stop();
    host.daemon = null;
    host.wire.reset();
    host.wire.onSend = null;
    host.wire.onReceive = null;
    host.wire.held = [];
  }
  async startDaemon(id: number): Promise<void> {
    const host = this.host(id);
    assert(host.daemon === null);
    const identity = {
      clusterId: this.map.daemons.has(id) ? this.map.clusterId : '',
      uuid: `uuid-${id}`,
      bootId: `boot-${++this.#boots}`,
      address: '127.0.0.1:0',
      unixAddress: '',
      host: 'host',
      domain: `domain-${id}`,
      weight: 100,
      newestEpoch: 0,
    };
    const { clock, log } = this;
    const { wire, store } = host;
    host.daemon = new Daemon({ clock, log, network: wire, control: this.link(), store, identity, onFatal: fail });
    await host.daemon.start();
  }

  async client(wire: Network = new Wire()): Promise<PoolClient> {
    const { clock, log } = this;
    const name = `client-${this.#clients.length}`;
    const ports = { clock, log, network: wire, control: this.link(), name, host: 'host', clientId: name };
    const client = new PoolClient(ports);
    this.#clients.push(client);
    await client.start();
    return client;
  }

  async createImage(name = 'image', sizeBytes = 4 * 2 ** 20, order = 16): Promise<void> {
    const layout = { order, stripeUnit: 2 ** order, stripeCount: 1 };
    await this.master.handle('createImage', { name, pool: 'pool', sizeBytes, ...layout });
  }
  /** A client with the image open for writing. */
  async writer(name = 'image', wire: Network = new Wire(), takeOver = false): Promise<Image> {
    const client = await this.client(wire);
    return client.open(name, { readOnly: false, takeOver });
  }

  /** What differs between the members of the PGs, or is not complete; null when all is well. */
  difference(): string | null {
    for (const { pg, acting } of this.map.pgs.values()) {
      const first = this.host(acting[0] ?? 1).store;
      for (const id of acting) {
        const { store } = this.host(id);
        const info = store.pgInfo(pg);
        if (!info.complete) return `PG ${pg}: daemon ${id} is not complete`;
        if (!sameVersion(info.last, first.pgInfo(pg).last)) return `PG ${pg}: the logs of ${acting} end differently`;
        const why = objectsDiffer(pg, first, store);
        if (why !== null) return `PG ${pg}, daemons ${acting[0]} and ${id}: ${why}`;
      }
    }
    return null;
  }
  /** Every PG has `members` members, they hold the same, and the master knows. */
  async settled(members: number, limitMs?: number): Promise<void> {
    let why: string | null = null;
    const isSettled = async (): Promise<boolean> => {
      for (const { acting } of this.map.pgs.values()) if (acting.length !== members) return false;
      why = this.difference();
      if (why !== null) return false;
      const records = (await this.kv.range('/pgs/')).map(({ value }) => JSON.parse(value) as PgRecord);
      return records.every(({ activated, history }) => activated && history.length === 0);
    };
    await until('all members hold the same', isSettled, limitMs).catch((error: Error) => {
      throw new Error(`${error.message}; ${why ?? JSON.stringify([...this.map.pgs.values()])}`);
    });
  }

  async endClients(): Promise<void> {
    for (const client of this.#clients.splice(0)) await client.close();
  }

  async close(): Promise<void> {
    this.masterAway = true;
    await this.endClients();
    for (const { id, daemon } of this.hosts) if (daemon !== null) this.kill(id);
    await this.master.close();
    for (const timer of this.#timers) timer.cancel();
  }
}

function fail(error: Error): never {
  throw error;
}

function objectsDiffer(pg: PgId, a: Store, b: Store): string | null {
  const byNumber = (x: ObjectInfo, y: ObjectInfo): number =>
    x.object - y.object || compareVersions(x.version, y.version);
  const mine = [...a.objects(pg)].sort(byNumber);
  const theirs = [...b.objects(pg)].sort(byNumber);
  if (JSON.stringify(mine) !== JSON.stringify(theirs)) return `${JSON.stringify(mine)} and ${JSON.stringify(theirs)}`;
  for (const { image, object, order } of mine)
    if (contentOf(a, image, object, order) !== contentOf(b, image, object, order))
      return `content of object ${image}/${object}`;
  return null;
}
function contentOf(store: Store, image: number, object: number, order: number): string {
  let found = '';
  store.read(image, object, order, 0, 2 ** order, (error, checks, payload) => {
    found = `${error} ${checks?.toString('latin1')} ${payload?.toString('latin1')}`;
  });
  assert(found !== '', 'the memory store answers at once');
  return found;
}

// --- an image's methods as promises

/** A request that is never answered is the worst there is: it must not just be a test that does not end. */
const ANSWER_MS = 25_000;

function answered<V>(what: string, ask: (done: (error: Error | null, value: V) => void) => void): Promise<V> {
  return new Promise((resolve, reject) => {
    const watch = setTimeout(() => reject(new Error(`no answer in ${ANSWER_MS} ms: ${what}`)), ANSWER_MS);
    ask((error, value) => {
      clearTimeout(watch);
      if (error === null) resolve(value);
      else reject(error);
    });
  });
}
export const write = (image: Image, offset: number, data: Buffer, fua = false): Promise<void> =>
  answered(`write [${offset}, +${data.length})`, (done) => image.write(offset, data, fua, (error) => done(error)));
export const zero = (image: Image, offset: number, length: number, fua = false): Promise<void> =>
  answered(`zero [${offset}, +${length})`, (done) => image.zero(offset, length, fua, (error) => done(error)));
export const read = (image: Image, offset: number, length: number): Promise<Buffer> =>
  answered(`read [${offset}, +${length})`, (done) =>
    image.read(offset, length, (error, parts) => done(error, error === null ? Buffer.concat(parts!) : Buffer.alloc(0))),
  );
export const flush = (image: Image): Promise<void> => answered('flush', (done) => image.flush((error) => done(error)));

/**
 * Time as this process had it: real time less what its event loop was late. On a machine that is busy with something
 * else, a limit in milliseconds would measure that.
 */
class OwnTime {
  static readonly #PROBE_MS = 10;
  #lateMs = 0;
  #expected = performance.now();
  #probe: NodeJS.Timeout | null = null;
  start(): void {
    this.#expected = performance.now() + OwnTime.#PROBE_MS;
    this.#probe = setInterval(() => {
      const now = performance.now();
      this.#lateMs += Math.max(0, now - this.#expected);
      this.#expected = now + OwnTime.#PROBE_MS;
    }, OwnTime.#PROBE_MS);
  }
  stop(): void {
    if (this.#probe !== null) clearInterval(this.#probe);
  }
  now(): number {
    return performance.now() - this.#lateMs;
  }
}

/** Writes all over an image, a few at a time, and knows what it must hold. */
export class Workload {
  readonly image: Image;
  readonly expected: Buffer;
  /** Longest time that a write took, in milliseconds of this process. */
  slowestMs = 0;
  acked = 0;
  readonly #depth: number;
  #state: number;
  readonly #time = new OwnTime();
  #running = false;
  #ended: Promise<unknown> = Promise.resolve();

  constructor(image: Image, depth = 8, seed = 1) {
    this.image = image;
    this.expected = Buffer.alloc(image.sizeBytes);
    this.#depth = depth;
    this.#state = seed;
  }
  random(n: number): number {
    this.#state = (this.#state * 48_271) % 2_147_483_647;
    return this.#state % n;
  }
  start(): void {
    this.#running = true;
    this.#time.start();
    this.#ended = Promise.all(Array.from({ length: this.#depth }, () => this.#lane()));
    this.#ended.catch(() => {}); // stop() tells
  }
  /** Resolves when everything begun is acked; rejects if a write failed. */
  async stop(): Promise<void> {
    this.#running = false;
    await this.#ended;
    this.#time.stop();
  }
  async writes(count: number): Promise<void> {
    const wanted = this.acked + count;
    await until(`${count} more writes are acked`, () => this.acked >= wanted);
  }
  /** One write or zero of 512 bytes to 16 KiB, anywhere. */
  async change(): Promise<void> {
    const length = 512 * (1 + this.random(32));
    const offset = 512 * this.random((this.expected.length - length) / 512);
    const begun = this.#time.now();
    if (this.random(8) === 0) {
      this.expected.fill(0, offset, offset + length);
      await zero(this.image, offset, length);
    } else {
      const data = Buffer.alloc(length, 1 + this.random(255));
      data.copy(this.expected, offset);
      await write(this.image, offset, data);
    }
    this.slowestMs = Math.max(this.slowestMs, this.#time.now() - begun);
    this.acked += 1;
  }
  async verify(image: Image = this.image): Promise<void> {
    const found = await read(image, 0, this.expected.length);
    if (found.equals(this.expected)) return;
    const at = found.findIndex((byte, i) => byte !== this.expected[i]);
    throw new Error(`byte ${at} reads ${found[at]}, ${this.expected[at]} was acked`);
  }
  async #lane(): Promise<void> {
    while (this.#running) await this.change();
  }
}
