// A role's process from start to end: says when it is ready, stops cleanly once, and never dies without a word.
//
//   start() ──► "listening {json}" on stdout ──► SIGINT, SIGTERM or end of stdin ──► stop() ──► exit 0
//                                                second signal, or stop() takes too long ──► exit 1 at once
//   uncaught error, or fail() ──► logged ──► exit 1, without stop(): what is unknown must not be written down
//
// The parent (ashlar up) reads the line from the pipe, and the status file for roles that somebody restarted by hand.

import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import type { Log } from '../../proto/ports.ts';
import { openLog } from './log.ts';
import { EXIT_USAGE, type OptionSpec, UsageError } from './options.ts';

/** Options that every role has: `const options = parseOptions('master', '…', [...ROLE_OPTIONS, …])`. */
export const ROLE_OPTIONS = [
  { name: 'log-level', kind: 'string', default: 'info', help: 'debug, info, warn, error or silent' },
  { name: 'status-file', kind: 'string', default: '', help: 'file that says pid and address while the role serves' },
  { name: 'stop-with-parent', kind: 'flag', default: false, help: 'stop when standard input ends' },
] as const satisfies readonly OptionSpec[];

export interface RoleOptions {
  readonly logLevel: string;
  readonly statusFile: string;
  readonly stopWithParent: boolean;
}

export interface Life {
  readonly log: Log;
  /** The role can't go on (its disk failed, say): logs `why` and ends the process with exit code 1, at once. */
  fail(why: string, error?: unknown): never;
  /** The same as SIGTERM: somebody asked the role to end. */
  stop(reason: string): void;
}

export interface Running {
  /** What others need to find it; at least the real address. Printed as JSON. */
  readonly listening: { readonly address: string } & Readonly<Record<string, unknown>>;
  /** Ends it cleanly. The process exits with 0 when this resolves, with 1 if it rejects. */
  stop(): Promise<void>;
}

/** A stop that takes longer is cut off: everything acked survives a kill anyway. */
const STOP_WITHIN_MS = 20_000;

/**
 * Runs a role to its end; never returns in practice. Errors of `start` are printed and end the process: exit code 2 for
 * a UsageError, else 1.
 */
export async function runRole(
  role: string,
  options: RoleOptions,
  start: (life: Life) => Promise<Running>,
): Promise<void> {
  const log = openLogOrExit(role, options.logLevel);
  let running: Running | null = null;
  let stopping = false;

  function fail(why: string, error?: unknown): never {
    log.error(why, error === undefined ? {} : { error });
    process.exit(1);
  }
  function stop(reason: string): void {
    if (stopping) {
      log.warn('told to stop again: ending at once', { reason });
      process.exit(1);
    }
    stopping = true;
    log.info('stopping', { reason });
    if (running === null) process.exit(0); // nothing was promised to anybody yet
    setTimeout(() => fail(`did not stop within ${STOP_WITHIN_MS} ms: ending at once`), STOP_WITHIN_MS);
    running.stop().then(
      () => {
        removeStatus(options.statusFile);
        log.info('stopped');
        process.exit(0);
      },
      (error: unknown) => fail('failed to stop cleanly', error),
    );
  }

  process.on('uncaughtException', (error) => fail('uncaught error', error));
  process.on('unhandledRejection', (error) => fail('unhandled rejection', error));
  process.on('SIGTERM', () => stop('SIGTERM'));
  process.on('SIGINT', () => stop('SIGINT'));
  process.stdout.on('error', () => {}); // a parent that went away does not stop the role
  if (options.stopWithParent) {
    process.stdin.on('end', () => stopping || stop('standard input ended'));
    process.stdin.on('error', () => stopping || stop('standard input broke'));
    process.stdin.resume();
  }

  try {
    running = await start({ log, fail, stop });
  } catch (error) {
    if (error instanceof UsageError) {
      process.stderr.write(`${role}: ${error.message}\n`);
      process.exit(EXIT_USAGE);
    }
    fail(`${role} can't start: ${(error as Error).message}`, error);
  }
  writeStatus(options.statusFile, role, running);
  process.stdout.write(`listening ${JSON.stringify({ role, pid: process.pid, ...running.listening })}\n`);
  log.info('listening', running.listening);
}

function openLogOrExit(role: string, level: string): Log {
  try {
    return openLog(role, level);
  } catch (error) {
    process.stderr.write(`${role}: ${(error as Error).message}\n`);
    process.exit(EXIT_USAGE);
  }
}

function writeStatus(path: string, role: string, running: Running): void {
  if (path === '') return;
  const temporary = `${path}.${process.pid}`;
  writeFileSync(temporary, `${JSON.stringify({ role, pid: process.pid, ...running.listening })}\n`);
  renameSync(temporary, path);
}

/** Only if it is still ours: another process of the same role may have taken over. */
function removeStatus(path: string): void {
  if (path === '') return;
  try {
    if ((JSON.parse(readFileSync(path, 'utf8')) as { pid: number }).pid === process.pid) rmSync(path);
  } catch {
    // gone already, or unreadable: nothing to take back
  }
}
