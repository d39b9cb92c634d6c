// A cluster as a user runs it: scripts/ashlar up in a directory of the test's own, on ports of its own.
//
// Processes are killed and started again by what processes.json says, and by nothing else. A killed process is started
// again with its recorded argv in its recorded directory, as a person would do it.

import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { ExecutionContext } from 'ava';
import type { ClusterStatus } from '../../proto/control.ts';
import { environment, type Finished, Running, run, temporaryDirectory, until } from './processes.ts';

export const ROOT = dirname(dirname(import.meta.dirname));
const ASHLAR = join(ROOT, 'scripts', 'ashlar');

export interface Ready {
  pid: number;
  directory: string;
  clusterId: string;
  master: string;
  daemons: { id: number; pid: number; address: string }[];
  nbd: { address: string; unix: string; pid: number };
  exports: { name: string; sizeBytes: number; uri: string; unixUri?: string }[];
}
export interface ProcessEntry {
  role: 'master' | 'daemon' | 'nbd';
  id: number;
  pid: number | null;
  address: string;
  argv: string[];
  cwd: string;
}
export interface ClusterOptions {
  /** NAME:SIZE, the first start makes them. */
  images: string[];
  daemons?: number;
  replicas?: number;
  /** Address of the NBD server; a port of its own on loopback unless given. */
  nbd?: string;
  /** Further options of ashlar up. */
  more?: string[];
}

/** They stop when the test's process is gone, however that came. */
const tied = (): NodeJS.ProcessEnv => ({ ...environment(), ASHLAR_STOP_WITH_PARENT: '1' });

/** A cluster that does not serve within this time has failed to start. */
const READY_MS = 45_000;
/** `ashlar up` stops everything within this time. */
const STOP_MS = 45_000;

export class Cluster {
  readonly directory: string;
  readonly #argv: string[];
  #up: Running;
  #ready: Ready | null = null;
  readonly #byHand: Running[] = [];

  private constructor(directory: string, argv: string[]) {
    this.directory = directory;
    this.#argv = argv;
    this.#up = this.#launch();
  }

  /** Starts one and waits until it serves. After the test it is killed, and its directory removed. */
  static async start(t: ExecutionContext, options: ClusterOptions): Promise<Cluster> {
    return Cluster.startIn(join(temporaryDirectory(t, 'cluster'), 'data'), options, (end) => t.teardown(end));
  }
  /** The same in a directory of the caller's. @param atEnd gets what must be called when the cluster is not needed */
  static async startIn(
    directory: string,
    options: ClusterOptions,
    atEnd: (end: () => Promise<void>) => void,
  ): Promise<Cluster> {
    const argv = ['up', '--dir', directory, '--nbd', options.nbd ?? '127.0.0.1:0'];
    argv.push('--daemons', String(options.daemons ?? 3), '--replicas', String(options.replicas ?? 2));
    for (const image of options.images) argv.push('--image', image);
    const cluster = new Cluster(directory, [...argv, ...(options.more ?? [])]);
    atEnd(() => cluster.killAll());
    await cluster.#awaitReady();
    return cluster;
  }

  get ready(): Ready {
    if (this.#ready === null) throw new Error('the cluster does not run');
    return this.#ready;
  }
  /** NBD URI of an image. */
  uri(image: string): string {
    return `nbd://${this.ready.nbd.address}/${image}`;
  }
  /** What `ashlar up` said to its user. */
  get said(): string {
    return this.#up.stderr;
  }
  get upPid(): number {
    return this.#up.pid;
  }

  processes(): ProcessEntry[] {
    return JSON.parse(readFileSync(join(this.directory, 'processes.json'), 'utf8')) as ProcessEntry[];
  }
  process(role: ProcessEntry['role'], id = 1): ProcessEntry {
    const entry = this.processes().find((candidate) => candidate.role === role && candidate.id === id);
    if (entry === undefined) throw new Error(`processes.json has no ${role} ${id}`);
    return entry;
  }

  /** Where each storage daemon keeps its data, by its number. */
  daemonDirectories(): string[] {
    const daemons = this.processes().filter((entry) => entry.role === 'daemon');
    return daemons.sort((a, b) => a.id - b.id).map((entry) => entry.argv[entry.argv.indexOf('--dir') + 1]!);
  }

  /** kill -9 of one process; resolves when processes.json knows it. */
  async kill(role: ProcessEntry['role'], id = 1): Promise<ProcessEntry> {
    const entry = this.process(role, id);
    if (entry.pid === null) throw new Error(`${role} ${id} does not run`);
    process.kill(entry.pid, 'SIGKILL');
    await until(`${role} ${id} is gone from processes.json`, 5_000, () => this.process(role, id).pid !== entry.pid, 20);
    return entry;
  }
  /** Starts a killed process again by hand; resolves when it serves and processes.json has its new pid. */
  async startAgain(entry: ProcessEntry): Promise<void> {
    const running = this.#startByHand(entry);
    await until(
      `${entry.role} ${entry.id}, started again, serves`,
      30_000,
      () => {
        if (running.hasEnded) throw new Error(`${entry.role} ${entry.id} ended at once:\n${running.stderr}`);
        return this.process(entry.role, entry.id).pid === running.pid;
      },
      50,
    );
  }
  #startByHand(entry: ProcessEntry): Running {
    const running = new Running(entry.argv[0]!, entry.argv.slice(1), { cwd: entry.cwd, environment: tied() });
    this.#byHand.push(running);
    return running;
  }

