// Clusters on real sockets: what is written is on every member, whatever dies and comes back meanwhile.

import test from 'ava';
import { type Frame, Op } from '../../proto/frame.ts';
import type { PgId } from '../../proto/ids.ts';
import { pgOfObject } from '../../proto/map.ts';
import type { Image } from '../client/image.ts';
import { createMemoryStore } from '../store/memory-store.ts';
import { EntryOp, type Store } from '../store/store.ts';
import { openClock } from '../world/clock.ts';
import { Cluster, flush, pause, read, until, Wire, Workload, write, zero } from './fixture.ts';

const BLOCK = 4096;

/** Payload bytes that a host's recovery sends. */
function countPushes(wire: Wire): { bytes: number; frames: number } {
  const count = { bytes: 0, frames: 0 };
  wire.onSend = (frame) => {
    if (frame.op === Op.PG_PUSH && (frame.flags & 1) === 0) {
      count.bytes += frame.payload?.length ?? 0;
      count.frames += 1;
    }
    return true;
  };
  return count;
}
const primaryOf = (cluster: Cluster, offset: number): number => {
  const pool = [...cluster.map.pools.values()][0]!;
  return cluster.map.pgs.get(pgOfObject(pool, 1, Math.floor(offset / 65_536)))!.acting[0]!;
};
const entriesOf = (cluster: Cluster, id: number, pg: PgId) => {
  const { store } = cluster.host(id);
  return store.logAfter(pg, store.pgInfo(pg).tail)!;
};

for (const replicas of [1, 2, 3])
  test(`with ${replicas} replicas, what is written at any alignment reads back, and every member holds it`, async (t) => {
    const cluster = await Cluster.start(t, { replicas });
    await cluster.createImage();
    const image = await cluster.writer();
    const work = new Workload(image, 16);
    work.start();
    await work.writes(300);
    await work.stop();
    await work.verify();
    await flush(image);
    t.is(cluster.difference(), null);
    let copies = 0;
    for (const { store } of cluster.hosts) for (const pg of store.pgs()) copies += store.pgUsage(pg).objects;
    t.is(copies % replicas, 0);
    t.true(copies > 30 * replicas, `${copies} copies of objects`);

    await zero(image, 0, image.sizeBytes);
    t.true((await read(image, 0, image.sizeBytes)).every((byte) => byte === 0));
    for (const { store } of cluster.hosts) for (const pg of store.pgs()) t.is(store.pgUsage(pg).bytes, 0);
  });

test('a daemon that joins takes its share, and what has moved is deleted where it was', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 16 });
  await cluster.createImage();
  const image = await cluster.writer();
  const work = new Workload(image, 8);
  work.start();
  await work.writes(200);
  cluster.hosts.push({ id: 3, store: createMemoryStore(cluster.clock), wire: new Wire(), daemon: null });
  await cluster.startDaemon(3);
  await work.writes(200);
  await work.stop();
  await cluster.settled(2);
  const strays = (): number => {
    let objects = 0;
    for (const { id, store } of cluster.hosts)
      for (const pg of store.pgs())
        if (!cluster.map.pgs.get(pg)!.acting.includes(id)) objects += store.pgUsage(pg).objects;
    return objects;
  };
  t.true(cluster.host(3).store.pgs().length >= 6, 'the newcomer has its share');
  await until('nothing is left of what has moved', () => strays() === 0, 25_000);
  await work.verify();
  t.is(cluster.difference(), null);
});

test('a killed daemon stops nothing for longer than 2 s; back again, it fetches only what it missed', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 3, replicas: 3 });
  await cluster.createImage();
  const image = await cluster.writer();
  const work = new Workload(image, 8);
  // Data that the dead one has: none of it may be copied again.
  await write(image, 0, Buffer.alloc(2 * 2 ** 20, 7));
  work.expected.fill(7, 0, 2 * 2 ** 20);
  work.start();
  await work.writes(100);
  cluster.kill(2);
  await work.writes(100);
  t.true(work.slowestMs < 2_000, `${work.slowestMs} ms without an ack`);
  await work.stop();
  const pushes = cluster.hosts.map(({ wire }) => countPushes(wire));
  const before = work.acked;
  await cluster.startDaemon(2);
  await cluster.settled(3);
  await work.verify();
  const bytes = pushes.reduce((sum, count) => sum + count.bytes, 0);
  t.true(bytes > 0 && bytes < 110 * 20 * 1024, `${bytes} bytes were pushed for about 100 changes of 8 KiB`);
  t.is(work.acked, before);
});

