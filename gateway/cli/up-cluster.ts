// The processes of `ashlar up`: started in order, watched, stopped in the opposite order.
//
//   master ──► daemons ──► pool and images ──► NBD gateway ──► every PG active ──► ready
//
// A process that dies is reported and stays dead (or is started again, with --restart); it takes nobody with it. The
// cluster itself heals: nothing here knows how.

import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { ControlLink } from '../../proto/control.ts';
import { checkFree } from './addresses.ts';
import { openMaster } from './control.ts';
import { type ProcessEntry, ProcessTable, readProcesses, runsArgv } from './process-table.ts';
import { type Listening, RoleProcess } from './role-process.ts';
import { NODE_OPTIONS_OF_ROLES, roleMain } from './roles.ts';
import { POOL_NAME, type Settings, type WantedImage } from './up-settings.ts';

/** Processes that an `ashlar up` left behind when it was killed stop by themselves; wait this long before saying no. */
const LEFTOVER_MS = 30_000;
/** A process that does not stop when told is killed: whatever was acked survives that. */
const STOP_MS = 25_000;
const LOOK_MS = 100;
/** Waiting for PGs is reported this often. */
const REPORT_MS = 5_000;
const RESTART_FIRST_MS = 200;
const RESTART_MAX_MS = 5_000;
/** One that ran this long and died gets a fresh start; one that keeps dying waits longer and longer. */
const RESTART_CALM_MS = 10_000;

interface Member {
  entry: ProcessEntry;
  process: RoleProcess;
  restartMs: number;
  startedAt: number;
}

export class UpCluster {
  /** For the person at the terminal. */
  readonly #say: (line: string) => void;
  readonly #directory: string;
  readonly #settings: Settings;
  readonly #restart: boolean;
  readonly #logLevel: string;
  readonly #table: ProcessTable;
  readonly #members: Member[] = [];
  #master: ControlLink | null = null;
  #stopping = false;

  constructor(
    directory: string,
    settings: Settings,
    options: { restart: boolean; logLevel: string },
    say: (line: string) => void,
  ) {
    this.#directory = directory;
    this.#settings = settings;
    this.#restart = options.restart;
    this.#logLevel = options.logLevel;
    this.#say = say;
    this.#table = new ProcessTable(directory);
    this.#table.onChange = (entry, event) =>
      say(
        event === 'adopted'
          ? `${titleOf(entry)} runs again, started by hand (pid ${entry.pid})`
          : `${titleOf(entry)}, started by hand, is gone`,
      );
  }

  get entries(): readonly ProcessEntry[] {
    return this.#table.entries;
  }

