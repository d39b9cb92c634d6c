import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';

/** Starts a role whose start and stop are the given code; resolves when it ends. */
function startRole(
  body: string,
  options: Record<string, unknown> = {},
): { child: ChildProcess; ended: Promise<Ending> } {
  const program = `
    import { runRole } from ${JSON.stringify(new URL('./lifecycle.ts', import.meta.url).href)};
    import { UsageError } from ${JSON.stringify(new URL('./options.ts', import.meta.url).href)};
    setInterval(() => {}, 1000);
    const options = ${JSON.stringify({ logLevel: 'info', statusFile: '', stopWithParent: false, ...options })};
    await runRole('tester', options, async (life) => { ${body} });`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['pipe', 'pipe', 'pipe'] });
  const ending: Ending = { code: null, stdout: '', stderr: '' };
  child.stdout!.on('data', (chunk) => {
    ending.stdout += chunk;
  });
  child.stderr!.on('data', (chunk) => {
    ending.stderr += chunk;
  });
  const ended = new Promise<Ending>((resolve) => child.on('close', (code) => resolve({ ...ending, code })));
  return { child, ended };
}
interface Ending {
  code: number | null;
  stdout: string;
  stderr: string;
}
const listening = (child: ChildProcess) => new Promise<void>((done) => child.stdout!.once('data', () => done()));

const SERVES = `
  return { listening: { address: '127.0.0.1:7' }, stop: async () => { process.stdout.write('stopped\\n'); } };`;

test('a role says where it listens, stops once on SIGTERM, and takes its status file back', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-life-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const statusFile = join(directory, 'status.json');
  const { child, ended } = startRole(SERVES, { statusFile });
  await listening(child);
  t.deepEqual(JSON.parse(readFileSync(statusFile, 'utf8')), { role: 'tester', pid: child.pid, address: '127.0.0.1:7' });
  child.kill('SIGTERM');
  const { code, stdout } = await ended;
  t.is(code, 0);
  t.is(stdout, `listening {"role":"tester","pid":${child.pid},"address":"127.0.0.1:7"}\nstopped\n`);
  t.false(existsSync(statusFile));
});

test('a role whose parent goes away stops cleanly when asked to watch it', async (t) => {
  const { child, ended } = startRole(SERVES, { stopWithParent: true });
  await listening(child);
  child.stdin!.end();
  const { code, stdout } = await ended;
  t.is(code, 0);
  t.true(stdout.endsWith('stopped\n'));
});

test('a second signal ends a role whose stop hangs, with exit code 1', async (t) => {
  const { child, ended } = startRole(`
    return { listening: { address: 'x' }, stop: () => { process.stdout.write('hanging\\n'); return new Promise(() => {}); } };`);
  await listening(child);
  child.kill('SIGINT');
  await listening(child);
  child.kill('SIGINT');
  const { code, stderr } = await ended;
  t.is(code, 1);
  t.regex(stderr, /told to stop again/);
});

test('an uncaught error is logged with its stack and ends the role without a clean stop', async (t) => {
  const { ended } = startRole(`
    setTimeout(() => { throw new Error('broken core'); }, 20);
    ${SERVES}`);
  const { code, stdout, stderr } = await ended;
  t.is(code, 1);
  t.false(stdout.includes('stopped'));
  const line = JSON.parse(stderr.split('\n').find((text) => text.includes('uncaught'))!);
  t.is(line.role, 'tester');
  t.is(line.error.message, 'broken core');
});

test('a role that finds its options wrong exits with 2 and no stack, one that can not start with 1', async (t) => {
  const wrong = await startRole(`throw new UsageError('--dir: no such directory: make it first');`).ended;
  t.is(wrong.code, 2);
  t.is(wrong.stderr, 'tester: --dir: no such directory: make it first\n');
  const broken = await startRole(`throw new Error('port 7 is in use');`).ended;
  t.is(broken.code, 1);
  t.regex(broken.stderr, /tester can't start: port 7 is in use/);
  t.is((await startRole(SERVES, { logLevel: 'loud' }).ended).code, 2);
});