test('a daemon that comes back under load catches up while writes go on', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2 });
  await cluster.createImage();
  const image = await cluster.writer();
  const work = new Workload(image, 8);
  work.start();
  for (const id of [1, 2, 1]) {
    await work.writes(60);
    cluster.kill(id);
    await work.writes(60);
    await cluster.startDaemon(id);
    await until('it is a member again', () => [...cluster.map.pgs.values()].every(({ acting }) => acting.length === 2));
    await work.writes(60);
    // Only a complete member may be the last one.
    await work.stop();
    await cluster.settled(2);
    work.start();
  }
  await work.stop();
  await work.verify();
  t.true(work.slowestMs < 2_000, `${work.slowestMs} ms without an ack`);
  t.is(cluster.difference(), null);
});

test('a daemon that was away until the log had moved on compares lists, and copies only what differs', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 1, store: { logEntriesMax: 16 } });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, Buffer.alloc(image.sizeBytes, 1)); // 64 objects of 64 KiB
  cluster.kill(cluster.member().id);
  for (let i = 0; i < 50; i++) await write(image, 65_536 * (i % 3), Buffer.alloc(BLOCK, i));
  const pushes = countPushes(cluster.primary().wire);
  await cluster.startDaemon(cluster.map.pgs.values().next().value!.acting[0] === 1 ? 2 : 1);
  await cluster.settled(2);
  t.is(pushes.frames, 3, 'three objects were changed');
  t.is(pushes.bytes, 3 * 65_536);
});

for (const [how, store] of [
  ['by log', {}],
  ['by list', { logEntriesMax: 4 }],
] as const)
  test(`what was deleted while a member was away stays deleted when it comes back (${how})`, async (t) => {
    const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 1, store });
    await cluster.createImage();
    const image = await cluster.writer();
    await write(image, 0, Buffer.alloc(8 * 65_536, 5));
    const away = cluster.primary().id;
    cluster.kill(away);
    await zero(image, 65_536, 6 * 65_536);
    await write(image, 65_536, Buffer.alloc(BLOCK, 6)); // one of them lives again, with less in it
    await cluster.startDaemon(away);
    await cluster.settled(2);
    t.is(cluster.host(away).store.pgUsage(cluster.pg().pg).objects, 3);
    // The one that was away serves alone now.
    cluster.kill(3 - away);
    const found = await read(image, 0, 8 * 65_536);
    t.true(found.subarray(65_536, 65_536 + BLOCK).every((byte) => byte === 6));
    t.true(found.subarray(65_536 + BLOCK, 7 * 65_536).every((byte) => byte === 0));
  });

test('split brain at minimum size 1: the one without the newest writes waits for the one that has them', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, minSize: 1, pgCount: 1 });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, Buffer.alloc(BLOCK, 1));
  const [first, second] = [cluster.primary().id, cluster.member().id];
  cluster.kill(second);
  await write(image, 0, Buffer.alloc(BLOCK, 2));
  cluster.kill(first);
  await cluster.startDaemon(second);
  await until('it is the only member', () => cluster.pg().acting.length === 1 && cluster.pg().acting[0] === second);
  t.deepEqual(cluster.pg().waitFor, [first]);
  let answered = false;
  const waiting = read(image, 0, BLOCK).then((found) => {
    answered = true;
    return found;
  });
  await pause(500);
  t.false(answered, 'it must not serve what may be old');
  await cluster.startDaemon(first);
  t.is((await waiting)[0], 2);
  await cluster.settled(2);
});

test('entries that a primary wrote and nobody else saw are undone when it comes back', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, minSize: 1, pgCount: 1 });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, Buffer.alloc(4 * BLOCK, 1));
  const { id, store, wire } = cluster.primary();
  const { pg } = cluster.pg();
  // Its last words do not reach the member, and their writer dies with it.
  wire.onSend = (frame) => frame.op !== Op.REPLICATE;
  const lost = [
    write(image, 0, Buffer.alloc(BLOCK, 9)),
    zero(image, BLOCK, BLOCK),
    write(image, 65_536, Buffer.alloc(BLOCK, 9)),
  ];
  const failures = Promise.allSettled(lost);
  await until('they are in its log', () => store.pgInfo(pg).last.seq === 4);
  const [writer] = [image];
  cluster.kill(id);
  await cluster.endClients();
  t.true(
    (await failures).every(({ status }) => status === 'rejected'),
    `${writer.name} was never told that they succeeded`,
  );

  const next = await cluster.writer();
  t.is((await read(next, 0, 1))[0], 1);
  await write(next, 2 * BLOCK, Buffer.alloc(BLOCK, 3));
  await cluster.startDaemon(id);
  await cluster.settled(2);
  cluster.kill(3 - id);
  const found = await read(next, 0, 3 * BLOCK);
  t.deepEqual([found[0], found[BLOCK], found[2 * BLOCK]], [1, 1, 3]);
  t.is((await read(next, 65_536, 1))[0], 0);
});

