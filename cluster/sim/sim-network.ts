// The simulated network: machines, the ways between them, and what goes wrong on these ways.
//
// A connection is two pipes (sim-pipe.ts), one per direction; each delivers whole frames in order after random delays.
// Connections are independent of each other, so frames of two of them overtake each other freely.
//
//   connect -> (delay) -> listener accepts, or nobody listens: refused
//   process dies      -> its kernel closes or resets its connections; the peers hear of it after a delay
//   host loses power  -> silence; peers learn on their next send after the host is back (reset), or by their own clocks
//   partition a -> b  -> frames from a to b are held; when it heals they arrive late, or the connection is reset
//
// Requests' timeouts are the cores' business: nothing here gives up on its own, but a connect after CONNECT_MS.

import type { Connection, ConnectionEvents, Listener, Network } from '../../proto/ports.ts';
import type { SimRandom } from './random.ts';
import type { Incarnation, Machine, Scheduler } from './scheduler.ts';
import { SimConnection } from './sim-connection.ts';

/** A connect that reaches nobody fails after this long, as the kernel's would after some SYNs. */
const CONNECT_MS = 20_000;

/** How unkind the network is; may change while it runs. Chances are per frame unless they say otherwise. */
export interface NetworkFaults {
  /** Every frame takes at least this long, */
  delayMinMs: number;
  /** and this much more on average (exponential). */
  delayMeanMs: number;
  bytesPerMs: number;
  /** The direction stalls for up to clogMaxMs, then goes on. */
  clogChance: number;
  clogMaxMs: number;
  /** The direction goes silent for about silenceMeanMs; then it comes back or the connection is reset. */
  lossChance: number;
  silenceMeanMs: number;
  /** The connection is reset: all in flight is gone. */
  resetChance: number;
  /** One bit of the frame flips. */
  flipChance: number;
  /** The frame arrives twice: any but a client's change that does not say that it is sent again, which TCP never doubles. */
  repeatChance: number;
}

export const CALM_NETWORK: Readonly<NetworkFaults> = Object.freeze({
  delayMinMs: 0.05,
  delayMeanMs: 0.2,
  bytesPerMs: 1_000_000,
  clogChance: 0,
  clogMaxMs: 0,
  lossChance: 0,
  silenceMeanMs: 3_000,
  resetChance: 0,
  flipChance: 0,
  repeatChance: 0,
});

interface Listening {
  readonly owner: Incarnation;
  readonly accept: (connection: Connection) => void;
}

export class SimNetwork {
  readonly scheduler: Scheduler;
  readonly random: SimRandom;
  faults: NetworkFaults = { ...CALM_NETWORK };
  readonly #listeners = new Map<string, Listening>();
  readonly #connections = new Set<SimConnection>();
  readonly #watched = new Set<Machine>();
  readonly #powerless = new Set<Machine>();
  /** Machine of each address whose process is dead: it refuses, or is silent while it has no power. */
  readonly #lastOwners = new Map<string, Machine>();
  /** "a>b": nothing gets from machine a to machine b. */
  readonly #blocked = new Set<string>();
  #portNext = 20_000;

  constructor(scheduler: Scheduler, random: SimRandom) {
    this.scheduler = scheduler;
    this.random = random;
  }

  /** The network as the process `life` sees it. */
  port(life: Incarnation): Network {
    this.#watch(life.machine);
    return {
      listen: (address, accept) => this.#listen(life, address, accept),
      connect: (address, events) => this.#connect(life, address, events),
    };
  }

  /** Time that `bytes` take from one machine to another now. */
  delay(bytes: number): number {
    const { faults } = this;
    return faults.delayMinMs + this.random.exponential(faults.delayMeanMs) + bytes / faults.bytesPerMs;
  }

  /** Cuts one direction between two machines. */
  block(from: Machine, to: Machine): void {
    this.#blocked.add(`${from.name}>${to.name}`);
    this.scheduler.probe('partition');
  }

