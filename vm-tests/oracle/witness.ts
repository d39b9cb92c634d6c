// The oracle as a test sees it: started as a process of its own, told what to do, asked what it saw.

import { dirname, join } from 'node:path';
import { environment, Running, until } from '../lib/processes.ts';
import type { Audit, Counts } from './device.ts';

export interface WitnessOptions {
  /** Its state directory: given again, it goes on with what was promised. */
  state: string;
  /** HOST:PORT/EXPORT each */
  targets: string[];
  blocks?: number;
  connections?: number;
  depth?: number;
  rate?: number;
  seed?: number;
  promise?: 'acked' | 'flushed';
  answerMs?: number;
}
export interface Status {
  gapMs: number;
  slowestMs: number;
  violations: number;
  connections: number[];
  counts: Record<string, Counts>;
}

const MAIN = join(import.meta.dirname, 'main.ts');
const ANSWER_MS = 120_000;

export class Witness {
  /** Sentences: every promise that was broken so far. */
  readonly violations: string[] = [];
  readonly #running: Running;
  readonly #answers: Record<string, unknown>[] = [];
  #isReady = false;

  private constructor(options: WitnessOptions) {
    const { state, targets, ...numbers } = options;
    const argv = [MAIN, '--state', state];
    for (const target of targets) argv.push('--target', target);
    for (const [name, value] of Object.entries(numbers))
      argv.push(`--${name === 'answerMs' ? 'answer-ms' : name}`, String(value));
    this.#running = new Running(process.execPath, argv, {
      cwd: dirname(import.meta.dirname),
      environment: environment(),
    });
    this.#running.onLine = (line) => this.#onLine(line);
  }
  /** Resolves when it has opened all its exports; the load has not begun. @param atEnd gets what must be called then */
  static async start(options: WitnessOptions, atEnd: (end: () => Promise<void>) => void): Promise<Witness> {
    const witness = new Witness(options);
    atEnd(() => witness.#running.end());
    await until('the oracle is ready', 30_000, () => witness.#lives() && witness.#isReady, 20);
    return witness;
  }

  get pid(): number {
    return this.#running.pid;
  }
  status(): Promise<Status> {
    return this.#ask('status');
  }
  audit(): Promise<Audit> {
    return this.#ask('audit');
  }
  async resume(): Promise<void> {
    await this.#ask('resume');
  }
  /** Times are counted from now. */
  async reset(): Promise<void> {
    await this.#ask('reset');
  }
  async pause(): Promise<void> {
    await this.#ask('pause');
  }
  /** The server lost what was not flushed. */
  async crash(): Promise<void> {
    await this.#ask('crash');
  }
  /** Resolves to its exit code: 0 if no promise was broken. */
  async stop(): Promise<number> {
    this.#running.child.stdin!.write('stop\n');
    return (await this.#running.ended).code ?? -1;
  }

  async #ask<Answer>(command: string): Promise<Answer> {
    this.#running.child.stdin!.write(`${command}\n`);
    const answer = () => this.#answers.findIndex((candidate) => candidate.command === command);
    await until(`the oracle's answer to ${command}`, ANSWER_MS, () => this.#lives() && answer() >= 0, 10);
    return this.#answers.splice(answer(), 1)[0] as Answer;
  }
  #lives(): boolean {
    if (this.#running.hasEnded) throw new Error(`the oracle ended:\n${this.#running.stderr}`);
    return true;
  }
  #onLine(line: string): void {
    if (!line.startsWith('{')) return;
    const message = JSON.parse(line) as Record<string, unknown>;
    if (message.event === 'ready') this.#isReady = true;
    else if (message.event === 'violation') this.violations.push(message.why as string);
    else if (message.command !== undefined) this.#answers.push(message);
  }
}
