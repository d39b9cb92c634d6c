// What clients do to the image while everything around them fails: reads, writes, zeroes, flushes, each one judged.
//
// A Session is one open image in one client process: the writer's, or a reader's. It keeps `depth` lanes busy; a lane
// waits a while, issues one request, and goes on when it is answered. Requests never fail but by FENCED (another writer
// took the image): they wait instead, and the liveness phase sees to it that none waits for ever.

import assert from 'node:assert/strict';
import type { StorageError } from '../../proto/errors.ts';
import type { Image } from '../client/image.ts';
import type { ImageModel } from './image-model.ts';
import type { Plan } from './plan.ts';
import type { SimRandom } from './random.ts';
import { ZEROS } from './register-checker.ts';
import type { Incarnation, Scheduler } from './scheduler.ts';
import { readStamps, SECTOR_BYTES, stampSectors } from './stamps.ts';

/** Session number of those who never write. */
export const READER = -1;

/** What all sessions on the image share. */
export interface Workload {
  readonly scheduler: Scheduler;
  readonly plan: Plan;
  readonly model: ImageModel;
  readonly random: SimRandom;
  /** Errors that the faults of the plan explain. */
  mayRefuse(error: StorageError): boolean;
  /** Operations still to be issued by whoever writes. */
  left: number;
}

export class Session {
  readonly life: Incarnation;
  readonly image: Image;
  readonly number: number;
  inflight = 0;
  /** Set when the image said that another writer has it. */
  fenced = false;
  readonly #workload: Workload;
  readonly #random: SimRandom;
  #stopped = false;

  constructor(workload: Workload, life: Incarnation, image: Image, number: number) {
    this.#workload = workload;
    this.life = life;
    this.image = image;
    this.number = number;
    this.#random = workload.random.fork(`session of ${life.name}`);
  }

  get isReader(): boolean {
    return this.number === READER;
  }

  start(): void {
    const lanes = this.isReader ? 2 : this.#workload.plan.depth;
    for (let lane = 0; lane < lanes; lane++) this.#nextLater();
  }

  /** Issues nothing more. */
  stop(): void {
    this.#stopped = true;
  }

