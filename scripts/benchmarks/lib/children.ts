// Programs that a benchmark starts, and their end. Each has a process group of its own, so that a terminal's Ctrl-C
// reaches only the benchmark, which ends them by pid and in order. What is still alive when the benchmark's process
// exits is killed then; nothing is ever ended by name.

import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';

/** The world is not as a benchmark needs it: said in one line, without a stack. */
export class BenchmarkError extends Error {}

const alive = new Set<Child>();
let stopping = false;
process.on('exit', () => {
  for (const child of alive) child.kill('SIGKILL');
});

/** Ends every child, each as it wants to be ended; none can be started any more. */
export async function stopAll(): Promise<void> {
  stopping = true;
  await Promise.all([...alive].map((child) => child.stop()));
}

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
}

export class Child {
  readonly title: string;
  readonly ended: Promise<Ended>;
  /** Everything it said so far. */
  stdout = '';
  stderr = '';
  hasEnded = false;
  readonly #process: ChildProcess;
  readonly #stopWithinMs: number;

  /** @param options stopWithinMs: what it needs to end well; 0: it is killed, nothing is lost */
  constructor(
    title: string,
    command: string,
    args: readonly string[],
    options: { stopWithinMs: number; environment?: NodeJS.ProcessEnv },
  ) {
    if (stopping) throw new BenchmarkError('stopping');
    this.title = title;
    this.#stopWithinMs = options.stopWithinMs;
    this.#process = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
      env: { ...(options.environment ?? process.env), LC_ALL: 'C' },
    });
    alive.add(this);
    this.#process.stdout!.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text;
    });
    this.#process.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text;
    });
    this.ended = new Promise((resolve) => {
      const end = (code: number | null, signal: NodeJS.Signals | null) => {
        this.hasEnded = true;
        alive.delete(this);
        resolve({ code, signal });
      };
      this.#process.on('error', (error) => {
        this.stderr += error.message;
        end(null, null);
      });
      this.#process.on('close', end);
    });
  }

  get pid(): number {
    if (this.#process.pid === undefined) throw new BenchmarkError(`${this.title} can't be started: ${this.stderr}`);
    return this.#process.pid;
  }
  kill(signal: NodeJS.Signals): void {
    if (!this.hasEnded) this.#process.kill(signal);
  }
  /** Asks it to end, and kills it if it takes too long. */
  async stop(): Promise<void> {
    if (this.#stopWithinMs > 0) this.kill('SIGTERM');
    const timer = setTimeout(() => this.kill('SIGKILL'), this.#stopWithinMs);
    await this.ended;
    clearTimeout(timer);
  }
  /** The end of what it said to people, for an error message. */
  get lastWords(): string {
    return this.stderr.trim().split('\n').slice(-8).join('\n');
  }
}

/** Resolves as soon as `look` gives a value; rejects if the child ends before, or after `timeoutMs`. */
export async function awaitFrom<V>(child: Child, what: string, timeoutMs: number, look: () => V | null): Promise<V> {
  const endMs = performance.now() + timeoutMs;
  for (;;) {
    const found = look();
    if (found !== null) return found;
    if (child.hasEnded) throw new BenchmarkError(`${child.title} ended before ${what}:\n${child.lastWords}`);
    if (performance.now() > endMs)
      throw new BenchmarkError(`${child.title}: waited ${timeoutMs / 1000} s in vain for ${what}\n${child.lastWords}`);
    await sleep(20);
  }
}

/** Throws one line that names the programs this machine lacks, and the packages they come in. */
export function requirePrograms(programs: readonly string[]): void {
  const path = (process.env.PATH ?? '').split(delimiter);
  const missing = programs.filter((program) => !path.some((directory) => isExecutable(join(directory, program))));
  if (missing.length > 0)
    throw new BenchmarkError(
      `${missing.join(' and ')} missing on this machine: install the package${missing.length > 1 ? 's' : ''} of that name (Debian: apt-get install ${missing.join(' ')})`,
    );
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

export const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));
