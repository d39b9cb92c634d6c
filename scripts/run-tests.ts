// Runs the tests by part and counts them: what scripts/test does once packages are there.
//
//   check        type check, format and lint: one test each
//   unit         *.test.ts beside the files they test
//   fuzz         *.fuzz.test.ts: a million damaged inputs per decoder, or --inputs N of them
//   sim          *.test.ts in cluster/sim and *.sim.test.ts: whole clusters in one process, under a seed
//   integration  *.integration.test.ts, and vm-tests that need no kernel: real processes, real clients
//   vm           vm-tests/kernel-*.test.ts: a real kernel's block device and file systems
//   soak         only when asked for: faults on real processes (vm-tests/cycles) for --minutes M
//
// Every part has a time limit; what runs longer is ended by its process group and counts as failed. AVA speaks TAP,
// which is counted here; failures are shown whole, the rest as one line per part.

import { type ChildProcess, spawn } from 'node:child_process';
import { globSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';

const ROOT = dirname(import.meta.dirname);
const BIN = join(ROOT, 'node_modules', '.bin');

interface Count {
  passed: number;
  failed: number;
  skipped: string[];
}
interface Part {
  name: string;
  limitMs: number;
  /** Test files at the same time: real clusters and kernels share few cores. */
  concurrency: number;
  files: (all: readonly string[]) => string[];
}

const MINUTE = 60_000;
const isVm = (file: string): boolean => file.startsWith('vm-tests/kernel-');
const isIntegration = (file: string): boolean =>
  !isVm(file) && (file.startsWith('vm-tests/') || file.endsWith('.integration.test.ts'));
const isFuzz = (file: string): boolean => file.endsWith('.fuzz.test.ts');
const isSim = (file: string): boolean => file.startsWith('cluster/sim/') || file.endsWith('.sim.test.ts');

/**
 * Limits are for what hangs: several times what a quiet machine with two cores needs, since a busy one may take that. A whole
 * run is meant to stay below 15 minutes on a quiet one.
 */
const PARTS: Part[] = [
  {
    name: 'unit',
    limitMs: 8 * MINUTE,
    concurrency: availableParallelism(),
    files: (all) => all.filter((file) => !isVm(file) && !isIntegration(file) && !isSim(file) && !isFuzz(file)),
  },
  { name: 'fuzz', limitMs: 6 * MINUTE, concurrency: availableParallelism(), files: (all) => all.filter(isFuzz) },
  { name: 'sim', limitMs: 10 * MINUTE, concurrency: availableParallelism(), files: (all) => all.filter(isSim) },
  { name: 'integration', limitMs: 15 * MINUTE, concurrency: 3, files: (all) => all.filter(isIntegration) },
  { name: 'vm', limitMs: 5 * MINUTE, concurrency: 2, files: (all) => all.filter(isVm) },
];
const CHECKS: [string, string[]][] = [
  ['type check', ['tsc', '--noEmit']],
  ['format and lint', ['biome', 'check', '.']],
];
const CHECK_LIMIT_MS = 2 * MINUTE;
/** The last cycle of a soak, and the comparison of all copies, may take so much longer. */
const SOAK_END_MINUTES = 15;

const children = new Set<ChildProcess>();
function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  try {
    process.kill(-child.pid!, signal);
  } catch {
    // it is gone already
  }
}
/** A test's process that is told to end kills what it started; one that does not obey is killed. */
const OBEY_MS = 5_000;
function end(child: ChildProcess): Promise<void> {
  signalGroup(child, 'SIGTERM');
  return new Promise((resolve) => {
    const timer = setTimeout(() => signalGroup(child, 'SIGKILL'), OBEY_MS);
    child.on('close', () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.on(signal, () => void Promise.all([...children].map(end)).then(() => process.exit(1)));

/** Runs a program of node_modules/.bin, its output line by line to `onLine`. Resolves to why it failed, or null. */
function runTool(args: string[], limitMs: number, onLine: (line: string) => void): Promise<string | null> {
  const [tool, ...rest] = args;
  const path = `${BIN}:${process.env.PATH}`; // so that "#!/usr/bin/env node" is the pinned Node
  const child = spawn(join(BIN, tool!), rest, {
    cwd: ROOT,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, PATH: path },
  });
  children.add(child);
  for (const stream of [child.stdout, child.stderr]) {
    let partial = '';
    stream.setEncoding('utf8').on('data', (text: string) => {
      const lines = (partial + text).split('\n');
      partial = lines.pop()!;
      lines.forEach(onLine);
    });
    stream.on('end', () => partial !== '' && onLine(partial));
  }
  return new Promise((resolve) => {
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      void end(child);
    }, limitMs);
    child.on('error', (error) => resolve(`${tool} can't be run: ${error.message}`));
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      children.delete(child);
      if (late) resolve(`${tool} took more than ${limitMs / 1000} s and was ended`);
      else resolve(code === 0 ? null : `${tool} ended with ${signal ?? `exit code ${code}`}`);
    });
  });
}

async function runChecks(): Promise<Count> {
  const count: Count = { passed: 0, failed: 0, skipped: [] };
  for (const [name, args] of CHECKS) {
    const lines: string[] = [];
    const why = await runTool(args, CHECK_LIMIT_MS, (line) => lines.push(line));
    if (why === null) count.passed++;
    else {
      count.failed++;
      console.log(`not ok - ${name}: ${why}\n${lines.join('\n')}`);
    }
  }
  return count;
}

