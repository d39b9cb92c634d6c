// Processes die under load, one after the other and all at once; clients notice a pause at most, and nothing is lost.

import test, { type ExecutionContext } from 'ava';
import { Cluster, startRole } from './lib/cluster.ts';
import { compareCopies } from './lib/copies.ts';
import { brokenPromises, Load } from './lib/load.ts';
import { NbdClient } from './lib/nbd-client.ts';
import { Running, sleep, testUnless, until, whyNoPrograms } from './lib/processes.ts';
import { BLOCK } from './lib/stamps.ts';

/** I/O resumes within this time of the death of any process but the gateway (DESIGN section 9). */
const RESUME_MS = 2_000;
/** 48 MiB of stamped blocks: some dozen objects in most of the placement groups. */
const BLOCKS = 12_288;

async function startLoaded(t: ExecutionContext, seed: number): Promise<{ cluster: Cluster; load: Load }> {
  t.timeout(150_000);
  const cluster = await Cluster.start(t, { images: ['disk:1G'] });
  const load = await Load.start({
    address: cluster.ready.nbd.address,
    image: 'disk',
    blocks: BLOCKS,
    depth: 16,
    flushEvery: 40,
    seed,
  });
  await sleep(1_500);
  return { cluster, load };
}

async function expectAllKept(t: ExecutionContext, cluster: Cluster, load: Load): Promise<void> {
  const broken = await brokenPromises(cluster.ready.nbd.address, 'disk', BLOCKS, load.promises, 'acked');
  t.deepEqual(broken.slice(0, 10), []);
  t.true(load.promises.flushed.size > 1_000, `${load.promises.flushed.size} blocks were flushed`);
}

async function expectEqualCopies(t: ExecutionContext, cluster: Cluster): Promise<void> {
  await cluster.untilClean();
  const compared = await compareCopies(cluster);
  t.deepEqual(compared.differences.slice(0, 10), []);
  t.true(compared.objects >= (BLOCKS * BLOCK) / 2 ** 20, `${compared.objects} objects were compared`);
}

test.serial(
  'each daemon in turn is killed under load: I/O resumes within 2 s, it catches up, all copies are equal',
  async (t) => {
    const { cluster, load } = await startLoaded(t, 1);
    const peaks: number[] = [];
    for (const id of [1, 2, 3]) {
      load.resetGap();
      const killed = await cluster.kill('daemon', id);
      const report = `daemon ${id} (pid ${killed.pid}) was killed by SIGKILL`;
      await until('ashlar up says it', 2_000, () => cluster.said.includes(report));
      await sleep(RESUME_MS + 500);
      t.true(load.gapMs < RESUME_MS, `no answer for ${load.gapMs.toFixed(0)} ms after the death of daemon ${id}`);
      const degraded = await cluster.status();
      t.is(degraded.health, 'degraded');
      t.false(degraded.daemons.find((daemon) => daemon.id === id)!.up);
      t.true(
        degraded.reasons.some((reason) => reason.includes(`daemon ${id} (down`)),
        degraded.reasons.join('; '),
      );
      load.resetGap();
      await cluster.startAgain(killed);
      await cluster.untilClean();
      peaks.push((await cluster.status()).missingPeak);
      t.true(load.gapMs < RESUME_MS, `no answer for ${load.gapMs.toFixed(0)} ms while daemon ${id} came back`);
    }
    t.deepEqual(load.errors, []);
    await load.stop();
    await expectAllKept(t, cluster, load);
    await expectEqualCopies(t, cluster);
  },
);