test('the primary dies before it could tell: the write is sent again, found in the log, and applied once', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, minSize: 1, pgCount: 1 });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, Buffer.alloc(BLOCK, 1));
  const { id, wire } = cluster.primary();
  const { pg } = cluster.pg();
  wire.onSend = (frame) => frame.op !== Op.WRITE; // its answers
  const data = Buffer.alloc(BLOCK, 2);
  const pending = write(image, 0, data, true);
  await until('the answer is held back', () => wire.held.length === 1);
  cluster.kill(id);
  await pending;
  const survivor = 3 - id;
  t.is(entriesOf(cluster, survivor, pg).length, 2, 'one entry per write');
  t.is((await read(image, 0, 1))[0], 2);
});

test('a connection that breaks before the answer: the same daemon finds the write in its log, and applies it once', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 1 });
  await cluster.createImage();
  const image = await cluster.writer();
  const { wire, id } = cluster.primary();
  for (const [op, change] of [
    [Op.WRITE, () => write(image, 0, Buffer.alloc(BLOCK, 1))],
    [Op.ZERO, () => zero(image, 0, BLOCK)],
    [Op.ZERO, () => zero(image, 0, BLOCK)], // of an object that is not there any more
  ] as const) {
    let answers = 0;
    wire.onSend = (frame) => frame.op !== op || answers++ > 0;
    const pending = change();
    await until('the answer is held back', () => wire.held.length === 1);
    wire.held = [];
    wire.reset();
    await pending;
    wire.onSend = null;
  }
  t.deepEqual(
    entriesOf(cluster, id, cluster.pg().pg).map(({ op }) => op),
    [EntryOp.WRITE, EntryOp.ZERO],
  );
  await cluster.settled(2);
});

test('a read never sees a write that is not on every member; reads of other blocks do not wait for it', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 3, replicas: 3, pgCount: 1 });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, Buffer.alloc(4 * BLOCK, 1));
  const reader = await (await cluster.client()).open('image', { readOnly: true, takeOver: false });
  const { wire } = cluster.host(cluster.pg().acting[2]!);
  wire.onSend = (frame) => frame.op !== Op.REPLICATE; // its acks
  let acked = false;
  const pending = write(image, BLOCK, Buffer.alloc(BLOCK, 2)).then(() => {
    acked = true;
  });
  await until('the ack is held back', () => wire.held.length === 1);
  let seen: Buffer | null = null;
  const reading = read(reader, 0, 2 * BLOCK).then((found) => {
    seen = found;
  });
  t.is((await read(reader, 2 * BLOCK, BLOCK))[0], 1);
  const status = new Promise((resolve) => reader.status(0, 65_536, () => resolve(true)));
  t.is(await Promise.race([status, pause(200)]), undefined, 'block status waits as well');
  t.false(acked);
  t.is(seen, null);
  wire.release();
  await Promise.all([pending, reading, status]);
  t.is(seen![BLOCK], 2);
});

test('connections between living daemons break again and again under load: nothing is lost, nothing is stuck', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 3, replicas: 3 });
  await cluster.createImage();
  const image = await cluster.writer();
  const work = new Workload(image, 16);
  work.start();
  await work.writes(20);
  const { epoch } = cluster.map;
  for (let i = 0; i < 8; i++) {
    await work.writes(20);
    cluster.host(1 + (i % 3)).wire.reset();
  }
  await work.writes(50);
  await work.stop();
  await work.verify();
  await cluster.settled(3);
  t.true(work.slowestMs < 2_000, `${work.slowestMs} ms without an ack`);
  t.is(cluster.map.epoch, epoch, 'nobody was taken for dead');
});

test('all daemons restart at once, twice: everything acked is there', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 3, replicas: 2 });
  await cluster.createImage();
  const image = await cluster.writer();
  const work = new Workload(image, 8);
  work.start();
  for (let round = 0; round < 2; round++) {
    await work.writes(50);
    for (const { id } of cluster.hosts) cluster.kill(id);
    await pause(50);
    await Promise.all(cluster.hosts.map(({ id }) => cluster.startDaemon(id)));
  }
  await work.writes(50);
  await work.stop();
  await work.verify();
  await cluster.settled(2);
  t.pass();
});

test('the master is away: I/O goes on, also after a connection between members broke, and a lost daemon is waited for', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2 });
  await cluster.createImage();
  const image = await cluster.writer();
  const work = new Workload(image, 4);
  work.start();
  await work.writes(30);
  await cluster.killMaster();
  await work.writes(50);
  cluster.host(1).wire.reset();
  await work.writes(50);
  t.true(work.slowestMs < 2_000, `${work.slowestMs} ms without an ack`);
  cluster.kill(2);
  await pause(300);
  await cluster.startMaster();
  await work.writes(50);
  await work.stop();
  await cluster.startDaemon(2);
  await cluster.settled(2);
  await work.verify();
});

