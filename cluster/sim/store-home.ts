// Where a simulated daemon's data lives while its processes come and go.
//
//   memory: one MemoryStore for ever. A process crash loses nothing, as nothing in the page cache is lost; power cuts
//           are not for it.
//   disk:   the real engine on a SimDisk, opened anew by each process.

import type { Epoch, PgId } from '../../proto/ids.ts';
import type { Clock, Log } from '../../proto/ports.ts';
import { openDiskStore } from '../store/disk-store.ts';
import { LOG_BYTES_MIN } from '../store/limits.ts';
import { createMemoryStore } from '../store/memory-store.ts';
import type { Store } from '../store/store.ts';
import type { SimRandom } from './random.ts';
import type { Incarnation, Machine } from './scheduler.ts';
import { SimDisk } from './sim-disk.ts';
import { watched } from './witness.ts';

/** Mean time of a slow read. */
const SLOW_READ_MS = 20;

/** The part of a plan that is about stores. */
export interface StorePlan {
  readonly store: 'memory' | 'disk';
  readonly logEntriesMax: number;
  readonly slowReads: boolean;
  /** Bytes that the disk has room for; null: as many as are wanted. */
  readonly diskBytes: number | null;
}

export class StoreHome {
  readonly disk: SimDisk;
  /** Per PG: the newest interval in which it was whole here. */
  readonly completeIn = new Map<PgId, Epoch>();
  /** Set by whoever breaks the disk: the daemon is then right to stop. */
  mayFail = false;
  readonly #kind: 'memory' | 'disk';
  readonly #machine: Machine;
  readonly #random: SimRandom;
  readonly #logEntriesMax: number;
  readonly #slowReads: boolean;
  #memory: Store | null = null;

  constructor(machine: Machine, random: SimRandom, plan: StorePlan) {
    this.#logEntriesMax = plan.logEntriesMax;
    this.#slowReads = plan.slowReads;
    this.#machine = machine;
    this.#kind = plan.store;
    this.#random = random;
    this.disk = new SimDisk(machine, random, plan.diskBytes ?? undefined);
    this.calm();
  }

  /** Ends what was done to the disk. */
  calm(): void {
    this.disk.heal();
    if (this.#slowReads) this.disk.faults.coldChance = 0.2;
  }

  async open(life: Incarnation, log: Log, onFatal: (error: Error) => void): Promise<Store> {
    if (this.#kind === 'disk') {
      const random = this.#random.fork(`store of ${life.name}`);
      const { disk } = this;
      const clock: Clock = {
        now: () => life.now() + disk.lagMs,
        after: (ms, fire) => life.after(ms, fire),
        soon: (run) => life.soon(run),
      };
      const port = disk.port(life);
      return watched(
        this.#machine.scheduler,
        await openDiskStore({ disk: port, clock, log, onFatal, logBytes: LOG_BYTES_MIN, random }),
        this.completeIn,
      );
    }
    this.#memory ??= watched(
      this.#machine.scheduler,
      createMemoryStore(new MachineClock(this.#machine), { logEntriesMax: this.#logEntriesMax }),
      this.completeIn,
    );
    return this.#slowReads ? slowly(this.#memory, life, this.#random.fork(`reads of ${life.name}`)) : this.#memory;
  }
}

/** The store with reads that now and then come back later, with what was there at the beginning or at the end. */
function slowly(store: Store, life: Incarnation, random: SimRandom): Store {
  const read: Store['read'] = (image, object, order, offset, length, done) => {
    if (!random.chance(0.3)) return store.read(image, object, order, offset, length, done);
    const ms = random.exponential(SLOW_READ_MS);
    if (random.chance(0.5)) life.after(ms, () => store.read(image, object, order, offset, length, done));
    else
      store.read(image, object, order, offset, length, (error, checks, payload) =>
        life.after(ms, () => done(error, checks, payload)),
      );
  };
  return storeWith(store, { read });
}

/** `store` with some methods replaced. */
export function storeWith(store: Store, replaced: Partial<Store>): Store {
  return new Proxy(store, {
    get: (target, name) => {
      const own = replaced[name as keyof Store];
      if (own !== undefined) return own;
      const value = Reflect.get(target, name) as unknown;
      return typeof value === 'function' ? (value as (...a: unknown[]) => unknown).bind(target) : value;
    },
  });
}

/** The clock of whatever process runs on the machine: callbacks that a dead one asked for never come. */
class MachineClock implements Clock {
  readonly #machine: Machine;

  constructor(machine: Machine) {
    this.#machine = machine;
  }

  now(): number {
    return this.#machine.scheduler.now;
  }

  after(ms: number, fire: () => void) {
    return this.#machine.incarnation!.after(ms, fire);
  }

  soon(run: () => void): void {
    this.#machine.incarnation!.soon(run);
  }
}