  /**
   * Rejects with a sentence for people if a process can't start; stop() must be called then too.
   * @param remember called when nothing stands in the way any more, before anything is made
   */
  async start(images: readonly WantedImage[], remember: () => void): Promise<void> {
    const { masterAddress, daemonAddresses, nbdAddress, nbdUnix, daemons } = this.#settings;
    await this.#awaitLeftovers();
    await checkFree(masterAddress, 'address of the master');
    for (const address of daemonAddresses) await checkFree(address, 'address of a daemon');
    if (nbdAddress !== '') await checkFree(nbdAddress, '--nbd');
    remember();
    for (const part of ['log', 'run']) mkdirSync(join(this.#directory, part), { recursive: true });

    await this.#run('master', 1, masterAddress, ['--dir', join(this.#directory, 'master'), '--listen', masterAddress]);
    this.#master = openMaster(masterAddress);
    const numbers = Array.from({ length: daemons }, (_, i) => i + 1);
    const isFresh = (number: number): boolean => !existsSync(this.#daemonDirectory(number));
    const fresh = numbers.filter(isFresh);
    await Promise.all(numbers.filter((number) => !isFresh(number)).map((number) => this.#runDaemon(number)));
    // New ones one after the other, so that the master numbers them as their directories are.
    for (const number of fresh) await this.#runDaemon(number);
    await this.#createMissing(images);
    const unix = nbdUnix === '' ? [] : ['--unix', nbdUnix];
    const tcp = nbdAddress === '' ? ['--listen', 'none'] : ['--listen', nbdAddress];
    await this.#run('nbd', 1, nbdAddress, ['--master', masterAddress, ...tcp, ...unix, '--take-over']);
    await this.#awaitActive();
  }

  /** Stops gateway, daemons and master, in this order. Never rejects. */
  async stop(): Promise<void> {
    this.#stopping = true;
    for (const role of ['nbd', 'daemon', 'master'] as const) {
      const members = this.#members.filter(({ entry }) => entry.role === role);
      await Promise.all(members.map((member) => this.#stopOne(member)));
    }
    this.#table.close();
  }

  /** Ends every child at once; what was acked survives. */
  killAll(): void {
    this.#stopping = true;
    for (const member of this.#members) member.process.kill('SIGKILL');
  }

  async status() {
    return this.#master!.call('status', {});
  }

  #daemonDirectory(number: number): string {
    return join(this.#directory, `daemon-${number}`);
  }

  #runDaemon(number: number): Promise<Member> {
    const address = this.#settings.daemonAddresses[number - 1]!;
    return this.#run('daemon', number, address, [
      '--dir',
      this.#daemonDirectory(number),
      '--master',
      this.#settings.masterAddress,
      '--listen',
      address,
      '--unix',
      'auto',
      '--domain',
      `daemon-${number}`,
    ]);
  }

  async #run(role: 'master' | 'daemon' | 'nbd', number: number, address: string, args: string[]): Promise<Member> {
    const name = `${role}-${number}`;
    const statusFile = join(this.#directory, 'run', `${name}.json`);
    rmSync(statusFile, { force: true });
    const argv = [
      process.execPath,
      ...NODE_OPTIONS_OF_ROLES,
      roleMain(role),
      ...args,
      '--log-level',
      this.#logLevel,
      '--status-file',
      statusFile,
    ];
    const entry: ProcessEntry = { role, id: number, pid: null, address, argv, cwd: process.cwd() };
    const child = new RoleProcess(titleOf(entry), argv, join(this.#directory, 'log', `${name}.log`));
    const member: Member = { entry, process: child, restartMs: RESTART_FIRST_MS, startedAt: 0 };
    child.onSlow = () => this.#say(`${child.title} takes long to start; its log is ${child.logPath}`);
    child.onExit = (why, log) => this.#onExit(member, why, log);
    this.#members.push(member);
    const listening = await this.#startMember(member);
    entry.id = typeof listening.id === 'number' ? listening.id : number;
    this.#table.add(entry, statusFile);
    return member;
  }

  async #startMember(member: Member): Promise<Listening> {
    if (this.#stopping) throw new Error('stopping');
    const listening = await member.process.start();
    member.startedAt = performance.now();
    member.entry.pid = listening.pid;
    return listening;
  }

  #onExit(member: Member, why: string, log: string): void {
    const { entry, process: child } = member;
    const pid = entry.pid;
    this.#table.setPid(entry, null);
    if (this.#stopping) return;
    if (!this.#restart) {
      const again = entry.argv.map(quoted).join(' ');
      this.#say(`${child.title} (pid ${pid}) ${why}; to start it again: cd ${quoted(entry.cwd)} && ${again}${log}`);
      return;
    }
    if (performance.now() - member.startedAt > RESTART_CALM_MS) member.restartMs = RESTART_FIRST_MS;
    this.#say(`${child.title} (pid ${pid}) ${why}; starting it again${log}`);
    this.#restartSoon(member);
  }

  #restartSoon(member: Member): void {
    const waitMs = member.restartMs;
    member.restartMs = Math.min(member.restartMs * 2, RESTART_MAX_MS);
    setTimeout(() => {
      if (this.#stopping || member.entry.pid !== null) return; // somebody was faster
      this.#startMember(member).then(
        () => this.#table.setPid(member.entry, member.process.pid),
        (error: Error) => {
          if (this.#stopping) return;
          this.#say(error.message);
          this.#restartSoon(member);
        },
      );
    }, waitMs);
  }

  /** Pool on the first start, images that are asked for and missing. Existing ones stay as they are. */
  async #createMissing(images: readonly WantedImage[]): Promise<void> {
    const master = this.#master!;
    const { pgCount, replicas, minSize, durability } = this.#settings;
    const status = await this.status();
    if (!status.pools.some((pool) => pool.name === POOL_NAME))
      await master.call('createPool', { name: POOL_NAME, pgCount, replicas, minSize, durability });
    for (const { name, sizeBytes } of images) {
      const existing = status.images.find((image) => image.name === name);
      if (existing === undefined)
        await master.call('createImage', {
          name,
          pool: POOL_NAME,
          sizeBytes,
          order: 20,
          stripeUnit: 2 ** 20,
          stripeCount: 1,
        });
      else if (existing.sizeBytes !== sizeBytes)
        this.#say(`image ${name} exists with ${existing.sizeBytes} bytes and stays so: see ashlar image resize`);
    }
  }

  async #awaitActive(): Promise<void> {
    for (let waited = LOOK_MS; ; waited += LOOK_MS) {
      if (this.#stopping) throw new Error('stopping');
      const status = await this.status();
      const wanted = status.pools.reduce((sum, pool) => sum + pool.pgCount, 0);
      if ((status.pgStates.active ?? 0) === wanted) return;
      if (waited % REPORT_MS === 0)
        this.#say(
          `waiting for placement groups: ${status.pgStates.active ?? 0} of ${wanted} active; ${status.reasons.join('; ')}`,
        );
      await sleep(LOOK_MS);
    }
  }

  async #awaitLeftovers(): Promise<void> {
    const left = () => readProcesses(this.#directory).filter(({ pid, argv }) => pid !== null && runsArgv(pid, argv));
    const first = left();
    if (first.length === 0) return;
    this.#say(
      `waiting for ${first.map((entry) => `${titleOf(entry)} (pid ${entry.pid})`).join(', ')} of an earlier start to stop`,
    );
    for (const entry of first) signal(entry.pid!, 'SIGTERM'); // those started by hand watch no pipe
    for (let waited = 0; left().length > 0; waited += LOOK_MS) {
      if (waited > LEFTOVER_MS)
        throw new Error(
          `${left().map(titleOf).join(', ')} of an earlier start did not stop in ${LEFTOVER_MS} ms: end them by hand`,
        );
      await sleep(LOOK_MS);
    }
  }

  async #stopOne({ entry, process: child }: Member): Promise<void> {
    const adopted = this.#table.isAdopted(entry);
    const pid = adopted ? entry.pid : child.pid; // a child that has not served yet is in no table
    if (pid === null) return;
    const gone = () => (adopted ? !runsArgv(pid, entry.argv) : child.pid === null);
    signal(pid, 'SIGTERM');
    for (let waited = 0; !gone(); waited += LOOK_MS / 4) {
      if (waited === STOP_MS) {
        this.#say(`${titleOf(entry)} (pid ${pid}) did not stop in ${STOP_MS} ms: killing it`);
        signal(pid, 'SIGKILL');
      }
      await sleep(LOOK_MS / 4);
    }
    if (adopted) this.#table.setPid(entry, null);
  }
}

export const titleOf = (entry: ProcessEntry): string =>
  entry.role === 'daemon' ? `daemon ${entry.id}` : entry.role === 'nbd' ? 'NBD gateway' : entry.role;

const quoted = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // it is gone already
  }
}
