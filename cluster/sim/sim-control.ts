// The simulated control plane: calls and subscriptions between any process and the master.
//
// Requests, replies and updates are copied, so nobody shares an object with the master. They take the simulated
// network's delays, and its partitions stop them:
//
//   master dead                -> UNAVAILABLE after a delay; streams break
//   partition, lost message    -> UNAVAILABLE after CALL_DEADLINE_MS: the call may or may not have been carried out
//   caller dead                -> its replies go nowhere; the master sees its streams break (at once if the process
//                                 died, after KEEPALIVE_MS if its host did)
//   stream with a blocked way  -> updates are held; after KEEPALIVE_MS both ends see it break

import type {
  ControlLink,
  ControlMethod,
  ControlReply,
  ControlRequest,
  ControlService,
  Subscriber,
  Subscription,
  SubscriptionEvents,
} from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { MapUpdate } from '../../proto/map.ts';
import type { Incarnation, Machine } from './scheduler.ts';
import type { SimNetwork } from './sim-network.ts';

const CALL_DEADLINE_MS = 5_000;
const KEEPALIVE_MS = 10_000;
const KEEPALIVE_CHECK_MS = 1_000;

export interface ControlFaults {
  /** Chance that a request or a reply is lost with its connection. */
  lossChance: number;
  /** Chance per update that the stream breaks. */
  resetChance: number;
  /** Chance that a call is carried out twice: all of them are safe to repeat. */
  repeatChance: number;
}

/** Where the master runs now. Set by the cluster when it starts one, cleared when it dies. */
interface Serving {
  readonly life: Incarnation;
  readonly service: ControlService;
}

export class SimControl {
  readonly network: SimNetwork;
  readonly master: Machine;
  faults: ControlFaults = { lossChance: 0, resetChance: 0, repeatChance: 0 };
  #serving: Serving | null = null;
  readonly #streams = new Set<Stream>();
  readonly #watched = new Set<Machine>();
  /** When the last call of each process arrives: calls share one connection, and do not overtake each other. */
  readonly #arrivals = new WeakMap<Incarnation, number>();

  constructor(network: SimNetwork, master: Machine) {
    this.network = network;
    this.master = master;
    this.watch(master);
  }

  /** The master's process answers from now on. */
  serve(life: Incarnation, service: ControlService): void {
    this.#serving = { life, service };
  }

  get serving(): Serving | null {
    return this.#serving?.life.alive === true ? this.#serving : null;
  }

  link(life: Incarnation): ControlLink {
    this.watch(life.machine);
    return {
      call: (method, request) => this.#call(life, method, request),
      subscribe: (subscriber, events) => {
        const stream = new Stream(this, life, subscriber, events);
        this.#streams.add(stream);
        stream.open();
        return stream;
      },
    };
  }

  blockedEitherWay(a: Machine, b: Machine): boolean {
    const { network } = this;
    return network.isBlocked(a, b) || network.isBlocked(b, a) || network.isPowerless(a) || network.isPowerless(b);
  }

  forget(stream: Stream): void {
    this.#streams.delete(stream);
  }

