// Other people's clients against the gateway: libnbd's tools, QEMU's and fio, by their exit codes and their output.
// A test whose tools are missing is skipped and says which.

import { spawn, spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { serve } from './testing.ts';

const MiB = 2 ** 20;

/** A test that needs these programs. Without one of them it is skipped by name. */
function testWith(tools: readonly string[], title: string, run: (t: ExecutionContext) => Promise<void>): void {
  const missing = tools.filter((tool) => spawnSync('sh', ['-c', `command -v ${tool}`]).status !== 0);
  if (missing.length === 0) test(title, run);
  else test.skip(`${title} (skipped: ${missing.join(', ')} not installed)`, run);
}

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function run(program: string, args: readonly string[]): Promise<Outcome> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status) => resolve({ status, stdout, stderr }));
  });
}

/** Runs it and expects success. Returns what it printed. */
async function succeeds(t: ExecutionContext, program: string, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await run(program, args);
  t.is(status, 0, `${program} ${args.join(' ')}\n${stdout}\n${stderr}`);
  return stdout;
}

/** Commands of qemu-io; an image is given by its URI. */
const qemuIo = (uri: string, ...commands: string[]): string[] => [
  '-f',
  'raw',
  ...commands.flatMap((command) => ['-c', command]),
  uri,
];

testWith(['nbdinfo'], 'nbdinfo lists every export with its size, block sizes and what it can do', async (t) => {
  const server = await serve(t, { disk: 64 * MiB, odd: 10 * MiB + 513 });
  const listed = JSON.parse(await succeeds(t, 'nbdinfo', '--json', '--list', `nbd://127.0.0.1:${server.port}`));
  t.is(listed.protocol, 'newstyle-fixed');
  t.true(listed.structured);
  t.deepEqual(
    listed.exports.map((each: Record<string, unknown>) => [each['export-name'], each['export-size']]),
    [
      ['disk', 64 * MiB],
      ['odd', 10 * MiB + 513],
    ],
  );
  for (const each of listed.exports) {
    t.deepEqual(each.contexts, ['base:allocation']);
    for (const ability of ['cache', 'df', 'fast_zero', 'flush', 'fua', 'multi_conn', 'trim', 'zero'])
      t.true(each[`can_${ability}`], ability);
    t.false(each.is_read_only);
    t.deepEqual([each.block_size_minimum, each.block_size_preferred, each.block_size_maximum], [1, 4096, 32 * MiB]);
  }
  t.is((await succeeds(t, 'nbdinfo', '--size', server.uri('odd'))).trim(), String(10 * MiB + 513));
  const unknown = await run('nbdinfo', [server.uri('nothing')]);
  t.not(unknown.status, 0);
  t.regex(unknown.stderr, /nothing/);
  t.deepEqual(server.log.at('error'), []);
});

testWith(['nbdinfo'], 'nbdinfo sees a read-only gateway as read-only', async (t) => {
  const server = await serve(t, { disk: MiB }, { readOnly: true });
  await succeeds(t, 'nbdinfo', '--is', 'read-only', server.uri('disk'));
  for (const ability of ['write', 'trim', 'zero'])
    t.is((await run('nbdinfo', ['--can', ability, server.uri('disk')])).status, 2);
});

testWith(
  ['nbdinfo', 'qemu-io'],
  'nbdinfo maps what was written and what was trimmed, down to an odd end',
  async (t) => {
    const server = await serve(t, { odd: 10 * MiB + 513 });
    const uri = server.uri('odd');
    await succeeds(t, 'qemu-io', ...qemuIo(uri, 'write -P 1 1M 3M', 'discard 2M 1M', `write -P 2 ${10 * MiB + 1} 512`));
    const map = JSON.parse(await succeeds(t, 'nbdinfo', '--map', '--json', uri));
    t.deepEqual(
      map.map((each: Record<string, number>) => [each.offset, each.length, each.type]),
      [
        [0, MiB, 3],
        [MiB, MiB, 0],
        [2 * MiB, MiB, 3],
        [3 * MiB, MiB, 0],
        [4 * MiB, 6 * MiB, 3],
        [10 * MiB, 513, 0],
      ],
    );
  },
);

testWith(['nbdinfo'], 'nbdinfo maps a hole of 1 TiB', async (t) => {
  const server = await serve(t, { huge: 2 ** 40 });
  const map = JSON.parse(await succeeds(t, 'nbdinfo', '--map', '--json', '--totals', server.uri('huge')));
  t.is(map.length, 1);
  t.deepEqual([map[0].size, map[0].type], [2 ** 40, 3]);
});

testWith(
  ['nbdkit', 'nbdcopy'],
  'nbdcopy brings a sparse pattern in and out over many connections, and the pattern proves itself',
  async (t) => {
    const server = await serve(t, { disk: 1024 * MiB });
    const pattern = ['-U', '-', 'sparse-random', '1G', 'seed=7', '--run'];
    await succeeds(t, 'nbdkit', ...pattern, `nbdcopy -C 4 --flush $uri '${server.uri('disk')}'`);
    const volume = server.client.volumes.get('disk')!;
    t.true(volume.objects.size > 0 && volume.objects.size < 1024, 'holes stayed holes');
    t.true(volume.flushes > 0);
    // sparse-random compares what is written to it with its pattern, and fails the copy if they differ.
    await succeeds(t, 'nbdkit', ...pattern, `nbdcopy -C 4 '${server.uri('disk')}' $uri`);
    const other = ['-U', '-', 'sparse-random', '1G', 'seed=8', '--run'];
    t.not((await run('nbdkit', [...other, `nbdcopy '${server.uri('disk')}' $uri`])).status, 0, 'it does compare');
  },
);

