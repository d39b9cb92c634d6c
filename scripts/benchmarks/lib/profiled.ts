// A measured run during which the processes of some roles are profiled, and what their profiles say.

import { readFileSync } from 'node:fs';
import { INSPECTOR_OPTION, Inspector, SUFFIX } from './inspector.ts';
import type { Job } from './jobs.ts';
import { measuredRun, type Run } from './measure.ts';
import type { ProfileWish } from './nbd-options.ts';
import { type CpuProfile, type HeapProfile, summarise, summaryText } from './profile-summary.ts';
import type { Subject } from './subjects.ts';

/** What a cluster must be started with, so that its processes can be profiled. */
export function profilingEnvironment(): NodeJS.ProcessEnv {
  const before = process.env.NODE_OPTIONS ?? '';
  return { ...process.env, NODE_OPTIONS: before === '' ? INSPECTOR_OPTION : `${before} ${INSPECTOR_OPTION}` };
}

/** Profiles of a run lie at PREFIX-ROLE-ID.cpuprofile afterwards. @param tell gets a summary of each role */
export async function profiledRun(
  subject: Subject,
  job: Job,
  seconds: number,
  wish: ProfileWish,
  prefix: string,
  root: string,
  tell: (text: string) => void,
): Promise<Run> {
  const chosen = subject.processes().filter(({ role }) => wish.roles.includes(role));
  const recordings = await Promise.all(
    chosen.map(async ({ role, id, pid, logPath }) => ({
      role,
      inspector: await Inspector.open(pid, logPath),
      path: `${prefix}-${role}-${id}${SUFFIX[wish.kind]}`,
    })),
  );
  for (const { inspector } of recordings) await inspector.start(wish.kind);
  let run: Run;
  try {
    run = await measuredRun(subject, job, seconds);
  } finally {
    await Promise.all(recordings.map(({ inspector, path }) => inspector.stop(wish.kind, path)));
  }
  for (const role of wish.roles) {
    const paths = recordings.filter((recording) => recording.role === role).map(({ path }) => path);
    const profiles = paths.map((path) => JSON.parse(readFileSync(path, 'utf8')) as CpuProfile | HeapProfile);
    const cpuUs = run.costs.find((cost) => cost.role === role)?.cpuUs.toFixed(1);
    tell(`\n${job.title}, ${role}: ${cpuUs} µs of CPU per request in all its threads; the main thread's profile:`);
    tell(`${summaryText(summarise(profiles, root), wish.top)}\n${paths.join('\n')}`);
  }
  return run;
}
