// Records where a running Node process spends its time or its memory, from now until stop(), without a restart: SIGUSR1
// makes Node open its inspector, which then speaks the DevTools protocol over a WebSocket.
//
// The process must have been started with PROFILED_ENVIRONMENT, so that every one of several gets a port of its own.

import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { BenchmarkError, sleep } from './children.ts';

/** Merged into NODE_OPTIONS: a free port of the loopback for each process. Costs nothing until SIGUSR1. */
export const INSPECTOR_OPTION = '--inspect-port=127.0.0.1:0';
const OPEN_MS = 5_000;
const SAMPLE_EVERY_US = 250;
const SAMPLE_EVERY_BYTES = 32 * 1024;

export type ProfileKind = 'cpu' | 'allocations';
export const SUFFIX: Record<ProfileKind, string> = { cpu: '.cpuprofile', allocations: '.heapprofile' };

/** One process whose inspector is open. */
export class Inspector {
  readonly #socket: WebSocket;
  readonly #waiting = new Map<number, { resolve: (result: unknown) => void; reject: (error: Error) => void }>();
  #nextId = 1;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.#onMessage(String(data));
    socket.onclose = () => {
      for (const { reject } of this.#waiting.values()) reject(new BenchmarkError('the profiled process went away'));
      this.#waiting.clear();
    };
  }

  /** @param logPath where standard error of the process goes: Node writes there where its inspector listens */
  static async open(pid: number, logPath: string): Promise<Inspector> {
    const sizeBefore = statSync(logPath).size;
    process.kill(pid, 'SIGUSR1');
    for (let waited = 0; waited < OPEN_MS; waited += 50) {
      // An inspector stays open: the line may be an old one.
      const log = readFileSync(logPath, 'utf8');
      const url =
        /Debugger listening on (ws:\S+)/.exec(log.slice(sizeBefore))?.[1] ?? lastUrl(log.slice(0, sizeBefore));
      if (url !== undefined) return new Inspector(await connected(url));
      await sleep(50);
    }
    throw new BenchmarkError(`process ${pid} did not open its inspector within ${OPEN_MS} ms; its log is ${logPath}`);
  }

  async start(kind: ProfileKind): Promise<void> {
    if (kind === 'cpu') {
      await this.#call('Profiler.enable', {});
      await this.#call('Profiler.setSamplingInterval', { interval: SAMPLE_EVERY_US });
      await this.#call('Profiler.start', {});
    } else
      await this.#call('HeapProfiler.startSampling', {
        samplingInterval: SAMPLE_EVERY_BYTES,
        includeObjectsCollectedByMajorGC: true, // short-lived garbage is what is looked for
        includeObjectsCollectedByMinorGC: true,
      });
  }
  /** Ends the recording and writes it to `path`, which Chrome's DevTools and editors open. */
  async stop(kind: ProfileKind, path: string): Promise<void> {
    const result = await this.#call(kind === 'cpu' ? 'Profiler.stop' : 'HeapProfiler.stopSampling', {});
    writeFileSync(path, JSON.stringify((result as { profile: unknown }).profile));
    this.#socket.close();
  }

  #call(method: string, params: object): Promise<unknown> {
    const id = this.#nextId++;
    this.#socket.send(JSON.stringify({ id, method, params }));
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }
  #onMessage(text: string): void {
    const { id, result, error } = JSON.parse(text) as { id?: number; result?: unknown; error?: { message: string } };
    const waiting = id === undefined ? undefined : this.#waiting.get(id);
    if (id === undefined || waiting === undefined) return; // an event
    this.#waiting.delete(id);
    if (error === undefined) waiting.resolve(result);
    else waiting.reject(new BenchmarkError(`the profiled process refuses: ${error.message}`));
  }
}

const lastUrl = (log: string): string | undefined => [...log.matchAll(/Debugger listening on (ws:\S+)/g)].at(-1)?.[1];

function connected(url: string): Promise<WebSocket> {
  const socket = new WebSocket(url);
  return new Promise((resolve, reject) => {
    socket.onopen = () => resolve(socket);
    socket.onerror = () => reject(new BenchmarkError(`the inspector at ${url} does not answer`));
  });
}
