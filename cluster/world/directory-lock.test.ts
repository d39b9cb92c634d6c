import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { lockDirectory } from './directory-lock.ts';

const fresh = (): string => mkdtempSync(join(tmpdir(), 'ashlar-lock-'));

/** Another process that takes the directory, says so, and waits. */
async function otherOwner(directory: string): Promise<{ pid: number; kill(): Promise<void> }> {
  const program = `
    import { lockDirectory } from ${JSON.stringify(new URL('./directory-lock.ts', import.meta.url).href)};
    lockDirectory(${JSON.stringify(directory)}, 'daemon');
    console.log('taken');
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  return {
    pid: child.pid!,
    kill: () => {
      child.kill('SIGKILL');
      return ended;
    },
  };
}

test('a directory is taken once; the second is told by whom and what to do; given back, it can be taken again', (t) => {
  const directory = fresh();
  const unlock = lockDirectory(directory, 'daemon');
  const error = t.throws(() => lockDirectory(directory, 'daemon'));
  t.regex(error!.message, new RegExp(`${directory} is in use by another daemon \\(process ${process.pid}\\)`));
  unlock();
  lockDirectory(directory, 'daemon')();
  t.deepEqual(readdirSync(directory), [], 'nothing is left behind');
  rmSync(directory, { recursive: true });
});

test('the lock of a living process holds; that of a killed one is void', async (t) => {
  const directory = fresh();
  const other = await otherOwner(directory);
  t.throws(() => lockDirectory(directory, 'daemon'), { message: new RegExp(`process ${other.pid}`) });
  await other.kill();
  const unlock = lockDirectory(directory, 'daemon');
  t.is(JSON.parse(readFileSync(join(directory, 'lock'), 'utf8')).pid, process.pid);
  unlock();
  t.false(existsSync(join(directory, 'lock')));
  rmSync(directory, { recursive: true });
});

test('a lock whose number belongs to another process by now is void, and so is a torn one', (t) => {
  const directory = fresh();
  for (const left of [JSON.stringify({ pid: process.pid, started: '1' }), '{"pid":', '']) {
    writeFileSync(join(directory, 'lock'), left);
    const unlock = lockDirectory(directory, 'daemon');
    unlock();
  }
  t.pass();
  rmSync(directory, { recursive: true });
});
