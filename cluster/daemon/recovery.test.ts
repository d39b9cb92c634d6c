// What recovery sends, in which order, how fast, and what it does when there is no space for it.

import test from 'ava';
import { StorageError } from '../../proto/errors.ts';
import { Flag, type Frame, Op } from '../../proto/frame.ts';
import { deleteObjectsFrom } from '../client/deletion.ts';
import { createMemoryStore } from '../store/memory-store.ts';
import type { Recovered, Store } from '../store/store.ts';
import { openClock } from '../world/clock.ts';
import { Cluster, flush, pause, read, until, Workload, write, zero } from './fixture.ts';

const BLOCK = 4096;
const OBJECT = 65_536;

/** A store that tells every piece that it is given. */
function told(store: Store, onPiece: (piece: Recovered) => void): Store {
  return new Proxy(store, {
    get: (target, name) => {
      const value = Reflect.get(target, name) as unknown;
      if (typeof value !== 'function') return value;
      if (name !== 'recover') return value.bind(target);
      return (piece: Recovered, ...rest: [Buffer | null, Buffer | null, () => void]) => {
        onPiece(piece);
        target.recover(piece, ...rest);
      };
    },
  });
}

/** Two daemons with one PG, and everything that recovery wrote to a store. */
async function pair(t: Parameters<typeof Cluster.start>[0], more: Parameters<typeof Cluster.start>[1] = {}) {
  const pieces: Recovered[] = [];
  const cluster = await Cluster.start(t, {
    daemons: 2,
    replicas: 2,
    minSize: 1,
    pgCount: 1,
    wrapStore: (store) => told(store, (piece) => pieces.push(piece)),
    ...more,
  });
  await cluster.createImage();
  const image = await cluster.writer();
  return { cluster, image, pieces };
}
const alone = (cluster: Cluster): Promise<void> =>
  until('the primary goes on alone', () => cluster.pg().acting.length === 1);

test('a member that missed some blocks is sent those blocks; of an object that changed by more than half, all of it', async (t) => {
  const { cluster, image, pieces } = await pair(t);
  await write(image, 0, Buffer.alloc(image.sizeBytes, 1));
  const away = cluster.member().id;
  cluster.kill(away);
  await alone(cluster);
  pieces.length = 0;
  await write(image, 3 * OBJECT + BLOCK, Buffer.alloc(BLOCK, 2));
  await write(image, 3 * OBJECT + 8 * BLOCK, Buffer.alloc(2 * BLOCK, 3));
  await zero(image, 5 * OBJECT + 2 * BLOCK, BLOCK);
  await write(image, 7 * OBJECT, Buffer.alloc(9 * BLOCK, 4));
  await cluster.startDaemon(away);
  await cluster.settled(2);
  const sent = pieces.map(({ object, offset, length, replace }) => [object, offset / BLOCK, length / BLOCK, replace]);
  t.deepEqual(
    sent.sort((a, b) => Number(a[0]) - Number(b[0]) || Number(a[1]) - Number(b[1])),
    [
      [3, 1, 1, false],
      [3, 8, 2, false],
      [5, 2, 1, false],
      [7, 0, 16, true],
    ],
  );
});

test('a recovery that ended half way is taken up again by extents, and a half-pushed object is sent as a whole', async (t) => {
  const { cluster, image, pieces } = await pair(t);
  const OBJECTS = 8;
  await write(image, 0, Buffer.alloc(OBJECTS * OBJECT, 1));
  const away = cluster.member().id;
  cluster.kill(away);
  await alone(cluster);
  for (let object = 0; object < OBJECTS; object++)
    for (const block of [1, 5]) await write(image, object * OBJECT + block * BLOCK, Buffer.alloc(BLOCK, 2));
  // The member gets the first piece of every object, and dies before the second.
  const lead = cluster.primary();
  let firstPieces = 0;
  lead.wire.onSend = (frame: Frame) => {
    if (frame.op !== Op.PG_PUSH) return true;
    if ((frame.flags & Flag.LAST) === 0) firstPieces += 1;
    return (frame.flags & Flag.LAST) === 0;
  };
  await cluster.startDaemon(away);
  await until('pieces arrive', () => firstPieces >= 2);
  await pause(50);
  const halves = new Set(pieces.map(({ object }) => object));
  t.true(halves.size >= 2);
  lead.wire.onSend = null;
  cluster.kill(away);
  await alone(cluster);
  pieces.length = 0;
  await cluster.startDaemon(away);
  await cluster.settled(2);
  for (const { object, replace, length } of pieces)
    if (halves.has(object)) t.true(replace && length === OBJECT, `object ${object} was half there`);
    else t.true(!replace && length === BLOCK, `object ${object}: its version is in the log`);
  t.is(new Set(pieces.map(({ object }) => object)).size, OBJECTS);
  t.is((await read(image, OBJECT + BLOCK, 1))[0], 2);
});

