// The operator of a simulated cluster: makes images, fills them, resizes and removes them, while everything else goes on.
//
//   create -> write stamped blocks -> flush -> read them back -> grow -> remove: fence, delete all objects, forget
//
// An image of its own each time, so that what it writes needs no model: it reads what it wrote, and once an image is
// removed no member may hold an object of it.

import type { ControlLink, ControlMethod, ControlReply, ControlRequest } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { ImageEntry } from '../../proto/map.ts';
import type { PoolClient } from '../client/client.ts';
import { deleteObjectsFrom } from '../client/deletion.ts';
import type { PoolImage } from '../client/pool-image.ts';
import type { ClusterSim } from './cluster-sim.ts';
import type { SimRandom } from './random.ts';
import type { Incarnation } from './scheduler.ts';
import { readStamps, SECTOR_BYTES, stampSectors } from './stamps.ts';

const AGAIN_MS = 300;
const PAUSE_MS = 2_000;
const IMAGE_BYTES = 8 * 65_536;
const BLOCK_BYTES = 4_096;
const WRITES = 12;

export class Operator {
  /** Images that are gone, or will be for good as soon as the present round ends. */
  readonly removed = new Set<number>();
  readonly #cluster: ClusterSim;
  readonly #random: SimRandom;
  readonly #life: Incarnation;
  readonly #client: PoolClient;
  readonly #control: ControlLink;
  #stopping = false;
  #rounds = 0;
  #idle = false;

  constructor(cluster: ClusterSim) {
    this.#cluster = cluster;
    this.#random = cluster.random.fork('operator');
    const machine = cluster.machine('operator');
    this.#life = machine.boot();
    this.#client = cluster.newClient(this.#life);
    this.#control = cluster.control.link(this.#life);
  }

  start(): void {
    this.#work().catch((error: unknown) =>
      this.#cluster.scheduler.fail(new Error(`the operator: ${String(error)}`, { cause: error })),
    );
  }

  /** Begins no round any more. */
  stop(): void {
    this.#stopping = true;
  }

  get idle(): boolean {
    return this.#idle;
  }

  async #work(): Promise<void> {
    await this.#patiently(() => this.#client.start());
    while (!this.#stopping) {
      await this.#round(`scratch-${++this.#rounds}`);
      await this.#pause(this.#random.exponential(PAUSE_MS));
    }
    this.#idle = true;
  }

  async #round(name: string): Promise<void> {
    const pool = [...this.#client.map!.pools.values()][0]!.name;
    const entry = await this.#create(name, pool);
    await this.#client.mapWhere((map) => map.images.has(entry.id));
    const image = await this.#patiently(() => this.#client.openImage(entry, { readOnly: false, takeOver: true }));
    await this.#fill(image);
    await this.#call('resizeImage', { image: entry.id, sizeBytes: 2 * IMAGE_BYTES });
    await this.#client.mapWhere((map) => map.images.get(entry.id)?.sizeBytes === 2 * IMAGE_BYTES);
    await this.#done((answer) => image.write(IMAGE_BYTES, stampSectors(1, 0, 8, entry.id), true, answer));
    await this.#done((answer) => image.close(answer));
    await this.#remove(entry);
    this.#cluster.scheduler.probe('image made and removed');
  }

  async #create(name: string, pool: string): Promise<ImageEntry> {
    const layout = { order: 16, stripeUnit: 65_536, stripeCount: 1 };
    try {
      return await this.#call('createImage', { name, pool, sizeBytes: IMAGE_BYTES, ...layout });
    } catch (error) {
      // Asked again after an answer was lost.
      if (!(error instanceof StorageError) || error.code !== 'EXISTS') throw error;
      const named = (entry: ImageEntry): boolean => entry.name === name;
      const map = await this.#client.mapWhere((newer) => [...newer.images.values()].some(named));
      return [...map.images.values()].find(named)!;
    }
  }

  async #fill(image: PoolImage): Promise<void> {
    const blocks = IMAGE_BYTES / BLOCK_BYTES;
    const written = new Map<number, number>();
    for (let write = 1; write <= WRITES; write++) {
      const block = this.#random.below(blocks);
      const first = (block * BLOCK_BYTES) / SECTOR_BYTES;
      const bytes = stampSectors(write, first, BLOCK_BYTES / SECTOR_BYTES, image.id);
      if (await this.#done((answer) => image.write(block * BLOCK_BYTES, bytes, false, answer)))
        written.set(block, write);
      else written.delete(block);
    }
    await this.#done((answer) => image.flush(answer));
    for (const [block, write] of written) {
      let parts: Buffer[] | null = null;
      const read = await this.#done((answer) =>
        image.read(block * BLOCK_BYTES, BLOCK_BYTES, (error, got) => {
          parts = got;
          answer(error);
        }),
      );
      if (!read) continue;
      const seen = readStamps(Buffer.concat(parts!), (block * BLOCK_BYTES) / SECTOR_BYTES, image.id);
      if (seen[0] !== write) throw new Error(`block ${block} of ${image.name} holds write ${seen[0]}, not ${write}`);
    }
  }

  /** As the command line does it: until a look at every PG finds nothing and no object is missing anywhere. */
  async #remove(entry: ImageEntry): Promise<void> {
    await this.#call('removeImage', { image: entry.id, done: false });
    const map = await this.#client.mapWhere((newer) => newer.images.get(entry.id)?.state === 'removing');
    const { fence } = map.images.get(entry.id)!;
    for (;;) {
      const before = await this.#call('status', {});
      const deleted = await this.#patiently(() => deleteObjectsFrom(this.#client.router, entry, 0, fence, () => {}));
      if (deleted === 0 && before.missing === 0 && before.health !== 'blocked') break;
      if (deleted === 0) await this.#pause(AGAIN_MS);
    }
    this.removed.add(entry.id);
    await this.#call('removeImage', { image: entry.id, done: true });
  }

  #call<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>> {
    return this.#patiently(() => this.#control.call(method, request));
  }

  /** Every call is safe to repeat. */
  async #patiently<T>(act: () => Promise<T>): Promise<T> {
    for (;;)
      try {
        return await act();
      } catch (error) {
        if (!(error instanceof StorageError) || error.code === 'INVALID' || error.code === 'EXISTS') throw error;
        await this.#pause(AGAIN_MS);
      }
  }

  /** False if the request was refused for a reason that the plan's faults give. */
  #done(issue: (answer: (error: StorageError | null) => void) => void): Promise<boolean> {
    return new Promise((resolve, reject) =>
      issue((error) => {
        if (error === null || this.#cluster.mayRefuse(error)) resolve(error === null);
        else reject(error);
      }),
    );
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.#life.after(ms, resolve);
    });
  }
}