test('a member that is full: writes that need space fail with NO_SPACE, reads and zeroes go on, and space freed is found', async (t) => {
  // Daemon 2 is the small one, primary of some PGs and member of the others.
  const small = createMemoryStore(openClock(), { capacityBytes: 2 ** 20 });
  const wrapStore = (store: Store, id: number): Store => (id === 2 ? small : store);
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, wrapStore });
  await cluster.createImage();
  const image = await cluster.writer();
  const PART = 16_384;
  const tryWrite = (at: number): Promise<string> =>
    write(image, at, Buffer.alloc(PART, 1)).then(
      () => 'OK',
      (error: { code: string }) => error.code,
    );
  const outcomes: string[] = [];
  for (let at = 0; at < image.sizeBytes; at += PART) outcomes.push(await tryWrite(at));
  const refusedBy = (primary: number): number =>
    outcomes.filter((outcome, i) => outcome === 'NO_SPACE' && primaryOf(cluster, i * PART) === primary).length;
  t.true(outcomes.every((outcome) => outcome === 'OK' || outcome === 'NO_SPACE'));
  t.true(refusedBy(1) > 20 && refusedBy(2) > 20, `${refusedBy(1)} and ${refusedBy(2)} refused by the primaries`);
  t.true(small.pgs().reduce((sum, pg) => sum + small.pgUsage(pg).bytes, 0) <= 2 ** 20);
  t.is((await read(image, 0, 1))[0], 1);
  await zero(image, 0, image.sizeBytes);
  for (const primary of [1, 2]) {
    const at = outcomes.findIndex((_, i) => primaryOf(cluster, i * PART) === primary) * PART;
    await until('it takes writes again', async () => (await tryWrite(at)) === 'OK');
  }
  await cluster.settled(2);
});

test('a peer that is cut off, one way and without a word, is reported, left out, and taken in again', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 1, speed: 4 });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, Buffer.alloc(BLOCK, 1));
  const { id, wire } = cluster.primary();
  const isPeer = (frame: Frame): boolean => frame.op >= Op.REPLICATE || frame.op === Op.PING;
  wire.onReceive = (frame) => !(isPeer(frame) && (frame.flags & 1) === 1); // answers of the member are lost
  const leftOut = until('the member is left out', () => cluster.pg().acting.join() === String(id));
  await Promise.all([leftOut, write(image, 0, Buffer.alloc(BLOCK, 2))]);
  wire.onReceive = null;
  await cluster.settled(2, 20_000);
  t.deepEqual([...cluster.pg().acting].sort(), [1, 2]);
  t.is((await read(image, 0, 1))[0], 2);
});

test('pushes of a first attempt, still being read from the disk, do not reach a member that was activated anew', async (t) => {
  let slowReads = false;
  const late: (() => void)[] = [];
  const cluster = await Cluster.start(t, {
    daemons: 2,
    replicas: 2,
    minSize: 1,
    pgCount: 1,
    wrapStore: (store) =>
      new Proxy(store, {
        get: (target, name) => {
          if (name !== 'read') {
            const value = Reflect.get(target, name) as unknown;
            return typeof value === 'function' ? value.bind(target) : value;
          }
          const readNow: typeof store.read = (image, object, order, offset, length, done) =>
            target.read(image, object, order, offset, length, (error, checks, payload) => {
              if (slowReads) late.push(() => done(error, checks, payload));
              else done(error, checks, payload);
            });
          return readNow;
        },
      }),
  });
  await cluster.createImage();
  const image: Image = await cluster.writer();
  await write(image, 0, Buffer.alloc(65_536, 1));
  const away = cluster.member().id;
  cluster.kill(away);
  await write(image, 0, Buffer.alloc(65_536, 2));
  slowReads = true;
  await cluster.startDaemon(away);
  await until('the object is being read', () => late.length === 1);
  slowReads = false;
  // The connection breaks under another write; the second attempt pushes at once, and newer data follows it.
  const { wire } = cluster.member();
  wire.onSend = (frame) => frame.op !== Op.REPLICATE;
  const other = write(image, 65_536, Buffer.alloc(BLOCK, 4));
  await until('its ack is held back', () => wire.held.length === 1);
  wire.onSend = null;
  cluster.primary().wire.reset();
  await other;
  await write(image, 0, Buffer.alloc(65_536, 3));
  late[0]!();
  await pause(50);
  await cluster.settled(2);
  t.is((await read(image, 0, 1))[0], 3);
});