test.serial('a daemon that comes back after much was written shows its recovery in ashlar status', async (t) => {
  t.timeout(120_000);
  const cluster = await Cluster.start(t, { images: [] });
  // Small objects, so that there is something to count.
  await cluster.ashlarWell('image', 'create', 'disk', '--size', '1G', '--object-size', '64K');
  const client = await NbdClient.open(cluster.ready.nbd.address, 'disk');
  const killed = await cluster.kill('daemon', 1);
  const chunk = Buffer.alloc(2 ** 20, 0x5a);
  for (let first = 0; first < 384; first += 16)
    await Promise.all(Array.from({ length: 16 }, (_, i) => client.write((first + i) * chunk.length, chunk)));
  await client.flush();
  const restarting = cluster.startAgain(killed);
  const seen: { made: number; peak: number }[] = [];
  await until(
    'the recovery ends',
    60_000,
    async () => {
      const text = await cluster.ashlarWell('status');
      const progress = /^recovery \[[#-]+\] +\d+ % (\d+) of (\d+) object copies$/m.exec(text);
      if (progress !== null) seen.push({ made: Number(progress[1]), peak: Number(progress[2]) });
      return seen.length > 0 && /^health +clean$/m.test(text);
    },
    10,
  );
  await restarting;
  t.true(seen[0]!.peak > 1_000, `${seen[0]!.peak} copies were missing`);
  t.true(seen.every(({ made, peak }) => made <= peak));
  t.true(seen.at(-1)!.made >= seen[0]!.made, JSON.stringify(seen));
  await client.disconnect();
});

test.serial('the master is killed: I/O goes on; it comes back, and a daemon may die again', async (t) => {
  const { cluster, load } = await startLoaded(t, 2);
  load.resetGap();
  const master = await cluster.kill('master');
  const before = load.answers;
  await sleep(3_000);
  t.true(load.gapMs < RESUME_MS, `no answer for ${load.gapMs.toFixed(0)} ms without a master`);
  t.true(load.answers > before + 100, `${load.answers - before} answers without a master`);
  const unreachable = await cluster.ashlar('health');
  t.is(unreachable.code, 3, unreachable.stderr);
  t.regex(unreachable.stderr, /master/);
  await cluster.startAgain(master);
  await cluster.untilClean();
  load.resetGap();
  const daemon = await cluster.kill('daemon', 3);
  await sleep(RESUME_MS + 500);
  t.true(load.gapMs < RESUME_MS, `no answer for ${load.gapMs.toFixed(0)} ms after the death of a daemon`);
  await cluster.startAgain(daemon);
  await cluster.untilClean();
  t.deepEqual(load.errors, []);
  await load.stop();
  await expectAllKept(t, cluster, load);
});

test.serial('the gateway is killed: a new one takes the image over, and every acked block is there', async (t) => {
  const { cluster, load } = await startLoaded(t, 3);
  const gateway = await cluster.kill('nbd');
  await load.wreck();
  t.true(load.errors.length > 0, 'the client saw its server die');
  await cluster.startAgain(gateway);
  const broken = await brokenPromises(cluster.ready.nbd.address, 'disk', BLOCKS, load.promises, 'acked');
  t.deepEqual(broken.slice(0, 10), []);
  const second = await Load.start(
    { address: cluster.ready.nbd.address, image: 'disk', blocks: BLOCKS, depth: 16, flushEvery: 40, seed: 4 },
    load.promises,
  );
  await sleep(1_000);
  await second.stop();
  t.deepEqual(second.errors, []);
  await expectAllKept(t, cluster, second);
});

test.serial(
  'a second gateway is refused; with --take-over it fences the first, whose late writes are void',
  async (t) => {
    const { cluster, load } = await startLoaded(t, 8);
    const gateway = ['nbd', '--master', cluster.ready.master, '--listen', '127.0.0.1:0'];
    const modest = await startRole(t, ...gateway);
    await t.throwsAsync(NbdClient.open(modest.address, 'disk'), { message: /refused.*in use/ });
    t.deepEqual(load.errors, []);
    const bold = await startRole(t, ...gateway, '--take-over');
    const taken = await NbdClient.open(bold.address, 'disk');
    await until('the first gateway refuses writes', 10_000, () => load.errors.length > 0);
    await load.wreck();
    const broken = await brokenPromises(bold.address, 'disk', BLOCKS, load.promises, 'acked');
    t.deepEqual(broken.slice(0, 10), []);
    const before = await taken.read(0, 2 ** 24);
    await sleep(1_000);
    t.true(before.equals(await taken.read(0, 2 ** 24)), 'nothing changed behind the back of the new owner');
    await taken.disconnect();
  },
);

test.serial(
  'every process is killed at once under load, twice: every acked block is right, the flushed ones among them',
  async (t) => {
    const { cluster, load } = await startLoaded(t, 5);
    let promises = load.promises;
    let running = load;
    for (const seed of [6, 7]) {
      await cluster.killAll();
      await running.wreck();
      await cluster.again();
      const { address } = cluster.ready.nbd;
      const broken = await brokenPromises(address, 'disk', BLOCKS, promises, 'acked');
      t.deepEqual(broken.slice(0, 10), []);
      t.true(promises.flushed.size > 1_000, `${promises.flushed.size} blocks were flushed`);
      running = await Load.start({ address, image: 'disk', blocks: BLOCKS, depth: 16, flushEvery: 40, seed }, promises);
      promises = running.promises;
      await sleep(1_500);
    }
    await running.stop();
    t.deepEqual(running.errors, []);
    await expectAllKept(t, cluster, running);
    await expectEqualCopies(t, cluster);
  },
);

const fioTest = testUnless(test, whyNoPrograms(['fio']));
fioTest('fio verifies every block by checksum while daemons are killed at random', async (t) => {
  t.timeout(150_000);
  const cluster = await Cluster.start(t, { images: ['disk:1G'] });
  const fio = new Running('fio', [
    '--name=verify',
    '--ioengine=nbd',
    `--uri=${cluster.uri('disk')}`,
    '--rw=randrw',
    '--bsrange=4k-128k',
    '--iodepth=16',
    '--size=256M',
    '--io_size=1G',
    '--time_based=0',
    '--rate=20M,20M',
    '--verify=crc32c',
    '--verify_backlog=256',
    '--verify_fatal=1',
    '--verify_state_save=0',
    '--fsync=64',
    '--output-format=json',
  ]);
  t.teardown(() => fio.end());
  let kills = 0;
  while (!fio.hasEnded && kills < 4) {
    await sleep(1_500);
    if (fio.hasEnded) break;
    const killed = await cluster.kill('daemon', 1 + Math.floor(Math.random() * 3));
    kills++;
    await sleep(300 + Math.random() * 1_500);
    await cluster.startAgain(killed);
    await cluster.untilClean();
  }
  const finished = await fio.ended;
  t.is(finished.code, 0, finished.stdout + finished.stderr);
  t.true(kills >= 2, `fio ended after ${kills} kills`);
  const [job] = (JSON.parse(finished.stdout.slice(finished.stdout.indexOf('\n{'))) as { jobs: { error: number }[] })
    .jobs;
  t.is(job!.error, 0);
  await expectEqualFio(t, cluster);
});

async function expectEqualFio(t: ExecutionContext, cluster: Cluster): Promise<void> {
  await cluster.untilClean();
  const compared = await compareCopies(cluster);
  t.deepEqual(compared.differences.slice(0, 10), []);
  t.true(compared.objects >= 200, `${compared.objects} objects were compared`);
}
