// The NBD clients that people use, each with its output and exit code checked, against one cluster.

import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import anyTest from 'ava';
import { Cluster } from './lib/cluster.ts';
import { run, runWell, temporaryDirectory, testUnless, whyNoPrograms } from './lib/processes.ts';
import { generator } from './lib/tree.ts';

const PROGRAMS = ['nbdinfo', 'nbdcopy', 'nbdkit', 'qemu-io', 'qemu-img', 'fio'];
const test = testUnless(anyTest, whyNoPrograms(PROGRAMS));
const MiB = 2 ** 20;

let cluster: Cluster;
let end = async (): Promise<void> => {};
if (whyNoPrograms(PROGRAMS) === null) {
  anyTest.before(async () => {
    const directory = mkdtempSync(join(tmpdir(), 'ashlar-clients-'));
    const images = ['alpha:64M', 'beta:3G', 'sparse:1G', 'patterns:64M', 'converted:128M', 'verified:256M'];
    cluster = await Cluster.startIn(join(directory, 'data'), { images }, (stop) => {
      end = async () => {
        await stop();
        rmSync(directory, { recursive: true, force: true });
      };
    });
  });
  anyTest.after.always(() => end());
}

test('nbdinfo sees the size, what the export can do, and where it holds data', async (t) => {
  const list = JSON.parse(await runWell(t, 'nbdinfo', ['--list', '--json', cluster.uri('')])) as {
    exports: { 'export-name': string; 'export-size': number }[];
  };
  const sizes = new Map(list.exports.map((entry) => [entry['export-name'], entry['export-size']]));
  t.deepEqual([...sizes.keys()].sort(), ['alpha', 'beta', 'converted', 'patterns', 'sparse', 'verified']);
  t.is(sizes.get('beta'), 3072 * MiB);
  const [alpha] = (
    JSON.parse(await runWell(t, 'nbdinfo', ['--json', cluster.uri('alpha')])) as {
      exports: Record<string, unknown>[];
    }
  ).exports;
  const wanted = {
    is_read_only: false,
    is_rotational: false,
    can_flush: true,
    can_fua: true,
    can_trim: true,
    can_zero: true,
    can_multi_conn: true,
  };
  for (const [key, value] of Object.entries(wanted)) t.is(alpha![key], value, key);
  t.is((await runWell(t, 'nbdinfo', ['--size', cluster.uri('beta')])).trim(), String(3072 * MiB));

  await runWell(t, 'qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 64k', cluster.uri('alpha')]);
  const map = JSON.parse(await runWell(t, 'nbdinfo', ['--map', '--json', cluster.uri('alpha')])) as {
    offset: number;
    length: number;
    type: number;
  }[];
  const data = map.filter((extent) => extent.type === 0);
  t.deepEqual(
    data.map(({ offset, length }) => [offset, length]),
    [[MiB, 64 * 1024]],
    JSON.stringify(map),
  );
  t.is(
    map.reduce((sum, extent) => sum + extent.length, 0),
    64 * MiB,
  );
});

test('an export that does not exist is refused by name, and the server goes on serving', async (t) => {
  const refused = await run('nbdinfo', ['--size', cluster.uri('omega')]);
  t.is(refused.code, 1);
  t.regex(refused.stderr, /omega|unknown|does not exist|no such|not found|no image/i);
  t.is((await runWell(t, 'nbdinfo', ['--size', cluster.uri('alpha')])).trim(), String(64 * MiB));
});

test("nbdkit's sparse-random disk, copied in by nbdcopy, comes back the same and stays sparse", async (t) => {
  const target = cluster.uri('sparse');
  const plugin = ['-U', '-', 'sparse-random', '1G', 'seed=1'];
  await runWell(t, 'nbdkit', [...plugin, '--run', `nbdcopy --destination-is-zero "$uri" "${target}"`]);
  // The plugin compares what is written back with what it gave, and fails the write if it differs.
  await runWell(t, 'nbdkit', [...plugin, '--run', `nbdcopy "${target}" "$uri"`]);
  const totals = JSON.parse(await runWell(t, 'nbdinfo', ['--map', '--totals', '--json', target])) as {
    size: number;
    type: number;
  }[];
  const held = totals.find((line) => line.type === 0)?.size ?? 0;
  t.true(held > 10 * MiB && held < 300 * MiB, `the image holds ${held} bytes of data`);
  const broken = await run('nbdkit', [
    '-U',
    '-',
    'sparse-random',
    '1G',
    'seed=2',
    '--run',
    `nbdcopy "${target}" "$uri"`,
  ]);
  t.not(broken.code, 0, 'the plugin would not see a wrong byte: this test can not fail');
});

