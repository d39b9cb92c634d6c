// a cluster's NBD speed, job by job against nbdkit memory (scripts/bench nbd --help)
//
//   start both ──► prefill both ──► idle for 10 s ──► rounds × jobs: ours, theirs (in turns first) ──► tables
//
// A measurement, not a test: nothing fails for being slow. The exit code is 0 when every run ended well, 1 when one
// failed or the cluster could not be started, 2 for wrong options, 130 after Ctrl-C. stdout carries the tables,
// stderr the progress.

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { cpus, loadavg, release, tmpdir, totalmem } from 'node:os';
import { join, resolve } from 'node:path';
import { BenchmarkError, requirePrograms, sleep, stopAll } from './lib/children.ts';
import { runOnce } from './lib/fio.ts';
import { type Job, PREFILL } from './lib/jobs.ts';
import { measuredRun, type Pair, type Run, rateOf, summaryOf } from './lib/measure.ts';
import { type NbdOptions, nbdOptions, UsageError } from './lib/nbd-options.ts';
import { readProcess } from './lib/proc.ts';
import { profiledRun, profilingEnvironment } from './lib/profiled.ts';
import { type Findings, type Idle, reportOf, targetsOf, whole } from './lib/report.ts';
import { type Subject, settle, startCluster, startNbdkit } from './lib/subjects.ts';

const ROOT = realpathSync(join(import.meta.dirname, '..', '..'));
const EXIT_INTERRUPTED = 130;
const TMPFS_MAGIC = 0x01021994;

const say = (line: string): void => {
  process.stderr.write(`bench: ${line}\n`);
};

class Benchmark {
  readonly findings: Findings;
  readonly #options: NbdOptions;
  #directory = '';
  #profileDirectory = '';
  #stopping: Promise<void> | null = null;

  constructor(options: NbdOptions) {
    this.#options = options;
    this.findings = { circumstances: circumstances(options), summaries: [], pairs: [], idle: [], residentMaxBytes: {} };
  }