  /** Mends one direction. Held frames go on their way, or the connection turns out to be dead. */
  unblock(from: Machine, to: Machine): void {
    if (!this.#blocked.delete(`${from.name}>${to.name}`)) return;
    for (const connection of [...this.#connections]) connection.onUnblocked(from, to);
  }

  unblockAll(machines: readonly Machine[]): void {
    for (const from of machines) for (const to of machines) this.unblock(from, to);
  }

  isBlocked(from: Machine, to: Machine): boolean {
    return this.#blocked.has(`${from.name}>${to.name}`);
  }

  /** Resets every connection between two machines: a router restarted. */
  resetBetween(a: Machine, b: Machine): void {
    for (const connection of [...this.#connections]) if (connection.joins(a, b)) connection.reset('router');
  }

  /** Called by a connection when neither side knows it any more. */
  forget(connection: SimConnection): void {
    this.#connections.delete(connection);
  }

  get openConnections(): number {
    return this.#connections.size;
  }

  #listen(life: Incarnation, address: string, accept: (connection: Connection) => void): Promise<Listener> {
    const wanted = address.endsWith(':0') ? `${address.slice(0, -1)}${this.#portNext++}` : address;
    if (this.#listeners.has(wanted)) return Promise.reject(new Error(`listen ${wanted}: address in use`));
    const listening = { owner: life, accept };
    this.#listeners.set(wanted, listening);
    return Promise.resolve({
      address: wanted,
      close: (): void => {
        if (this.#listeners.get(wanted) === listening) this.#listeners.delete(wanted);
      },
    });
  }

  #connect(life: Incarnation, address: string, events: ConnectionEvents): Connection {
    const connection = new SimConnection(this, life, address, events);
    if (life.alive) {
      this.#connections.add(connection);
      this.#arrive(connection, this.scheduler.now + CONNECT_MS);
    }
    return connection.near;
  }

  /** The first packet reaches the other machine, if it can; else it is sent again until the deadline. */
  #arrive(connection: SimConnection, deadline: number): void {
    const { scheduler } = this;
    scheduler.schedule(scheduler.now + this.delay(0), null, 'connect', 0, () => {
      if (connection.nearClosed) return;
      const { address, near } = connection;
      const from = near.owner.machine;
      const listening = this.#listeners.get(address);
      const to = listening?.owner.machine ?? this.#lastOwners.get(address) ?? null;
      const isLocal = address.startsWith('unix:');
      if (isLocal && to !== null && to.host !== from.host) {
        connection.refuse('no such socket');
        return;
      }
      const reachable = to === null || isLocal || !(this.isBlocked(from, to) || this.isBlocked(to, from));
      if (!reachable || (to !== null && this.#powerless.has(to))) {
        if (scheduler.now >= deadline) connection.refuse('connect timed out');
        else scheduler.after(500, 'connect again', () => this.#arrive(connection, deadline));
        return;
      }
      if (listening === undefined || !listening.owner.alive) connection.refuse('connection refused');
      else connection.establish(listening.owner, listening.accept);
    });
  }

  /** A host that lost its power is back (its network stack answers again). */
  #powerOn(machine: Machine): void {
    if (!this.#powerless.delete(machine)) return;
    for (const connection of [...this.#connections]) connection.onPowerOn(machine);
  }

  isPowerless(machine: Machine): boolean {
    return this.#powerless.has(machine);
  }

  #watch(machine: Machine): void {
    if (this.#watched.has(machine)) return;
    this.#watched.add(machine);
    machine.onEnd((life, how) => {
      if (how === 'powerCut') this.#powerless.add(machine);
      for (const [address, listening] of this.#listeners) {
        if (listening.owner !== life) continue;
        this.#lastOwners.set(address, machine);
        this.#listeners.delete(address);
      }
      for (const connection of [...this.#connections]) connection.onOwnerEnded(life, how);
    });
    machine.onBoot(() => this.#powerOn(machine));
  }
}
