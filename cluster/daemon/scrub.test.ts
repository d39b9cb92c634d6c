// Scrubs ordered at the master: what they find, what they repair, and what they must leave alone.

import test, { type ExecutionContext } from 'ava';
import { payloadChecksums } from '../../proto/checksum.ts';
import type { PgScrubStatus } from '../../proto/control.ts';
import { Op } from '../../proto/frame.ts';
import type { Version } from '../../proto/ids.ts';
import type { Image } from '../client/image.ts';
import type { Store } from '../store/store.ts';
import { Cluster, type ClusterOptions, flush, pause, read, until, Workload, write, zero } from './fixture.ts';
import { RottenStore } from './rotten-store.ts';

const BLOCK = 4096;
const IMAGE = 1;

interface World {
  cluster: Cluster;
  image: Image;
  disks: Map<number, RottenStore>;
}
async function begin(t: ExecutionContext, options: ClusterOptions = {}): Promise<World> {
  const disks = new Map<number, RottenStore>();
  const cluster = await Cluster.start(t, {
    daemons: 3,
    replicas: 3,
    pgCount: 1,
    speed: 10,
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

/** Orders a scrub of everything and waits for its end. */
async function scrub({ cluster }: World, deep: boolean, repair: boolean): Promise<PgScrubStatus[]> {
  await cluster.master.handle('startScrub', { pg: 0, image: 0, deep, repair });
  let pgs: PgScrubStatus[] = [];
  await until('the scrub is done', async () => {
    ({ pgs } = await cluster.master.handle('scrubStatus', {}));
    return pgs.every(({ ordered }) => !ordered);
  });
  return pgs;
}
const found = (pgs: PgScrubStatus[]): string[] =>
  pgs.flatMap(({ inconsistencies }) =>
    inconsistencies.map(({ object, offset, length, daemon, why }) => `${object} ${offset}+${length} ${daemon} ${why}`),
  );
const status = async ({ cluster }: World): Promise<string> => {
  const { health, inconsistent, reasons } = await cluster.master.handle('status', {});
  return `${health}, ${inconsistent}: ${reasons.join('; ')}`;
};

test('bits that rotted at any member are found by a deep scrub and not by a light one; a fix repairs them, and the next is clean', async (t) => {
  const world = await begin(t);
  const { cluster, image, disks } = world;
  for (let object = 0; object < 4; object++) await write(image, object * 65_536, pattern(object + 1));
  const [primary, second, third] = cluster.pg().acting as [number, number, number];
  disks.get(primary)!.spoil(IMAGE, 0, BLOCK);
  disks.get(second)!.spoil(IMAGE, 1, 2 * BLOCK, 'unreadable');
  disks.get(second)!.spoil(IMAGE, 1, 3 * BLOCK);
  disks.get(third)!.spoil(IMAGE, 3, 15 * BLOCK);
  t.deepEqual(found(await scrub(world, false, false)), []);
  t.is(await status(world), 'clean, 0: ');
  t.deepEqual(found(await scrub(world, true, false)).sort(), [
    `0 4096+4096 ${primary} checksum`,
    `1 8192+8192 ${second} checksum`,
    `3 61440+4096 ${third} checksum`,
  ]);
  t.is(await status(world), 'degraded, 3: 3 inconsistent objects: see ashlar scrub describe');
  t.is(
    [...disks.values()].reduce((sum, disk) => sum + disk.badBlocks, 0),
    4,
    'nothing was touched',
  );
  const [fixed] = await scrub(world, true, true);
  t.deepEqual(found([fixed!]), []);
  t.is(fixed!.repaired, 3);
  t.is(
    [...disks.values()].reduce((sum, disk) => sum + disk.badBlocks, 0),
    0,
  );
  t.deepEqual(found(await scrub(world, true, false)), []);
  t.is(cluster.difference(), null);
  t.is(await status(world), 'clean, 0: ');
});

test('a block that is bad in every copy is reported at every daemon and stays so; it is never made good from a bad one', async (t) => {
  const world = await begin(t);
  const { cluster, image, disks } = world;
  await write(image, 0, pattern(1));
  for (const disk of disks.values()) disk.spoil(IMAGE, 0, 5 * BLOCK);
  const before = cluster.hosts.map(({ store }) => store.checksums(IMAGE, 0)!.toString('hex'));
  const pgs = await scrub(world, true, true);
  t.deepEqual(
    found(pgs).sort(),
    [1, 2, 3].map((id) => `0 20480+4096 ${id} no proven copy`),
  );
  t.is(pgs[0]!.repaired, 0);
  t.is(
    [...disks.values()].reduce((sum, disk) => sum + disk.badBlocks, 0),
    3,
  );
  t.deepEqual(
    cluster.hosts.map(({ store }) => store.checksums(IMAGE, 0)!.toString('hex')),
    before,
  );
  await write(image, 5 * BLOCK, pattern(2, 1));
  t.deepEqual(found(await scrub(world, true, false)), [], 'written anew, it is well again');
});

test('a member that lost a write, or has an object too many, is found by a light scrub and gets the primary’s object', async (t) => {
  const world = await begin(t, { daemons: 2, replicas: 2 });
  const { cluster, image } = world;
  await write(image, 0, pattern(1));
  const { store } = cluster.member();
  const { pg } = cluster.pg();
  const old = store.objectVersion(IMAGE, 0);
  await write(image, 0, pattern(2));
  // The disk lost what it had acknowledged, index and all; and something wrote an object that nobody asked for.
  const lost = { pg, image: IMAGE, object: 0, order: 16, replace: true, offset: 0, length: 65_536, version: old };
  store.recover(lost, pattern(1), payloadChecksums(pattern(1), IMAGE, 0, 0), () => {});
  const stray = { ...lost, object: 50 };
  store.recover(stray, pattern(9), payloadChecksums(pattern(9), IMAGE, 50, 0), () => {});
  const { id } = cluster.member();
  t.deepEqual(found(await scrub(world, false, false)).sort(), [`0 0+65536 ${id} version`, `50 0+65536 ${id} version`]);
  t.not(cluster.difference(), null);
  t.deepEqual(found(await scrub(world, false, true)), []);
  t.is(cluster.difference(), null);
  t.true((await read(image, 0, 65_536)).equals(pattern(2)));
});

test('a member at another version is not given an object of which the primary can’t prove every block', async (t) => {
  const world = await begin(t, { daemons: 2, replicas: 2 });
  const { cluster, image, disks } = world;
  await write(image, 0, pattern(1));
  const { store, id } = cluster.member();
  const old = store.objectVersion(IMAGE, 0);
  await write(image, 0, pattern(2));
  const lost = { pg: cluster.pg().pg, image: IMAGE, object: 0, order: 16, replace: true, offset: 0, length: 65_536 };
  store.recover({ ...lost, version: old }, pattern(1), payloadChecksums(pattern(1), IMAGE, 0, 0), () => {});
  disks.get(cluster.primary().id)!.spoil(IMAGE, 0, BLOCK);
  const findings = found(await scrub(world, true, true));
  t.true(findings.includes(`0 0+65536 ${id} version; the primary has bad blocks`), findings.join());
  t.deepEqual(store.objectVersion(IMAGE, 0), old);
});

/** Behind the protocol's back: an object as it was at another time, index and all. */
function put(cluster: Cluster, store: Store, object: number, data: Buffer, version: Version): void {
  const piece = { pg: cluster.pg().pg, image: IMAGE, object, order: 16, replace: true, offset: 0, length: data.length };
  store.recover({ ...piece, version }, data, payloadChecksums(data, IMAGE, object, 0), () => {});
}

test('a primary that lost a write its log tells of gets the object back from a member that proves it all, and gives its own to nobody', async (t) => {
  const world = await begin(t);
  const { cluster, image, disks } = world;
  await write(image, 0, pattern(1));
  const [primary, ...members] = cluster.pg().acting as [number, number, number];
  const { store } = cluster.primary();
  const old = store.objectVersion(IMAGE, 0);
  await write(image, 0, pattern(2));
  await write(image, 65_536, pattern(3));
  put(cluster, store, 0, pattern(1), old);
  store.recoverDelete(cluster.pg().pg, IMAGE, 1, () => {});
  t.deepEqual(
    found(await scrub(world, false, false)).sort(),
    [0, 1].map((object) => `${object} 0+65536 ${primary} version`),
  );
  for (const id of members) disks.get(id)!.spoil(IMAGE, 0, BLOCK);
  const why = `0 0+65536 ${primary} version; daemon ${members[1]}, which has it, has bad blocks`;
  t.deepEqual(found(await scrub(world, false, true)), [why]);
  t.deepEqual(store.objectVersion(IMAGE, 0), old);
  disks.get(members[1]!)!.wellAgain();
  t.deepEqual(found(await scrub(world, true, true)), []);
  t.true((await read(image, 0, 2 * 65_536)).equals(Buffer.concat([pattern(2), pattern(3)])));
  t.is(cluster.difference(), null);
});

test('an object that is deleted, by the log, is removed from whoever still has it', async (t) => {
  const world = await begin(t, { daemons: 2, replicas: 2 });
  const { cluster, image } = world;
  for (const object of [0, 1]) await write(image, object * 65_536, pattern(1));
  const old = cluster.primary().store.objectVersion(IMAGE, 0);
  await zero(image, 0, 2 * 65_536);
  put(cluster, cluster.primary().store, 0, pattern(1), old);
  put(cluster, cluster.member().store, 1, pattern(1), old);
  t.deepEqual(found(await scrub(world, false, true)), []);
  t.is(cluster.difference(), null);
  t.true((await read(image, 0, 2 * 65_536)).every((byte) => byte === 0));
});

test('where the log no longer tells, an object that the primary does not have is not taken from the member', async (t) => {
  const world = await begin(t, { daemons: 2, replicas: 2, store: { logEntriesMax: 2 } });
  const { cluster, image } = world;
  await write(image, 0, pattern(1));
  for (const object of [1, 2, 3]) await write(image, object * 65_536, pattern(object));
  cluster.primary().store.recoverDelete(cluster.pg().pg, IMAGE, 0, () => {});
  const { store, id } = cluster.member();
  t.deepEqual(found(await scrub(world, false, true)), [`0 0+65536 ${id} version; no copy is what the log says`]);
  t.true(store.objectVersion(IMAGE, 0).seq > 0);
});

test('copies of one version that differ and both match their checksums are reported, and not judged', async (t) => {
  const world = await begin(t);
  const { cluster, image } = world;
  await write(image, 0, pattern(1));
  const { store, id } = cluster.member();
  const version = store.objectVersion(IMAGE, 0);
  const piece = { pg: cluster.pg().pg, image: IMAGE, object: 0, order: 16, replace: false, offset: 0, length: BLOCK };
  store.recover({ ...piece, version }, pattern(7, 1), payloadChecksums(pattern(7, 1), IMAGE, 0, 0), () => {});
  t.deepEqual(found(await scrub(world, false, true)), [
    `0 0+4096 ${id} differs from the primary at the same version, and both match their checksums`,
  ]);
  t.not(cluster.difference(), null);
});

test('under load, with daemons that die, scrubs find nothing where nothing is wrong, and all damage where there is some', async (t) => {
  const world = await begin(t, { replicas: 2, pgCount: 4 });
  const { cluster, image, disks } = world;
  const work = new Workload(image, 4);
  work.start();
  await work.writes(50);
  for (let round = 0; round < 3; round++) {
    const scrubbing = scrub(world, round > 0, true);
    await work.writes(30);
    const pgs = await scrubbing;
    t.deepEqual(found(pgs), []);
    t.is(
      pgs.reduce((sum, { repaired }) => sum + repaired, 0),
      0,
    );
  }
  await cluster.master.handle('startScrub', { pg: 0, image: 0, deep: true, repair: true });
  cluster.kill(2);
  await work.writes(30);
  await cluster.startDaemon(2);
  await work.writes(10);
  await work.stop();
  await cluster.settled(2);
  for (let i = 0; i < 20; i++) disks.get(3)!.spoil(IMAGE, work.random(64), work.random(16) * BLOCK);
  await scrub(world, true, true);
  t.deepEqual(found(await scrub(world, true, false)), []);
  await work.verify();
  await flush(image);
  t.is(cluster.difference(), null);
});

test('a write that has reached one member only while a scrub compares is waited for, and is no inconsistency', async (t) => {
  const world = await begin(t, { daemons: 2, replicas: 2, speed: 1 });
  const { cluster, image } = world;
  await write(image, 0, pattern(1));
  const { wire } = cluster.primary();
  let listed = false;
  let compared = 0;
  wire.onSend = (frame) => {
    if (frame.op === Op.PG_READ) compared++;
    return frame.op !== Op.REPLICATE;
  };
  wire.onReceive = (frame) => {
    if (frame.op === Op.PG_SCRUB) listed = true;
    return true;
  };
  const writing = write(image, 0, pattern(2, 1));
  await until('the write is on its way', () => wire.held.length === 1);
  const scrubbing = scrub(world, true, true);
  await until('the member has listed the old version', () => listed);
  await pause(100);
  t.is(compared, 0, 'the object does not stand still yet');
  for (const { connection, frame } of wire.held.splice(0)) connection.inner.send(frame);
  await writing;
  const pgs = await scrubbing;
  t.true(compared > 0);
  t.deepEqual(found(pgs), []);
  t.is(pgs[0]!.repaired, 0);
});

test('a scrub of one image leaves the objects of others alone', async (t) => {
  const world = await begin(t, { daemons: 2, replicas: 2 });
  const { cluster, image, disks } = world;
  await cluster.createImage('other');
  const other = await cluster.writer('other');
  await write(image, 0, pattern(1));
  await write(other, 0, pattern(2));
  const disk = disks.get(cluster.member().id)!;
  disk.spoil(IMAGE, 0, 0);
  disk.spoil(IMAGE + 1, 0, 0);
  await cluster.master.handle('startScrub', { pg: 0, image: IMAGE + 1, deep: true, repair: true });
  await until('one is repaired', () => disk.badBlocks === 1);
  await until('the scrub is done', async () =>
    (await cluster.master.handle('scrubStatus', {})).pgs.every(({ ordered }) => !ordered),
  );
  await pause(50);
  t.is(disk.badBlocks, 1);
  await t.throwsAsync(cluster.master.handle('startScrub', { pg: 0, image: 99, deep: true, repair: true }), {
    message: /no image 99/,
  });
});

test('an order outlives the daemon that had begun to carry it out', async (t) => {
  const world = await begin(t, { daemons: 3, replicas: 3, minSize: 1 });
  const { cluster, image, disks } = world;
  await write(image, 0, pattern(1));
  const { id, wire } = cluster.primary();
  const bad = disks.get(cluster.pg().acting[2]!)!;
  bad.spoil(IMAGE, 0, 0);
  wire.onSend = (frame) => frame.op !== Op.PG_SCRUB;
  await cluster.master.handle('startScrub', { pg: 0, image: 0, deep: true, repair: true });
  await until('the scrub has begun', () => wire.held.length > 0);
  cluster.kill(id);
  await until('another has done it', () => bad.badBlocks === 0);
  await until('the master knows', async () => {
    const { pgs } = await cluster.master.handle('scrubStatus', {});
    return pgs.every(({ ordered }) => !ordered);
  });
  const { pgs } = await cluster.master.handle('scrubStatus', {});
  t.like(pgs[0], { repaired: 1, inconsistencies: [] });
  t.true(pgs[0]!.deepAgoMs >= 0);
});
