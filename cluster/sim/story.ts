// A scripted run: a calm cluster in virtual time, to which a test does one thing after the other. For races that random
// seeds rarely meet: what happens when is decided here to the millisecond, and nothing takes real time.
//
// Time passes only inside settled(), until() and idle(); between them the test looks at everything at leisure.

import assert from 'node:assert/strict';
import type { PgEntry } from '../../proto/map.ts';
import type { Image } from '../client/image.ts';
import { ClusterSim, type Hooks, type SimDaemon } from './cluster-sim.ts';
import { type Plan, planOf } from './plan.ts';
import { SimRandom } from './random.ts';
import type { Machine } from './scheduler.ts';
import { CALM_NETWORK } from './sim-network.ts';

const LIMIT_MS = 60_000;
export const BLOCK = 4096;

const CALM: Partial<Plan> = {
  daemons: 3,
  replicas: 2,
  minSize: 1,
  pgCount: 1,
  durability: 'flush',
  store: 'memory',
  layout: { order: 16, stripeUnit: 65_536, stripeCount: 1 },
  imageBytes: 4 * 65_536,
  outAfterMs: 600_000,
  oneHost: false,
  faults: [],
  network: CALM_NETWORK,
  controlLossChance: 0,
};

export class Story {
  readonly cluster: ClusterSim;

  private constructor(cluster: ClusterSim) {
    this.cluster = cluster;
  }

  /** A cluster with one pool and one image, clean. */
  static async begin(plan: Partial<Plan> = {}, hooks: Hooks = {}): Promise<Story> {
    const random = new SimRandom(1);
    const whole: Plan = { ...planOf(1, random.fork('plan'), ['memory']), ...CALM, ...plan };
    const story = new Story(new ClusterSim(whole, random, hooks));
    await story.cluster.start();
    await story.cluster.untilClean(LIMIT_MS);
    return story;
  }

  /** The first PG. */
  get pg(): PgEntry {
    return [...this.cluster.map.pgs.values()].sort((a, b) => a.pg - b.pg)[0]!;
  }
  /** The daemon with this number in the map. */
  daemon(id: number): SimDaemon {
    const found = this.cluster.daemons.find(({ daemon }) => daemon?.id === id);
    assert(found !== undefined, `no process is daemon ${id}`);
    return found;
  }
  get primary(): SimDaemon {
    return this.daemon(this.pg.acting[0]!);
  }
  get now(): number {
    return this.cluster.scheduler.now;
  }

  /** The image, opened by a process of its own on a machine of that name. */
  async open(name: string, readOnly: boolean): Promise<{ machine: Machine; image: Image }> {
    const machine = this.cluster.machine(name);
    let opened: Image | null = null;
    this.cluster.openImage(machine, readOnly, (_, image) => {
      opened = image;
    });
    await this.until(() => opened !== null, `${name} has the image`);
    return { machine, image: opened! };
  }

  until(done: () => boolean, what: string): Promise<void> {
    return this.cluster.until(done, LIMIT_MS, what);
  }
  settled<T>(promise: Promise<T>, what: string): Promise<T> {
    return this.cluster.settled(promise, LIMIT_MS, what);
  }
  idle(ms: number): Promise<void> {
    return this.cluster.idle(ms);
  }
  /** Has everybody been heard again, and is nothing missing? */
  untilClean(): Promise<void> {
    return this.cluster.untilClean(LIMIT_MS);
  }

  /** Cuts a machine off from others, both ways. */
  cut(lone: Machine, ...others: Machine[]): void {
    for (const other of others) {
      this.cluster.network.block(lone, other);
      this.cluster.network.block(other, lone);
    }
  }
  heal(): void {
    this.cluster.network.unblockAll(this.cluster.machines);
  }
}

/** Writes one block full of `byte`. */
export const write = (image: Image, offset: number, byte: number): Promise<void> =>
  new Promise((resolve, reject) => {
    image.write(offset, Buffer.alloc(BLOCK, byte), false, (error) => (error === null ? resolve() : reject(error)));
  });
/** The first byte of the block there. */
export const read = (image: Image, offset: number): Promise<number> =>
  new Promise((resolve, reject) => {
    image.read(offset, BLOCK, (error, parts) => (error === null ? resolve(parts![0]![0]!) : reject(error)));
  });
export const flush = (image: Image): Promise<void> =>
  new Promise((resolve, reject) => {
    image.flush((error) => (error === null ? resolve() : reject(error)));
  });
