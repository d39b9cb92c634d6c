import { spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { sleep } from './children.ts';
import { INSPECTOR_OPTION, Inspector } from './inspector.ts';
import { summarise } from './profile-summary.ts';

test('two running processes are profiled at once and again, without a restart', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'inspector-test-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const start = (name: string) => {
    const program = `
      let kept;
      function ${name}() {
        const end = performance.now() + 10;
        while (performance.now() < end) for (let i = 0; i < 1000; i++) kept = [i]; // most of the time is its own
      }
      setInterval(${name}, 20);
      console.error('started');`;
    const logPath = join(directory, `${name}.log`);
    const log = openSync(logPath, 'w');
    const child = spawn(process.execPath, [INSPECTOR_OPTION, '-e', program], { stdio: ['ignore', 'ignore', log] });
    closeSync(log);
    t.teardown(() => child.kill('SIGKILL'));
    return { name, logPath, pid: child.pid! };
  };
  const programs = [start('cutStones'), start('mixMortar')];
  // SIGUSR1 would end a Node that has not come up yet.
  while (!programs.every(({ logPath }) => readFileSync(logPath, 'utf8').includes('started'))) await sleep(20);
  for (const kind of ['cpu', 'allocations'] as const) {
    const inspectors = await Promise.all(programs.map(({ pid, logPath }) => Inspector.open(pid, logPath)));
    await Promise.all(inspectors.map((inspector) => inspector.start(kind)));
    await sleep(600);
    for (const [i, inspector] of inspectors.entries()) {
      const path = join(directory, `${i}.profile`);
      await inspector.stop(kind, path);
      const summary = summarise([JSON.parse(readFileSync(path, 'utf8'))], directory);
      // Which function it is put down to depends on what the engine had optimised before the profile began.
      t.true(summary.functions.length > 0, `${kind} of ${programs[i]!.name}`);
      t.true(summary.functions[0]!.self > 0, JSON.stringify(summary.functions.slice(0, 3)));
      t.false(summary.functions.some(({ name }) => name.startsWith(programs[1 - i]!.name)));
    }
  }
});
