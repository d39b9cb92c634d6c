// The figures as tables, for a terminal or as Markdown, and which targets they reach.

import type { JobSummary, Pair, RoleCost } from './measure.ts';

/** "About 0": an idle process wakes for heartbeats and timers, and this is what they may cost. */
export const IDLE_CPU_TARGET_MS_PER_S = 5;
export const RESIDENT_TARGET_BYTES = 250 * 2 ** 20;

/** One of our processes with nothing attached. */
export interface Idle {
  role: string;
  id: number;
  cpuMsPerSecond: number;
}

export interface Findings {
  /** Machine, versions, options: one line each. */
  circumstances: string[];
  summaries: JobSummary[];
  pairs: Pair[];
  /** Empty if it was not measured. */
  idle: Idle[];
  /** The most that one process of a role ever held. */
  residentMaxBytes: Record<string, number>;
}

export interface Target {
  what: string;
  wanted: string;
  found: string;
  reached: boolean | null;
}

export function targetsOf({ summaries, idle, residentMaxBytes }: Findings): Target[] {
  const targets: Target[] = summaries.map(({ job, ratio, reached }) => ({
    what: job.title,
    wanted: `at least ${job.target} of nbdkit memory`,
    found: ratio === null ? 'not measured' : ratio.toFixed(2),
    reached,
  }));
  const busiest = Math.max(...idle.map(({ cpuMsPerSecond }) => cpuMsPerSecond));
  targets.push({
    what: 'idle CPU of each process',
    wanted: `about 0 (at most ${IDLE_CPU_TARGET_MS_PER_S} ms per second)`,
    found: idle.length === 0 ? 'not measured' : `${busiest.toFixed(1)} ms per second`,
    reached: idle.length === 0 ? null : busiest <= IDLE_CPU_TARGET_MS_PER_S,
  });
  const held = Object.values(residentMaxBytes);
  const most = Math.max(...held);
  targets.push({
    what: 'resident memory of each process',
    wanted: `at most ${mib(RESIDENT_TARGET_BYTES)} MiB`,
    found: held.length === 0 ? 'not measured' : `${mib(most)} MiB`,
    reached: held.length === 0 ? null : most <= RESIDENT_TARGET_BYTES,
  });
  return targets;
}

export function reportOf(findings: Findings, format: 'text' | 'markdown'): string {
  const { summaries, idle, residentMaxBytes, pairs, circumstances } = findings;
  const table = format === 'markdown' ? markdownTable : textTable;
  const title = (text: string) => (format === 'markdown' ? `### ${text}` : text);
  const flushes = summaries.filter(({ flushP50Us }) => flushP50Us !== null);
  const failures = pairs.flatMap(({ job, round, failures: why }) =>
    why.map((each) => `${job}, round ${round}: ${each}`),
  );
  const parts = [
    circumstances.map((line) => (format === 'markdown' ? `- ${line}` : line)).join('\n'),
    title('Speed: medians; ratios are made per pair of runs'),
    table(
      ['job', 'unit', 'ours', 'nbdkit', 'ratio', 'min..max', 'p50 µs', 'p99 µs', 'nbdkit p50', 'nbdkit p99'],
      summaries.map((each) => [
        each.job.title,
        each.job.unit,
        whole(each.ours),
        whole(each.theirs),
        fixed(each.ratio, 2),
        each.ratioMin === null ? '-' : `${fixed(each.ratioMin, 2)}..${fixed(each.ratioMax, 2)}`,
        whole(each.p50Us),
        whole(each.p99Us),
        whole(each.theirP50Us),
        whole(each.theirP99Us),
      ]),
      2,
    ),
    ...flushes.map(
      ({ job, flushP50Us, flushP99Us }) =>
        `${job.title}: of each flush of ours p50 ${whole(flushP50Us)} µs, p99 ${whole(flushP99Us)} µs`,
    ),
    title('What one request costs each role (its processes together)'),
    table(['job', 'role', 'CPU µs', 'sleeps', 'reads+writes', 'disk bytes per byte'], summaries.flatMap(costRows), 2),
    title('Processes'),
    table(['role', 'resident MiB, most', 'idle CPU ms per s'], processRows(residentMaxBytes, idle), 1),
    title('Targets'),
    table(
      ['what', 'wanted', 'found', 'reached'],
      targetsOf(findings).map(({ what, wanted, found, reached }) => [
        what,
        wanted,
        found,
        reached === null ? '-' : reached ? 'yes' : 'NO',
      ]),
      2,
    ),
    ...(failures.length === 0 ? [] : [title('Failed'), failures.join('\n')]),
  ];
  return parts.filter((part) => part !== '').join('\n\n');
}

function costRows(summary: JobSummary): string[][] {
  const { job, costs, theirCosts, fioCpuUs } = summary;
  const row = (cost: RoleCost) => [
    job.name,
    cost.role,
    fixed(cost.cpuUs, 1),
    fixed(cost.sleeps, 2),
    fixed(cost.calls, 2),
    fixed(cost.diskBytesPerByte, 2),
  ];
  const all = costs.reduce((sum, { cpuUs }) => sum + cpuUs, 0);
  return [
    ...costs.map(row),
    ...(costs.length > 1 ? [[job.name, 'all of ours', fixed(all, 1), '', '', '']] : []),
    ...(fioCpuUs === null ? [] : [[job.name, 'fio', fixed(fioCpuUs, 1), '', '', '']]),
    ...theirCosts.filter(({ role }) => role === 'nbdkit').map((cost) => row({ ...cost, role: 'nbdkit, its side' })),
  ];
}

function processRows(residentMaxBytes: Record<string, number>, idle: readonly Idle[]): string[][] {
  const roles = [...new Set([...Object.keys(residentMaxBytes), ...idle.map(({ role }) => role)])];
  return roles.map((role) => {
    const bytes = residentMaxBytes[role];
    const cpu = idle.filter((each) => each.role === role).map(({ cpuMsPerSecond }) => cpuMsPerSecond.toFixed(1));
    return [role, bytes === undefined ? '-' : mib(bytes), cpu.length === 0 ? '-' : cpu.join(', ')];
  });
}

const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);
const fixed = (value: number | null, digits: number): string => (value === null ? '-' : value.toFixed(digits));
/** 12,345: digits in threes; two figures below ten. */
export const whole = (value: number | null): string =>
  value === null ? '-' : value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString('en-US');

/** @param leftColumns how many are words: the others are figures, to the right */
export function textTable(
  heading: readonly string[],
  rows: readonly (readonly string[])[],
  leftColumns: number,
): string {
  const widths = heading.map((_, column) => Math.max(...[heading, ...rows].map((row) => row[column]!.length)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => (column < leftColumns ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  ')
      .trimEnd();
  return [heading, ...rows].map(line).join('\n');
}

export function markdownTable(
  heading: readonly string[],
  rows: readonly (readonly string[])[],
  leftColumns: number,
): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  const rule = heading.map((_, column) => (column < leftColumns ? '---' : '---:'));
  return [heading, rule, ...rows].map(line).join('\n');
}
