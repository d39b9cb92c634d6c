// For tests: a real etcd of one member, in a directory and on loopback ports of its own, ended by its pid.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { openEtcd } from './etcd-client.ts';

const PROGRAM = 'etcd';
const SERVES_WITHIN_MS = 30_000;

const programs = (process.env.PATH ?? '').split(delimiter).map((directory) => join(directory, PROGRAM));

/** Why the tests with a real etcd can't run here, or null. As root, scripts/test has installed it: then one fails. */
export function whyNoEtcd(): string | null {
  const found = programs.some((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
  return found || process.env.ASHLAR_TEST_STRICT === '1' ? null : `needs program ${PROGRAM}`;
}

const running = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

export class EtcdProcess {
  /** "host:port" of its API. */
  readonly endpoint: string;
  readonly #directory: string;
  readonly #peer: string;
  #child: ChildProcess | null = null;
  #said = '';

  private constructor(endpoint: string, peer: string) {
    this.endpoint = endpoint;
    this.#peer = peer;
    this.#directory = mkdtempSync(join(tmpdir(), 'ashlar-etcd-'));
  }

  static async start(): Promise<EtcdProcess> {
    const [endpoint, peer] = await freePorts(2);
    const etcd = new EtcdProcess(`127.0.0.1:${endpoint}`, `127.0.0.1:${peer}`);
    await etcd.start();
    return etcd;
  }

  /** Starts it again, with all that it had. Resolves when it answers. */
  async start(): Promise<void> {
    const args = [
      ...['--name', 'only', '--data-dir', join(this.#directory, 'data')],
      ...['--listen-client-urls', `http://${this.endpoint}`, '--advertise-client-urls', `http://${this.endpoint}`],
      ...['--listen-peer-urls', `http://${this.#peer}`, '--initial-advertise-peer-urls', `http://${this.#peer}`],
      ...['--initial-cluster', `only=http://${this.#peer}`],
    ];
    const child = spawn(PROGRAM, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.#child = child;
    running.add(child);
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#said = (this.#said + text).slice(-4_000);
    });
    child.on('error', (error) => {
      this.#said += String(error);
    });
    const store = openEtcd([this.endpoint]);
    try {
      for (const end = performance.now() + SERVES_WITHIN_MS; ; ) {
        const answer = await store.get('/').then(
          () => null,
          (error: unknown) => error,
        );
        if (answer === null) return;
        if (performance.now() > end || child.exitCode !== null || child.pid === undefined)
          throw new Error(`etcd does not serve: ${String(answer)}\n${this.#said}`);
        await sleep(50);
      }
    } finally {
      store.close();
    }
  }

  async stop(signal: NodeJS.Signals): Promise<void> {
    const child = this.#child;
    if (child === null) return;
    this.#child = null;
    running.delete(child);
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill(signal);
    await gone;
  }

  async remove(): Promise<void> {
    await this.stop('SIGKILL');
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Ports on loopback that were free a moment ago. */
async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  const ports: number[] = [];
  for (const server of servers) {
    if (!server.listening) await once(server, 'listening');
    ports.push((server.address() as { port: number }).port);
  }
  for (const server of servers) {
    server.close();
    await once(server, 'close');
  }
  return ports;
}
