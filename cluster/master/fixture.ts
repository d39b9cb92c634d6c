// For tests of the master: time that moves by hand, and puppets that do what a daemon and a client do on the control
// plane. Everything is in one process; promises settle by microtasks alone, so no test waits for real time.

import assert from 'node:assert/strict';
import type { PgReport, Subscription } from '../../proto/control.ts';
import type { DaemonId, ImageId, PgId, SessionId } from '../../proto/ids.ts';
import type { KeyValueStore } from '../../proto/kv.ts';
import { HEARTBEAT_MS } from '../../proto/limits.ts';
import { applyUpdate, type MapUpdate, type PgEntry, type StorageMap } from '../../proto/map.ts';
import type { Clock, Log, Timer } from '../../proto/ports.ts';
import { Master } from './master.ts';
import { MemoryKv } from './memory-kv.ts';

const MICROTASK_TURNS = 60;

export class HandClock implements Clock {
  #now = 0;
  #soon: (() => void)[] = [];
  #timers: { at: number; fire: () => void }[] = [];

  now(): number {
    return this.#now;
  }
  soon(run: () => void): void {
    this.#soon.push(run);
  }
  after(ms: number, fire: () => void): Timer {
    const timer = { at: this.#now + ms, fire };
    this.#timers.push(timer);
    return {
      cancel: () => {
        this.#timers = this.#timers.filter((other) => other !== timer);
      },
    };
  }
  /** Runs all that can run without time passing. */
  async settle(): Promise<void> {
    for (let idle = 0; idle < 2; ) {
      for (let turn = 0; turn < MICROTASK_TURNS; turn++) await null;
      const runs = this.#soon;
      this.#soon = [];
      for (const run of runs) run();
      idle = runs.length === 0 ? idle + 1 : 0;
    }
  }
  /** Time passes and nothing runs: the process was stopped. */
  skip(ms: number): void {
    this.#now += ms;
  }
  async advance(ms: number): Promise<void> {
    const end = this.#now + ms;
    await this.settle();
    for (;;) {
      const next = this.#timers.reduce<{ at: number; fire: () => void } | null>(
        (first, timer) => (timer.at <= end && (first === null || timer.at < first.at) ? timer : first),
        null,
      );
      if (next === null) break;
      this.#timers = this.#timers.filter((timer) => timer !== next);
      this.#now = Math.max(this.#now, next.at);
      next.fire();
      await this.settle();
    }
    this.#now = end;
  }
}

export const QUIET: Log = { debug() {}, info() {}, warn() {}, error() {} };

export class World {
  readonly clock = new HandClock();
  kv: KeyValueStore;
  master!: Master;
  fatal: Error | null = null;
  readonly daemons = new Map<number, Puppet>();
  readonly outAfterMs: number;
  #drawn = 0;

  private constructor(kv: KeyValueStore, outAfterMs: number) {
    this.kv = kv;
    this.outAfterMs = outAfterMs;
  }

  static async start(options: { kv?: KeyValueStore; daemons?: number; outAfterMs?: number } = {}): Promise<World> {
    const world = new World(options.kv ?? new MemoryKv(), options.outAfterMs ?? 600_000);
    await world.startMaster();
    for (let n = 1; n <= (options.daemons ?? 0); n++) await world.daemon(n).start();
    return world;
  }