test('qemu-io patterns: FUA, zeroes with and without holes, discard, odd offsets, and every read back', async (t) => {
  const steps = [
    'write -P 0xa5 0 1M',
    'write -f -P 1 3 7',
    'read -P 0xa5 0 3',
    'read -P 1 3 7',
    'read -P 0xa5 10 1048566',
    'write -P 2 1M 4M',
    'write -z 1M 1M',
    'read -P 0 1M 1M',
    'write -z -u 2M 1M',
    'read -P 0 2M 1M',
    'read -P 2 3M 2M',
    'discard 4M 512k',
    'write -P 9 1073151 513',
    'read -P 9 1073151 513',
    'read -P 2 5000000 200',
    'flush',
    'write -f -P 0x5a 63M 1M',
    'read -P 0x5a 63M 1M',
    'read -P 0 8M 16M',
  ];
  const argv = ['-f', 'raw', ...steps.flatMap((step) => ['-c', step]), cluster.uri('patterns')];
  const output = await runWell(t, 'qemu-io', argv);
  t.notRegex(output, /failed|error/i, output);
  t.is(output.match(/^wrote /gm)?.length, steps.filter((step) => step.startsWith('write')).length, output);
  t.is(output.match(/^read /gm)?.length, steps.filter((step) => step.startsWith('read')).length, output);
  const wrong = await run('qemu-io', ['-f', 'raw', '-c', 'read -P 0xa4 0 512', cluster.uri('patterns')]);
  t.regex(wrong.stdout + wrong.stderr, /Pattern verification failed/);
  const past = await run('qemu-io', ['-f', 'raw', '-c', 'read 64M 4k', cluster.uri('patterns')]);
  t.not(past.code, 0, past.stdout + past.stderr);
});

test('qemu-img converts an image in and out, and finds it equal', async (t) => {
  const directory = temporaryDirectory(t, 'qemu-img');
  const source = join(directory, 'source.img');
  const back = join(directory, 'back.img');
  const bytes = Buffer.alloc(128 * MiB); // a third of it data, in pieces of odd lengths
  const next = generator(5);
  for (let at = 0; at < bytes.length; at += 3 * MiB)
    for (let i = 0; i < MiB + 777 && at + i + 4 <= bytes.length; i += 4) bytes.writeUInt32LE(next(), at + i);
  writeFileSync(source, bytes);
  await runWell(t, 'qemu-img', [
    'convert',
    '-n',
    '-W',
    '-m',
    '16',
    '-f',
    'raw',
    '-O',
    'raw',
    source,
    cluster.uri('converted'),
  ]);
  t.regex(
    await runWell(t, 'qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, cluster.uri('converted')]),
    /identical/,
  );
  await runWell(t, 'qemu-img', ['convert', '-f', 'raw', '-O', 'raw', cluster.uri('converted'), back]);
  const digest = (content: Buffer) => createHash('sha256').update(content).digest('hex');
  t.is(digest(readFileSync(back)), digest(bytes));
  t.true(statSync(back).blocks * 512 < 100 * MiB, 'holes stayed holes');
  const info = JSON.parse(await runWell(t, 'qemu-img', ['info', '--output=json', cluster.uri('converted')]));
  t.is(info['virtual-size'], 128 * MiB);
});

test('fio writes by four connections and verifies every block', async (t) => {
  const output = await runWell(
    t,
    'fio',
    [
      '--name=verify',
      '--ioengine=nbd',
      `--uri=${cluster.uri('verified')}`,
      '--rw=randwrite',
      '--bsrange=4k-64k',
      '--iodepth=8',
      '--numjobs=4',
      '--size=32M',
      '--offset_increment=64M',
      '--verify=crc32c',
      '--do_verify=1',
      '--verify_fatal=1',
      '--verify_state_save=0',
      '--group_reporting',
      '--output-format=json',
    ],
    { timeoutMs: 60_000 },
  );
  const [job] = (
    JSON.parse(output.slice(output.indexOf('\n{'))) as { jobs: { error: number; read: { io_bytes: number } }[] }
  ).jobs;
  t.is(job!.error, 0);
  t.true(job!.read.io_bytes >= 4 * 32 * MiB, `verified ${job!.read.io_bytes} bytes`);
});
