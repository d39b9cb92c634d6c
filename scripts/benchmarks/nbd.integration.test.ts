// The benchmark itself, run for a moment: that it measures, tells and cleans up; not how fast anything is.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Running, run, testUnless, until, whyNoPrograms } from '../../vm-tests/lib/processes.ts';

const BENCH = join(import.meta.dirname, '..', 'bench');
const withPrograms = testUnless(test, whyNoPrograms(['fio', 'nbdkit']));

/** Its temporary directory is made in one of the test's own. */
function benchEnvironment(t: ExecutionContext): { environment: NodeJS.ProcessEnv; directory: string } {
  const directory = mkdtempSync(join(tmpdir(), 'bt-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true, maxRetries: 5 }));
  return { directory, environment: { ...process.env, TMPDIR: directory } };
}

withPrograms(
  'a moment on a real cluster tells speed, ratio, costs of every role and targets, and leaves nothing behind',
  async (t) => {
    t.timeout(150_000);
    const { environment, directory } = benchEnvironment(t);
    const json = join(directory, 'figures.json');
    const options = ['--seconds', '2', '--rounds', '1', '--jobs', 'randread-q1', '--idle-seconds', '1', '--json', json];
    const { code, stdout, stderr } = await run(BENCH, ['nbd', ...options], { timeoutMs: 140_000, environment });
    t.is(code, 0, stderr);
    t.regex(stdout, /random read 4 KiB, depth 1 +IOPS +[\d,.]+ +[\d,.]+ +\d+\.\d\d +\d+\.\d\d\.\.\d+\.\d\d/);
    for (const role of ['master', 'daemon', 'nbd'])
      t.regex(stdout, new RegExp(`^randread-q1 +${role} +\\d+\\.\\d`, 'm'));
    t.regex(stdout, /random read 4 KiB, depth 1 +at least 0.25 of nbdkit memory +\d+\.\d\d +(yes|NO)/);
    t.regex(stderr, /\[1\/1\] round 1, random read 4 KiB, depth 1: ours [\d,]+ IOPS, nbdkit [\d,]+ IOPS, ratio/);
    const figures = JSON.parse(readFileSync(json, 'utf8')) as { pairs: { ours: { iops: number } }[]; idle: unknown[] };
    t.true(figures.pairs[0]!.ours.iops > 1);
    t.is(figures.idle.length, 5, 'master, three daemons and the gateway');
    t.deepEqual(readdirSync(directory), ['figures.json']);
  },
);

withPrograms(
  'Ctrl-C in the middle of a run ends what was started, removes the directory and exits with 130',
  async (t) => {
    const { environment, directory } = benchEnvironment(t);
    const options = ['--noise', '--seconds', '60', '--rounds', '1', '--jobs', 'randread-q32', '--idle-seconds', '0'];
    const bench = new Running(BENCH, ['nbd', ...options], { environment });
    // Its children have process groups of their own: their parent is what finds them.
    const children = () =>
      readFileSync(`/proc/${bench.pid}/task/${bench.pid}/children`, 'utf8').trim().split(' ').map(Number);
    await until('both sides and fio run', 30_000, () => bench.stderr.includes('filling') && children().length === 3);
    const pids = children();
    bench.kill('SIGINT');
    t.is((await bench.ended).code, 130);
    for (const pid of pids) t.throws(() => process.kill(pid, 0), { code: 'ESRCH' });
    t.deepEqual(readdirSync(directory), []);
  },
);

test('without fio and nbdkit it says in one line what to install', async (t) => {
  const { environment } = benchEnvironment(t);
  const program = join(import.meta.dirname, 'nbd.ts');
  const { code, stderr } = await run(process.execPath, [program], {
    environment: { ...environment, PATH: '/nonexistent' },
  });
  t.is(code, 1);
  t.regex(stderr, /^bench: fio and nbdkit missing on this machine: install .*\n$/);
});

test('a benchmark that does not exist is refused with the names of those that do', async (t) => {
  const { code, stderr } = await run(BENCH, ['juggling']);
  t.is(code, 2);
  t.regex(stderr, /no benchmark "juggling"[\s\S]*nbd +a cluster's NBD speed[\s\S]*profile/);
  t.notRegex(stderr, /test/);
});
