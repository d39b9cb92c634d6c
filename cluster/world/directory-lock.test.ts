import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { lockDirectory } from './directory-lock.ts';

function directory(t: ExecutionContext): string {
  const path = mkdtempSync(join(tmpdir(), 'ashlar-lock-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

test('a directory is taken once, named by its owner, and free again afterwards', (t) => {
  const path = directory(t);
  const release = lockDirectory(path, 'tester');
  t.throws(() => lockDirectory(path, 'tester'), { message: new RegExp(`another tester \\(process ${process.pid}\\)`) });
  release();
  lockDirectory(path, 'tester')();
  t.false(existsSync(join(path, 'lock')));
});

test('the lock of a process that is gone is void, also if its number is used again or its file is torn', (t) => {
  for (const left of [{ pid: 2 ** 22 + 1, started: '5' }, { pid: process.pid, started: 'another time' }, '{"pid":']) {
    const path = directory(t);
    writeFileSync(join(path, 'lock'), typeof left === 'string' ? left : JSON.stringify(left));
    const release = lockDirectory(path, 'tester');
    t.is((JSON.parse(readFileSync(join(path, 'lock'), 'utf8')) as { pid: number }).pid, process.pid);
    release();
  }
});

test('a killed owner that nobody has waited for holds nothing', async (t) => {
  const path = directory(t);
  // A shell that never waits keeps its killed child as a zombie.
  const program = `import(${JSON.stringify(new URL('./directory-lock.ts', import.meta.url).href)}).then((m) => {
    m.lockDirectory(${JSON.stringify(path)}, 'tester'); process.kill(process.pid, 'SIGKILL'); })`;
  const parent = spawn('sh', ['-c', '"$0" -e "$1" & exec sleep 60', process.execPath, program], { stdio: 'ignore' });
  t.teardown(() => parent.kill('SIGKILL'));
  const isZombie = (): boolean => {
    try {
      const { pid } = JSON.parse(readFileSync(join(path, 'lock'), 'utf8')) as { pid: number };
      return readFileSync(`/proc/${pid}/stat`, 'latin1').includes(') Z ');
    } catch {
      return false;
    }
  };
  for (let i = 0; i < 200 && !isZombie(); i++) await new Promise((done) => setTimeout(done, 50));
  t.true(isZombie(), 'the owner is dead and still has a number');
  t.notThrows(() => lockDirectory(path, 'tester')());
});
