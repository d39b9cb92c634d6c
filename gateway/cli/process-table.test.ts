import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { type ProcessEntry, ProcessTable, readProcesses } from './process-table.ts';

const ARGV = [process.execPath, '-e', 'setInterval(() => {}, 1000)', 'role-of-a-test'];

function start(t: ExecutionContext): ChildProcess {
  const child = spawn(ARGV[0]!, ARGV.slice(1), { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}
function entryOf(pid: number): ProcessEntry {
  return { role: 'daemon', id: 2, pid, address: '127.0.0.1:1', argv: ARGV, cwd: '/' };
}
async function until(condition: () => boolean): Promise<boolean> {
  for (let i = 0; i < 100 && !condition(); i++) await new Promise((done) => setTimeout(done, 50));
  return condition();
}

test('a process that dies keeps its row, and one started by hand in its place is found and lost again', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-table-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const statusFile = join(directory, 'daemon-2.json');
  const table = new ProcessTable(directory);
  t.teardown(() => table.close());
  const events: string[] = [];
  table.onChange = (entry, event) => events.push(`${entry.role} ${entry.id} ${event}`);

  const first = start(t);
  const entry = entryOf(first.pid!);
  writeFileSync(statusFile, JSON.stringify({ pid: first.pid }));
  table.add(entry, statusFile);
  t.deepEqual(readProcesses(directory), [entry]);

  first.kill('SIGKILL');
  table.setPid(entry, null);
  t.false(existsSync(statusFile), 'a killed process could not take its status back');
  t.is(readProcesses(directory)[0]!.pid, null);
  t.deepEqual(readProcesses(directory)[0]!.argv, ARGV);

  const second = start(t);
  await new Promise((spawned) => second.once('spawn', spawned));
  writeFileSync(statusFile, JSON.stringify({ pid: second.pid }));
  t.true(await until(() => events.length === 1));
  t.deepEqual(events, ['daemon 2 adopted']);
  t.is(readProcesses(directory)[0]!.pid, second.pid!);
  t.true(table.isAdopted(entry));

  second.kill('SIGKILL');
  t.true(await until(() => events.length === 2));
  t.deepEqual(events[1], 'daemon 2 lost');
  t.is(readProcesses(directory)[0]!.pid, null);
});

test('a status file that names a stranger is not believed', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-table-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const statusFile = join(directory, 'daemon-2.json');
  const table = new ProcessTable(directory);
  t.teardown(() => table.close());
  let changes = 0;
  table.onChange = () => changes++;
  const entry = entryOf(1);
  table.add(entry, statusFile);
  table.setPid(entry, null);
  writeFileSync(statusFile, JSON.stringify({ pid: process.pid })); // alive, but not this command line
  await new Promise((done) => setTimeout(done, 800));
  t.is(changes, 0);
  t.is(readProcesses(directory)[0]!.pid, null);
  t.notThrows(() => JSON.parse(readFileSync(join(directory, 'processes.json'), 'utf8')));
});
