// Starting, stopping and starting again: what a directory remembers, and what may not be started in it.

import { cpSync, existsSync, mkdirSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { Cluster, runAshlar } from './lib/cluster.ts';
import { compareCopies } from './lib/copies.ts';
import { brokenPromises, Load } from './lib/load.ts';
import { NbdClient } from './lib/nbd-client.ts';
import { sleep, temporaryDirectory, until } from './lib/processes.ts';
import { generationOf, stampedBlock } from './lib/stamps.ts';

test.serial(
  'after Ctrl-C, and after kill -9 of ashlar up alone, the next start has the same addresses and all data',
  async (t) => {
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
  },
);

test.serial('with --restart a killed daemon, gateway and master come back by themselves', async (t) => {
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

test.serial('a daemon refuses a directory that is in use, not its own, or of another cluster', async (t) => {
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

test.serial('a master that was put back from an old copy refuses to rule daemons that saw a newer map', async (t) => {
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

test.serial(
  'under load a fourth daemon joins, one is drained, one reweighted, one removed: data moves, nothing is lost, copies are equal',
  async (t) => {
    t.timeout(180_000);
    const cluster = await Cluster.start(t, { images: ['disk:256M'] });
    const blocks = 8_192;
    const loadOptions = () => ({
      address: cluster.ready.nbd.address,
      image: 'disk',
      blocks,
      depth: 16,
      flushEvery: 40,
    });
    let load = await Load.start({ ...loadOptions(), seed: 21 });
    await sleep(1_500);
    await load.stop();
    await cluster.stop();
    await cluster.again('--daemons', '4');
    load = await Load.start({ ...loadOptions(), seed: 22 }, load.promises);
    await cluster.untilClean();
    const joined = await cluster.status();
    t.is(joined.daemons.length, 4);
    t.true(joined.daemons[3]!.pgs > 10, `daemon 4 holds ${joined.daemons[3]!.pgs} PGs`);
    const refused = await cluster.ashlar('daemon-admin', 'rm', '1');
    t.is(refused.code, 1);
    t.regex(refused.stderr, /daemon 1 can't be removed: it takes data; drain it first/);
    await cluster.ashlarWell('daemon-admin', 'drain', '1', '--wait');
    const drained = (await cluster.status()).daemons[0]!;
    t.like(drained, { up: true, in: false, pgs: 0 });
    t.is(drained.space!.usedBytes, 0);
    t.regex(await cluster.ashlarWell('daemon-admin', 'ls'), /1 {2}up, drained/);
    await cluster.ashlarWell('daemon-admin', 'undrain', '1');
    await cluster.ashlarWell('daemon-admin', 'reweight', '2', '0');
    await until('daemon 2 holds nothing, daemon 1 something', 60_000, async () => {
      const { health, daemons } = await cluster.status();
      return health === 'clean' && daemons[1]!.pgs === 0 && daemons[0]!.pgs > 10;
    });
    await cluster.ashlarWell('daemon-admin', 'drain', '2', '--wait');
    await cluster.ashlarWell('daemon-admin', 'rm', '2');
    await until('the removed daemon ends itself', 10_000, () => cluster.process('daemon', 2).pid === null);
    t.deepEqual(
      (await cluster.status()).daemons.map(({ id }) => id),
      [1, 3, 4],
    );
    t.regex((await cluster.ashlar('daemon-admin', 'drain', '1')).stdout, /draining/);
    const tooFew = await cluster.ashlar('daemon-admin', 'drain', '3');
    t.regex(tooFew.stderr, /daemon 3 can't be drained: pool "default" keeps 2 copies, and 1 other daemons/);
    await cluster.ashlarWell('daemon-admin', 'undrain', '1');
    await cluster.untilClean();
    t.deepEqual(load.errors, []);
    await load.stop();
    t.deepEqual(await brokenPromises(cluster.ready.nbd.address, 'disk', blocks, load.promises, 'acked'), []);
    await until('nothing is left of PGs that have moved', 60_000, async () => {
      const { daemons, bytes } = await cluster.status();
      return daemons.reduce((sum, { space }) => sum + space!.usedBytes, 0) === 2 * bytes;
    });
    const compared = await compareCopies(cluster);
    t.deepEqual(compared.differences, []);
    t.true(compared.objects > 10);
  },
);
