// One run of fio's NBD engine, and what its JSON says.

import { BenchmarkError, Child } from './children.ts';
import { IMAGE_BYTES, type Job } from './jobs.ts';

/** The first second of a run warms caches up and is not counted. */
const RAMP_SECONDS = 1;
/** After the last request fio takes some 10 ms to hang up and end: servers then end threads, and with them their figures. */
const EXIT_MS = 50;
/** A run that takes this much longer than asked hangs: it is ended, and its job counts as failed. */
const OVERTIME_MS = 60_000;

export interface FioResult {
  iops: number;
  bytesPerSecond: number;
  /** Completion latency of the requests themselves. */
  p50Us: number;
  p99Us: number;
  /** Of the flushes, where the job flushes. */
  flushP50Us: number | null;
  flushP99Us: number | null;
  /** User and system time of fio, microseconds per request. */
  cpuUsPerIo: number;
  /** The counted part of the run, on the clock of performance.now(). */
  fromMs: number;
  untilMs: number;
}

/** The value of result.json that is used here. */
interface Direction {
  iops: number;
  bw_bytes: number;
  total_ios: number;
  runtime: number;
  clat_ns: Percentiles;
}
interface Percentiles {
  percentile?: Record<string, number>;
}
export interface FioJob {
  error: number;
  job_runtime: number;
  usr_cpu: number;
  sys_cpu: number;
  read: Direction;
  write: Direction;
  sync: { lat_ns?: Percentiles };
}

/** Runs a job for `seconds` against an NBD URI. Rejects with a BenchmarkError if fio or any request fails. */
export async function runJob(uri: string, job: Job, seconds: number): Promise<FioResult> {
  const time = ['--time_based', `--runtime=${seconds}`, `--ramp_time=${RAMP_SECONDS}`];
  const output = await fio(uri, [...time, ...job.fioOptions], (seconds + RAMP_SECONDS) * 1000 + OVERTIME_MS);
  return resultOf(output, performance.now());
}

/** Runs fio once through the image. */
export async function runOnce(uri: string, options: readonly string[]): Promise<void> {
  await fio(uri, options, 5 * OVERTIME_MS);
}

async function fio(uri: string, options: readonly string[], timeoutMs: number): Promise<FioJob> {
  const args = [
    '--name=job',
    '--ioengine=nbd',
    `--uri=${uri}`,
    `--size=${IMAGE_BYTES}`,
    '--output-format=json',
    ...options,
  ];
  const child = new Child('fio', 'fio', args, { stopWithinMs: 0 });
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill('SIGKILL');
  }, timeoutMs);
  const { code, signal } = await child.ended;
  clearTimeout(timer);
  if (late) throw new BenchmarkError(`fio did not end within ${timeoutMs / 1000} s: some request was never answered`);
  if (code !== 0)
    throw new BenchmarkError(`fio ended with ${signal ?? `exit code ${code}`}: ${firstError(child.stderr)}`);
  return parse(child.stdout);
}

/** fio says "connected to NBD server" on stdout too, before the JSON. */
export function parse(stdout: string): FioJob {
  const start = stdout.indexOf('{');
  if (start < 0) throw new BenchmarkError(`fio printed no JSON: ${stdout.slice(0, 200)}`);
  const [job] = (JSON.parse(stdout.slice(start)) as { jobs: FioJob[] }).jobs;
  if (job === undefined) throw new BenchmarkError('fio ran no job');
  if (job.error !== 0) throw new BenchmarkError(`fio counts an I/O error: errno ${job.error}`);
  return job;
}

/** @param endMs when fio ended */
export function resultOf(job: FioJob, endMs: number): FioResult {
  const direction = job.read.total_ios > 0 ? job.read : job.write;
  if (direction.total_ios === 0) throw new BenchmarkError('fio counts no request at all in the time of the run');
  const flushes = job.sync.lat_ns?.percentile;
  return {
    iops: direction.iops,
    bytesPerSecond: direction.bw_bytes,
    p50Us: microseconds(direction.clat_ns.percentile, 50),
    p99Us: microseconds(direction.clat_ns.percentile, 99),
    flushP50Us: flushes === undefined ? null : microseconds(flushes, 50),
    flushP99Us: flushes === undefined ? null : microseconds(flushes, 99),
    cpuUsPerIo: ((job.usr_cpu + job.sys_cpu) * 10 * job.job_runtime) / direction.total_ios,
    fromMs: endMs - direction.runtime,
    untilMs: endMs - EXIT_MS,
  };
}

function microseconds(percentiles: Record<string, number> | undefined, percent: number): number {
  const found = Object.entries(percentiles ?? {}).find(([name]) => Number(name) === percent);
  return found === undefined ? 0 : found[1] / 1000;
}

function firstError(stderr: string): string {
  const lines = stderr.trim().split('\n');
  return lines.find((line) => /error|fail|refus|unable|no such/i.test(line)) ?? lines[0] ?? '';
}
