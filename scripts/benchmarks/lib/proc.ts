// What the kernel knows of a process: read from /proc now and then while a job runs, and turned into rates over the part
// of the run that counts. All threads of a process are counted together.

import { readdirSync, readFileSync } from 'node:fs';

export interface Reading {
  cpuMs: number;
  /** The most it ever held, as the kernel remembers it. */
  residentMaxBytes: number;
  /** Times a thread went to sleep and had to be woken. */
  sleeps: number;
  /** read() and write() and their kin; null where the kernel does not tell. */
  calls: number | null;
  /** Sent towards a disk, page cache included; null where the kernel does not tell. */
  writtenBytes: number | null;
}

/** Rates per second over a stretch of time. */
export interface Rates {
  cpuMs: number;
  sleeps: number;
  calls: number | null;
  writtenBytes: number | null;
}

/** /proc counts in hundredths of a second on every Linux. */
const TICK_MS = 10;

/** null if the process is gone. */
export function readProcess(pid: number): Reading | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ');
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const tasks = readdirSync(`/proc/${pid}/task`);
    const io = readIo(pid);
    return {
      cpuMs: (Number(stat[11]) + Number(stat[12])) * TICK_MS,
      residentMaxBytes: (field(status, 'VmHWM') ?? 0) * 1024,
      sleeps: tasks.reduce((sum, task) => sum + sleepsOf(pid, task), 0),
      calls: io === null ? null : (field(io, 'syscr') ?? 0) + (field(io, 'syscw') ?? 0),
      writtenBytes: io === null ? null : (field(io, 'write_bytes') ?? 0),
    };
  } catch {
    return null;
  }
}

function sleepsOf(pid: number, task: string): number {
  try {
    return field(readFileSync(`/proc/${pid}/task/${task}/status`, 'utf8'), 'voluntary_ctxt_switches') ?? 0;
  } catch {
    return 0; // this thread ended just now
  }
}

/** Readable only by its owner and root. */
function readIo(pid: number): string | null {
  try {
    return readFileSync(`/proc/${pid}/io`, 'utf8');
  } catch {
    return null;
  }
}

function field(text: string, name: string): number | null {
  const found = new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(text);
  return found === null ? null : Number(found[1]);
}

const SAMPLE_EVERY_MS = 200;

interface Sample {
  atMs: number;
  reading: Reading;
}

/** Reads a set of processes until stop() is called. */
export class Sampler {
  readonly #samples = new Map<number, Sample[]>();
  readonly #timer: NodeJS.Timeout;

  constructor(pids: readonly number[]) {
    for (const pid of pids) this.#samples.set(pid, []);
    this.#look();
    this.#timer = setInterval(() => this.#look(), SAMPLE_EVERY_MS);
  }
  stop(): void {
    clearInterval(this.#timer);
    this.#look();
  }
  /** null if there are no two readings in this stretch: the process is gone, or the stretch too short. */
  rates(pid: number, fromMs: number, untilMs: number): Rates | null {
    const inside = (this.#samples.get(pid) ?? []).filter(({ atMs }) => atMs >= fromMs && atMs <= untilMs);
    const first = inside[0];
    const last = inside.at(-1);
    return first === undefined || last === undefined || first === last ? null : ratesBetween(first, last);
  }
  /** 0 if it was never seen. */
  residentMaxBytes(pid: number): number {
    return this.#samples.get(pid)?.at(-1)?.reading.residentMaxBytes ?? 0;
  }

  #look(): void {
    for (const [pid, samples] of this.#samples) {
      const reading = readProcess(pid);
      if (reading !== null) samples.push({ atMs: performance.now(), reading });
    }
  }
}

function ratesBetween(first: Sample, last: Sample): Rates {
  const seconds = (last.atMs - first.atMs) / 1000;
  const rate = (before: number | null, after: number | null) =>
    before === null || after === null ? null : (after - before) / seconds;
  return {
    cpuMs: (last.reading.cpuMs - first.reading.cpuMs) / seconds,
    sleeps: (last.reading.sleeps - first.reading.sleeps) / seconds,
    calls: rate(first.reading.calls, last.reading.calls),
    writtenBytes: rate(first.reading.writtenBytes, last.reading.writtenBytes),
  };
}