test('a member that is killed while it is recovered, again and again under load, ends up with an equal copy', async (t) => {
  const { cluster, image } = await pair(t, { pgCount: 4 });
  const load = new Workload(image, 8, 7);
  load.start();
  await load.writes(100);
  for (let round = 0; round < 6; round++) {
    cluster.kill(2);
    await load.writes(60);
    await cluster.startDaemon(2);
    await until('it is a member again', () => cluster.pg().acting.length === 2);
    await pause(10 * round);
  }
  await load.stop();
  await cluster.settled(2);
  t.is(cluster.difference(), null);
  await load.verify();
});

test('a cap set at the master slows recovery down at once; a write to an object that is missing is not slowed down', async (t) => {
  const { cluster, image, pieces } = await pair(t);
  await write(image, 0, Buffer.alloc(image.sizeBytes, 1));
  const away = cluster.member().id;
  cluster.kill(away);
  await alone(cluster);
  await write(image, 0, Buffer.alloc(image.sizeBytes, 2));
  const lead = cluster.primary();
  await cluster.master.handle('setDaemon', { id: lead.id, recoveryBytesPerSecond: 10_000 });
  await until('the cap is known', () => lead.daemon!.throttle.capBytesPerSecond === 10_000);
  pieces.length = 0;
  await cluster.startDaemon(away);
  await until('recovery begins', () => pieces.length > 0);
  await pause(300);
  t.true(pieces.length < 20, `${pieces.length} of 64 objects in the time of none`);
  const missing = new Set(Array.from({ length: 64 }, (_, object) => object));
  for (const { object } of pieces) missing.delete(object);
  const last = [...missing].pop()!;
  await write(image, last * OBJECT + BLOCK, Buffer.alloc(BLOCK, 3));
  t.true(
    pieces.some(({ object }) => object === last),
    'it was pushed first',
  );
  t.true(pieces.length < 30);
  await until('the master knows what is left', async () => {
    const { recovery, health } = await cluster.master.handle('status', {});
    return health === 'degraded' && recovery.missingBytes > 0 && recovery.missingBytes <= 64 * OBJECT;
  });
  await cluster.master.handle('setDaemon', { id: lead.id, recoveryBytesPerSecond: 0 });
  await cluster.settled(2);
  await flush(image);
});

test('a member that has no space for log entries either: its PG says so and asks again in seconds, not all the time', async (t) => {
  let full = false;
  const { cluster, image } = await pair(t, {
    wrapStore: (store) =>
      new Proxy(store, {
        get: (target, name) => {
          const value = Reflect.get(target, name) as unknown;
          if (typeof value !== 'function') return value;
          if (name === 'mergeLog' && full)
            return () => {
              throw new StorageError('NO_SPACE', 'the disk is full');
            };
          return value.bind(target);
        },
      }),
  });
  await write(image, 0, Buffer.alloc(BLOCK, 1));
  const away = cluster.member().id;
  cluster.kill(away);
  await alone(cluster);
  await write(image, 0, Buffer.alloc(BLOCK, 2));
  let asked = 0;
  cluster.primary().wire.onSend = (frame) => {
    if (frame.op === Op.PG_QUERY) asked += 1;
    return true;
  };
  full = true;
  await cluster.startDaemon(away);
  await until('the primary waits for it', async () => {
    const { reasons } = await cluster.master.handle('status', {});
    return reasons.some((reason) => reason.includes(`is peering, and waits for daemon ${away} (up)`));
  });
  const before = asked;
  await pause(1_500);
  t.is(asked, before);
  full = false;
  await cluster.settled(2);
  t.is((await read(image, 0, 1))[0], 2);
});

