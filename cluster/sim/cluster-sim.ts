// A whole cluster in one process: the real cores of master, daemons and clients on simulated machines.
//
//   machine "master": Master on a key-value store that survives it      machines "d1".."dN": Daemon on a Store
//   machines "writer1", "writer2", ...: one PoolClient each, the newest holds the image's lock      "reader"
//
// This file builds them, starts and ends their processes, and lets stores and networks be wrapped (planted bugs).
// What goes wrong and when is in nemesis.ts; what clients do in workload.ts; the verdicts in audit.ts.

import type { ControlLink, ControlMethod, ControlReply, ControlRequest } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { KeyValueStore } from '../../proto/kv.ts';
import type { StorageMap } from '../../proto/map.ts';
import type { Log, Network } from '../../proto/ports.ts';
import { PoolClient } from '../client/client.ts';
import type { Image } from '../client/image.ts';
import { Daemon } from '../daemon/daemon.ts';
import { Master } from '../master/master.ts';
import { MemoryKv } from '../master/memory-kv.ts';
import type { Store } from '../store/store.ts';
import type { Plan } from './plan.ts';
import type { SimRandom } from './random.ts';
import { type Incarnation, type Machine, Scheduler } from './scheduler.ts';
import { SimControl } from './sim-control.ts';
import { SimNetwork } from './sim-network.ts';
import { StoreHome } from './store-home.ts';
import { witnessed } from './witness.ts';

/** Places where a test puts something in between: a bug, to see that it is found, or a gateway. */
export interface Hooks {
  wrapStore?(store: Store, daemon: number): Store;
  wrapNetwork?(network: Network, machine: string): Network;
  /** What the workload uses instead of an image that was opened: a gateway in front of it. */
  wrapImage?(image: Image, life: Incarnation, cluster: ClusterSim): Image;
}

export const IMAGE_NAME = 'image';
const POOL_NAME = 'pool';
/** A process that could not do what it started for tries again after this. */
const RETRY_MS = 300;
/** Daemons that are added while it runs. */
const ADDED_DAEMONS_MAX = 2;
/** A daemon that stopped itself is started again after this. */
const FATAL_RESTART_MS = 1_000;

/** One daemon: its machine, what is on its disk, and the process if one runs. */
export interface SimDaemon {
  readonly index: number;
  readonly machine: Machine;
  readonly home: StoreHome;
  /** The files beside the store. */
  readonly record: { clusterId: string; newestEpoch: number; readonly uuid: string };
  store: Store | null;
  daemon: Daemon | null;
  /** Somebody has promised to start it again. */
  restarting: boolean;
}

export class ClusterSim {
  readonly plan: Plan;
  readonly scheduler: Scheduler;
  readonly random: SimRandom;
  readonly network: SimNetwork;
  readonly control: SimControl;
  readonly masterMachine: Machine;
  readonly daemons: SimDaemon[];
  readonly admin: ControlLink;
  /** A block or a read of some daemon was broken, and it may be the only one that has the data now. */
  unreadable = false;
  readonly #hooks: Hooks;
  readonly #kv = new MemoryKv();
  readonly #machines: Machine[] = [];
  #master: Master | null = null;

