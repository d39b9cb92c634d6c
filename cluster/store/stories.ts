// What a store does in its life, as short scripted stories: crash-states.test.ts cuts the power at every moment of them,
// every-fault.test.ts lets every operation of the disk fail.
//
// `prepare` runs on a disk without faults and ends closed, or, if the story is about what a crash leaves, as it stands.
// `act` begins with the start of the store and is what is judged. Stories are short: each is run hundreds of times.

import { FaultDisk } from './fault-disk.ts';
import type { Step } from './model.ts';
import { Run, TestClock } from './scenario.ts';
import { EntryOp } from './store.ts';

export interface Story {
  readonly title: string;
  /** Pages of the disk; without a limit if left out. */
  readonly capacityPages?: number;
  /** `act` begins with what a killed process leaves. */
  readonly crashed?: boolean;
  /** `act` begins with an empty directory. */
  readonly isNew?: boolean;
  prepare?(teller: Teller): void | Promise<void>;
  act(teller: Teller): void | Promise<void>;
}

/** Objects by number: 0, 3, 6 ... have 64 KiB, 1, 4 ... 128 KiB, 2, 5 ... 256 KiB. */
const SMALL = 0;
const MIDDLE = 1;
const LARGE = 2;

/** Says the steps of a story to a store. */
export class Teller {
  readonly run: Run;

  constructor(run: Run) {
    this.run = run;
  }

  private tell(...step: [Step['kind'], EntryOp, number, number?, number?, boolean?]): boolean {
    return this.run.perform(this.run.model.make(...step));
  }

  write(object: number, first: number, count: number): boolean {
    return this.tell('append', EntryOp.WRITE, object, first, count);
  }

  zero(object: number, first: number, count: number): boolean {
    return this.tell('append', EntryOp.ZERO, object, first, count);
  }

  erase(object: number): boolean {
    return this.tell('append', EntryOp.DELETE, object);
  }

  recover(object: number, first: number, count: number, replace: boolean): boolean {
    return this.tell('recover', EntryOp.WRITE, object, first, count, replace);
  }

  recoverErase(object: number): boolean {
    return this.tell('recoverDelete', EntryOp.WRITE, object);
  }

  merge(object: number): boolean {
    return this.tell('merge', EntryOp.WRITE, object);
  }

  setPg(object: number, complete: boolean): boolean {
    return this.tell('setPg', EntryOp.WRITE, object, 0, 1, complete);
  }

  /** Forgets the newest `count` entries of the object's PG. */
  truncate(object: number, count: number): boolean {
    const { model } = this.run;
    const step = model.make('truncate', EntryOp.WRITE, object);
    const version = model.entries(step.entry.pg).at(-1 - count)!;
    return this.run.perform({ ...step, entry: { ...step.entry, version } });
  }

  reset(object: number): boolean {
    const step = this.run.model.make('reset', EntryOp.WRITE, object);
    const { since, seq } = step.entry.version;
    return this.run.perform({ ...step, entry: { ...step.entry, version: { since: since + 1, seq: seq + 5 } } });
  }

  turn(): void {
    this.run.clock.turn();
  }

  settle(): void {
    this.run.clock.settle();
  }

  /** Everything told so far is on stable storage, if the disk lets it. */
  flush(): void {
    this.run.sync();
    this.settle();
  }

  checkpoint(): void {
    this.run.store.checkpoint();
    this.settle();
  }
}