  async run(): Promise<void> {
    const { noise, alone, jobs, rounds, transport, profile, idleSeconds } = this.#options;
    this.#directory = this.#makeDirectory();
    if (profile !== null) this.#profileDirectory = makeProfileDirectory(profile.directory);
    say(noise ? 'nbdkit on both sides: the ratios show what the machine itself wavers' : 'starting the cluster');
    const ours = await (noise ? startNbdkit(this.#directory, 'ours', transport) : this.#startCluster());
    const theirs = alone ? null : await startNbdkit(this.#directory, 'nbdkit', transport);
    say('filling the images');
    for (const side of [ours, theirs]) if (side !== null) await runOnce(side.uri, PREFILL);
    await this.#calm(ours);
    if (idleSeconds > 0) {
      say(`idle for ${idleSeconds} s`);
      this.findings.idle = await idleOf(ours, idleSeconds);
    }
    const all = rounds * jobs.length;
    for (let round = 1; round <= rounds; round++)
      for (const [index, job] of jobs.entries()) {
        const pair = await this.#pair(job, round, ours, theirs, (round + index) % 2 === 1);
        this.findings.pairs.push(pair);
        const done = (round - 1) * jobs.length + index + 1;
        say(`${progress(done, all, this.#options)} ${pairText(pair, job)}`);
        for (const failure of pair.failures) say(`  ${failure}`);
      }
  }

  /** Safe at any time, and more than once. Ends what runs, and removes the directory if it was ours to make. */
  stop(): Promise<void> {
    this.#stopping ??= (async () => {
      await stopAll();
      if (this.#options.directory === '' && this.#directory !== '')
        rmSync(this.#directory, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
    })();
    return this.#stopping;
  }

  /** What is known so far, on stdout. */
  report(): void {
    const { findings } = this;
    const { jobs, markdown, jsonPath } = this.#options;
    findings.summaries = jobs.map((job) => summaryOf(job, findings.pairs));
    if (findings.pairs.length === 0) return;
    process.stdout.write(`${reportOf(findings, markdown ? 'markdown' : 'text')}\n`);
    if (jsonPath !== '')
      writeFileSync(jsonPath, `${JSON.stringify({ ...findings, targets: targetsOf(findings) }, null, 2)}\n`);
  }

  #startCluster(): Promise<Subject> {
    const { transport, replicas, daemons, upOptions, profile } = this.#options;
    const environment = profile === null ? process.env : profilingEnvironment();
    return startCluster({ directory: this.#directory, transport, replicas, daemons, upOptions, environment });
  }

  async #pair(job: Job, round: number, ours: Subject, theirs: Subject | null, oursFirst: boolean): Promise<Pair> {
    const pair: Pair = { job: job.name, round, ours: null, theirs: null, ratio: null, failures: [] };
    for (const side of oursFirst ? [ours, theirs] : [theirs, ours]) {
      if (side === null) continue;
      await this.#calm(ours);
      try {
        const run = await this.#measured(side, job, round, side === ours);
        pair[side === ours ? 'ours' : 'theirs'] = run;
        if (side === ours) this.#noteMemory(run);
      } catch (error) {
        if (this.#stopping !== null || !(error instanceof BenchmarkError)) throw error;
        pair.failures.push(`${side.title}: ${error.message}`);
      }
    }
    if (pair.ours !== null && pair.theirs !== null) pair.ratio = rateOf(pair.ours, job) / rateOf(pair.theirs, job);
    return pair;
  }

  async #measured(side: Subject, job: Job, round: number, isOurs: boolean): Promise<Run> {
    const { seconds, profile } = this.#options;
    if (profile === null || !isOurs) return measuredRun(side, job, seconds);
    const prefix = join(this.#profileDirectory, `${job.name}-round-${round}`);
    return profiledRun(side, job, seconds, profile, prefix, ROOT, (text) => process.stderr.write(`${text}\n`));
  }

  #noteMemory({ residentMaxBytes }: Run): void {
    for (const [role, bytes] of Object.entries(residentMaxBytes))
      this.findings.residentMaxBytes[role] = Math.max(this.findings.residentMaxBytes[role] ?? 0, bytes);
  }

  /** No work of the cluster or of the kernel's page cache is left over that the next run would pay for. */
  async #calm(ours: Subject): Promise<void> {
    execFileSync('sync', ['--file-system', this.#directory]);
    if (!(await settle(ours))) say('the cluster does not come to rest: the next run pays for that too');
  }

  #makeDirectory(): string {
    const { directory } = this.#options;
    if (directory !== '') {
      mkdirSync(directory, { recursive: true });
      return resolve(directory);
    }
    // What the benchmark measures must go through a file system on a disk.
    const base = statfsSync(tmpdir()).type === TMPFS_MAGIC ? '/var/tmp' : tmpdir();
    return mkdtempSync(join(base, 'ashlar-bench-'));
  }
}

function makeProfileDirectory(wanted: string): string {
  if (wanted === '') return mkdtempSync(join(tmpdir(), 'ashlar-profile-'));
  mkdirSync(wanted, { recursive: true });
  return resolve(wanted);
}

async function idleOf(side: Subject, seconds: number): Promise<Idle[]> {
  const processes = side.processes();
  const spent = () => processes.map(({ pid }) => readProcess(pid)?.cpuMs ?? 0);
  const before = spent();
  await sleep(seconds * 1000);
  const after = spent();
  return processes.map(({ role, id }, i) => ({ role, id, cpuMsPerSecond: (after[i]! - before[i]!) / seconds }));
}

function circumstances(options: NbdOptions): string[] {
  const { replicas, daemons, transport, rounds, seconds, noise, profile, upOptions } = options;
  const load = loadavg()[0]!;
  const cluster = `${daemons} daemons, ${replicas} replicas${upOptions.length === 0 ? '' : `, ${upOptions.join(' ')}`}`;
  return [
    `${new Date().toISOString()}, revision ${revision()}, Node ${process.version}, Linux ${release()}`,
    `${cpus().length} × ${cpus()[0]?.model ?? 'unknown CPU'}, ${Math.round(totalmem() / 2 ** 30)} GiB of memory, load ${load.toFixed(2)} before the start`,
    `${noise ? 'nbdkit memory on both sides' : cluster}; ${transport} socket; ${rounds} rounds of ${seconds} s`,
    ...(load > 0.5 ? ['other work was going on: the ratios waver'] : []),
    ...(profile === null ? [] : ['profiled: our side is slower than it would be']),
  ];
}

function revision(): string {
  try {
    return execFileSync('git', ['-C', ROOT, 'describe', '--always', '--dirty'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    return 'unknown';
  }
}

/** "[5/21, 4 min to go]" */
function progress(done: number, all: number, { seconds, alone }: NbdOptions): string {
  const minutes = ((all - done) * (seconds + 2.5) * (alone ? 1 : 2)) / 60;
  const left = done === all ? '' : minutes < 1 ? ', less than a minute to go' : `, ${Math.round(minutes)} min to go`;
  return `[${done}/${all}${left}]`;
}

function pairText({ round, ours, theirs, ratio }: Pair, job: Job): string {
  const said = (run: Run | null) => (run === null ? 'none' : `${whole(rateOf(run, job))} ${job.unit}`);
  const compared = theirs === null ? '' : `, nbdkit ${said(theirs)}`;
  return `round ${round}, ${job.title}: ours ${said(ours)}${compared}${ratio === null ? '' : `, ratio ${ratio.toFixed(2)}`}`;
}

function optionsOrExit(): NbdOptions {
  try {
    return nbdOptions(process.argv.slice(2));
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    (error.exitCode === 0 ? process.stdout : process.stderr).write(`${error.message}\n`);
    process.exit(error.exitCode);
  }
}

const benchmark = new Benchmark(optionsOrExit());
let interrupted = false;
for (const name of ['SIGINT', 'SIGTERM'] as const)
  process.on(name, () => {
    if (interrupted) {
      say('again: killing all');
      process.exit(EXIT_INTERRUPTED);
    }
    interrupted = true;
    say(`${name}: stopping`);
    void benchmark.stop().then(() => {
      benchmark.report();
      process.exit(EXIT_INTERRUPTED);
    });
  });

let exitCode = 0;
try {
  requirePrograms(['fio', 'nbdkit']);
  await benchmark.run();
  if (benchmark.findings.pairs.some(({ failures }) => failures.length > 0)) exitCode = 1;
} catch (error) {
  if (!interrupted) {
    if (!(error instanceof BenchmarkError)) {
      await benchmark.stop();
      throw error;
    }
    say(error.message);
    exitCode = 1;
  }
}
if (interrupted) await new Promise(() => {}); // the signal's handler ends it
await benchmark.stop();
benchmark.report();
process.exit(exitCode);