  constructor(plan: Plan, random: SimRandom, hooks: Hooks) {
    this.plan = plan;
    this.random = random;
    this.#hooks = hooks;
    this.scheduler = new Scheduler(random.fork('schedule'));
    this.network = new SimNetwork(this.scheduler, random.fork('network'));
    this.masterMachine = this.machine('master');
    this.control = new SimControl(this.network, this.masterMachine);
    this.daemons = Array.from({ length: plan.daemons }, (_, i) => this.#newDaemon(i + 1));
    this.scheduler.isExpected = (life, error) => this.#diedOfItsDisk(life, error);
    const admin = this.machine('admin').boot();
    this.network.port(admin);
    this.admin = this.control.link(admin);
  }

  machine(name: string): Machine {
    const machine = this.scheduler.machine(name, this.plan.oneHost ? 'host' : name);
    this.#machines.push(machine);
    if (this.plan.clocksDrift) machine.clockRate = 0.95 + 0.1 * this.random.fork(`clock of ${name}`).unit();
    return machine;
  }

  get machines(): readonly Machine[] {
    return this.#machines;
  }

  /** The newest map that is published. */
  get map(): StorageMap {
    return this.#master!.map;
  }

  /** Boots master and daemons, makes the pool and the image. */
  async start(): Promise<void> {
    this.bootMaster();
    for (const daemon of this.daemons) this.bootDaemon(daemon);
    const { plan } = this;
    await this.settled(this.#setUp(plan), 60_000, 'setting up the cluster');
  }

  async #setUp(plan: Plan): Promise<void> {
    while ((await this.#status()).daemons.filter((daemon) => daemon.up).length < plan.daemons) await this.#pause(100);
    await this.admin.call('createPool', {
      name: POOL_NAME,
      pgCount: plan.pgCount,
      replicas: plan.replicas,
      minSize: plan.minSize,
      durability: plan.durability,
    });
    await this.admin.call('createImage', {
      name: IMAGE_NAME,
      pool: POOL_NAME,
      sizeBytes: plan.imageBytes,
      ...plan.layout,
    });
  }

  /** What the master says of itself; waits for it. */
  async #status() {
    for (;;) {
      try {
        return await this.admin.call('status', {});
      } catch (error) {
        if (!(error instanceof StorageError)) throw error;
        await this.#pause(RETRY_MS);
      }
    }
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.scheduler.after(ms, 'pause', resolve));
  }

  /** Runs the world until the promise is settled. */
  async settled<T>(promise: Promise<T>, limitMs: number, what: string): Promise<T> {
    let state: 'waiting' | 'settled' = 'waiting';
    let outcome: { value: T } | { error: unknown } | null = null;
    promise.then(
      (value) => {
        outcome = { value };
        state = 'settled';
      },
      (error: unknown) => {
        outcome = { error };
        state = 'settled';
      },
    );
    await this.until(() => state === 'settled', limitMs, what);
    const settled = outcome! as { value: T } | { error: unknown };
    if ('error' in settled) throw settled.error;
    return settled.value;
  }

  /** Runs the world until `done`. Throws if that takes longer than `limitMs` or something fails. */
  async until(done: () => boolean, limitMs: number, what: string): Promise<void> {
    const stopped = await this.scheduler.run(done, limitMs);
    if (stopped === 'failed') throw this.scheduler.failure!;
    if (stopped !== 'done') throw new Error(`${what}: not within ${limitMs} ms`);
  }

  /** Lets the world go on for a while. */
  idle(ms: number): Promise<void> {
    return this.settled(this.#pause(ms), 2 * ms, 'a pause');
  }

  /** Waits until every PG is active and nothing is missing. */
  async untilClean(limitMs: number): Promise<void> {
    let reasons = '';
    const clean = async (): Promise<void> => {
      for (;;) {
        const status = await this.#status();
        reasons = status.reasons.join('; ');
        if (status.health === 'clean' && this.daemons.every((daemon) => this.#isUp(daemon))) return;
        await this.#pause(500);
      }
    };
    await this.settled(clean(), limitMs, 'clean').catch((error: Error) => {
      throw this.scheduler.failure ?? new Error(`${error.message}: ${reasons}`);
    });
  }

  /** Does every member of every PG run, and hold everything? */
  isWhole(): boolean {
    for (const { pg, acting, since } of this.map.pgs.values())
      for (const id of acting) {
        const member = this.daemons.find(({ daemon }) => daemon?.id === id);
        const info = member?.store?.pgInfo(pg);
        if (info === undefined || !info.complete || info.les !== since) return false;
      }
    return true;
  }

  /** Does the master know the process that runs now? It may still think of one before it as alive. */
  #isUp({ daemon, machine }: SimDaemon): boolean {
    const entry = daemon === null ? undefined : this.map.daemons.get(daemon.id);
    return entry?.up === true && entry.bootId === machine.incarnation?.name;
  }

  // --- the master

  bootMaster(): void {
    const life = this.masterMachine.boot();
    const kv = delayedKv(this.#kv, life, this.random.fork(`kv of ${life.name}`));
    this.network.port(life);
    Master.open({
      clock: life,
      log: this.log(life),
      random: this.random.fork(`master ${life.name}`),
      kv,
      outAfterMs: this.plan.outAfterMs,
      onFatal: (error) => this.scheduler.fail(new Error(`${life.name} stops: ${error.message}`, { cause: error })),
    }).then(
      (master) => {
        if (!life.alive) return;
        this.#master = master;
        this.control.serve(life, witnessed(this, master));
      },
      (error: Error) =>
        this.scheduler.fail(new Error(`${life.name} does not start: ${error.message}`, { cause: error })),
    );
  }

  endMaster(how: 'crash' | 'powerCut', restartAfterMs: number): void {
    this.masterMachine.end(how);
    this.scheduler.after(restartAfterMs, 'restart master', () => this.bootMaster());
  }

  // --- daemons

  #newDaemon(index: number): SimDaemon {
    const machine = this.machine(`d${index}`);
    const home = new StoreHome(machine, this.random.fork(`disk ${index}`), this.plan);
    const record = { clusterId: '', newestEpoch: 0, uuid: `uuid-${index}` };
    return { index, machine, home, record, store: null, daemon: null, restarting: false };
  }

  bootDaemon(sim: SimDaemon): void {
    sim.restarting = false;
    const life = sim.machine.boot();
    const { name } = sim.machine;
    const onFatal = (error: Error): void => this.#onDaemonFatal(sim, life, error);
    const network = this.#networkOf(life);
    const open = async (): Promise<void> => {
      const opened = await sim.home.open(life, this.log(life), onFatal);
      if (!life.alive) return;
      sim.store = this.#hooks.wrapStore?.(opened, sim.index) ?? opened;
      sim.daemon = new Daemon({
        clock: life,
        network,
        control: this.control.link(life),
        store: sim.store,
        log: this.log(life),
        identity: {
          ...sim.record,
          bootId: life.name,
          address: `${name}:7000`,
          unixAddress: this.plan.oneHost ? `unix:/${name}` : '',
          host: sim.machine.host,
          domain: name,
          weight: 1,
        },
        onMap: (clusterId, _id, epoch) => {
          if (!life.alive) return;
          sim.record.clusterId = clusterId;
          sim.record.newestEpoch = Math.max(sim.record.newestEpoch, epoch);
        },
        onFatal,
      });
      await sim.daemon.start();
    };
    open().catch((error: Error) => {
      if (!life.alive) return;
      if (sim.home.mayFail) this.#onDaemonFatal(sim, life, error);
      else this.scheduler.fail(new Error(`${life.name} does not start: ${error.message}`, { cause: error }));
    });
  }

  endDaemon(sim: SimDaemon, how: 'crash' | 'powerCut', restartAfterMs: number): void {
    sim.machine.end(how);
    sim.store = null;
    sim.daemon = null;
    sim.restarting = true;
    this.scheduler.after(restartAfterMs, 'restart daemon', () => {
      if (!sim.machine.up) this.bootDaemon(sim);
    });
  }

  /** A daemon says that it must not go on: its process ends, and whoever watches it starts another. */
  #onDaemonFatal(sim: SimDaemon, life: Incarnation, error: Error): void {
    if (!life.alive) return;
    const expected = error instanceof StorageError && error.code === 'IDENTITY';
    if (!expected && !sim.home.mayFail) {
      this.scheduler.fail(new Error(`${life.name} stops: ${error.message}`, { cause: error }));
      return;
    }
    this.scheduler.note(life.name, `stops: ${error.message}`);
    this.scheduler.probe('daemon stopped itself');
    this.endDaemon(sim, 'crash', FATAL_RESTART_MS);
  }

  /** An operator puts the daemon out or in, or changes its share. Tries once. */
  setDaemon(sim: SimDaemon, change: { in: boolean; weight: number }): boolean {
    const id = sim.daemon?.id ?? 0;
    if (id === 0) return false;
    this.admin.call('setDaemon', { id, ...change }).catch((error: unknown) => {
      if (!(error instanceof StorageError)) throw error;
    });
    return true;
  }

  /** Puts every daemon in with equal weights, however long that takes. */
  async allIn(): Promise<void> {
    const wanted = { in: true, weight: 1 };
    for (const { id } of this.map.daemons.values())
      for (let done = false; !done; )
        try {
          await this.admin.call('setDaemon', { id, ...wanted });
          done = true;
        } catch (error) {
          if (!(error instanceof StorageError)) throw error;
          await this.#pause(RETRY_MS);
        }
  }

  /** Compares and repairs every PG, block by block; resolves when a scrub of each was carried out and left nothing wrong. */
  async scrubAll(): Promise<void> {
    await this.#patiently('startScrub', { pg: 0, image: 0, deep: true, repair: true });
    for (let wrong = 'no answer'; wrong !== ''; ) {
      await this.#pause(RETRY_MS);
      const { pgs } = await this.#patiently('scrubStatus', {});
      wrong = pgs.some((one) => one.ordered || one.inconsistencies.length > 0 || one.more > 0) ? 'something' : '';
    }
  }

  async #patiently<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>> {
    for (;;)
      try {
        return await this.admin.call(method, request);
      } catch (error) {
        if (!(error instanceof StorageError)) throw error;
        await this.#pause(RETRY_MS);
      }
  }

  /** A store whose disk failed throws at whoever calls it next: in a real process, nobody catches that. */
  #diedOfItsDisk(life: Incarnation, error: Error): boolean {
    const sim = this.daemons.find(({ machine }) => machine === life.machine);
    if (sim === undefined || !sim.home.mayFail || !(error instanceof StorageError)) return false;
    this.#onDaemonFatal(sim, life, error);
    return true;
  }

