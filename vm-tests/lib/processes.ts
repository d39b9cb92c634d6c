// Programs that a test starts: run to the end with a time limit, or kept running and ended by their pid.
//
// Whatever is still alive when the test process ends or is told to end is killed then, by pid or by the process group that we made: a
// failed test leaves nothing behind. Nothing is ever ended by name.

import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, constants, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import type { ExecutionContext, Implementation, TestFn } from 'ava';

export interface Finished {
  /** null if a signal ended it. */
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  ms: number;
}

/** Debian keeps mkfs, ip and nbd-client where the path of a plain user does not look. */
const PATH = [process.env.PATH ?? '', '/usr/sbin', '/sbin', '/usr/bin', '/bin'].join(delimiter);
export const environment = (): NodeJS.ProcessEnv => ({ ...process.env, PATH, LC_ALL: 'C' });

const alive = new Set<Running>();
function killAlive(): void {
  for (const running of alive) running.kill('SIGKILL');
}
process.on('exit', killAlive);
process.on('SIGTERM', () => {
  killAlive();
  process.exit(1);
});

/** A program that goes on while the test does other things. Its output is kept, as text. */
export class Running {
  readonly child: ChildProcess;
  readonly ended: Promise<Finished>;
  stdout = '';
  stderr = '';
  /** Called with each whole line of either stream. */
  onLine: ((line: string) => void) | null = null;
  readonly #group: boolean;
  #partial = '';

  /** @param options group: give it a process group of its own, which kill() then ends as a whole */
  constructor(
    command: string,
    args: readonly string[],
    options: { group?: boolean; cwd?: string; environment?: NodeJS.ProcessEnv; input?: string } = {},
  ) {
    this.#group = options.group ?? false;
    const start = performance.now();
    this.child = spawn(command, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      detached: this.#group,
      env: options.environment ?? environment(),
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    alive.add(this);
    this.child.stdin!.on('error', () => {}); // it may end without reading
    if (options.input !== undefined) this.child.stdin!.end(options.input);
    this.child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text;
      this.#lines(text);
    });
    this.child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text;
      this.#lines(text);
    });
    this.ended = new Promise((resolve, reject) => {
      this.child.on('error', (error) => {
        alive.delete(this);
        reject(error);
      });
      this.child.on('close', (code, signal) => {
        alive.delete(this);
        resolve({ code, signal, stdout: this.stdout, stderr: this.stderr, ms: performance.now() - start });
      });
    });
    this.ended.catch(() => {}); // whoever waits sees it
  }

  get pid(): number {
    if (this.child.pid === undefined) throw new Error(`${this.child.spawnfile} did not start`);
    return this.child.pid;
  }
  get hasEnded(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }
  kill(signal: NodeJS.Signals): void {
    if (this.child.pid === undefined || (this.hasEnded && !this.#group)) return;
    try {
      process.kill(this.#group ? -this.child.pid : this.child.pid, signal);
    } catch {
      // it is gone already
    }
  }
  /** SIGKILL, and waits until it is gone. */
  async end(): Promise<void> {
    this.kill('SIGKILL');
    await this.ended;
  }
  #lines(text: string): void {
    this.#partial += text;
    for (let at = this.#partial.indexOf('\n'); at >= 0; at = this.#partial.indexOf('\n')) {
      const line = this.#partial.slice(0, at).trimEnd();
      this.#partial = this.#partial.slice(at + 1);
      this.onLine?.(line);
    }
  }
}

/** Runs a program to its end. One that takes longer than `timeoutMs` is killed and rejects with what it said. */
export async function run(
  command: string,
  args: readonly string[],
  options: { timeoutMs?: number; input?: string; cwd?: string; environment?: NodeJS.ProcessEnv } = {},
): Promise<Finished> {
  const running = new Running(command, args, { ...options, input: options.input ?? '', group: true });
  const timeoutMs = options.timeoutMs ?? 60_000;
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    running.kill('SIGKILL');
  }, timeoutMs);
  const finished = await running.ended;
  clearTimeout(timer);
  if (late)
    throw new Error(
      `${command} ${args.join(' ')} took more than ${timeoutMs} ms\n${finished.stdout}${finished.stderr}`,
    );
  return finished;
}

/** The same, and fails the test unless the exit code is 0. Returns stdout. */
export async function runWell(
  t: ExecutionContext,
  command: string,
  args: readonly string[],
  options: { timeoutMs?: number; input?: string; cwd?: string } = {},
): Promise<string> {
  const finished = await run(command, args, options);
  t.is(finished.code, 0, `${command} ${args.join(' ')}\n${finished.stdout}${finished.stderr}`);
  return finished.stdout;
}

/** A directory of the test's own, removed after it. */
export function temporaryDirectory(t: ExecutionContext, name: string): string {
  const path = mkdtempSync(join(tmpdir(), `ashlar-${name}-`));
  mkdirSync(path, { recursive: true });
  t.teardown(() => rmSync(path, { recursive: true, force: true, maxRetries: 5 }));
  return path;
}

/**
 * `test`, or where the machine lacks something a `test` that skips and says so in the title. As root under scripts/test
 * (ASHLAR_TEST_STRICT) a missing program is a failure: there it could have been installed.
 * @param why what is missing, or null
 */
export function testUnless(test: TestFn, why: string | null): (title: string, run: Implementation<[]>) => void {
  if (why === null) return (title, run) => test.serial(title, run);
  if (process.env.ASHLAR_TEST_STRICT === '1' && why.startsWith('needs program'))
    return (title) => test.serial(title, (t) => t.fail(why));
  return (title, run) => test.serial.skip(`${title} (${why})`, run);
}
/** "needs programs fio, nbdcopy", or null if all are there. */
export function whyNoPrograms(programs: readonly string[]): string | null {
  const missing = missingPrograms(programs);
  return missing.length === 0 ? null : `needs programs ${missing.join(', ')}`;
}

/** Those of `programs` that this machine lacks. */
function missingPrograms(programs: readonly string[]): string[] {
  return programs.filter((program) => {
    for (const directory of PATH.split(delimiter))
      try {
        accessSync(join(directory, program), constants.X_OK);
        return false;
      } catch {
        // not here
      }
    return true;
  });
}

export const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

/** Waits until `condition` holds, looking every `everyMs`; rejects after `timeoutMs` with what was waited for. */
export async function until(
  what: string,
  timeoutMs: number,
  condition: () => boolean | Promise<boolean>,
  everyMs = 100,
): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`waited ${timeoutMs} ms in vain for: ${what}`);
    await sleep(everyMs);
  }
}
