import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { sleep } from './children.ts';
import { readProcess, Sampler } from './proc.ts';

test('a process that computes for half a second is charged about that, one that is gone nothing', async (t) => {
  const before = readProcess(process.pid)!;
  const spentBefore = process.cpuUsage();
  for (const endMs = performance.now() + 500; performance.now() < endMs; );
  const spent = process.cpuUsage(spentBefore);
  const charged = readProcess(process.pid)!.cpuMs - before.cpuMs;
  const expected = (spent.user + spent.system) / 1000;
  t.true(Math.abs(charged - expected) <= 30, `charged ${charged} ms for ${expected} ms`);

  const child = spawn('true');
  await new Promise((done) => child.on('close', done));
  t.is(readProcess(child.pid!), null);
});

test('rates of a process count its bytes to the disk, its calls and its sleeps over the stretch that is asked for', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'proc-test-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const program = `
    const fs = require('node:fs');
    const fd = fs.openSync(process.argv[1], 'w');
    const block = Buffer.alloc(65536, 7);
    setInterval(() => fs.writeSync(fd, block, 0, 65536, 0), 20);
    console.log('started');`;
  const child = spawn(process.execPath, ['-e', program, join(directory, 'file')]);
  t.teardown(() => child.kill('SIGKILL'));
  await new Promise((started) => child.stdout.once('data', started));
  const sampler = new Sampler([child.pid!]);
  const fromMs = performance.now() - 50;
  await sleep(1_000);
  sampler.stop();
  const rates = sampler.rates(child.pid!, fromMs, performance.now())!;
  t.true(rates.sleeps > 10 && rates.sleeps < 2_000, `${rates.sleeps} sleeps per second`);
  t.true(rates.calls === null || (rates.calls > 10 && rates.calls < 1_000), `${rates.calls} calls per second`);
  t.true(rates.cpuMs < 900, `${rates.cpuMs} ms per second`);
  t.true(sampler.residentMaxBytes(child.pid!) > 2 ** 24);
  t.is(sampler.rates(child.pid!, fromMs - 2_000, fromMs - 1_000), null, 'nothing was read then');
});