/** Cycles of faults until the time is over, or one fails. What is printed tells seed and story. */
async function runSoak(minutes: string, seed: string | undefined, kind: string): Promise<Count> {
  const count: Count = { passed: 0, failed: 0, skipped: [] };
  const args = ['node', 'vm-tests/cycles/soak.ts', '--minutes', minutes, '--kind', kind];
  if (seed !== undefined) args.push('--seed', seed);
  const why = await runTool(args, (Number(minutes) + SOAK_END_MINUTES) * MINUTE, (line) => {
    if (/Z cycle \d+: /.test(line)) count.passed++;
    console.log(line);
  });
  if (why !== null) {
    count.failed++;
    console.log(`not ok - soak: ${why}`);
  }
  return count;
}

async function runPart(part: Part, all: readonly string[], avaOptions: readonly string[]): Promise<Count> {
  const count: Count = { passed: 0, failed: 0, skipped: [] };
  const files = part.files(all);
  if (files.length === 0) {
    console.log(`not ok - ${part.name}: there are no test files`);
    return { ...count, failed: 1 };
  }
  let inFailure = false; // what follows a "not ok" line, up to the next test, explains it
  const why = await runTool(
    ['ava', '--tap', '--concurrency', String(part.concurrency), ...avaOptions, ...files],
    part.name === 'fuzz' ? part.limitMs * inputsMore : part.limitMs,
    (line) => {
      const result = /^(not )?ok \d+ - (.*?)( # (SKIP|TODO).*)?$/.exec(line);
      if (result === null) {
        // The process of a test file ended while a test waited for something that never came.
        const unfinished = /^# (\d+) tests? remaining in (.*)$/.exec(line);
        if (unfinished !== null) {
          count.failed += Number(unfinished[1]);
          console.log(`not ok - ${unfinished[2]} ended with ${unfinished[1]} unfinished`);
        } else if (inFailure || !/^(TAP version|\d+\.\.\d+|#|\s*$)/.test(line)) console.log(line);
        return;
      }
      const [, not, title, , directive] = result;
      inFailure = not !== undefined && directive === undefined;
      if (directive !== undefined) count.skipped.push(title!);
      else if (not === undefined) count.passed++;
      else {
        count.failed++;
        console.log(line);
      }
    },
  );
  if (why !== null && count.failed === 0) {
    count.failed = 1;
    console.log(`not ok - ${part.name}: ${why}`);
  } else if (why?.includes('took more than')) {
    count.failed++;
    console.log(`not ok - ${part.name}: ${why}`);
  }
  return count;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seeds: { type: 'string' },
    seed: { type: 'string' },
    inputs: { type: 'string' },
    match: { type: 'string' },
    minutes: { type: 'string' },
  },
});
const known = ['check', ...PARTS.map((part) => part.name)];
const unknown = positionals.filter((name) => name !== 'soak' && !known.includes(name));
if (unknown.length > 0) {
  console.error(`test: there is no part "${unknown[0]}": choose from ${known.join(', ')}, soak, or none for all`);
  process.exit(2);
}
for (const name of ['seeds', 'seed', 'inputs', 'minutes'] as const) {
  const value = values[name];
  if (value === undefined) continue;
  if (!/^\d+$/.test(value)) {
    console.error(`test: --${name} must be a whole number, not "${value}"`);
    process.exit(2);
  }
  process.env[`ASHLAR_${name.toUpperCase()}`] = value; // cluster/sim and scripts/fuzz read them
}
/** More inputs than a test run has take longer, as whoever asked for them knows. */
const inputsMore = Math.max(1, Number(values.inputs ?? 0) / 1_000_000);

const chosen = positionals.length === 0 ? known : [...known, 'soak'].filter((name) => positionals.includes(name));
const all = globSync('{proto,cluster,gateway,scripts,vm-tests}/**/*.test.ts', {
  cwd: ROOT,
  exclude: (path) => path.includes('node_modules'),
}).sort();
const total: Count = { passed: 0, failed: 0, skipped: [] };
for (const name of chosen) {
  const start = performance.now();
  const part = PARTS.find((candidate) => candidate.name === name);
  const avaOptions = values.match === undefined ? [] : ['--match', values.match];
  let count: Count;
  if (name === 'soak') count = await runSoak(values.minutes ?? '10', values.seed, values.match ?? '');
  else count = part === undefined ? await runChecks() : await runPart(part, all, avaOptions);
  total.passed += count.passed;
  total.failed += count.failed;
  total.skipped.push(...count.skipped);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(
    `${name}: ${count.passed} passed, ${count.failed} failed, ${count.skipped.length} skipped in ${seconds} s`,
  );
}
for (const title of total.skipped) console.log(`skipped: ${title}`);
if (total.passed + total.failed === 0) {
  console.log('nothing ran');
  total.failed = 1;
}
const skipped = total.skipped.length === 0 ? '' : `, ${total.skipped.length} skipped`;
console.log(`${total.passed} passed, ${total.failed} failed${skipped}`);
process.exit(total.failed === 0 ? 0 : 1);
