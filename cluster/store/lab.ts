// A store on a disk in memory, with time and crashes under control: for tests that tell a story step by step.

import { payloadChecksums } from '../../proto/checksum.ts';
import { entryOf } from './conformance.ts';
import type { DiskStore } from './engine.ts';
import { FaultDisk } from './fault-disk.ts';
import { stamped } from './model.ts';
import { openOn, TestClock } from './scenario.ts';
import { EntryOp, type LogEntry } from './store.ts';

export class Lab {
  clock = new TestClock();
  disk = new FaultDisk(this.clock);
  store!: DiskStore;
  fatal: Error | null = null;

  static async open(prepare: (disk: FaultDisk) => void = () => {}): Promise<Lab> {
    const lab = new Lab();
    prepare(lab.disk);
    await lab.start();
    return lab;
  }

  async start(): Promise<void> {
    this.store = await openOn(this.disk, this.clock, (error) => {
      this.fatal = error;
    });
  }

  /** The process dies, or the power goes, and all is started again. */
  async crash(how: 'kill' | 'power', keeps?: (name: string, page: number) => boolean | undefined): Promise<void> {
    const clock = new TestClock();
    this.disk = this.disk.survivor(how, clock, () => 1, keeps);
    this.clock = clock;
    await this.start();
  }

  append(entry: LogEntry, stamp = entry.version.seq, reserve = false): { done: boolean } {
    const payload = entry.op === EntryOp.WRITE ? stamped(entry.length, stamp, entry.offset) : null;
    const checks = payload === null ? null : payloadChecksums(payload, entry.image, entry.object, entry.offset);
    const state = { done: false };
    this.store.append(entry, payload, checks, reserve, () => {
      state.done = true;
    });
    return state;
  }

  write(seq: number, over: Partial<LogEntry> = {}): { done: boolean } {
    return this.append(entryOf(EntryOp.WRITE, seq, over));
  }

  sync(): boolean {
    let done = false;
    this.store.sync(() => {
      done = true;
    });
    this.clock.settle();
    return done;
  }

  /** The power is cut, and all is started again. */
  async harshCut(): Promise<void> {
    this.clock = new TestClock();
    this.disk = this.disk.harshCut(this.clock);
    await this.start();
  }

  checkpoint(): void {
    const before = this.store.checkpoints;
    this.store.checkpoint();
    this.clock.settle();
    if (this.store.checkpoints !== before + 1) throw new Error('no checkpoint was committed');
  }
}
