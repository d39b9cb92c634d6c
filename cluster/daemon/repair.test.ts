// Copies that go bad under a cluster that serves: read repair, and what it must never do.

import test, { type ExecutionContext } from 'ava';
import { payloadChecksums } from '../../proto/checksum.ts';
import { Flag, Op } from '../../proto/frame.ts';
import { sameVersion } from '../../proto/ids.ts';
import type { Image } from '../client/image.ts';
import { Cluster, type ClusterOptions, flush, pause, read, until, Workload, write } from './fixture.ts';
import { type Damage, RottenStore } from './rotten-store.ts';

const BLOCK = 4096;
const IMAGE = 1;

async function begin(
  t: ExecutionContext,
  options: ClusterOptions = {},
): Promise<{ cluster: Cluster; image: Image; disks: Map<number, RottenStore> }> {
  const disks = new Map<number, RottenStore>();
  const cluster = await Cluster.start(t, {
    daemons: 3,
    replicas: 3,
    pgCount: 1,
    ...options,
    wrapStore: (store, id) => {
      const disk = new RottenStore(store);
      disks.set(id, disk);
      return disk.store;
    },
  });
  await cluster.createImage();
  return { cluster, image: await cluster.writer(), disks };
}
const pattern = (byte: number, blocks = 16): Buffer => Buffer.alloc(blocks * BLOCK, byte);
const failed = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'OK',
    (error: { code: string }) => error.code,
  );

for (const damage of ['flipped', 'unreadable'] as Damage[])
  test(`a block that is ${damage} at the primary is read right from another member, and written anew`, async (t) => {
    const { cluster, image, disks } = await begin(t);
    await write(image, 0, pattern(7));
    const { id } = cluster.primary();
    const version = cluster.host(id).store.objectVersion(IMAGE, 0);
    for (const block of [1, 2, 9]) disks.get(id)!.spoil(IMAGE, 0, block * BLOCK, damage);
    t.true((await read(image, 0, 16 * BLOCK)).equals(pattern(7)));
    t.is(disks.get(id)!.badBlocks, 0);
    t.deepEqual(cluster.host(id).store.objectVersion(IMAGE, 0), version);
    const findings = cluster.host(id).daemon!.findings.of(cluster.pg().pg);
    t.is(findings.repaired, 2, 'two runs of blocks');
    t.deepEqual(findings.open, []);
    t.is(cluster.difference(), null);
  });

test('when the next member has the same block bad, the third proves it', async (t) => {
  const { cluster, image, disks } = await begin(t);
  await write(image, 0, pattern(3));
  for (const id of cluster.pg().acting.slice(0, 2)) disks.get(id)!.spoil(IMAGE, 0, 0);
  t.true((await read(image, 0, BLOCK)).equals(pattern(3, 1)));
  t.is(disks.get(cluster.primary().id)!.badBlocks, 0);
});

test('a block that nobody can prove is an I/O error, listed, and stays what it is until it is written again', async (t) => {
  const { cluster, image, disks } = await begin(t);
  await write(image, 0, pattern(3));
  for (const disk of disks.values()) disk.spoil(IMAGE, 0, 4 * BLOCK);
  t.is(await failed(read(image, 0, 16 * BLOCK)), 'IO');
  t.is(await failed(read(image, 0, 16 * BLOCK)), 'IO');
  t.true((await read(image, 0, 4 * BLOCK)).equals(pattern(3, 4)), 'its neighbours are read');
  const { open, repaired } = cluster.primary().daemon!.findings.of(cluster.pg().pg);
  t.is(repaired, 0);
  t.is(open.length, 1);
  t.like(open[0], { image: IMAGE, object: 0, offset: 4 * BLOCK, length: BLOCK, daemon: cluster.primary().id });
  await write(image, 4 * BLOCK, pattern(5, 1));
  t.true((await read(image, 4 * BLOCK, BLOCK)).equals(pattern(5, 1)));
});