  /** An operator adds a daemon with an empty disk. */
  addDaemon(): boolean {
    if (this.daemons.length >= this.plan.daemons + ADDED_DAEMONS_MAX) return false;
    const sim = this.#newDaemon(this.daemons.length + 1);
    this.daemons.push(sim);
    this.bootDaemon(sim);
    return true;
  }

  // --- clients

  /** May a request be refused with this error under the plan's faults? Data that is wrong is never among them. */
  mayRefuse(error: StorageError): boolean {
    const { faults } = this.plan;
    if (error.code === 'NO_SPACE') return faults.includes('disk full');
    return error.code === 'IO' && this.unreadable;
  }

  newClient(life: Incarnation): PoolClient {
    const { machine } = life;
    return new PoolClient({
      clock: life,
      network: this.#networkOf(life),
      control: this.control.link(life),
      log: this.log(life),
      name: machine.name,
      host: machine.host,
      clientId: life.name,
    });
  }

  /** Starts a client process on `machine` that opens the image, however long that takes. */
  openImage(machine: Machine, readOnly: boolean, opened: (life: Incarnation, image: Image) => void): void {
    const life = machine.boot();
    const attempt = async (): Promise<void> => {
      const client = this.newClient(life);
      try {
        await client.start();
        const image = await client.open(IMAGE_NAME, { readOnly, takeOver: true });
        opened(life, this.#hooks.wrapImage?.(image, life, this) ?? image);
      } catch (error) {
        await client.close();
        throw error;
      }
    };
    const retry = (): void => {
      attempt().catch((error: unknown) => {
        if (!(error instanceof StorageError))
          this.scheduler.fail(new Error(`${life.name}: ${String(error)}`, { cause: error }));
        else if (life.alive) life.after(RETRY_MS, retry);
      });
    };
    retry();
  }

  // --- what every process gets

  #networkOf(life: Incarnation): Network {
    const network = this.network.port(life);
    return this.#hooks.wrapNetwork?.(network, life.machine.name) ?? network;
  }

