// A cluster of real processes in which every link leads through the fault proxy, and any process can be killed, stopped
// and started again.
//
//   oracle ─► [proxy] ─► gateway ─► [proxy] ─► daemon-1 ─► [proxy] ─► daemon-2 …        everybody ─► [proxy] ─► master
//
// Roles are started by their main files as `ashlar up` does it, but with addresses of the proxy: --advertise, --master,
// and no unix sockets. As root the last daemon has a small disk of its own, a memory file system that only it and a
// process which holds it can see, so that it can be filled and nothing stays mounted whatever happens.

import { mkdirSync, readFileSync, statfsSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { type MasterLink, openControlLink } from '../../cluster/world/grpc-link.ts';
import type { ClusterStatus } from '../../proto/control.ts';
import { environment, Running, until } from '../lib/processes.ts';
import { FaultProxy, type Peer } from './fault-proxy.ts';

const ROOT = dirname(dirname(import.meta.dirname));
const MAIN = { master: 'cluster/master/main.ts', daemon: 'cluster/daemon/main.ts', gateway: 'gateway/nbd/main.ts' };
const START_MS = 60_000;
const STOP_MS = 30_000;
const LOG_BYTES = 32 * 2 ** 20;
const SMALL_DISK_BYTES = 320 * 2 ** 20;

export interface LiveOptions {
  directory: string;
  daemons: number;
  replicas: number;
  /** NAME and the order of its objects. */
  images: { name: string; sizeBytes: number; order: number }[];
  random: () => number;
  smallDisk: boolean;
}
interface Role {
  name: string;
  argv: string[];
  running: Running | null;
  stopped: boolean;
}

export class LiveCluster {
  readonly proxy: FaultProxy;
  readonly #options: LiveOptions;
  readonly #roles = new Map<string, Role>();
  readonly #more: Peer[] = [];
  #control: MasterLink | null = null;
  #disk: Running | null = null;
  /** Where the oracle finds the gateway: through the proxy. */
  gatewayAddress = '';

  private constructor(options: LiveOptions) {
    this.#options = options;
    this.proxy = new FaultProxy(() => this.#peers(), options.random);
  }
  static async start(options: LiveOptions, atEnd: (end: () => Promise<void>) => void): Promise<LiveCluster> {
    const cluster = new LiveCluster(options);
    atEnd(() => cluster.#destroy());
    await cluster.#start();
    return cluster;
  }

  /** "master", "daemon-1" …, "gateway" */
  get names(): string[] {
    return [...this.#roles.keys()];
  }
  get daemons(): string[] {
    return this.names.filter((name) => name.startsWith('daemon'));
  }
  /** Another process that connects through the proxy. */
  know(peer: Peer): void {
    this.#more.push(peer);
  }
  /** Where a daemon keeps its data, as this process sees it. */
  directoryOf(name: string): string {
    const path = join(this.#options.directory, name);
    return name === this.smallDaemon ? join('/proc', String(this.#disk!.pid), 'root', path, 'data') : path;
  }
  /** The daemon that has a small disk; null without root. */
  get smallDaemon(): string | null {
    return this.#options.smallDisk ? `daemon-${this.#options.daemons}` : null;
  }
  isRunning(name: string): boolean {
    const { running } = this.#roleOf(name);
    return running !== null && !running.hasEnded;
  }

  async kill(...names: string[]): Promise<void> {
    for (const name of names) this.#roleOf(name).running?.kill('SIGKILL');
    for (const name of names) {
      const role = this.#roleOf(name);
      await role.running?.ended;
      role.running = null;
      role.stopped = false;
    }
  }
  /** Starts what does not run; resolves when all of it serves. The gateway comes last: it needs a master to start. */
  async startAgain(...names: string[]): Promise<void> {
    const run = (some: string[]): Promise<unknown> =>
      Promise.all(some.filter((name) => !this.isRunning(name)).map((name) => this.#run(this.#roleOf(name))));
    await run(names.filter((name) => name !== 'gateway'));
    await run(names.filter((name) => name === 'gateway'));
  }
  /** SIGSTOP: it lives and does nothing. */
  freeze(name: string): void {
    const role = this.#roleOf(name);
    role.running!.kill('SIGSTOP');
    role.stopped = true;
  }
  thaw(): void {
    for (const role of this.#roles.values()) {
      if (role.stopped) role.running?.kill('SIGCONT');
      role.stopped = false;
    }
  }

  status(): Promise<ClusterStatus> {
    return this.#control!.call('status', {});
  }
  /** Every daemon is up and every PG has all its copies; null, or what is missing. */
  async whyNotClean(): Promise<string | null> {
    try {
      const { health, reasons, daemons } = await this.status();
      const down = daemons.filter(({ up }) => !up).map(({ id }) => id);
      if (health === 'clean' && down.length === 0) return null;
      return `${health}, daemons down: ${down.join(', ') || 'none'}; ${reasons.slice(0, 4).join('; ')}`;
    } catch (error) {
      return (error as Error).message;
    }
  }
  control(): MasterLink {
    return this.#control!;
  }

  /** Leaves `freeBytes` on the small disk; 0 to undo it. */
  fillSmallDisk(freeBytes: number): void {
    const ballast = join(this.directoryOf(this.smallDaemon!), '..', 'ballast');
    writeFileSync(ballast, '');
    if (freeBytes === 0) return;
    const { bavail, bsize } = statfsSync(dirname(ballast));
    const chunk = Buffer.alloc(2 ** 20);
    for (let left = bavail * bsize - freeBytes; left > 0; left -= chunk.length)
      writeFileSync(ballast, chunk.subarray(0, Math.min(left, chunk.length)), { flag: 'a' });
  }

  /** Stops everything in order. Returns the daemons' directories. Throws if a process does not stop cleanly. */
  async stop(): Promise<string[]> {
    const directories = this.daemons.map((name) => this.directoryOf(name));
    for (const group of [['gateway'], this.daemons, ['master']])
      await Promise.all(
        group.map(async (name) => {
          const { running } = this.#roleOf(name);
          running!.kill('SIGTERM');
          await until(`${name} stops`, STOP_MS, () => running!.hasEnded);
          const { code } = await running!.ended;
          if (code !== 0) throw new Error(`${name}, told to stop, ended with ${code}`);
        }),
      );
    return directories;
  }
  /** Lines of all logs that must never be there. */
  alarms(): string[] {
    const alarm = /BUG|AssertionError|ERR_ASSERTION|uncaught error|unhandled rejection/;
    return this.names.flatMap((name) =>
      readFileSync(this.#logPath(name), 'utf8')
        .split('\n')
        .filter((line) => alarm.test(line))
        .map((line) => `${name}: ${line.slice(0, 600)}`),
    );
  }

  async #start(): Promise<void> {
    const { directory, daemons, replicas, images, smallDisk } = this.#options;
    mkdirSync(join(directory, 'log'), { recursive: true });
    const ports = await freePorts(daemons + 2);
    const [masterPort, gatewayPort, ...daemonPorts] = ports.map((port) => `127.0.0.1:${port}`);
    if (smallDisk) await this.#holdSmallDisk();
    const master = await this.proxy.forward('master', masterPort!);
    this.#declare('master', 'master', ['--dir', join(directory, 'master'), '--listen', masterPort!]);
    for (let i = 1; i <= daemons; i++) {
      const listen = daemonPorts[i - 1]!;
      const advertised = await this.proxy.forward(`daemon-${i}`, listen);
      const dir = join(directory, `daemon-${i}`);
      const argv = ['--dir', this.smallDaemon === `daemon-${i}` ? join(dir, 'data') : dir, '--master', master];
      argv.push('--listen', listen, '--advertise', advertised, '--unix', 'none', '--domain', `daemon-${i}`);
      this.#declare(`daemon-${i}`, 'daemon', [...argv, '--log-size', String(LOG_BYTES)]);
    }
    this.gatewayAddress = await this.proxy.forward('gateway', gatewayPort!);
    this.#declare('gateway', 'gateway', ['--master', master, '--listen', gatewayPort!, '--take-over']);
    this.#control = openControlLink(masterPort!);
    await this.startAgain('master');
    for (const name of this.daemons) await this.startAgain(name); // in this order they are numbered
    await until('all daemons are up', START_MS, async () => {
      const { daemons: known } = await this.status();
      return known.filter(({ up }) => up).length === daemons;
    });
    await this.#control.call('createPool', { name: 'rbd', pgCount: 32, replicas, minSize: 0, durability: 'flush' });
    for (const { name, sizeBytes, order } of images)
      await this.#control.call('createImage', {
        name,
        pool: 'rbd',
        sizeBytes,
        order,
        stripeUnit: 2 ** order,
        stripeCount: 1,
      });
    await this.startAgain('gateway');
    await until('the new cluster is clean', START_MS, async () => (await this.whyNotClean()) === null);
  }
  #declare(name: string, kind: keyof typeof MAIN, args: string[]): void {
    const argv = [process.execPath, '--max-semi-space-size=2', join(ROOT, MAIN[kind]), ...args];
    const small = name === this.smallDaemon;
    const enter = small ? ['nsenter', '--preserve-credentials', `--mount=/proc/${this.#disk!.pid}/ns/mnt`] : [];
    this.#roles.set(name, {
      name,
      argv: [...enter, ...argv, '--stop-with-parent'],
      running: null,
      stopped: false,
    });
  }
  /** Its file system lives as long as it, and the daemon in it, do. */
  async #holdSmallDisk(): Promise<void> {
    const at = join(this.#options.directory, this.smallDaemon!);
    mkdirSync(at, { recursive: true });
    const script = `mount -t tmpfs -o size=${SMALL_DISK_BYTES} tmpfs "$0" && mkdir "$0/data" && echo mounted && exec cat`;
    this.#disk = new Running('unshare', ['--mount', 'sh', '-c', script, at]);
    await until('the small disk is mounted', START_MS, () => {
      if (this.#disk!.hasEnded) throw new Error(`the small disk can't be mounted: ${this.#disk!.stderr}`);
      return this.#disk!.stdout.includes('mounted');
    });
  }
  async #run(role: Role): Promise<void> {
    const log = this.#logPath(role.name);
    const running = new Running('sh', ['-c', 'log=$0; exec "$@" 2>>"$log"', log, ...role.argv], {
      environment: { ...environment(), NODE_COMPILE_CACHE: join(ROOT, 'node_modules', '.cache', 'node-compile') },
    });
    role.running = running;
    await until(`${role.name} serves`, START_MS, () => {
      if (running.hasEnded) throw new Error(`${role.name} ended at once; its log is ${log}:\n${tailOf(log)}`);
      return running.stdout.includes('\n');
    });
  }
  #roleOf(name: string): Role {
    const role = this.#roles.get(name);
    if (role === undefined) throw new Error(`there is no ${name}`);
    return role;
  }
  #peers(): Peer[] {
    const running = [...this.#roles.values()].filter((role) => role.running !== null && !role.running.hasEnded);
    return [...running.map(({ name, running }) => ({ name, pid: running!.pid })), ...this.#more];
  }
  #logPath(name: string): string {
    return join(this.#options.directory, 'log', `${name}.log`);
  }
  async #destroy(): Promise<void> {
    for (const { running } of this.#roles.values()) await running?.end();
    await this.#disk?.end();
    this.#control?.close();
    this.proxy.close();
  }
}

const tailOf = (path: string): string => readFileSync(path, 'utf8').split('\n').slice(-6).join('\n');

/** Ports below those that the kernel gives to connections: a process that is away for a while finds its own free. */
async function freePorts(count: number): Promise<number[]> {
  const ports: number[] = [];
  while (ports.length < count) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    if (!ports.includes(port) && (await isFree(port))) ports.push(port);
  }
  return ports;
}
function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
