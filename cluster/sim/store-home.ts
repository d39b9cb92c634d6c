// Where a simulated daemon's data lives while its processes come and go.
//
//   memory: one MemoryStore for ever. A process crash loses nothing, as nothing in the page cache is lost; power cuts
//           are not for it.
//   disk:   the real engine on a SimDisk, opened anew by each process.

import type { Clock, Log } from '../../proto/ports.ts';
import { openDiskStore } from '../store/disk-store.ts';
import { LOG_BYTES_MIN } from '../store/limits.ts';
import { createMemoryStore } from '../store/memory-store.ts';
import type { Store } from '../store/store.ts';
import type { SimRandom } from './random.ts';
import type { Incarnation, Machine } from './scheduler.ts';
import { SimDisk } from './sim-disk.ts';

export class StoreHome {
  readonly disk: SimDisk;
  /** Set by whoever breaks the disk: the daemon is then right to stop. */
  mayFail = false;
  readonly #kind: 'memory' | 'disk';
  readonly #machine: Machine;
  readonly #random: SimRandom;
  readonly #logEntriesMax: number;
  #memory: Store | null = null;

  constructor(machine: Machine, kind: 'memory' | 'disk', random: SimRandom, logEntriesMax: number) {
    this.#logEntriesMax = logEntriesMax;
    this.#machine = machine;
    this.#kind = kind;
    this.#random = random;
    this.disk = new SimDisk(machine, random);
  }

  async open(life: Incarnation, log: Log, onFatal: (error: Error) => void): Promise<Store> {
    if (this.#kind === 'disk') {
      const random = this.#random.fork(`store of ${life.name}`);
      return openDiskStore({ disk: this.disk.port(life), clock: life, log, onFatal, logBytes: LOG_BYTES_MIN, random });
    }
    this.#memory ??= createMemoryStore(new MachineClock(this.#machine), { logEntriesMax: this.#logEntriesMax });
    return this.#memory;
  }
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