  /** Log lines become part of the trace. A line that carries a programming error fails the run. */
  log(life: Incarnation): Log {
    const write = (level: string, message: string, fields?: Record<string, unknown>): void => {
      for (const value of Object.values(fields ?? {}))
        if (value instanceof Error && !(value instanceof StorageError) && value.name !== 'DiskError')
          this.scheduler.fail(new Error(`${life.name} logs ${message}: ${value.message}`, { cause: value }));
      const text = `${level}: ${message}${fields === undefined ? '' : ` ${JSON.stringify(fields)}`}`;
      this.scheduler.note(life.name, text);
    };
    return {
      debug: (message, fields) => write('debug', message, fields),
      info: (message, fields) => write('info', message, fields),
      warn: (message, fields) => write('warn', message, fields),
      error: (message, fields) => write('error', message, fields),
    };
  }
}

/**
 * The master's store as the process `life` sees it: every call takes time, and a crash may come before or after what it
 * does is durable.
 */
function delayedKv(kv: MemoryKv, life: Incarnation, random: SimRandom): KeyValueStore {
  const delayed = <T>(act: () => Promise<T>): Promise<T> =>
    new Promise((resolve, reject) => {
      life.after(random.exponential(0.5), () => {
        act().then(
          (value) => life.after(random.exponential(0.5), () => resolve(value)),
          (error: unknown) => life.after(0, () => reject(error)),
        );
      });
    });
  return {
    get: (key) => delayed(() => kv.get(key)),
    range: (prefix) => delayed(() => kv.range(prefix)),
    batch: (batch) => delayed(() => kv.batch(batch)),
    // The store itself outlives every master.
    close: () => Promise.resolve(),
  };
}
