// The options of `scripts/bench nbd`.

import { parseArgs } from 'node:util';
import type { ProfileKind } from './inspector.ts';
import { JOBS, type Job, jobsNamed } from './jobs.ts';
import type { Transport } from './subjects.ts';

const USAGE = `usage: scripts/bench nbd [options] [-- options of ashlar up]

Measures a cluster of "ashlar up" over NBD with fio, job by job against nbdkit memory.

  --seconds 8       how long each run is counted
  --rounds 3        how often each job is run; the median counts
  --jobs NAMES      some of ${JOBS.map(({ name }) => name).join(',')}
  --replicas 2      copies of everything
  --daemons 3       storage daemons
  --dir D           directory of the cluster, kept afterwards; default a temporary one, removed afterwards
  --unix, --tcp     how clients reach both sides; default --unix
  --idle-seconds 10 how long idle CPU is measured; 0 for not at all
  --json FILE       write all figures there too
  --markdown        print Markdown
  --alone           leave nbdkit out: no ratios, half the time
  --noise           nbdkit on both sides: how much do ratios waver on this machine?
  --profile ROLES   record where the time of master, daemon or nbd goes in each run, and print the top of it
  --profile-kind K  cpu (default) or allocations: where memory is allocated, garbage included
  --profile-dir D   where the profiles lie afterwards; default a new directory in the one for temporary files
  --top 25          functions to print of a profile`;

/** Printed as it is; the program ends with `exitCode`. */
export class UsageError extends Error {
  readonly exitCode: number;
  constructor(message: string, exitCode = 2) {
    super(message);
    this.exitCode = exitCode;
  }
}

export interface ProfileWish {
  roles: readonly string[];
  kind: ProfileKind;
  /** "" for a new one. */
  directory: string;
  top: number;
}

export interface NbdOptions {
  seconds: number;
  rounds: number;
  jobs: readonly Job[];
  replicas: number;
  daemons: number;
  /** "" for a temporary one. */
  directory: string;
  transport: Transport;
  idleSeconds: number;
  /** "" for none. */
  jsonPath: string;
  markdown: boolean;
  alone: boolean;
  noise: boolean;
  profile: ProfileWish | null;
  upOptions: readonly string[];
}

const PROFILED_ROLES = ['master', 'daemon', 'nbd'];

/** Throws UsageError. */
export function nbdOptions(args: readonly string[]): NbdOptions {
  const end = args.indexOf('--');
  const values = parse(end < 0 ? args : args.slice(0, end));
  if (values.help) throw new UsageError(USAGE, 0);
  if (values.unix && values.tcp) throw new UsageError('bench nbd: --unix and --tcp exclude each other');
  if (values.alone && values.noise) throw new UsageError('bench nbd: --alone and --noise exclude each other');
  const replicas = number('replicas', values.replicas, 1);
  const daemons = number('daemons', values.daemons, 1);
  if (replicas > daemons) throw new UsageError(`bench nbd: --replicas ${replicas} needs as many --daemons at least`);
  return {
    seconds: number('seconds', values.seconds, 1),
    rounds: number('rounds', values.rounds, 1),
    jobs: jobs(values.jobs),
    replicas,
    daemons,
    directory: values.dir,
    transport: values.tcp ? 'tcp' : 'unix',
    idleSeconds: number('idle-seconds', values['idle-seconds'], 0),
    jsonPath: values.json,
    markdown: values.markdown,
    alone: values.alone,
    noise: values.noise,
    profile: profileWish(values),
    upOptions: end < 0 ? [] : args.slice(end + 1),
  };
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        seconds: { type: 'string', default: '8' },
        rounds: { type: 'string', default: '3' },
        jobs: { type: 'string', default: JOBS.map(({ name }) => name).join(',') },
        replicas: { type: 'string', default: '2' },
        daemons: { type: 'string', default: '3' },
        dir: { type: 'string', default: '' },
        unix: { type: 'boolean', default: false },
        tcp: { type: 'boolean', default: false },
        'idle-seconds': { type: 'string', default: '10' },
        json: { type: 'string', default: '' },
        markdown: { type: 'boolean', default: false },
        alone: { type: 'boolean', default: false },
        noise: { type: 'boolean', default: false },
        profile: { type: 'string', default: '' },
        'profile-kind': { type: 'string', default: 'cpu' },
        'profile-dir': { type: 'string', default: '' },
        top: { type: 'string', default: '25' },
        help: { type: 'boolean', default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError(`bench nbd: ${(error as Error).message}`);
  }
}

function profileWish(values: ReturnType<typeof parse>): ProfileWish | null {
  const top = number('top', values.top, 1);
  const kind = values['profile-kind'];
  if (kind !== 'cpu' && kind !== 'allocations')
    throw new UsageError(`bench nbd: --profile-kind must be cpu or allocations, not "${kind}"`);
  if (values.profile === '') return null;
  if (values.noise) throw new UsageError('bench nbd: with --noise there is nothing to --profile');
  const roles = values.profile.split(',').map((role) => role.trim());
  for (const role of roles)
    if (!PROFILED_ROLES.includes(role))
      throw new UsageError(
        `bench nbd: --profile: there is no role "${role}": choose from ${PROFILED_ROLES.join(', ')}`,
      );
  return { roles, kind, directory: values['profile-dir'], top };
}

function jobs(names: string): Job[] {
  try {
    return jobsNamed(names);
  } catch (error) {
    throw new UsageError(`bench nbd: ${(error as Error).message}`);
  }
}

function number(name: string, text: string, min: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < min)
    throw new UsageError(`bench nbd: --${name} must be a whole number of at least ${min}, not "${text}"`);
  return value;
}