/**
 * Three members of one PG; the third came back with too little space for what it misses, and the others go on. Its disk
 * gets larger with `grow`.
 */
async function withoutSpace(t: Parameters<typeof Cluster.start>[0]) {
  let capacityBytes = 2 ** 20;
  const small = createMemoryStore(openClock());
  const limited = new Proxy(small, {
    get: (target, name) => {
      const value = Reflect.get(target, name) as unknown;
      if (typeof value !== 'function') return value;
      const usedBytes = (): number => target.space().usedBytes;
      if (name === 'space')
        return () => ({
          usedBytes: usedBytes(),
          freeBytes: Math.max(0, capacityBytes - usedBytes()),
          full: usedBytes() >= capacityBytes,
        });
      if (name !== 'recover') return value.bind(target);
      return (piece: Recovered, ...rest: [Buffer | null, Buffer | null, () => void]) => {
        if (usedBytes() + piece.length > capacityBytes) throw new StorageError('NO_SPACE', 'the disk is full');
        target.recover(piece, ...rest);
      };
    },
  });
  const wrapStore = (store: Store, id: number): Store => (id === 3 ? limited : store);
  const cluster = await Cluster.start(t, { daemons: 3, replicas: 3, minSize: 1, pgCount: 1, wrapStore });
  await cluster.createImage();
  const image = await cluster.writer();
  // The small one leads nothing when the others are there first.
  cluster.kill(3);
  await until('two go on', () => cluster.pg().acting.length === 2);
  await write(image, 0, Buffer.alloc(image.sizeBytes, 1));
  const member = cluster.member().id;
  const lead = cluster.primary();
  cluster.kill(member);
  await alone(cluster);
  await write(image, 0, Buffer.alloc(image.sizeBytes, 2));
  await cluster.startDaemon(3);
  await cluster.startDaemon(member);
  await until('all three are members', () => cluster.pg().acting.length === 3);
  await until('the primary says that daemon 3 has no space', async () =>
    (await cluster.master.handle('status', {})).pgs.some(({ noSpace }) => noSpace.includes(3)),
  );
  const grow = (): void => {
    capacityBytes = 2 ** 30;
  };
  return { cluster, image, member, lead, small, grow };
}

test('a member with too little space for what it misses: it is not peered again and again, the others are made whole, and it is when it has space', async (t) => {
  const { cluster, image, member, lead, small, grow } = await withoutSpace(t);
  const { pg } = cluster.pg();
  await until('the other member has everything', () => cluster.host(member).store.pgInfo(pg).complete);
  let asked = 0;
  lead.wire.onSend = (frame) => {
    if (frame.op === Op.PG_QUERY) asked += 1;
    return true;
  };
  const missing = [...lead.store.objects(pg)].find(({ object }) => small.objectVersion(1, object).seq === 0)!;
  const at = missing.object * OBJECT;
  await t.throwsAsync(write(image, at, Buffer.alloc(BLOCK, 3)), { code: 'NO_SPACE' });
  t.is((await read(image, at, 1))[0], 2, 'reads go on');
  await pause(2_500);
  t.is(asked, 0, 'it was not peered again');
  const { reasons, health } = await cluster.master.handle('status', {});
  t.is(health, 'degraded');
  t.true(
    reasons.some((reason) => /can't recover daemon 3, which has no space/.test(reason)),
    reasons.join('; '),
  );
  grow();
  await cluster.settled(3, 40_000);
  await write(image, at, Buffer.alloc(BLOCK, 3));
  t.is((await read(image, at, 1))[0], 3);
});

test('an image whose objects are missing at a member without space can be removed, and that makes the member whole', async (t) => {
  const { cluster, lead, small } = await withoutSpace(t);
  const { pg } = cluster.pg();
  t.true(lead.store.pgUsage(pg).objects === 64 && small.pgUsage(pg).objects < 64);
  await cluster.endClients();
  const client = await cluster.client();
  await cluster.master.handle('removeImage', { image: 1, done: false });
  await until('the client knows', () => client.map?.images.get(1)?.state === 'removing');
  const entry = client.map!.images.get(1)!;
  t.is(await deleteObjectsFrom(client.router, entry, 0, entry.fence, () => {}), 64);
  await cluster.settled(3);
  for (const { store } of cluster.hosts) t.is(store.pgUsage(pg).objects, 0);
});
