// The command line as a person meets it: listings, exit codes, refusals.

import { readdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import test from 'ava';
import { Cluster, runAshlar } from './lib/cluster.ts';
import { NbdClient } from './lib/nbd-client.ts';
import { temporaryDirectory, until } from './lib/processes.ts';
import { generationOf, stampedBlock } from './lib/stamps.ts';

test.serial(
  'images and pools are made, listed, grown, shrunk and removed; every refusal names what and why',
  async (t) => {
    t.timeout(90_000);
    const cluster = await Cluster.start(t, { images: ['first:1G'] });
    const json = async (...args: string[]) => JSON.parse(await cluster.ashlarWell(...args, '--json'));

    await cluster.ashlarWell('pool', 'create', 'triple', '--replicas', '3', '--pg-count', '8');
    const pools = await json('pool', 'ls');
    t.deepEqual(
      pools.map((pool: { name: string; replicas: number; minSize: number }) => [
        pool.name,
        pool.replicas,
        pool.minSize,
      ]),
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
      [['daemon-admin', 'drain', '99'], 1, /99/],
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
  },
);

test.serial('health tells clean, degraded and blocked by its exit code, and says whom it waits for', async (t) => {
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

test.serial('ashlar up refuses a directory, a port or a number that can not be, and leaves no trace', async (t) => {
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