test('a member whose block matches its own checksum, but not the primary’s, proves nothing', async (t) => {
  const { cluster, image, disks } = await begin(t, { daemons: 2, replicas: 2 });
  await write(image, 0, pattern(3));
  const { id } = cluster.primary();
  disks.get(id)!.spoil(IMAGE, 0, 0);
  // Behind the protocol's back, the member holds other data at the same version, whole as far as it can know.
  const { store } = cluster.member();
  const other = pattern(9, 1);
  const piece = { pg: cluster.pg().pg, image: IMAGE, object: 0, order: 16, replace: false, offset: 0, length: BLOCK };
  const version = store.objectVersion(IMAGE, 0);
  store.recover({ ...piece, version }, other, payloadChecksums(other, IMAGE, 0, 0), () => {});
  t.is(await failed(read(image, 0, BLOCK)), 'IO');
  t.is(disks.get(id)!.badBlocks, 1, 'nothing was copied');
});

test('a read that comes broken over the wire is asked again, and no copy is touched', async (t) => {
  const { cluster, image } = await begin(t);
  await write(image, 0, pattern(3));
  const { wire, daemon } = cluster.primary();
  let verified = 0;
  wire.onReceive = (frame) => {
    if (frame.op === Op.READ && (frame.flags & Flag.VERIFY) !== 0) verified++;
    return true;
  };
  let broken = 0;
  wire.onSend = (frame) => {
    if (frame.op === Op.READ && broken++ === 0) {
      frame.payload = Buffer.from(frame.payload!);
      frame.payload[0]! ^= 1;
    }
    return true;
  };
  t.true((await read(image, 0, 16 * BLOCK)).equals(pattern(3)));
  t.is(verified, 1);
  t.is(daemon!.findings.of(cluster.pg().pg).repaired, 0);
});

test('blocks of the primaries go bad under load: every read is right, and no write is lost', async (t) => {
  const { cluster, image, disks } = await begin(t, { pgCount: 4 });
  const work = new Workload(image, 8);
  work.start();
  await work.writes(100);
  for (let round = 0; round < 10; round++) {
    // Partial blocks are read before they are written, so writers meet the damage too.
    for (let i = 0; i < 8; i++)
      disks.get(1)!.spoil(IMAGE, work.random(64), work.random(16) * BLOCK, i % 3 === 0 ? 'unreadable' : 'flipped');
    await work.writes(20);
  }
  await work.stop();
  await work.verify();
  await flush(image);
  const repaired = [...cluster.host(1).daemon!.findings.values()].reduce((sum, one) => sum + one.repaired, 0);
  t.true(repaired > 0, 'reads met damage');
});

test('a write to an object that is being repaired waits, and is not undone by the repair', async (t) => {
  const { cluster, image, disks } = await begin(t, { daemons: 2, replicas: 2 });
  await write(image, 0, pattern(3));
  const { id, wire } = cluster.primary();
  disks.get(id)!.spoil(IMAGE, 0, 0);
  wire.onSend = (frame) => frame.op !== Op.PG_READ;
  const reading = read(image, 0, BLOCK);
  await until('the primary asks the member', () => wire.held.length === 1);
  let acked = false;
  const writing = write(image, BLOCK, pattern(8, 1)).then(() => {
    acked = true;
  });
  t.true((await read(image, BLOCK, BLOCK)).equals(pattern(3, 1)), 'other blocks can be read meanwhile');
  t.false(acked);
  wire.release();
  t.true((await reading).equals(pattern(3, 1)));
  await writing;
  t.true((await read(image, 0, 3 * BLOCK)).equals(Buffer.concat([pattern(3, 1), pattern(8, 1), pattern(3, 1)])));
  t.is(cluster.difference(), null);
});

