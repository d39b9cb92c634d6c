// Measures the gateway alone: the server on images in memory against `nbdkit memory`, job by job in turn, with fio.
//
//   node gateway/nbd/bench.ts [--seconds 8] [--rounds 1] [--jobs randread-q32,...]
//
// Prints operations per second of both and their ratio. The machine's speed moves from minute to minute: only a ratio of
// two runs in a row says anything. `node --cpu-prof` on this file profiles the server (fio and nbdkit are children).

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { openClock } from '../../cluster/world/clock.ts';
import { MemoryImageClient } from './memory-image.ts';
import { startNbdServer } from './server.ts';

const JOBS: Record<string, string[]> = {
  'randread-q32': ['--rw=randread', '--bs=4k', '--iodepth=32'],
  'randwrite-q32': ['--rw=randwrite', '--bs=4k', '--iodepth=32'],
  'randread-q1': ['--rw=randread', '--bs=4k', '--iodepth=1'],
  'randwrite-q1': ['--rw=randwrite', '--bs=4k', '--iodepth=1'],
  'write-1m-q16': ['--rw=write', '--bs=1M', '--iodepth=16'],
  'read-1m-q16': ['--rw=read', '--bs=1M', '--iodepth=16'],
};

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '8' },
    rounds: { type: 'string', default: '1' },
    jobs: { type: 'string', default: Object.keys(JOBS).join(',') },
    alone: { type: 'boolean', default: false },
  },
});
const quiet = { debug: () => {}, info: () => {}, warn: console.error, error: console.error };
const directory = mkdtempSync(join(tmpdir(), 'nbd-bench-'));
const ours = join(directory, 'ours.sock');
const theirs = join(directory, 'nbdkit.sock');

const client = new MemoryImageClient();
client.add('bench', 2 ** 30);
const server = await startNbdServer({
  client,
  listen: null,
  unixPath: ours,
  takeOver: false,
  readOnly: false,
  log: quiet,
  clock: openClock(),
});
const nbdkit = spawn('nbdkit', ['-f', '-U', theirs, 'memory', '1G'], { stdio: 'inherit' });
try {
  for (const uri of [uriOf(ours), uriOf(theirs)]) await fio(uri, ['--rw=write', '--bs=1M', '--iodepth=16'], null);
  for (const job of values.jobs.split(',')) {
    const options = JOBS[job];
    if (options === undefined) throw new Error(`unknown job ${job}; there are ${Object.keys(JOBS).join(', ')}`);
    for (let round = 0; round < Number(values.rounds); round++) {
      const our = await measured(() => fio(uriOf(ours), options, values.seconds), process.pid);
      const their = values.alone
        ? null
        : await measured(() => fio(uriOf(theirs), options, values.seconds), nbdkit.pid!);
      const ratio = their === null ? '' : `  to nbdkit ${said(their)}  ratio ${(our.rate / their.rate).toFixed(2)}`;
      console.log(`${job}: ours ${said(our)}${ratio}`);
    }
  }
} finally {
  nbdkit.kill();
  await server.close();
  rmSync(directory, { recursive: true });
}

interface Measured {
  rate: number;
  cpuMs: number;
  operations: number;
}
function said(m: Measured): string {
  return `${m.rate.toFixed(0)}/s, ${((m.cpuMs * 1_000) / m.operations).toFixed(1)} us of CPU each`;
}

/** A run, and what the server's process spent on it. */
async function measured(run: () => Promise<Omit<Measured, 'cpuMs'>>, pid: number): Promise<Measured> {
  const before = cpuMsOf(pid);
  const result = await run();
  return { ...result, cpuMs: cpuMsOf(pid) - before };
}

/** User and system time of a process so far, from /proc, whose clock ticks last 10 ms. */
function cpuMsOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

function uriOf(path: string): string {
  return path === ours ? `nbd+unix:///bench?socket=${path}` : `nbd+unix:///?socket=${path}`;
}

/** Operations per second, and how many in all. @param seconds null: once through the image */
function fio(
  uri: string,
  options: readonly string[],
  seconds: string | null,
): Promise<{ rate: number; operations: number }> {
  const time = seconds === null ? [] : ['--time_based', `--runtime=${seconds}`];
  const common = ['--name=j', '--ioengine=nbd', `--uri=${uri}`, '--size=1G', '--output-format=json'];
  const child = spawn('fio', [...common, ...time, ...options], { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  child.stdout.on('data', (chunk) => {
    output += chunk;
  });
  return new Promise((resolve, reject) => {
    child.on('close', (status) => {
      if (status !== 0) return reject(new Error(`fio ended with status ${status}: ${output}`));
      const [result] = JSON.parse(output.slice(output.indexOf('{'))).jobs;
      resolve({
        rate: result.read.iops + result.write.iops,
        operations: result.read.total_ios + result.write.total_ios,
      });
    });
  });
}
