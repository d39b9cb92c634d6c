// One child process of `ashlar up`: a role's main file on this very Node, its log in a file, its life watched.
//
//   start() ──► "listening {json}" on its stdout ──► onExit when it dies
//
// Children have a process group of their own (a terminal's Ctrl-C reaches only `ashlar up`, which stops them in order)
// and a pipe as standard input: when `ashlar up` is killed, the pipe ends and they stop by themselves. That wish travels
// in the environment, not in argv: one who starts the same argv by hand does not need a pipe.

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';

export interface Listening {
  readonly pid: number;
  readonly address: string;
  readonly [key: string]: unknown;
}

/** A role that takes longer than this to start is reported, not ended: recovery after a crash may take its time. */
const START_SLOW_MS = 10_000;
const LOG_TAIL_LINES = 8;

export class RoleProcess {
  /** "daemon 2", for people. */
  readonly title: string;
  readonly argv: readonly string[];
  readonly logPath: string;
  /** It served, and now it is gone. For people: what happened, and if it gave up by itself the end of its log. */
  onExit: ((why: string, log: string) => void) | null = null;
  /** It has not served yet, and takes long. */
  onSlow: (() => void) | null = null;
  #child: ChildProcess | null = null;

  constructor(title: string, argv: readonly string[], logPath: string) {
    this.title = title;
    this.argv = argv;
    this.logPath = logPath;
  }

  /** Starts it, and resolves with what it says of itself when it serves; rejects with the end of its log if it dies. */
  start(): Promise<Listening> {
    const log = openSync(this.logPath, 'a');
    const child = spawn(this.argv[0]!, this.argv.slice(1), {
      stdio: ['pipe', 'pipe', log],
      detached: true,
      env: roleEnvironment(),
    });
    closeSync(log);
    this.#child = child;
    child.stdin!.on('error', () => {}); // it died: 'exit' tells
    return new Promise((resolve, reject) => {
      let said = '';
      let serves = false;
      const slow = setTimeout(() => this.onSlow?.(), START_SLOW_MS);
      child.stdout!.setEncoding('utf8').on('data', (text: string) => {
        if (serves) return;
        said += text;
        const line = /^listening (\{.*\})\n/m.exec(said);
        if (line === null) return;
        serves = true;
        clearTimeout(slow);
        resolve(JSON.parse(line[1]!) as Listening);
      });
      child.on('error', (error) => {
        this.#child = null;
        clearTimeout(slow);
        reject(new Error(`${this.title} can't be started: ${error.message}`));
      });
      child.on('exit', (code, signal) => {
        this.#child = null;
        clearTimeout(slow);
        const why = signal === null ? `ended with exit code ${code}` : `was killed by ${signal}`;
        const log = `; the end of ${this.logPath}:\n${this.#logTail()}`;
        if (!serves) reject(new Error(`${this.title} ${why} before it served${log}`));
        else this.onExit?.(why, signal === null && code !== 0 ? log : '');
      });
    });
  }

  get pid(): number | null {
    return this.#child?.pid ?? null;
  }
  kill(signal: NodeJS.Signals): void {
    this.#child?.kill(signal);
  }

  #logTail(): string {
    const lines = readFileSync(this.logPath, 'utf8').trimEnd().split('\n');
    return lines.slice(-LOG_TAIL_LINES).map(shortened).join('\n');
  }
}

/** What a log line says, without time and numbers; anything that is no log line as it is. */
function shortened(line: string): string {
  try {
    const { level, msg, error } = JSON.parse(line) as { level: string; msg: string; error?: { message?: string } };
    const why = error?.message === undefined || msg.includes(error.message) ? '' : `: ${error.message}`;
    return `  ${level}: ${msg}${why}`;
  } catch {
    return `  ${line}`;
  }
}

/** This process's environment without its own options, which mean something else to a role. */
function roleEnvironment(): NodeJS.ProcessEnv {
  const environment: NodeJS.ProcessEnv = {};
  for (const [name, value] of Object.entries(process.env)) if (!name.startsWith('ASHLAR_')) environment[name] = value;
  environment.ASHLAR_STOP_WITH_PARENT = '1';
  return environment;
}