  async startMaster(): Promise<void> {
    const { clock, kv, outAfterMs } = this;
    const random = { u32: () => Math.imul(++this.#drawn, 0x9e3779b1) >>> 0 };
    const onFatal = (error: Error): void => {
      this.fatal = error;
    };
    this.master = await Master.open({ clock, kv, outAfterMs, log: QUIET, random, onFatal });
  }

  /** The master's process dies: what is in the store stays, every stream breaks. */
  async crashMaster(): Promise<void> {
    assert(this.kv instanceof MemoryKv);
    this.kv = this.kv.copy();
    await this.settled(this.master.close()); // what it still does goes to the store of before
    for (const puppet of this.daemons.values()) puppet.subscription = null;
    await this.startMaster();
  }

  daemon(n: number): Puppet {
    const puppet = this.daemons.get(n) ?? new Puppet(this, n);
    this.daemons.set(n, puppet);
    return puppet;
  }

  get map(): StorageMap {
    return this.master.map;
  }
  /** The first PG of the only pool. */
  get pg(): PgEntry {
    return this.map.pgs.values().next().value!;
  }
  acting(): DaemonId[] {
    return [...this.pg.acting];
  }

  async createPool(options: { pgCount?: number; replicas?: number; minSize?: number } = {}): Promise<void> {
    const request = { name: 'p', pgCount: 1, replicas: 2, minSize: 0, durability: 'flush' as const, ...options };
    await this.settled(this.master.handle('createPool', request));
  }
  async createImage(name = 'vol0'): Promise<ImageId> {
    const layout = { order: 20, stripeUnit: 2 ** 20, stripeCount: 1 };
    const request = { name, pool: 'p', sizeBytes: 2 ** 30, ...layout };
    return (await this.settled(this.master.handle('createImage', request))).id;
  }
  /** The primary of every PG says that it takes writes; with `clean`, also that everything is everywhere. */
  async activateAll(clean = false): Promise<void> {
    for (const method of clean ? (['activate', 'clean'] as const) : (['activate'] as const))
      for (const puppet of this.daemons.values()) {
        const mine = [...this.map.pgs.values()].filter((entry) => entry.acting[0] === puppet.id);
        const pgs = mine.map(({ pg, since }) => ({ pg, since }));
        if (pgs.length === 0 || puppet.subscription === null) continue;
        await this.settled(this.master.handle(method, { id: puppet.id, bootId: puppet.bootId, pgs }));
      }
    await this.clock.settle();
  }

  async client(name = 'client'): Promise<ClientPuppet> {
    const { session } = await this.settled(this.master.handle('openSession', { name }));
    return new ClientPuppet(this, session);
  }

  /** Waits for a call while the clock stands still but for what is ready to run. */
  async settled<T>(call: Promise<T>): Promise<T> {
    call.catch(() => {}); // looked at below; must not count as unhandled meanwhile
    await this.clock.settle();
    return call;
  }
}

class MapFollower {
  map: StorageMap | null = null;
  readonly updates: MapUpdate[] = [];
  closed: string | null = null;
  subscription: Subscription | null = null;

  follow(): { onUpdate(update: MapUpdate): void; onClose(reason: string): void } {
    return {
      onUpdate: (update) => {
        this.updates.push(update);
        this.map = applyUpdate(this.map, update);
        this.onMap();
      },
      onClose: (reason) => {
        this.closed = reason;
        this.subscription = null;
      },
    };
  }
  onMap(): void {}
}

/** A storage daemon as the master sees one. */
export class Puppet extends MapFollower {
  readonly #world: World;
  readonly n: number;
  id: DaemonId = 0;
  boots = 0;
  weight = 1;
  domain: string;
  space = { usedBytes: 0, freeBytes: 2 ** 40, full: false };
  recoveredBytes = 0;
  /** Sends heartbeats, and obeys new maps. */
  responsive = true;
  #beating = false;

  constructor(world: World, n: number) {
    super();
    this.#world = world;
    this.n = n;
    this.domain = `disk-${n}`;
  }
  get bootId(): string {
    return `boot-${this.n}-${this.boots}`;
  }
  get entry() {
    return this.#world.map.daemons.get(this.id)!;
  }

  registration(changes: object = {}) {
    const { n, bootId, domain, weight } = this;
    const address = `127.0.0.1:${7000 + n}`;
    const where = { address, unixAddress: '', host: 'here', domain };
    return { clusterId: '', uuid: `uuid-${n}`, bootId, ...where, weight, newestEpoch: 0, ...changes };
  }
  async register(changes: object = {}): Promise<void> {
    const reply = await this.#world.settled(this.#world.master.handle('register', this.registration(changes)));
    this.id = reply.id;
  }
  /** A new process, or the first. */
  async start(): Promise<this> {
    this.boots++;
    this.map = null;
    await this.register();
    await this.subscribe();
    return this;
  }
  async subscribe(): Promise<void> {
    const { id, bootId } = this;
    const epoch = this.map?.epoch ?? 0;
    this.closed = null;
    this.subscription = this.#world.master.subscribe({ role: 'daemon', id, bootId, epoch }, this.follow());
    if (!this.#beating) this.#beatLater();
    await this.#world.clock.settle();
  }
  /** The process dies: its connection breaks. */
  async die(): Promise<void> {
    this.subscription?.close();
    this.subscription = null;
    await this.#world.clock.settle();
  }
  async restart(): Promise<void> {
    await this.die();
    await this.start();
  }
  override onMap(): void {
    if (this.responsive) void this.beat();
  }
  async beat(pgs: PgReport[] = []): Promise<void> {
    const { recoveredBytes } = this;
    const epoch = this.map?.epoch ?? 0;
    await this.#world.master
      .handle('heartbeat', { id: this.id, bootId: this.bootId, epoch, pgs, space: this.space, recoveredBytes })
      .catch(() => {});
  }
  /** Says of every PG it leads that it is in this state. */
  async report(state: 'active' | 'peering', missing = 0): Promise<void> {
    const mine = [...this.#world.map.pgs.values()].filter((entry) => entry.acting[0] === this.id);
    const rest = { state, missing, missingBytes: missing * 4096, noSpace: [], objects: 10, bytes: 4096, waitFor: [] };
    await this.beat(mine.map(({ pg, since }) => ({ pg, since, ...rest })));
    await this.#world.clock.settle();
  }
  async mark(method: 'activate' | 'clean', pg: PgId, since: number): Promise<boolean> {
    const request = { id: this.id, bootId: this.bootId, pgs: [{ pg, since }] };
    const { accepted } = await this.#world.settled(this.#world.master.handle(method, request));
    return accepted.length === 1;
  }
  async complainAbout(other: Puppet): Promise<void> {
    const request = { reporter: this.id, daemon: other.id, bootId: other.bootId, reason: 'no answer' };
    await this.#world.settled(this.#world.master.handle('reportFailure', request));
  }
  #beatLater(): void {
    this.#beating = true;
    this.#world.clock.after(HEARTBEAT_MS, () => {
      if (this.responsive && this.subscription !== null) void this.beat();
      this.#beatLater();
    });
  }
}

export class ClientPuppet extends MapFollower {
  readonly #world: World;
  readonly session: SessionId;

  constructor(world: World, session: SessionId) {
    super();
    this.#world = world;
    this.session = session;
  }
  async subscribe(): Promise<this> {
    const epoch = this.map?.epoch ?? 0;
    this.subscription = this.#world.master.subscribe({ role: 'client', session: this.session, epoch }, this.follow());
    await this.#world.clock.settle();
    return this;
  }
  async die(): Promise<void> {
    this.subscription?.close();
    this.subscription = null;
    await this.#world.clock.settle();
  }
  lock(image: ImageId, takeOver = false): Promise<{ fence: number; epoch: number }> {
    const { session } = this;
    return this.#world.settled(this.#world.master.handle('lockImage', { session, image, takeOver }));
  }
}
