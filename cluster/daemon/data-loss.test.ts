// A PG that waits for a daemon that never comes back: what an operator's word does, and what it does not.

import test from 'ava';
import { Op } from '../../proto/frame.ts';
import { pgName } from '../../proto/ids.ts';
import { Cluster, flush, pause, read, until, write } from './fixture.ts';

const BLOCK = 4096;
const block = (byte: number): Buffer => Buffer.alloc(BLOCK, byte);

const accept = (cluster: Cluster, daemon: number) =>
  cluster.master.handle('acceptDataLoss', { pg: cluster.pg().pg, daemon });
const reasons = async (cluster: Cluster): Promise<string> =>
  (await cluster.master.handle('status', {})).reasons.join('\n');

test('split brain at minimum size 1: B serves nothing until the loss of A is accepted; then A comes back with none of its own', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, minSize: 1, pgCount: 1 });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, block(1));
  await write(image, BLOCK, block(1));
  await flush(image);
  const [a, b] = [cluster.primary().id, cluster.member().id];
  cluster.kill(b);
  // A alone: over what both have, where neither had anything, and in an object of its own.
  await write(image, 0, block(2));
  await write(image, 2 * BLOCK, block(2));
  await write(image, 65_536, block(2));
  await flush(image);
  await cluster.endClients();
  cluster.kill(a);
  await cluster.startDaemon(b);
  await until('B is the only member', () => cluster.pg().acting.length === 1 && cluster.pg().acting[0] === b);
  t.deepEqual(cluster.pg().waitFor, [a]);
  t.regex(
    await reasons(cluster),
    new RegExp(`pg ${pgName(cluster.pg().pg)} waits for daemon ${a} \\(down since \\d+ s\\)`),
  );

  const heir = await cluster.writer();
  let answered = false;
  const waiting = read(heir, 0, BLOCK).finally(() => {
    answered = true;
  });
  await pause(300);
  t.false(answered, 'it must not serve what may be old');
  await t.throwsAsync(accept(cluster, b), { message: /does not wait for daemon|is up: what it holds is not lost/ });
  await t.throwsAsync(accept(cluster, 9), { code: 'NOT_FOUND' });

  t.deepEqual(await accept(cluster, a), { waitFor: [] });
  t.is((await waiting)[0], 1, 'what is left is what B has');
  await t.throwsAsync(accept(cluster, a), { code: 'INVALID', message: /serves/ });
  await write(heir, 3 * BLOCK, block(3));

  await cluster.startDaemon(a);
  await cluster.settled(2);
  t.is(cluster.difference(), null, 'both hold the same');
  t.is(cluster.pg().acting.length, 2);
  const found = await read(heir, 0, 65_536 + BLOCK);
  const at = (offset: number): number => found[offset]!;
  t.deepEqual([at(0), at(BLOCK), at(2 * BLOCK), at(3 * BLOCK), at(65_536)], [1, 1, 0, 3, 0]);
});

test('A comes back after its loss was accepted and before anything was served without it: nothing is lost', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, minSize: 2, pgCount: 1 });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, block(1));
  await flush(image);
  const [a, b] = [cluster.primary().id, cluster.member().id];
  await cluster.endClients();
  cluster.kill(a);
  cluster.kill(b);
  await until('nobody is left', () => cluster.pg().acting.length === 0);
  t.deepEqual(await accept(cluster, a), { waitFor: [b] }, 'B may have all of it');
  await cluster.startDaemon(a);
  await until('A is up', () => cluster.pg().acting.includes(a));
  await cluster.startDaemon(b);
  await cluster.settled(2);
  t.is((await read(await cluster.writer(), 0, BLOCK))[0], 1);
});

test('only one that was still being recovered is left: it waits, by name, for those who have more; given up, it is the truth', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 3, replicas: 3, minSize: 1, pgCount: 1 });
  await cluster.createImage();
  const image = await cluster.writer();
  for (let object = 0; object < 4; object++) await write(image, object * 65_536, block(1));
  await flush(image);
  const [a, b, c] = cluster.pg().acting as [number, number, number];
  cluster.kill(c);
  for (let object = 0; object < 4; object++) await write(image, object * 65_536, block(2));
  await flush(image);
  // C gets the log and some of the objects, not all: A's recovery stops in the middle.
  let pushes = 0;
  cluster.host(a).wire.onSend = (frame) => frame.op !== Op.PG_PUSH || (frame.flags & 1) !== 0 || ++pushes <= 2;
  await cluster.startDaemon(c);
  const { store } = cluster.host(c);
  const { pg } = cluster.pg();
  await until('C is a member that misses something', () => pushes > 2 && !store.pgInfo(pg).complete);
  await until('writes are taken in that interval', async () => {
    await write(image, 5 * 65_536, block(5));
    return true;
  });
  await flush(image);
  await cluster.endClients();
  cluster.kill(a);
  cluster.kill(b);
  await until('C is alone', () => cluster.pg().acting.length === 1);
  await until('it says that it is incomplete', async () =>
    new RegExp(`waits for daemon ${Math.min(a, b)} .*or daemon ${Math.max(a, b)} `).test(await reasons(cluster)),
  );
  await accept(cluster, a);
  await until('it still waits for B', async () => new RegExp(`waits for daemon ${b} `).test(await reasons(cluster)));
  await accept(cluster, b);
  const heir = await cluster.writer();
  const left = await read(heir, 0, 6 * 65_536);
  for (let object = 0; object < 4; object++)
    t.true([1, 2].includes(left[object * 65_536]!), `object ${object} holds an old or a new value`);
  t.is(left[5 * 65_536], 5, 'what it did get is there');
  await write(heir, 3 * 65_536, block(7));

  await cluster.startDaemon(a);
  await cluster.startDaemon(b);
  await cluster.settled(3);
  const after = await read(heir, 0, 6 * 65_536);
  left.fill(7, 3 * 65_536, 3 * 65_536 + BLOCK);
  t.true(after.equals(left), 'those who came back have changed nothing');
});
