// The master's process, started for real: its directory, its lock, its end.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { openControlLink } from '../world/grpc-link.ts';

function directory(t: ExecutionContext): string {
  const path = mkdtempSync(join(tmpdir(), 'ashlar-master-'));
  t.teardown(() => rmSync(path, { recursive: true }));
  return path;
}

interface Started {
  child: ChildProcess;
  address: string;
  clusterId: string;
}

function launch(t: ExecutionContext, ...args: string[]): ChildProcess {
  const main = join(import.meta.dirname, 'main.ts');
  const child = spawn(process.execPath, [main, '--listen', '127.0.0.1:0', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

async function start(t: ExecutionContext, dir: string, ...args: string[]): Promise<Started> {
  const child = launch(t, '--dir', dir, '--log-level', 'silent', ...args);
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  const { address, clusterId } = JSON.parse(line.toString().replace(/^listening /, ''));
  return { child, address, clusterId };
}

/** A start that must fail: its exit code and what it said. */
async function refusal(t: ExecutionContext, ...args: string[]): Promise<{ exit: number; said: string }> {
  const child = launch(t, ...args);
  let said = '';
  child.stderr!.on('data', (text) => {
    said += text;
  });
  const [exit] = (await once(child, 'close')) as [number];
  return { exit, said };
}

async function createPool(t: ExecutionContext, address: string, name: string): Promise<void> {
  const link = openControlLink(address);
  t.teardown(() => link.close());
  await link.call('createPool', { name, pgCount: 8, replicas: 1, minSize: 0, durability: 'flush' });
}
async function poolNames(t: ExecutionContext, address: string): Promise<string[]> {
  const link = openControlLink(address);
  t.teardown(() => link.close());
  return (await link.call('status', {})).pools.map(({ name }) => name);
}

test('a master makes its directory, and killed at any moment it finds all that it acked', async (t) => {
  const dir = join(directory(t), 'deep', 'master');
  const first = await start(t, dir);
  await createPool(t, first.address, 'one');
  first.child.kill('SIGKILL');
  await once(first.child, 'exit');
  const second = await start(t, dir);
  t.is(second.clusterId, first.clusterId);
  t.deepEqual(await poolNames(t, second.address), ['one']);
  second.child.kill('SIGTERM');
  const [exit] = await once(second.child, 'exit');
  t.is(exit, 0);
  t.false(existsSync(join(dir, 'master.db-journal')), 'a clean end leaves one file');
});

test('a second master on the directory is refused, and the first goes on', async (t) => {
  const dir = directory(t);
  const first = await start(t, dir);
  const { exit, said } = await refusal(t, '--dir', dir);
  t.is(exit, 1);
  t.regex(said, /another process has .*master\.db open/);
  await createPool(t, first.address, 'p');
  t.deepEqual(await poolNames(t, first.address), ['p']);
});

test('a directory that is something else is refused and left alone', async (t) => {
  const dir = directory(t);
  writeFileSync(join(dir, 'superblock'), 'a daemon lives here');
  const { exit, said } = await refusal(t, '--dir', dir);
  t.is(exit, 1);
  t.regex(said, /not a master's directory.*superblock/);
  t.false(existsSync(join(dir, 'master.db')));
});

test('a store of its own or a shared one: neither, both, or one that cannot be is refused with what to do', async (t) => {
  const store = ['--store', 'etcd://127.0.0.1:1'];
  for (const [args, why] of [
    [[], /give either --dir, for a master alone, or --store/],
    [['--dir', directory(t), ...store], /give either --dir/],
    [['--store', '127.0.0.1:2379'], /--store: "127\.0\.0\.1:2379" is no shared store: give etcd:/],
    [[...store, '--listen', '0.0.0.0:0'], /nobody can be sent there; say --advertise/],
  ] as const) {
    const { exit, said } = await refusal(t, ...args);
    t.is(exit, 2, said);
    t.regex(said, why);
  }
});

test('a daemon that has seen a newer map ends the process with a clear error', async (t) => {
  const { child, address, clusterId } = await start(t, directory(t));
  const link = openControlLink(address);
  t.teardown(() => link.close());
  const identity = {
    uuid: 'u',
    bootId: 'b',
    address: '127.0.0.1:1',
    unixAddress: '',
    host: 'h',
    domain: 'd',
    weight: 1,
  };
  const ended = once(child, 'exit');
  await t.throwsAsync(link.call('register', { ...identity, clusterId, newestEpoch: 1_000 }));
  const [exit] = await ended;
  t.is(exit, 1);
});
