// The split brain at minimum size 1 with real processes, and the operator's way out of it.

import test from 'ava';
import { Cluster } from './lib/cluster.ts';
import { compareCopies } from './lib/copies.ts';
import { NbdClient } from './lib/nbd-client.ts';
import { sleep, until } from './lib/processes.ts';
import { BLOCK, generationOf, stampedBlock } from './lib/stamps.ts';

const BLOCKS = 64;
/** One block in each of as many objects, so that every PG has some. */
const place = (number: number): number => number * 2 ** 20;

test('A alone takes writes and dies; B waits for it by name until the loss is accepted, and A comes back as a copy of B', async (t) => {
  t.timeout(150_000);
  const cluster = await Cluster.start(t, {
    images: ['disk:128M'],
    daemons: 2,
    replicas: 2,
    more: ['--pg-count', '4'],
  });
  const all = [...Array(BLOCKS).keys()];
  const open = (): Promise<NbdClient> => NbdClient.open(cluster.ready.nbd.address, 'disk', 30_000);
  const client = await open();
  const writeAll = async (generation: number): Promise<void> => {
    await Promise.all(all.map((number) => client.write(place(number), stampedBlock(number, generation))));
    await client.flush();
  };
  await writeAll(1);
  const b = await cluster.kill('daemon', 2);
  await writeAll(2);
  client.destroy();
  const a = await cluster.kill('daemon', 1);
  // What the gateway still has in memory is not to be believed either: another one.
  const gateway = await cluster.kill('nbd');
  await cluster.startAgain(b);
  await until('B waits for A', 20_000, async () => {
    const { pgs } = await cluster.status();
    return pgs.every(({ state, waitFor }) => state === 'incomplete' && waitFor.includes(1));
  });
  const health = await cluster.ashlar('health');
  t.is(health.code, 2);
  t.regex(health.stdout + health.stderr, /pgs? 1\.0.* waits? for daemon 1 \(down since \d+ s\)/);

  const names = (await cluster.status()).pgs.map(({ pg }) => `1.${(pg % 65_536).toString(16)}`);
  const wrong = await cluster.ashlar('pg', 'accept-data-loss', '1.0', '--daemon', '2');
  t.is(wrong.code, 1);
  t.regex(wrong.stderr, /pg 1\.0 does not wait for daemon 2|daemon 2 is up: what it holds is not lost/);
  t.is((await cluster.ashlar('pg', 'accept-data-loss', '1.0')).code, 2, 'whom to give up must be said');
  const said = await cluster.ashlarWell('pg', 'accept-data-loss', ...names, '--daemon', '1');
  t.is(said.match(/waits no longer for daemon 1, and goes on with what is left/g)?.length, 4);

  await cluster.startAgain(gateway);
  const heir = await open();
  t.teardown(() => heir.destroy());
  const generations = async (): Promise<number[]> => {
    const blocks = await Promise.all(all.map((number) => heir.read(place(number), BLOCK)));
    return blocks.map((block, number) => generationOf(block, number));
  };
  t.deepEqual(
    await generations(),
    all.map(() => 1),
  );
  await heir.write(place(3), stampedBlock(3, 3));
  await heir.flush();
  t.is((await cluster.ashlar('health')).code, 1, 'one copy of two');

  await cluster.startAgain(a);
  await cluster.untilClean();
  await sleep(500);
  const after = all.map((number) => (number === 3 ? 3 : 1));
  t.deepEqual(await generations(), after, 'nothing of what A wrote alone is mixed in');
  const compared = await compareCopies(cluster);
  t.deepEqual(compared.differences.slice(0, 5), []);
  t.true(compared.objects >= BLOCKS);
});
