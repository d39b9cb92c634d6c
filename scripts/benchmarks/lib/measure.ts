// One job on one side, with what it cost each process; and the figures of several rounds put together.
//
// The machine's speed moves from minute to minute: only the ratio of two runs one after the other says anything, so
// ratios are made per pair, and the median is taken of the ratios.

import { type FioResult, runJob } from './fio.ts';
import type { Job } from './jobs.ts';
import { Sampler } from './proc.ts';
import type { Subject } from './subjects.ts';

/** What one request costs the processes of a role, all of them together. */
export interface RoleCost {
  role: string;
  cpuUs: number;
  /** Times a thread went to sleep and was woken. */
  sleeps: number;
  /** read() and write() and their kin. */
  calls: number | null;
  /** Bytes sent towards the disk for each byte of the request. */
  diskBytesPerByte: number | null;
}

export interface Run extends FioResult {
  costs: RoleCost[];
  /** The most that one process of a role has held so far, in bytes. */
  residentMaxBytes: Record<string, number>;
}

export interface Pair {
  job: string;
  round: number;
  ours: Run | null;
  /** null if it failed, or if only ours was wanted. */
  theirs: Run | null;
  /** Of requests (or bytes) per second, ours to theirs. */
  ratio: number | null;
  failures: string[];
}

export async function measuredRun(subject: Subject, job: Job, seconds: number): Promise<Run> {
  const processes = subject.processes();
  const sampler = new Sampler(processes.map(({ pid }) => pid));
  let result: FioResult;
  try {
    result = await runJob(subject.uri, job, seconds);
  } finally {
    sampler.stop();
  }
  const roles = [...new Set(processes.map(({ role }) => role))];
  const residentMaxBytes: Record<string, number> = {};
  for (const { role, pid } of processes)
    residentMaxBytes[role] = Math.max(residentMaxBytes[role] ?? 0, sampler.residentMaxBytes(pid));
  return {
    ...result,
    costs: roles.map((role) =>
      costOf(
        role,
        processes.filter((each) => each.role === role).map(({ pid }) => pid),
        sampler,
        result,
      ),
    ),
    residentMaxBytes,
  };
}

function costOf(role: string, pids: readonly number[], sampler: Sampler, result: FioResult): RoleCost {
  const cost: RoleCost = { role, cpuUs: 0, sleeps: 0, calls: 0, diskBytesPerByte: 0 };
  for (const pid of pids) {
    const rates = sampler.rates(pid, result.fromMs, result.untilMs);
    if (rates === null) continue;
    cost.cpuUs += (rates.cpuMs * 1000) / result.iops;
    cost.sleeps += rates.sleeps / result.iops;
    if (rates.calls === null || cost.calls === null) cost.calls = null;
    else cost.calls += rates.calls / result.iops;
    if (rates.writtenBytes === null || cost.diskBytesPerByte === null) cost.diskBytesPerByte = null;
    else cost.diskBytesPerByte += rates.writtenBytes / result.bytesPerSecond;
  }
  return cost;
}

/** What a job is compared by. */
export const rateOf = (run: FioResult, job: Job): number =>
  job.unit === 'IOPS' ? run.iops : run.bytesPerSecond / 2 ** 20;

export interface JobSummary {
  job: Job;
  ours: number | null;
  theirs: number | null;
  ratio: number | null;
  ratioMin: number | null;
  ratioMax: number | null;
  /** null if there is no ratio. */
  reached: boolean | null;
  p50Us: number | null;
  p99Us: number | null;
  flushP50Us: number | null;
  flushP99Us: number | null;
  theirP50Us: number | null;
  theirP99Us: number | null;
  fioCpuUs: number | null;
  costs: RoleCost[];
  theirCosts: RoleCost[];
}

/** Medians over the rounds of a job. Failed runs are left out: they are told apart. */
export function summaryOf(job: Job, pairs: readonly Pair[]): JobSummary {
  const mine = pairs.filter((pair) => pair.job === job.name);
  const ours = mine.map((pair) => pair.ours).filter((run) => run !== null);
  const theirs = mine.map((pair) => pair.theirs).filter((run) => run !== null);
  const ratios = mine.map((pair) => pair.ratio).filter((ratio) => ratio !== null);
  const ratio = median(ratios);
  return {
    job,
    ours: median(ours.map((run) => rateOf(run, job))),
    theirs: median(theirs.map((run) => rateOf(run, job))),
    ratio,
    ratioMin: ratios.length === 0 ? null : Math.min(...ratios),
    ratioMax: ratios.length === 0 ? null : Math.max(...ratios),
    reached: ratio === null ? null : ratio >= job.target,
    p50Us: median(ours.map((run) => run.p50Us)),
    p99Us: median(ours.map((run) => run.p99Us)),
    flushP50Us: median(ours.map((run) => run.flushP50Us)),
    flushP99Us: median(ours.map((run) => run.flushP99Us)),
    theirP50Us: median(theirs.map((run) => run.p50Us)),
    theirP99Us: median(theirs.map((run) => run.p99Us)),
    fioCpuUs: median(ours.map((run) => run.cpuUsPerIo)),
    costs: medianCosts(ours),
    theirCosts: medianCosts(theirs),
  };
}

function medianCosts(runs: readonly Run[]): RoleCost[] {
  const roles = [...new Set(runs.flatMap((run) => run.costs.map(({ role }) => role)))];
  return roles.map((role) => {
    const costs = runs.flatMap((run) => run.costs.filter((cost) => cost.role === role));
    return {
      role,
      cpuUs: median(costs.map(({ cpuUs }) => cpuUs)) ?? 0,
      sleeps: median(costs.map(({ sleeps }) => sleeps)) ?? 0,
      calls: median(costs.map(({ calls }) => calls)),
      diskBytesPerByte: median(costs.map(({ diskBytesPerByte }) => diskBytesPerByte)),
    };
  });
}

/** The middle one, or the mean of the two in the middle; null if any value is missing or there is none. */
export function median(values: readonly (number | null)[]): number | null {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (sorted.length === 0 || sorted.length < values.length) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