export const STORIES: readonly Story[] = [
  {
    title: 'small writes, flushed now and then',
    act(teller) {
      for (let i = 0; i < 12; i++) {
        teller.write(i % 5, i % 7, 1 + (i % 3));
        if (i % 2 === 1) teller.turn();
        if (i % 4 === 3) teller.flush();
      }
    },
  },
  {
    title: 'large writes to new objects and into holes go directly to their places',
    act(teller) {
      teller.write(SMALL, 0, 16);
      teller.write(LARGE, 0, 16);
      teller.flush();
      teller.write(LARGE, 32, 16);
      teller.write(MIDDLE, 0, 32);
      teller.turn();
      teller.write(LARGE, 16, 16);
      teller.flush();
      teller.write(5, 8, 40);
      teller.turn();
      teller.write(5, 20, 2);
      teller.write(5, 0, 4);
      teller.flush();
      teller.checkpoint();
    },
  },
  {
    title: 'overwrites: small in the log, half an object to another place, whole objects',
    prepare(teller) {
      for (const object of [SMALL, MIDDLE, LARGE]) teller.write(object, 0, 16);
    },
    act(teller) {
      teller.write(SMALL, 3, 2);
      teller.write(SMALL, 0, 16);
      teller.flush();
      teller.write(MIDDLE, 8, 20);
      teller.write(LARGE, 2, 3);
      teller.turn();
      teller.write(LARGE, 4, 36);
      teller.flush();
      teller.write(SMALL, 0, 16);
      teller.checkpoint();
      teller.write(SMALL, 5, 1);
      teller.write(SMALL, 0, 16);
    },
  },
  {
    title: 'zeroed blocks, written again before and after a checkpoint',
    prepare(teller) {
      teller.write(LARGE, 0, 64);
      teller.write(SMALL, 0, 16);
    },
    act(teller) {
      teller.zero(LARGE, 8, 24);
      teller.write(LARGE, 8, 16);
      teller.turn();
      teller.zero(SMALL, 4, 4);
      teller.flush();
      teller.zero(LARGE, 40, 20);
      teller.checkpoint();
      teller.write(LARGE, 40, 16);
      teller.flush();
      teller.zero(SMALL, 0, 16);
      teller.write(SMALL, 0, 2);
      teller.turn();
    },
  },
  {
    title: 'deleted objects, and others in their places',
    prepare(teller) {
      for (const object of [SMALL, LARGE, 3, 6]) teller.write(object, 0, 16);
    },
    act(teller) {
      teller.erase(SMALL);
      teller.write(9, 0, 16);
      teller.flush();
      teller.erase(3);
      teller.erase(LARGE);
      teller.checkpoint();
      teller.write(SMALL, 0, 16);
      teller.write(LARGE, 0, 3);
      teller.erase(9);
      teller.write(9, 4, 2);
      teller.flush();
      teller.checkpoint();
      teller.write(3, 0, 16);
    },
  },
  {
    title: 'recovery pushes pieces of objects, holes included',
    prepare(teller) {
      teller.write(LARGE, 0, 30);
      teller.write(SMALL, 0, 16);
    },
    act(teller) {
      teller.setPg(LARGE, false);
      teller.recover(LARGE, 0, 32, true);
      teller.recover(LARGE, 32, 32, false);
      teller.turn();
      teller.recover(SMALL, 2, 6, false);
      teller.flush();
      teller.recover(MIDDLE, 0, 16, true);
      teller.recover(SMALL, 0, 16, true);
      teller.checkpoint();
      teller.setPg(LARGE, true);
      teller.recover(LARGE, 16, 4, false);
      teller.flush();
    },
  },
  {
    title: 'recovery deletes objects that the others do not have',
    prepare(teller) {
      for (const object of [SMALL, MIDDLE, LARGE, 3]) teller.write(object, 0, 8);
    },
    act(teller) {
      teller.recoverErase(SMALL);
      teller.write(MIDDLE, 0, 3);
      teller.recoverErase(MIDDLE);
      teller.flush();
      teller.recoverErase(LARGE);
      teller.write(LARGE, 0, 16);
      teller.checkpoint();
      teller.recoverErase(3);
      teller.recoverErase(11);
      teller.write(SMALL, 0, 2);
      teller.turn();
    },
  },
  {
    title: "peering changes PGs' logs: merged, cut, begun anew",
    prepare(teller) {
      for (let i = 0; i < 12; i++) teller.write(i % 6, 0, 1);
    },
    act(teller) {
      teller.setPg(0, false);
      teller.merge(0);
      teller.merge(3);
      teller.truncate(0, 2);
      teller.flush();
      teller.write(0, 3, 1);
      teller.reset(1);
      teller.turn();
      teller.write(1, 0, 2);
      teller.merge(2);
      teller.checkpoint();
      teller.truncate(2, 1);
      teller.setPg(0, true);
      teller.write(2, 1, 1);
      teller.flush();
      teller.reset(0);
    },
  },
  {
    title: 'a checkpoint while everything that it saves is written again',
    prepare(teller) {
      for (const object of [SMALL, MIDDLE, LARGE]) teller.write(object, 0, 16);
    },
    act(teller) {
      for (let i = 0; i < 6; i++) teller.write(i, 0, 3);
      teller.run.store.checkpoint();
      for (let i = 0; i < 12; i++) {
        teller.write((i * 5) % 6, i % 4, 2);
        if (i === 4) teller.erase(LARGE);
        if (i === 7) teller.zero(MIDDLE, 1, 2);
        teller.turn();
        if (i % 4 === 2) teller.run.sync();
      }
      teller.settle();
      teller.checkpoint();
    },
  },
  {
    title: 'the log goes round and its segments are used again',
    crashed: true,
    prepare(teller) {
      for (let i = 0; i < 27; i++) {
        teller.write(2 + 3 * (i % 2), 15 * (i % 4), 15);
        teller.settle();
      }
    },
    act(teller) {
      for (let i = 0; i < 14; i++) {
        teller.write(2 + 3 * (i % 2), 15 * (i % 4), 15);
        if (i % 3 === 2) teller.flush();
        if (i === 6) teller.checkpoint();
      }
    },
  },
  {
    title: 'the start after a crash',
    crashed: true,
    prepare(teller) {
      teller.write(LARGE, 0, 64);
      teller.checkpoint();
      for (let i = 0; i < 8; i++) teller.write(i, i % 5, 2);
      teller.flush();
      teller.write(4, 0, 16);
      teller.write(SMALL, 0, 16);
      teller.erase(LARGE);
      teller.merge(1);
      teller.settle();
    },
    async act(teller) {
      teller.write(LARGE, 2, 3);
      teller.flush();
      await teller.run.close();
      await teller.run.open();
      teller.write(3, 0, 4);
    },
  },
  {
    title: 'the first start in an empty directory',
    isNew: true,
    act(teller) {
      teller.write(SMALL, 0, 2);
      teller.write(LARGE, 0, 20);
      teller.flush();
      teller.setPg(0, true);
    },
  },
  {
    title: 'the disk gets full, and room is made',
    capacityPages: 900,
    prepare(teller) {
      for (let object = 2; object < 12; object += 3) teller.write(object, 0, 64);
    },
    act(teller) {
      for (let object = 0; object < 12; object++) teller.write(object, 0, 16);
      teller.settle();
      teller.checkpoint();
      for (let object = 0; object < 6; object++) teller.write(object, 0, 32 >> (object % 3 === 0 ? 1 : 0));
      teller.erase(LARGE);
      teller.zero(5, 0, 64);
      teller.flush();
      teller.checkpoint();
      teller.run.clock.pass(2000);
      teller.write(MIDDLE, 0, 20);
      teller.write(SMALL, 2, 3);
    },
  },
  {
    title: 'a clean shutdown with everything still to be done',
    act(teller) {
      for (let i = 0; i < 9; i++) teller.write(i, 0, 1 + i);
      teller.write(LARGE, 0, 64);
      teller.zero(4, 2, 2);
      teller.erase(3);
    },
  },
];

/** What `act` begins with. */
export interface Beginning {
  readonly disk: FaultDisk;
  /** The steps that it holds, and how many of them a power cut can't take. */
  readonly history: readonly Step[];
  readonly synced: number;
}

export async function beginningOf(story: Story): Promise<Beginning> {
  const clock = new TestClock();
  const disk = new FaultDisk(clock);
  if (story.capacityPages !== undefined) disk.capacityPages = story.capacityPages;
  if (story.isNew) return { disk, history: [], synced: 0 };
  const run = new Run(disk, clock);
  await run.open();
  await story.prepare?.(new Teller(run));
  if (!story.crashed) await run.close();
  return { disk, history: run.outcome.steps, synced: run.outcome.synced };
}

/** Starts the store, acts, and closes it. */
export function actOut(story: Story, run: Run): Promise<Run['outcome']> {
  return run.drive(async () => {
    await run.open();
    await story.act(new Teller(run));
    if (run.outcome.fatal !== null || run.disk.dead) return;
    await run.close();
    run.outcome.finished = true;
  });
}