testWith(['qemu-io'], 'qemu-io reads back what it wrote: patterns, FUA, zeroes, discards, odd offsets', async (t) => {
  const server = await serve(t, { disk: 64 * MiB });
  const uri = server.uri('disk');
  await succeeds(
    t,
    'qemu-io',
    ...qemuIo(
      uri,
      'write -P 0xa5 0 8M',
      'write -f -P 1 3 7',
      'read -P 1 3 7',
      'read -P 0xa5 0 3',
      'read -P 0xa5 10 1000',
      'write -z 1M 1M',
      'write -z -u 2M 1M',
      'write -z -u -n 3M 1M',
      'discard 4M 1M',
      'write -z -f 5000001 3001',
      'flush',
      'read -P 0 1M 4M',
      'read -P 0xa5 5M 1',
    ),
  );
  const volume = server.client.volumes.get('disk')!;
  t.true(volume.fuaWrites >= 2, 'FUA arrived');
  t.true(volume.flushes >= 1);
  t.true(volume.objects.has(1), 'zeroes without -u take space');
  t.false(volume.objects.has(2), 'zeroes with -u do not');
  t.is((await run('qemu-io', qemuIo(uri, 'read -P 0xa5 1M 4k'))).status, 1, 'it does compare');
});

testWith(
  ['qemu-io'],
  'qemu-io gets an error for fast zeroes that must take space, and nothing is changed',
  async (t) => {
    const server = await serve(t, { disk: 4 * MiB });
    const uri = server.uri('disk');
    const outcome = await run('qemu-io', qemuIo(uri, 'write -P 9 0 64k', 'write -z -n 0 64k', 'read -P 9 0 64k'));
    t.regex(outcome.stdout + outcome.stderr, /Operation not supported/);
    t.notRegex(outcome.stdout, /Pattern verification failed/);
  },
);

testWith(['qemu-img', 'nbdinfo'], 'qemu-img converts an image in and compares it equal', async (t) => {
  const server = await serve(t, { disk: 32 * MiB });
  const uri = server.uri('disk');
  const source = join(server.directory, 'source.img');
  const content = Buffer.alloc(32 * MiB);
  randomFillSync(content, 3 * MiB, 7 * MiB + 1);
  content[20 * MiB + 3] = 1;
  writeFileSync(source, content);
  await succeeds(t, 'qemu-img', 'convert', '-n', '-W', '-m', '16', '-f', 'raw', '-O', 'raw', source, uri);
  await succeeds(t, 'qemu-img', 'compare', '-f', 'raw', '-F', 'raw', source, uri);
  const copy = join(server.directory, 'copy.img');
  await succeeds(t, 'qemu-img', 'convert', '-f', 'raw', '-O', 'raw', uri, copy);
  t.true(readFileSync(copy).equals(content));
  content[100] = 1;
  writeFileSync(source, content);
  t.is((await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, uri])).status, 1, 'it does compare');
});

testWith(['fio'], 'fio verifies every block it wrote, four connections at once', async (t) => {
  const server = await serve(t, { disk: 256 * MiB });
  const job = ['--name=verify', '--ioengine=nbd', `--uri=${server.uri('disk')}`, '--rw=randwrite', '--iodepth=32'];
  const sizes = ['--bs=4k', '--size=16M', '--numjobs=4', '--offset_increment=64M'];
  const checks = [
    '--verify=crc32c',
    '--do_verify=1',
    '--verify_fatal=1',
    '--verify_state_save=0',
    '--output-format=json',
  ];
  const output = await succeeds(t, 'fio', ...job, ...sizes, ...checks);
  const { jobs } = JSON.parse(output.slice(output.indexOf('{')));
  t.is(jobs.length, 4);
  for (const each of jobs) t.deepEqual([each.error, each.write.io_bytes, each.read.io_bytes], [0, 16 * MiB, 16 * MiB]);
  t.deepEqual(server.log.at('warn', 'error'), []);
});

testWith(['qemu-io', 'nbdinfo'], 'a client that is killed in the middle of its work disturbs nobody', async (t) => {
  const server = await serve(t, { disk: 64 * MiB });
  const uri = server.uri('disk');
  const commands = Array.from({ length: 1_000 }, () => `write -P 3 ${32 * MiB} 16M`);
  const doomed = spawn('qemu-io', qemuIo(uri, ...commands), { stdio: ['ignore', 'pipe', 'ignore'] });
  await new Promise((resolve) => doomed.stdout.once('data', resolve));
  const gone = new Promise((resolve) => doomed.once('close', resolve));
  doomed.kill('SIGKILL');
  await gone;
  await succeeds(t, 'qemu-io', ...qemuIo(uri, 'write -P 4 0 1M', 'read -P 4 0 1M'));
  await succeeds(t, 'nbdinfo', uri);
  t.deepEqual(server.log.at('error'), []);
});
