// The command line as a person meets it: listings, exit codes, refusals, starting, stopping, starting again.

import { cpSync, existsSync, mkdirSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import test from 'ava';
import { Cluster, runAshlar } from './lib/cluster.ts';
import { NbdClient } from './lib/nbd-client.ts';
import { temporaryDirectory, until } from './lib/processes.ts';
import { generationOf, stampedBlock } from './lib/stamps.ts';

test('images and pools are made, listed, grown, shrunk and removed; every refusal names what and why', async (t) => {
  t.timeout(90_000);
  const cluster = await Cluster.start(t, { images: ['first:1G'] });
  const json = async (...args: string[]) => JSON.parse(await cluster.ashlarWell(...args, '--json'));

  await cluster.ashlarWell('pool', 'create', 'triple', '--replicas', '3', '--pg-count', '8');
  const pools = await json('pool', 'ls');
  t.deepEqual(
    pools.map((pool: { name: string; replicas: number; minSize: number }) => [pool.name, pool.replicas, pool.minSize]),
    [
      ['default', 2, 1],
      ['triple', 3, 2],
    ],
  );
  await cluster.ashlarWell('image', 'create', 'second', '--size', '64M', '--pool', 'triple', '--object-size', '4M');
  t.deepEqual(
    (await json('image', 'ls')).map((image: { name: string; sizeBytes: number; order: number }) => [
      image.name,
      image.sizeBytes,
      image.order,
    ]),
    [
      ['first', 2 ** 30, 20],
      ['second', 2 ** 26, 22],
    ],
  );
  t.regex(await cluster.ashlarWell('image', 'info', 'second'), /64 MiB.*at most 16 objects of 4 MiB/);
  const place = await json('map', 'second', '--offset', '5M');
  t.is(place.object, 1);
  t.is(place.offsetInObject, 2 ** 20);
  t.is(place.acting.length, 3);
  t.is(place.primary, place.acting[0].id);

  await cluster.ashlarWell('image', 'resize', 'second', '96M');
  t.is((await json('image', 'info', 'second')).sizeBytes, 96 * 2 ** 20);
  const client = await NbdClient.open(cluster.ready.nbd.address, 'second');
  for (const block of [0, 10_000, 20_000]) await client.write(block * 4096, stampedBlock(block, 1));
  await client.disconnect();
  const unasked = await cluster.ashlar('image', 'resize', 'second', '40M');
  t.is(unasked.code, 2);
  t.regex(unasked.stderr, /--shrink/);
  await cluster.ashlarWell('image', 'resize', 'second', '40M', '--shrink');
  await cluster.ashlarWell('image', 'resize', 'second', '96M');
  const again = await NbdClient.open(cluster.ready.nbd.address, 'second');
  t.is(generationOf(await again.read(10_000 * 4096, 4096), 10_000), 1, 'what lay before the cut is kept');
  t.is(generationOf(await again.read(20_000 * 4096, 4096), 20_000), 0, 'what lay behind the cut is gone for good');
  const busy = await cluster.ashlar('image', 'rm', 'second');
  t.is(busy.code, 1);
  t.regex(busy.stderr, /second.*in use/);
  await again.disconnect();
  await until(
    'the gateway lets the image go',
    10_000,
    async () => (await cluster.ashlar('image', 'rm', 'second')).code === 0,
  );
  t.deepEqual(
    (await json('image', 'ls')).map((image: { name: string }) => image.name),
    ['first'],
  );
  await until('its objects are gone', 10_000, async () => (await cluster.status()).objects === 0);

  const refusals: [string[], number, RegExp][] = [
    [['image', 'create', 'first', '--size', '1G'], 1, /image "first" exists already/],
    [['image', 'create', 'third', '--size', '1G', '--pool', 'nowhere'], 1, /no pool is called "nowhere"/],
    [['image', 'create', 'third', '--size', '0'], 1, /image size must be/],
    [['image', 'create', 'third', '--size', 'huge'], 2, /--size: "huge" is not a size/],
    [['image', 'create', 'third', '--size', '1G', '--object-size', '3M'], 2, /power of two/],
    [['image', 'create', 'third'], 2, /--size is missing/],
    [['image', 'rm', 'third'], 1, /there is no image "third"/],
    [['image', 'resize', 'first', '-5'], 2, /unknown option|not a size/],
    [['map', 'first', '--offset', '2G'], 2, /past the end of first/],
    [['pool', 'create', 'default'], 1, /pool "default" exists already/],
    [['pool', 'create', 'odd', '--pg-count', '63'], 1, /power of two/],
    [['daemon-admin', 'out', '99'], 1, /99/],
    [['daemon-admin', 'reweight', '1', 'heavy'], 2, /weight must be a number/],
    [['imagine'], 2, /unknown command 'imagine'/],
    [['status', '--jsn'], 2, /unknown option '--jsn'/],
  ];
  for (const [args, code, message] of refusals) {
    const finished = await cluster.ashlar(...args);
    t.is(finished.code, code, `${args.join(' ')}\n${finished.stderr}`);
    t.regex(finished.stderr, message);
    t.is(finished.stdout, '', args.join(' '));
  }
});

test('health tells clean, degraded and blocked by its exit code, and says whom it waits for', async (t) => {
  t.timeout(90_000);
  const cluster = await Cluster.start(t, { images: ['disk:1G'] });
  t.is((await cluster.ashlar('health')).code, 0);
  const first = await cluster.kill('daemon', 1);
  await until('health says degraded', 8_000, async () => (await cluster.ashlar('health')).code === 1);
  const second = await cluster.kill('daemon', 2);
  await until('health says blocked', 8_000, async () => (await cluster.ashlar('health')).code === 2);
  const blocked = await cluster.ashlar('health');
  t.regex(blocked.stdout, /wait.* for daemon [12] \(down since/);
  t.regex(await cluster.ashlarWell('daemon-admin', 'ls'), /1 {2}down, in/);
  await cluster.startAgain(first);
  await cluster.startAgain(second);
  await cluster.untilClean();
  t.is((await cluster.ashlar('health')).code, 0);
  const nobody = await runAshlar('health', '--master', '127.0.0.1:1');
  t.is(nobody.code, 3);
  t.regex(nobody.stderr, /master.*127\.0\.0\.1:1/);
});

test('after Ctrl-C, and after kill -9 of ashlar up alone, the next start has the same addresses and all data', async (t) => {
  t.timeout(120_000);
  const cluster = await Cluster.start(t, { images: ['disk:64M'] });
  const before = cluster.ready;
  const write = async (generation: number) => {
    const client = await NbdClient.open(cluster.ready.nbd.address, 'disk');
    for (let block = 0; block < 500; block++) await client.write(block * 4096, stampedBlock(block, generation));
    await client.flush();
    await client.disconnect();
  };
  const expectGeneration = async (generation: number) => {
    const client = await NbdClient.open(cluster.ready.nbd.address, 'disk');
    const bytes = await client.read(0, 500 * 4096);
    for (let block = 0; block < 500; block++)
      t.is(generationOf(bytes.subarray(block * 4096, (block + 1) * 4096), block), generation);
    await client.disconnect();
  };
  await write(1);
  await cluster.stop();
  t.true(cluster.processes().every((entry) => entry.pid === null));
  await cluster.again();
  t.is(cluster.ready.clusterId, before.clusterId);
  t.is(cluster.ready.nbd.address, before.nbd.address);
  t.deepEqual(
    cluster.ready.daemons.map(({ id, address }) => ({ id, address })),
    before.daemons.map(({ id, address }) => ({ id, address })),
  );
  await expectGeneration(1);
  await write(2);
  await cluster.killParent();
  await cluster.again();
  await expectGeneration(2);
});

test('ashlar up refuses a directory, a port or a number that can not be, and leaves no trace', async (t) => {
  t.timeout(90_000);
  const cluster = await Cluster.start(t, { images: ['disk:64M'] });
  const same = await runAshlar('up', '--dir', cluster.directory);
  t.is(same.code, 2);
  t.regex(
    same.stderr,
    new RegExp(`${cluster.directory} is in use by another ashlar up \\(process ${cluster.upPid}\\)`),
  );

  const fresh = join(temporaryDirectory(t, 'refused'), 'data');
  const taken = await runAshlar('up', '--dir', fresh, '--nbd', cluster.ready.nbd.address);
  t.is(taken.code, 1, taken.stderr);
  t.regex(taken.stderr, new RegExp(`${cluster.ready.nbd.address} is in use by another program`));
  t.deepEqual(readdirSync(fresh), []);

  const blocker = createServer().listen(0, '127.0.0.1');
  await new Promise((listening) => blocker.once('listening', listening));
  t.teardown(() => new Promise<void>((closed) => blocker.close(() => closed())));
  const wrong: [string[], RegExp][] = [
    [['--replicas', '4'], /--replicas 4: must be 1 to the number of daemons, 3/],
    [['--daemons', '0'], /--daemons: must be 1 to/],
    [['--image', 'vol0'], /"vol0" is not NAME:SIZE/],
    [['--image', 'vol0:ten'], /"ten" is not a size/],
    [['--nbd', 'localhost'], /"localhost" is no address/],
    [['--nbd', 'none'], /needs --nbd-unix/],
    [['--durability', 'maybe'], /must be flush or sync/],
    [['--min-size', '3'], /--min-size 3/],
  ];
  for (const [args, message] of wrong) {
    const finished = await runAshlar('up', '--dir', fresh, ...args);
    t.is(finished.code, 2, args.join(' '));
    t.regex(finished.stderr, message);
  }
  t.deepEqual(readdirSync(fresh), []);

  await cluster.stop();
  const other = await runAshlar('up', '--dir', cluster.directory, '--replicas', '3');
  t.is(other.code, 2);
  t.regex(other.stderr, /--replicas 3: .* was made with 2/);
});

test('with --restart a killed daemon, gateway and master come back by themselves', async (t) => {
  t.timeout(90_000);
  const cluster = await Cluster.start(t, { images: ['disk:64M'], more: ['--restart'] });
  for (const [role, id] of [
    ['daemon', 2],
    ['nbd', 1],
    ['master', 1],
  ] as const) {
    const { pid } = cluster.process(role, id);
    process.kill(pid!, 'SIGKILL');
    await until(`${role} runs again`, 20_000, () => {
      const now = cluster.process(role, id).pid;
      return now !== null && now !== pid;
    });
  }
  await cluster.untilClean();
  const client = await NbdClient.open(cluster.ready.nbd.address, 'disk');
  await client.write(0, stampedBlock(0, 1));
  await client.disconnect();
  t.regex(cluster.said, /daemon 2 \(pid \d+\) was killed by SIGKILL; starting it again/);
});

test('a daemon refuses a directory that is in use, not its own, or of another cluster', async (t) => {
  t.timeout(120_000);
  const mine = await Cluster.start(t, { images: ['disk:64M'], daemons: 2 });
  const other = await Cluster.start(t, { images: ['disk:64M'], daemons: 2 });
  const [used] = mine.daemonDirectories();
  const inUse = await runAshlar('daemon', '--dir', used!, '--master', mine.ready.master);
  t.is(inUse.code, 2, inUse.stderr);
  t.regex(inUse.stderr, /in use by another/);

  const stranger = temporaryDirectory(t, 'stranger');
  writeFileSync(join(stranger, 'holiday.jpg'), 'not a daemon');
  const notOurs = await runAshlar('daemon', '--dir', stranger, '--master', mine.ready.master);
  t.is(notOurs.code, 2, notOurs.stderr);
  t.regex(notOurs.stderr, /holiday\.jpg/);
  t.deepEqual(readdirSync(stranger).sort(), ['holiday.jpg']);

  const foreign = await other.kill('daemon', 2);
  const directory = foreign.argv[foreign.argv.indexOf('--dir') + 1]!;
  const foreigner = await runAshlar(
    'daemon',
    '--dir',
    directory,
    '--master',
    mine.ready.master,
    '--log-level',
    'error',
  );
  t.not(foreigner.code, 0);
  t.regex(foreigner.stderr, /cluster/);
  t.is((await mine.status()).daemons.length, 2);
  await other.startAgain(foreign);
  await other.untilClean();

  const missing = await runAshlar('daemon', '--dir', join(stranger, 'no', 'such'), '--master', mine.ready.master);
  t.not(missing.code, 0);
  t.regex(missing.stderr, /no\/such|ENOENT/);
});

test('a master that was put back from an old copy refuses to rule daemons that saw a newer map', async (t) => {
  t.timeout(120_000);
  const cluster = await Cluster.start(t, { images: ['disk:64M'] });
  const client = await NbdClient.open(cluster.ready.nbd.address, 'disk');
  await client.write(4096, stampedBlock(1, 7), true);
  await client.disconnect();
  await cluster.stop();
  const master = join(cluster.directory, 'master');
  const old = join(temporaryDirectory(t, 'backup'), 'master');
  cpSync(master, old, { recursive: true });
  await cluster.again();
  await cluster.ashlarWell('image', 'create', 'later', '--size', '1M');
  await cluster.stop();
  renameSync(master, `${master}.right`);
  mkdirSync(master);
  cpSync(old, master, { recursive: true });
  const refused = await runAshlar('up', '--dir', cluster.directory);
  t.is(refused.code, 1, refused.stderr);
  t.regex(refused.stderr, /older|newer|epoch/);
  t.true(existsSync(`${master}.right`));
  renameSync(master, `${master}.wrong`);
  renameSync(`${master}.right`, master);
  await cluster.again();
  const again = await NbdClient.open(cluster.ready.nbd.address, 'disk');
  t.is(generationOf(await again.read(4096, 4096), 1), 7);
  await again.disconnect();
});