test('an interval that ends during a repair: the write that waited is applied once, the read is answered by the next', async (t) => {
  const { cluster, image, disks } = await begin(t, { daemons: 3, replicas: 2 });
  await write(image, 0, pattern(3));
  const { id, wire } = cluster.primary();
  disks.get(id)!.spoil(IMAGE, 0, 0);
  wire.onSend = (frame) => frame.op !== Op.PG_READ;
  const reading = read(image, 0, BLOCK);
  await until('the primary asks the member', () => wire.held.length === 1);
  const writing = write(image, BLOCK, pattern(8, 1));
  cluster.kill(id);
  await writing;
  t.true((await reading).equals(pattern(3, 1)));
  t.true((await read(image, BLOCK, BLOCK)).equals(pattern(8, 1)));
  const { pg, acting } = cluster.pg();
  const { store } = cluster.host(acting[0]!);
  t.is(store.logAfter(pg, store.pgInfo(pg).tail)!.length, 2, 'two writes, two entries');
});

test('recovery that meets a bad block at the primary takes it from a member that has it, and goes on', async (t) => {
  const { cluster, image, disks } = await begin(t, { minSize: 1 });
  await write(image, 0, pattern(3));
  const [, , away] = cluster.pg().acting as [number, number, number];
  cluster.kill(away);
  await write(image, 0, pattern(4));
  const primary = cluster.primary().id;
  disks.get(primary)!.spoil(IMAGE, 0, 5 * BLOCK);
  await cluster.startDaemon(away);
  await cluster.settled(3);
  t.is(disks.get(primary)!.badBlocks, 0);
  t.is(cluster.difference(), null);
  t.true((await read(image, 0, 16 * BLOCK)).equals(pattern(4)));
});

test('recovery of an object with a block that nobody can prove: the rest gets its copies, the block is bad everywhere, and can be written', async (t) => {
  const { cluster, image, disks } = await begin(t, { daemons: 2, replicas: 2, minSize: 1 });
  await write(image, 0, pattern(3));
  const away = cluster.member().id;
  cluster.kill(away);
  await write(image, 0, pattern(4));
  const primary = cluster.primary().id;
  disks.get(primary)!.spoil(IMAGE, 0, 5 * BLOCK);
  await cluster.startDaemon(away);
  const { pg } = cluster.pg();
  await until('the member is complete', () => {
    const { store } = cluster.host(away);
    const version = cluster.host(primary).store.objectVersion(IMAGE, 0);
    return sameVersion(store.objectVersion(IMAGE, 0), version) && store.pgInfo(pg).complete;
  });
  t.is(await failed(read(image, 5 * BLOCK, BLOCK)), 'IO');
  cluster.kill(primary);
  t.is(await failed(read(image, 5 * BLOCK, BLOCK)), 'IO', 'under the new primary too: not what was there before');
  t.true((await read(image, 0, 5 * BLOCK)).equals(pattern(4, 5)));
  t.true((await read(image, 6 * BLOCK, 10 * BLOCK)).equals(pattern(4, 10)));
  await write(image, 5 * BLOCK, pattern(6, 1));
  t.true((await read(image, 5 * BLOCK, BLOCK)).equals(pattern(6, 1)));
  await cluster.startDaemon(primary);
  await cluster.settled(2);
});

test('what the disk of the only whole copy refuses to read now is not given up: recovery tries again until it can be read', async (t) => {
  const { cluster, image, disks } = await begin(t, { daemons: 2, replicas: 2, minSize: 1, speed: 4 });
  await write(image, 0, pattern(3));
  const away = cluster.member().id;
  cluster.kill(away);
  await write(image, 0, pattern(4));
  const disk = disks.get(cluster.primary().id)!;
  disk.spoil(IMAGE, 0, 5 * BLOCK, 'unreadable');
  await cluster.startDaemon(away);
  const { pg } = cluster.pg();
  await until('it has been tried', () => cluster.primary().daemon!.findings.of(pg).open.length > 0);
  await pause(300);
  t.false(cluster.host(away).store.pgInfo(pg).complete);
  disk.wellAgain();
  await cluster.settled(2);
  t.true((await read(image, 0, 16 * BLOCK)).equals(pattern(4)));
});