  /** Runs `ashlar ARGS --master …` and returns how it ended. */
  ashlar(...args: string[]): Promise<Finished> {
    return run(ASHLAR, args, { environment: { ...environment(), ASHLAR_MASTER: this.ready.master } });
  }
  /** Rejects unless the exit code is 0. */
  async ashlarWell(...args: string[]): Promise<string> {
    const finished = await this.ashlar(...args);
    if (finished.code !== 0)
      throw new Error(`ashlar ${args.join(' ')}: exit code ${finished.code}\n${finished.stdout}${finished.stderr}`);
    return finished.stdout;
  }
  async status(): Promise<ClusterStatus> {
    return JSON.parse(await this.ashlarWell('status', '--json')) as ClusterStatus;
  }
  /** Waits until every PG is active and nothing is missing. */
  async untilClean(timeoutMs = 60_000): Promise<void> {
    let last = '';
    const isClean = async (): Promise<boolean> => {
      const status = await this.status();
      last = JSON.stringify({ health: status.health, reasons: status.reasons, missing: status.missing });
      return status.health === 'clean';
    };
    await until('health clean', timeoutMs, isClean, 200).catch((error: Error) => {
      throw new Error(`${error.message}; last seen: ${last}`);
    });
  }

  /** Ctrl-C: everything stops in order. Rejects unless the exit code is 0 and no process is left. */
  async stop(): Promise<void> {
    const pids = this.processes().map((entry) => entry.pid);
    this.#up.kill('SIGINT');
    const late = setTimeout(() => this.#up.kill('SIGKILL'), STOP_MS);
    const finished = await this.#up.ended;
    clearTimeout(late);
    this.#ready = null;
    if (finished.code !== 0) throw new Error(`ashlar up, stopped by SIGINT: ${finished.code}\n${finished.stderr}`);
    const left = pids.filter(isAlive);
    if (left.length > 0) throw new Error(`processes left after a clean stop: ${left.join(', ')}`);
  }
  /** kill -9 of every process at the same moment, the parent too. */
  async killAll(): Promise<void> {
    const pids = [this.#up.hasEnded ? null : this.#up.pid, ...this.#runningPids()];
    for (const pid of pids) if (pid !== null) signal(pid);
    await this.#up.ended;
    for (const running of this.#byHand) await running.end();
    await until('all processes are gone', 10_000, () => !pids.some(isAlive), 20);
    this.#ready = null;
  }
  /** kill -9 of `ashlar up` alone; resolves when every child has noticed and stopped. */
  async killParent(): Promise<void> {
    const pids = this.#runningPids();
    this.#up.kill('SIGKILL');
    await this.#up.ended;
    await until('the children of a killed ashlar up stop by themselves', STOP_MS, () => !pids.some(isAlive), 50);
    this.#ready = null;
  }
  /** `ashlar up` in the same directory, after stop() or killAll(). @param more options from now on */
  async again(...more: string[]): Promise<void> {
    this.#argv.push(...more);
    this.#up = this.#launch();
    await this.#awaitReady();
  }

  #runningPids(): (number | null)[] {
    try {
      return this.processes().map((entry) => entry.pid);
    } catch {
      return []; // it never came so far
    }
  }
  #launch(): Running {
    return new Running(ASHLAR, this.#argv, { environment: tied() });
  }
  async #awaitReady(): Promise<void> {
    await until(
      'ashlar up is ready',
      READY_MS,
      () => {
        if (this.#up.hasEnded) throw new Error(`ashlar up ended:\n${this.#up.stderr}`);
        return this.#up.stdout.includes('\n');
      },
      50,
    ).catch((error: Error) => {
      throw new Error(`${error.message}\n${this.#up.stderr}`);
    });
    const line = /^ready (\{.*\})\n$/.exec(this.#up.stdout);
    if (line === null) throw new Error(`ashlar up said something else than one ready line: ${this.#up.stdout}`);
    this.#ready = JSON.parse(line[1]!) as Ready;
  }
}

/** A role started by hand, as `ashlar ROLE …`; resolves when it serves, with its address. Killed after the test. */
export function startRole(t: ExecutionContext, ...args: string[]): Promise<{ role: Running; address: string }> {
  return serving(t, new Running(ASHLAR, args, { environment: tied() }), args[0]!);
}
/**
 * The same with a memory file system of `size` mounted at `directory`, which only this role sees: it is gone when the
 * role is, however that came. Needs root.
 */
export function startRoleOnSmallDisk(
  t: ExecutionContext,
  directory: string,
  size: string,
  ...args: string[]
): Promise<{ role: Running; address: string }> {
  const script = `mount -t tmpfs -o size=${size} tmpfs "$0" && exec "$@"`;
  const argv = ['--mount', 'sh', '-c', script, directory, ASHLAR, ...args];
  return serving(t, new Running('unshare', argv, { environment: tied() }), args[0]!);
}
async function serving(t: ExecutionContext, role: Running, name: string): Promise<{ role: Running; address: string }> {
  t.teardown(() => role.end());
  await until(`${name} serves`, 30_000, () => {
    if (role.hasEnded) throw new Error(`${name} ended:\n${role.stderr}`);
    return role.stdout.includes('\n');
  });
  const { address } = JSON.parse(role.stdout.slice('listening '.length)) as { address: string };
  return { role, address };
}

/** Runs `ashlar` without a cluster. */
export const runAshlar = (...args: string[]): Promise<Finished> => run(ASHLAR, args);

function isAlive(pid: number | null): boolean {
  try {
    return pid !== null && process.kill(pid, 0) && !isZombie(pid);
  } catch {
    return false;
  }
}
function isZombie(pid: number): boolean {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  return stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z');
}
function signal(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // it is gone already
  }
}