  /** Reads the whole image, in requests of up to 64 KiB; every one is judged as usual. */
  readAll(done: () => void): void {
    const { imageBytes } = this.#workload.plan;
    const step = Math.min(65_536, imageBytes);
    let waiting = imageBytes / step;
    for (let offset = 0; offset < imageBytes; offset += step)
      this.#read(offset, step, () => {
        if (--waiting === 0) done();
      });
  }

  flush(done: () => void): void {
    const { model } = this.#workload;
    const promised = model.beginFlush(this.number);
    const ended = (error: StorageError | null): void => {
      if (error === null) model.flushed(this.number, promised);
      done();
    };
    this.#request('flush', ended, (answer) => this.image.flush(answer));
  }

  #nextLater(): void {
    const { plan } = this.#workload;
    const meanMs = (plan.durationMs * plan.depth) / plan.operations;
    this.life.after(this.#random.exponential(meanMs), () => {
      if (this.#stopped || this.fenced) return;
      if (!this.isReader && this.#workload.left-- <= 0) return;
      this.#issue(() => this.#nextLater());
    });
  }

  #issue(done: () => void): void {
    const { plan } = this.#workload;
    const random = this.#random;
    const zeroes = !this.isReader && random.chance(plan.zeroShare);
    const { offset, length } = zeroes && random.chance(0.3) ? this.#wholeObjects() : this.#range();
    if (zeroes) return this.#write(offset, length, true, random.chance(0.1), done);
    const dice = random.unit();
    if (this.isReader || dice < 0.35) this.#read(offset, length, done);
    else if (dice < 0.4) this.#status(offset, length, done);
    else if (dice < 0.48) this.flush(done);
    else this.#write(offset, length, false, plan.durability === 'flush' ? random.chance(0.1) : false, done);
  }

  /** Half of the requests go to an eighth of the image, so that they meet. */
  #range(): { offset: number; length: number } {
    const { grainBytes, largestBytes, imageBytes } = this.#workload.plan;
    const random = this.#random;
    const doublings = Math.log2(largestBytes / grainBytes);
    const most = grainBytes * 2 ** random.below(doublings + 1);
    const length = grainBytes * random.between(1, most / grainBytes);
    const area = random.chance(0.5) ? Math.max(imageBytes / 8, length) : imageBytes;
    const offset = grainBytes * random.below((area - length) / grainBytes + 1);
    return { offset, length };
  }

  /** A run of bytes that, unless the image is striped, is an object: when all of it is zeros, the object is gone. */
  #wholeObjects(): { offset: number; length: number } {
    const { imageBytes, layout } = this.#workload.plan;
    const length = Math.min(imageBytes, 2 ** layout.order * layout.stripeCount);
    return { offset: length * this.#random.below(Math.floor(imageBytes / length)), length };
  }

  #write(offset: number, length: number, zeroes: boolean, fua: boolean, done: () => void): void {
    const { model, plan } = this.#workload;
    const [first, count] = [offset / SECTOR_BYTES, length / SECTOR_BYTES];
    const operation = zeroes ? ZEROS : model.nextOperation();
    const record = model.beginWrite(this.number, operation, first, count);
    this.#workload.scheduler.note(this.life.name, `writes ${first}+${count}${fua ? ' fua' : ''}, operation`, operation);
    const ended = (error: StorageError | null): void => {
      if (error === null) model.acked(record, fua);
      else model.refused(record);
      done();
    };
    this.#request(`write of operation ${operation}`, ended, (answer) => {
      if (zeroes) this.image.zero(offset, length, fua, answer);
      else this.image.write(offset, stampSectors(operation, first, count, plan.seed), fua, answer);
    });
  }

  #read(offset: number, length: number, done: () => void): void {
    const { model, plan, scheduler } = this.#workload;
    const first = offset / SECTOR_BYTES;
    const begun = model.beginRead(this.number, first, length / SECTOR_BYTES);
    scheduler.note(this.life.name, `reads ${first}+${length / SECTOR_BYTES}, tick`, begun.start);
    let parts: Buffer[] | null = null;
    const ended = (error: StorageError | null): void => {
      if (error === null) {
        const bytes = Buffer.concat(parts!);
        assert.equal(bytes.length, length, 'a read returns as many bytes as were asked for');
        model.endRead(begun, readStamps(bytes, first, plan.seed));
      }
      done();
    };
    this.#request(`read at tick ${begun.start}`, ended, (answer) =>
      this.image.read(offset, length, (error, got) => {
        parts = got;
        answer(error);
      }),
    );
  }

  #status(offset: number, length: number, done: () => void): void {
    const { model } = this.#workload;
    const first = offset / SECTOR_BYTES;
    const begun = model.beginRead(this.number, first, length / SECTOR_BYTES);
    let runs: { length: number; data: boolean }[] | null = null;
    const ended = (error: StorageError | null): void => {
      if (error === null) {
        const covered = runs!.reduce((sum, run) => sum + run.length, 0);
        assert.equal(covered, length, 'status covers what was asked for');
        const data = runs!.flatMap((run) => Array<boolean>(run.length / SECTOR_BYTES).fill(run.data));
        const wrong = model.wrongHole(begun, (sector) => data[sector - first]!);
        if (wrong !== -1) throw new Error(`status says that sector ${wrong} holds no data, but it was written`);
      }
      done();
    };
    this.#request('status', ended, (answer) =>
      this.image.status(offset, length, (error, got) => {
        runs = got;
        answer(error);
      }),
    );
  }

  /** One request to the image: answered once, never from inside the call, and with no error that it may not give. */
  #request(
    what: string,
    ended: (error: StorageError | null) => void,
    issue: (answer: (error: StorageError | null) => void) => void,
  ): void {
    this.inflight++;
    let state: 'in the call' | 'waiting' | 'answered' = 'in the call';
    issue((error) => {
      assert.equal(state, 'waiting', `${what} is answered while ${state}`);
      state = 'answered';
      this.inflight--;
      if (error?.code === 'FENCED') this.fenced = true;
      else if (error !== null && this.#workload.mayRefuse(error))
        this.#workload.scheduler.probe(`refused: ${error.code}`);
      else if (error !== null && !this.#stopped) throw new Error(`${what} failed: ${error.code}: ${error.message}`);
      ended(error);
    });
    state = 'waiting';
  }
}
