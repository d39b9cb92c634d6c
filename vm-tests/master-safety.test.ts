// The master's disk is lost, or an old copy of it put back: the storage daemons know enough to go on, and nothing that
// was acked is lost or served wrong on the way.

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { EtcdProcess, whyNoEtcd } from '../cluster/world/etcd-fixture.ts';
import { Cluster, ROOT, startRole } from './lib/cluster.ts';
import { NbdClient } from './lib/nbd-client.ts';
import { type Finished, run, temporaryDirectory, testUnless, until } from './lib/processes.ts';
import { BLOCK, generationOf, stampedBlock } from './lib/stamps.ts';

const ASHLAR = join(ROOT, 'scripts', 'ashlar');
/** Blocks are this far apart, so that they are in as many objects. */
const STRIDE = 2 ** 20;
const BLOCKS = 64;

/** Writes and flushes one generation of every block. */
async function write(cluster: Cluster, image: string, generation: number): Promise<void> {
  const client = await NbdClient.open(cluster.ready.nbd.address, image, 60_000);
  for (let number = 0; number < BLOCKS; number++) await client.write(number * STRIDE, stampedBlock(number, generation));
  await client.flush();
  await client.disconnect();
}
async function expectGeneration(t: ExecutionContext, cluster: Cluster, image: string, wanted: number): Promise<void> {
  const client = await NbdClient.open(cluster.ready.nbd.address, image, 60_000);
  const found: number[] = [];
  for (let number = 0; number < BLOCKS; number++)
    found.push(generationOf(await client.read(number * STRIDE, BLOCK), number));
  await client.disconnect();
  t.deepEqual(found, Array(BLOCKS).fill(wanted), `every block of ${image} has generation ${wanted}`);
}

const masterDirectory = (cluster: Cluster): string => join(cluster.directory, 'master');
/** A command of the master that runs without one. */
const offline = (...args: string[]): Promise<Finished> => run(ASHLAR, ['master', ...args], { timeoutMs: 100_000 });
const recover = (cluster: Cluster, ...more: string[]): Promise<Finished> =>
  offline('recover', '--from-daemons', '--dir', masterDirectory(cluster), '--listen', cluster.ready.master, ...more);

/** The gateway's locks are gone with the master: as after any take-over it must be started again. */
async function restartGateway(cluster: Cluster): Promise<void> {
  const gateway = cluster.process('nbd');
  await cluster.startAgain(gateway.pid === null ? gateway : await cluster.kill('nbd'));
}