  /** Breaks every stream of a machine, as a restarted proxy would. */
  breakStreams(machine: Machine): void {
    for (const stream of [...this.#streams]) if (stream.life.machine === machine) stream.breakBoth('stream reset');
  }

  watch(machine: Machine): void {
    if (this.#watched.has(machine)) return;
    this.#watched.add(machine);
    machine.onEnd((ended, how) => {
      for (const stream of [...this.#streams]) stream.onEnded(ended, how);
    });
  }

  /** The call came once before, and nobody heard the answer. */
  #again<M extends ControlMethod>(serving: Serving, method: M, request: ControlRequest<M>): void {
    const { scheduler } = this.network;
    scheduler.probe('control call repeated');
    serving.service.handle(method, request).catch((error: unknown) => {
      if (!(error instanceof StorageError))
        scheduler.fail(new Error(`${serving.life.name}: ${method}: ${String(error)}`, { cause: error }));
    });
  }

  #call<M extends ControlMethod>(life: Incarnation, method: M, request: ControlRequest<M>): Promise<ControlReply<M>> {
    const { network } = this;
    const { scheduler } = network;
    const asked = structuredClone(request);
    return new Promise((resolve, reject) => {
      let settled = false;
      const settle = (ms: number, kind: string, act: () => void): void => {
        scheduler.schedule(scheduler.now + ms, life, kind, 0, () => {
          if (settled) return;
          settled = true;
          act();
        });
      };
      const lose = (ms: number, why: string): void =>
        settle(ms, `${method} fails`, () => reject(new StorageError('UNAVAILABLE', `${method}: ${why}`)));

      lose(CALL_DEADLINE_MS, 'no answer in time');
      if (this.blockedEitherWay(life.machine, this.master)) return;
      const carry = (): void => {
        const { serving } = this;
        if (serving === null) {
          lose(network.delay(0), 'the master is not there');
          return;
        }
        if (network.random.chance(this.faults.lossChance)) {
          scheduler.probe('control request lost');
          lose(network.delay(0), 'connection lost');
          return;
        }
        scheduler.schedule(scheduler.now, serving.life, `control ${method}`, 0, () => {
          const reply = (act: () => void): void => {
            if (!serving.life.alive) lose(network.delay(0), 'the master died');
            else if (this.blockedEitherWay(life.machine, this.master)) return;
            else if (network.random.chance(this.faults.lossChance)) {
              scheduler.probe('control reply lost');
              lose(network.delay(0), 'connection lost');
            } else settle(network.delay(0), `${method} answered`, act);
          };
          if (this.faults.repeatChance > 0 && network.random.chance(this.faults.repeatChance))
            this.#again(serving, method, structuredClone(asked));
          serving.service.handle(method, asked).then(
            (value) => {
              const copy = structuredClone(value);
              reply(() => resolve(copy));
            },
            (error: unknown) => {
              // Anything else is a defect of the master: a wrong world is always a StorageError.
              if (error instanceof StorageError) reply(() => reject(new StorageError(error.code, error.message)));
              else scheduler.fail(new Error(`${serving.life.name}: ${method}: ${String(error)}`, { cause: error }));
            },
          );
        });
      };
      const due = Math.max(this.#arrivals.get(life) ?? 0, scheduler.now + network.delay(0));
      this.#arrivals.set(life, due);
      scheduler.schedule(due, null, `${method} arrives`, 0, carry);
    });
  }
}

/** One subscription: the subscriber holds it as a Subscription, the master side is `serverSide`. */
class Stream implements Subscription {
  readonly life: Incarnation;
  readonly #control: SimControl;
  readonly #subscriber: Subscriber;
  readonly #events: SubscriptionEvents;
  #serving: Serving | null = null;
  #serverSide: Subscription | null = null;
  /** What each side believes. */
  #clientOpen = true;
  #serverOpen = false;
  #due = 0;
  #held: MapUpdate[] = [];
  #blockedSince = -1;

  constructor(control: SimControl, life: Incarnation, subscriber: Subscriber, events: SubscriptionEvents) {
    this.#control = control;
    this.life = life;
    this.#subscriber = structuredClone(subscriber);
    this.#events = events;
  }

  open(): void {
    const { network } = this.#control;
    const { scheduler } = network;
    scheduler.schedule(scheduler.now + network.delay(0), null, 'subscribe', 0, () => this.#arrive());
    this.#keepAlive();
  }

  close(): void {
    if (!this.#clientOpen || !this.life.alive) return;
    this.#clientOpen = false;
    this.#closeServer(this.#control.network.delay(0));
  }

  /** Both ends see it break. */
  breakBoth(reason: string): void {
    this.#closeClient(reason);
    this.#closeServer(this.#control.network.delay(0));
  }

  onEnded(ended: Incarnation, how: 'crash' | 'powerCut'): void {
    if (ended === this.life) {
      this.#clientOpen = false;
      const blocked = this.#control.blockedEitherWay(ended.machine, this.#control.master);
      this.#closeServer(how === 'crash' && !blocked ? this.#control.network.delay(0) : KEEPALIVE_MS);
    } else if (ended === this.#serving?.life) {
      this.#serverOpen = false;
      const blocked = this.#control.blockedEitherWay(this.life.machine, this.#control.master);
      if (how === 'crash' && !blocked) this.#closeClient('the master is gone');
    }
  }

  #arrive(): void {
    const { network, master, serving } = this.#control;
    const { scheduler } = network;
    if (!this.life.alive || !this.#clientOpen) {
      this.#control.forget(this);
      return;
    }
    // The keepalive ends what can't be established.
    if (this.#control.blockedEitherWay(this.life.machine, master)) return;
    if (serving === null) {
      this.#closeClient('the master is not there');
      return;
    }
    this.#serving = serving;
    scheduler.schedule(scheduler.now, serving.life, 'control subscribe', 0, () => {
      try {
        this.#serverOpen = true;
        this.#serverSide = serving.service.subscribe(this.#subscriber, {
          onUpdate: (update) => this.#send(update),
          onClose: (reason) => this.#closeClient(reason),
        });
        if (!this.#clientOpen) this.#closeServer(network.delay(0));
      } catch (error) {
        this.#serverOpen = false;
        if (!(error instanceof StorageError)) throw error;
        this.#closeClient(`${error.code}: ${error.message}`);
      }
    });
  }

  #send(update: MapUpdate): void {
    if (!this.#serverOpen || this.#serving?.life.alive !== true) return;
    const { network, faults } = this.#control;
    if (faults.resetChance > 0 && network.random.chance(faults.resetChance)) {
      network.scheduler.probe('control stream reset');
      this.breakBoth('stream reset');
      return;
    }
    this.#held.push(structuredClone(update));
    this.#pump();
  }

  #pump(): void {
    const { network, master } = this.#control;
    const { scheduler } = network;
    if (this.#control.blockedEitherWay(this.life.machine, master)) return;
    for (const update of this.#held.splice(0)) {
      this.#due = Math.max(this.#due, scheduler.now + network.delay(0));
      scheduler.schedule(this.#due, this.life, 'map update', update.to, () => {
        if (this.#clientOpen) this.#events.onUpdate(update);
      });
    }
  }

  /** Both ends ping: after KEEPALIVE_MS without a way through, each gives up. */
  #keepAlive(): void {
    const { network, master } = this.#control;
    const { scheduler } = network;
    scheduler.after(KEEPALIVE_CHECK_MS, 'keepalive', () => {
      if (!this.#clientOpen && !this.#serverOpen) {
        this.#control.forget(this);
        return;
      }
      if (!this.#control.blockedEitherWay(this.life.machine, master)) {
        this.#blockedSince = -1;
        this.#pump();
        // Another process is there by now, or none: a ping is answered with a reset.
        if (this.#clientOpen && this.#serving !== null && !this.#serverOpen) this.#closeClient('stream reset');
        if (this.#clientOpen && this.#serving === null) this.#arrive();
      } else if (this.#blockedSince < 0) this.#blockedSince = scheduler.now;
      else if (scheduler.now - this.#blockedSince >= KEEPALIVE_MS) this.breakBoth('no answer to keepalive');
      this.#keepAlive();
    });
  }

  #closeClient(reason: string): void {
    if (!this.#clientOpen) return;
    const { network } = this.#control;
    const { scheduler } = network;
    this.#due = Math.max(this.#due, scheduler.now + network.delay(0));
    scheduler.schedule(this.#due, this.life, 'stream closed', 0, () => {
      if (!this.#clientOpen) return;
      this.#clientOpen = false;
      this.#closeServer(network.delay(0));
      this.#events.onClose(reason);
    });
  }

  #closeServer(ms: number): void {
    if (!this.#serverOpen || this.#serving === null) return;
    const { scheduler } = this.#control.network;
    scheduler.schedule(scheduler.now + ms, this.#serving.life, 'subscriber gone', 0, () => {
      if (!this.#serverOpen) return;
      this.#serverOpen = false;
      this.#serverSide?.close();
    });
  }
}