test.serial(
  'the master is lost with its disk: rebuilt from the daemons it has every image, all data is there, and can be written',
  async (t) => {
    t.timeout(240_000);
    const cluster = await Cluster.start(t, { images: ['disk:1G', 'other:10M'] });
    await write(cluster, 'disk', 1);
    const before = await cluster.status();
    const master = await cluster.kill('master');
    rmSync(masterDirectory(cluster), { recursive: true });

    const rebuilt = await recover(cluster);
    t.is(rebuilt.code, 0, rebuilt.stderr);
    t.regex(rebuilt.stdout, /daemons 1, 2, 3; 2 images/);
    t.notRegex(rebuilt.stdout, /note:/);
    const again = await recover(cluster);
    t.is(again.code, 1);
    t.regex(again.stderr, /holds a master's store already/, 'no store is ever overwritten');

    await cluster.startAgain(master);
    await restartGateway(cluster);
    await cluster.untilClean();
    const after = await cluster.status();
    t.is(after.clusterId, before.clusterId);
    t.true(after.epoch > before.epoch + 2 ** 24);
    const identity = ({ id, name, sizeBytes, pool, order }: (typeof before.images)[0]) =>
      JSON.stringify({ id, name, sizeBytes, pool, order });
    t.deepEqual(after.images.map(identity), before.images.map(identity));
    t.deepEqual(
      after.daemons.map(({ id, uuid }) => [id, uuid]),
      before.daemons.map(({ id, uuid }) => [id, uuid]),
    );
    await expectGeneration(t, cluster, 'disk', 1);
    await write(cluster, 'disk', 2);
    await expectGeneration(t, cluster, 'disk', 2);
    await cluster.ashlarWell('image', 'create', 'new', '--size', '1G');
    await write(cluster, 'new', 1);
    await cluster.untilClean();
  },
);

test.serial(
  'master and one daemon are gone: what that daemon may have newer waits for it, until it comes or is given up',
  async (t) => {
    t.timeout(240_000);
    const cluster = await Cluster.start(t, { images: ['disk:1G'] });
    await write(cluster, 'disk', 1);
    const master = await cluster.kill('master'); // first: nobody learns that the daemon is gone
    const daemon = await cluster.kill('daemon', 3);
    rmSync(masterDirectory(cluster), { recursive: true });

    const silent = await recover(cluster, '--wait', '5s');
    t.is(silent.code, 1);
    t.regex(silent.stderr, /in vain for daemon 3/);
    const rebuilt = await recover(cluster, '--accept-missing', '3');
    t.is(rebuilt.code, 0, rebuilt.stderr);
    t.regex(rebuilt.stdout, /note: \d+ of \d+ pgs wait until daemon 3 is back/);
    await cluster.startAgain(master);
    await until('the PGs of daemon 3 wait for it by name', 30_000, async () => {
      const { reasons, health } = await cluster.status();
      return health === 'blocked' && reasons.some((reason) => /wait for daemon 3/.test(reason));
    });
    await cluster.startAgain(daemon);
    await restartGateway(cluster);
    await cluster.untilClean();
    await expectGeneration(t, cluster, 'disk', 1);
    await write(cluster, 'disk', 2);

    // The same again, but this time the daemon's disk is gone too.
    await cluster.kill('master');
    await cluster.kill('daemon', 3);
    rmSync(masterDirectory(cluster), { recursive: true });
    rmSync(cluster.daemonDirectories()[2]!, { recursive: true });
    const given = await recover(cluster, '--accept-missing', '3', '--accept-data-loss');
    t.is(given.code, 0, given.stderr);
    await cluster.startAgain(master);
    await restartGateway(cluster);
    await until('every PG serves', 60_000, async () => (await cluster.status()).health !== 'blocked');
    await expectGeneration(t, cluster, 'disk', 2);
  },
);

test.serial(
  'a backup put back serves if nothing happened since; if something did, the master stops itself, and recover goes on',
  async (t) => {
    t.timeout(240_000);
    const cluster = await Cluster.start(t, { images: ['disk:1G'] });
    const file = join(temporaryDirectory(t, 'backup'), 'master.backup');
    await write(cluster, 'disk', 1);
    await cluster.ashlarWell('master', 'backup', file);
    const { epoch } = await cluster.status();
    const restore = (): Promise<Finished> => offline('restore', file, '--dir', masterDirectory(cluster));

    const master = await cluster.kill('master');
    t.regex((await restore()).stderr, /holds a master's store already/);
    rmSync(masterDirectory(cluster), { recursive: true });
    const restored = await restore();
    t.is(restored.code, 0, restored.stderr);
    t.regex(restored.stdout, new RegExp(`map epoch ${epoch}\\b`));
    await cluster.startAgain(master);
    await until('its daemons have proven it', 30_000, async () => (await cluster.ashlar('status')).code === 0);
    await cluster.untilClean();
    await expectGeneration(t, cluster, 'disk', 1);

    await cluster.ashlarWell('image', 'create', 'later', '--size', '1G');
    await write(cluster, 'later', 1);
    await cluster.kill('master');
    rmSync(masterDirectory(cluster), { recursive: true });
    t.is((await restore()).code, 0);
    const refused = await run(master.argv[0]!, master.argv.slice(1), { cwd: master.cwd, timeoutMs: 60_000 });
    t.is(refused.code, 1);
    t.regex(refused.stderr, /has seen map epoch \d+, this master's store ends at \d+.*old copy.*ashlar master recover/);

    rmSync(masterDirectory(cluster), { recursive: true });
    const rebuilt = await recover(cluster);
    t.is(rebuilt.code, 0, rebuilt.stderr);
    await cluster.startAgain(master);
    await restartGateway(cluster);
    await cluster.untilClean();
    await expectGeneration(t, cluster, 'disk', 1);
    await expectGeneration(t, cluster, 'later', 1);
  },
);

testUnless(test, whyNoEtcd())(
  'a lone master is lost, and masters on etcd take over from what the daemons know; then from a backup',
  async (t) => {
    t.timeout(240_000);
    const etcd = await EtcdProcess.start();
    t.teardown(() => etcd.remove());
    const cluster = await Cluster.start(t, { images: ['disk:1G'] });
    await write(cluster, 'disk', 1);
    const address = cluster.ready.master;
    await cluster.kill('master');
    rmSync(masterDirectory(cluster), { recursive: true });

    const into = (prefix: string): string => `etcd://${etcd.endpoint}/${prefix}`;
    const rebuilt = await offline('recover', '--from-daemons', '--store', into('one'), '--listen', address);
    t.is(rebuilt.code, 0, rebuilt.stderr);
    const first = await startRole(t, 'master', '--store', into('one'), '--listen', address);
    await restartGateway(cluster);
    await cluster.untilClean();
    await expectGeneration(t, cluster, 'disk', 1);
    await write(cluster, 'disk', 2);

    const file = join(temporaryDirectory(t, 'backup'), 'master.backup');
    await cluster.ashlarWell('master', 'backup', file);
    await first.role.end();
    const restored = await offline('restore', file, '--store', into('two'));
    t.is(restored.code, 0, restored.stderr);
    await startRole(t, 'master', '--store', into('two'), '--listen', address);
    await until('its daemons have proven it', 60_000, async () => (await cluster.ashlar('status')).code === 0);
    await cluster.untilClean();
    await expectGeneration(t, cluster, 'disk', 2);
  },
);
