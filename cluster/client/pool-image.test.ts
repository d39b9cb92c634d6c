// An open image on a real cluster in this process: what image.ts promises, with daemons, connections and locks that go.

import test, { type ExecutionContext } from 'ava';
import type { StorageError } from '../../proto/errors.ts';
import { type Frame, Op } from '../../proto/frame.ts';
import { SESSION_INFLIGHT_BYTES_MAX } from '../../proto/limits.ts';
import {
  Cluster,
  type ClusterOptions,
  flush,
  pause,
  read,
  until,
  Wire,
  Workload,
  write,
  zero,
} from '../daemon/fixture.ts';
import type { Image } from './image.ts';

const BLOCK = 4096;
const MiB = 2 ** 20;

async function openImage(t: ExecutionContext, options: ClusterOptions = {}, sizeBytes = 4 * MiB, order = 16) {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 4, ...options });
  await cluster.createImage('image', sizeBytes, order);
  const wire = new Wire();
  const client = await cluster.client(wire);
  const image: Image = await client.open('image', { readOnly: false, takeOver: false });
  return { cluster, client, image, wire };
}
/** Counts what a process sends, by operation. */
function countSent(wire: Wire): Map<number, number> {
  const counts = new Map<number, number>();
  wire.onSend = (frame) => {
    counts.set(frame.op, (counts.get(frame.op) ?? 0) + 1);
    return true;
  };
  return counts;
}
const statusOf = (image: Image, offset: number, length: number): Promise<{ length: number; data: boolean }[]> =>
  new Promise((resolve, reject) =>
    image.status(offset, length, (error, runs) => (error === null ? resolve(runs!) : reject(error))),
  );
const close = (image: Image): Promise<StorageError | null> => new Promise((resolve) => image.close(resolve));

async function restartMember(cluster: Cluster, id: number): Promise<void> {
  cluster.kill(id);
  await until('it is out', () => [...cluster.map.pgs.values()].every(({ acting }) => !acting.includes(id)));
  await cluster.startDaemon(id);
  await until('it is back', () => [...cluster.map.pgs.values()].every(({ acting }) => acting.includes(id)));
}
/** When all is recovered the primaries change once more; after that nothing does. */
async function calm(cluster: Cluster): Promise<void> {
  for (let epoch = 0; epoch !== cluster.map.epoch; await pause(300)) {
    epoch = cluster.map.epoch;
    await cluster.settled(2);
  }
}

test('sectors of one block written at the same time are all there, and overlapping writes keep the order of the calls', async (t) => {
  const { image } = await openImage(t);
  await Promise.all(Array.from({ length: 16 }, (_, i) => write(image, 512 * i, Buffer.alloc(512, i + 1))));
  const sectors = await read(image, 0, 2 * BLOCK);
  for (let i = 0; i < 16; i++) t.true(sectors.subarray(512 * i, 512 * i + 512).every((byte) => byte === i + 1));
  await Promise.all(Array.from({ length: 30 }, (_, i) => write(image, 100 * (i % 3), Buffer.alloc(6000, i))));
  const last = await read(image, 0, 6200);
  t.true(last.subarray(200, 6200).every((byte) => byte === 29));
  t.deepEqual([last[0], last[100]], [27, 28]);
});

test('requests that can not be are refused later, never from inside the call; those of no bytes are done', async (t) => {
  const { image } = await openImage(t);
  let inside = true;
  const codes: (string | undefined)[] = [];
  const note = (error: StorageError | null): void => {
    t.false(inside);
    codes.push(error?.code);
  };
  image.read(image.sizeBytes, 1, note);
  image.read(-1, 1, note);
  image.write(image.sizeBytes - 1, Buffer.alloc(2), false, note);
  image.zero(0, Number.MAX_SAFE_INTEGER, false, note);
  image.status(5, image.sizeBytes, note);
  image.read(image.sizeBytes, 0, note);
  image.write(3, Buffer.alloc(0), true, note);
  image.zero(3, 0, false, note);
  image.status(0, 0, note);
  image.flush(note);
  inside = false;
  await until('all are answered', () => codes.length === 10);
  t.is(codes.filter((code) => code === 'INVALID').length, 5);
  t.is(codes.filter((code) => code === undefined).length, 5);
});

test('block status tells data from holes, across objects', async (t) => {
  const { image } = await openImage(t);
  await write(image, BLOCK, Buffer.alloc(BLOCK, 1));
  await write(image, 65_536 - BLOCK, Buffer.alloc(2 * BLOCK, 1));
  t.deepEqual(await statusOf(image, 0, 3 * 65_536), [
    { length: BLOCK, data: false },
    { length: BLOCK, data: true },
    { length: 65_536 - 3 * BLOCK, data: false },
    { length: 2 * BLOCK, data: true },
    { length: 2 * 65_536 - BLOCK, data: false },
  ]);
  await zero(image, 0, image.sizeBytes);
  t.deepEqual(await statusOf(image, 100, 1_000_000), [{ length: 1_000_000, data: false }]);
});

test('another takes over: the old writer fails with FENCED from then on, in everything, and is told', async (t) => {
  const { cluster, image } = await openImage(t);
  await write(image, 0, Buffer.alloc(BLOCK, 1));
  let lost: boolean | null = null;
  image.onChange = (gone) => {
    lost = gone;
  };
  await t.throwsAsync(cluster.writer(), { code: 'BUSY', message: /client-0/ });
  const next = await cluster.writer('image', new Wire(), true);
  t.is((await read(next, 0, 1))[0], 1);
  await write(next, 0, Buffer.alloc(BLOCK, 2));
  await until('the old one is told', () => lost !== null);
  t.true(lost);
  await t.throwsAsync(write(image, 0, Buffer.alloc(BLOCK, 3)), { code: 'FENCED' });
  await t.throwsAsync(zero(image, 0, BLOCK), { code: 'FENCED' });
  await t.throwsAsync(flush(image), { code: 'FENCED' });
  await t.throwsAsync(read(image, 0, BLOCK), { code: 'FENCED' });
  t.like(await close(image), { code: 'FENCED' });
  t.is((await read(next, 0, 1))[0], 2);
});

test('a writer whom nobody told that it was fenced is refused by the daemons', async (t) => {
  const { cluster, wire, image } = await openImage(t, { pgCount: 1 });
  await write(image, 0, Buffer.alloc(BLOCK, 1));
  // Its last write leaves before the new owner's lock, and arrives after it.
  wire.onSend = (frame) => frame.op !== Op.WRITE;
  const late = write(image, 0, Buffer.alloc(BLOCK, 9));
  await until('it is held back', () => wire.held.length === 1);
  const next = await cluster.writer('image', new Wire(), true);
  wire.release();
  await t.throwsAsync(late, { code: 'FENCED' });
  t.is((await read(next, 0, 1))[0], 1);
});

test('a flush after a daemon restarted writes again what it may have lost, once, and only what nothing newer covers', async (t) => {
  const { cluster, wire, image } = await openImage(t);
  const CHANGES = 40;
  for (let i = 0; i < CHANGES; i++) await write(image, i * 65_536, Buffer.alloc(2 * BLOCK, i + 1));
  await write(image, 0, Buffer.alloc(2 * BLOCK, 100)); // covers the first one
  await zero(image, 65_536, BLOCK); // covers half of the second one
  await restartMember(cluster, 2);
  await calm(cluster);
  const sent = countSent(wire);
  await flush(image);
  t.is(sent.get(Op.WRITE), CHANGES, 'each that is not covered, and the newer one');
  t.is(sent.get(Op.ZERO), 1);
  t.true(sent.get(Op.SYNC)! >= 2, 'and every member synced');
  sent.clear();
  await flush(image);
  t.deepEqual([...sent], [], 'nothing is left to flush');
  t.is((await read(image, 0, 1))[0], 100);
  t.is((await read(image, 65_536, 1))[0], 0);
  t.is((await read(image, 65_536 + BLOCK, 1))[0], 2);
  await cluster.settled(2);
});

test('without a restart a flush syncs both members once and writes nothing again', async (t) => {
  const { wire, image } = await openImage(t);
  for (let i = 0; i < 20; i++) await write(image, i * 65_536, Buffer.alloc(BLOCK, 1));
  const sent = countSent(wire);
  await flush(image);
  t.deepEqual([...sent], [[Op.SYNC, 2]]);
});

test('flushes during restarts under load all succeed, and what they covered is on every member', async (t) => {
  const { cluster, image } = await openImage(t, { daemons: 3, replicas: 2, pgCount: 8 });
  const work = new Workload(image, 6);
  work.start();
  let flushes = 0;
  let over = false;
  const flushing = (async () => {
    while (!over) {
      await flush(image);
      flushes += 1;
      await pause(5);
    }
  })();
  for (const id of [1, 2, 3]) {
    await work.writes(40);
    cluster.kill(id);
    await work.writes(40);
    await cluster.startDaemon(id);
  }
  await work.writes(40);
  over = true;
  await flushing;
  await work.stop();
  await work.verify();
  t.true(flushes >= 3, `${flushes} flushes`);
  await cluster.settled(2);
});

test('with no daemon up requests wait; when they are back, all are answered, also more than may be in flight', async (t) => {
  const { cluster, image } = await openImage(t);
  const work = new Workload(image, 8);
  work.start();
  await work.writes(50);
  await work.stop();
  for (const { id } of cluster.hosts) cluster.kill(id);
  let answered = 0;
  const reads = Array.from({ length: 1_200 }, (_, i) =>
    read(image, (i % 64) * 65_536, BLOCK).then((found) => {
      answered += 1;
      return found;
    }),
  );
  await pause(200);
  t.is(answered, 0);
  await Promise.all(cluster.hosts.map(({ id }) => cluster.startDaemon(id)));
  const found = await Promise.all(reads);
  found.forEach((bytes, i) => {
    const at = (i % 64) * 65_536;
    if (!bytes.equals(work.expected.subarray(at, at + BLOCK))) t.fail(`read ${i}`);
  });
  // If one operation of them were still counted as in flight, this many at once would not come back.
  for (let round = 0; round < 3; round++)
    await Promise.all(Array.from({ length: 600 }, (_, i) => read(image, i * BLOCK, BLOCK)));
  t.pass();
});

test('never more than the limit of bytes is in flight, and large reads all come back', async (t) => {
  const { image, wire } = await openImage(t, { pgCount: 1 }, 128 * MiB, 22);
  let bytes = 0;
  let most = 0;
  const lengths = new Map<number, number>();
  wire.onSend = (frame) => {
    lengths.set(frame.request, frame.length);
    bytes += frame.length;
    most = Math.max(most, bytes);
    return true;
  };
  wire.onReceive = (frame) => {
    bytes -= lengths.get(frame.request) ?? 0;
    return true;
  };
  const found = await Promise.all(Array.from({ length: 4 }, () => read(image, 0, 128 * MiB)));
  t.true(found.every(({ length }) => length === 128 * MiB));
  t.true(most > SESSION_INFLIGHT_BYTES_MAX / 2 && most <= SESSION_INFLIGHT_BYTES_MAX, `${most} bytes at most`);
});

test('while a flush can not end, what is kept for it stays bounded: new writes wait, and go on when it ends', async (t) => {
  const { cluster, image } = await openImage(t, { daemons: 1, replicas: 1, pgCount: 1 }, 256 * MiB, 22);
  const { wire } = cluster.host(1);
  wire.onSend = (frame) => frame.op !== Op.SYNC;
  const data = Buffer.alloc(2 * MiB, 1);
  let acked = 0;
  const writes = Array.from({ length: 60 }, (_, i) =>
    write(image, i * data.length, data).then(() => {
      acked += 1;
    }),
  );
  // 64 MiB may be kept; what was under way then still comes.
  await until('as much is acked as may be kept', () => acked >= 32);
  let before = -1;
  while (before !== acked) {
    before = acked;
    await pause(400);
  }
  t.true(acked >= 32 && acked <= 60, `${acked} writes of 2 MiB were acked`);
  const more = write(image, 200 * MiB, data).then(() => {
    acked += 1;
  });
  await pause(100);
  t.is(acked, before, 'a new one waits');
  wire.release();
  await Promise.all([...writes, more]);
  t.is(acked, 61);
});

test('close() finishes what was asked before, held back or not, flushes it, and gives the lock back', async (t) => {
  const { cluster, image } = await openImage(t);
  for (let i = 0; i < 8; i++) await write(image, i * 65_536, Buffer.alloc(BLOCK, 1));
  await restartMember(cluster, 2);
  // The replay of a flush is under way: new changes are held back.
  for (const { wire } of cluster.hosts) wire.onSend = (frame) => frame.op !== Op.WRITE;
  const flushed = flush(image);
  await until('the replay waits for its answers', () => cluster.hosts.some(({ wire }) => wire.held.length > 0));
  const order: string[] = [];
  const held = write(image, 0, Buffer.alloc(BLOCK, 2)).then(() => order.push('write'));
  const closed = close(image).then((error) => {
    t.is(error, null);
    order.push('close');
  });
  await t.throwsAsync(write(image, 0, Buffer.alloc(BLOCK, 3)), { code: 'UNAVAILABLE' });
  await pause(50);
  t.deepEqual(order, []);
  for (const { wire } of cluster.hosts) wire.release();
  await Promise.all([held, closed, flushed]);
  t.deepEqual(order, ['write', 'close']);
  const next = await cluster.writer();
  t.is((await read(next, 0, 1))[0], 2);
});

test('a client that is closed fails everything once, what waits for its turn too, and every later flush', async (t) => {
  const { cluster, client, image } = await openImage(t);
  for (const { wire } of cluster.hosts) wire.onSend = (frame) => frame.op !== Op.READ && frame.op !== Op.WRITE;
  const COUNT = 1_500;
  const answers = new Array<number>(COUNT).fill(0);
  for (let i = 0; i < COUNT; i++) {
    const note = (error: StorageError | null): void => {
      t.is(error?.code, 'UNAVAILABLE');
      answers[i]! += 1;
    };
    if (i % 3 === 0) image.write((i * BLOCK) % image.sizeBytes, Buffer.alloc(100), false, note);
    else image.read((i * BLOCK) % image.sizeBytes, BLOCK, note);
  }
  await pause(50);
  await client.close();
  await until('all are answered', () => answers.every((count) => count > 0));
  await t.throwsAsync(read(image, 0, 1), { code: 'UNAVAILABLE' });
  await pause(100);
  t.true(answers.every((count) => count === 1));
});

test('a flush that a closed client began before fails as well', async (t) => {
  const { cluster, client, image } = await openImage(t);
  await write(image, 0, Buffer.alloc(BLOCK));
  for (const { wire } of cluster.hosts) wire.onSend = (frame) => frame.op !== Op.SYNC;
  const flushing = flush(image);
  await pause(20);
  await client.close();
  await t.throwsAsync(flushing, { code: 'UNAVAILABLE' });
  await t.throwsAsync(flush(image), { code: 'UNAVAILABLE' });
});

test('data damaged on the way is asked for again; if it stays damaged, the read fails with IO', async (t) => {
  const { image, wire } = await openImage(t);
  await write(image, 0, Buffer.alloc(4 * BLOCK, 7));
  let damages = 1;
  const damage = (frame: Frame): boolean => {
    if (frame.op === Op.READ && frame.payload !== null && damages-- > 0) frame.payload[5]! ^= 1;
    return true;
  };
  wire.onReceive = damage;
  t.true((await read(image, 0, 4 * BLOCK)).every((byte) => byte === 7));
  damages = 100;
  await t.throwsAsync(read(image, 0, 4 * BLOCK), { code: 'IO', message: /checksums/ });
  await t.throwsAsync(write(image, 100, Buffer.alloc(BLOCK)), { code: 'IO' }, 'nor is it written back');
  damages = 0;
  t.true((await read(image, 0, 4 * BLOCK)).every((byte) => byte === 7));
});

test('a connection on which nothing comes back is given up, and the requests go over a new one', async (t) => {
  const { image, wire } = await openImage(t, { speed: 10 });
  await write(image, 0, Buffer.alloc(BLOCK, 1));
  const mute = [...wire.connections];
  wire.onReceive = () => mute.every((connection) => !wire.connections.has(connection));
  await write(image, 0, Buffer.alloc(BLOCK, 2));
  t.is((await read(image, 0, 1))[0], 2);
  t.true(mute.some((connection) => !wire.connections.has(connection)));
});

test('a removed image: whoever has it open is told, and every request fails with NOT_FOUND, later', async (t) => {
  const { cluster, image, client } = await openImage(t);
  const { id } = client.imageByName('image');
  const reader = await (await cluster.client()).open('image', { readOnly: true, takeOver: false });
  let lost = false;
  reader.onChange = (gone) => {
    lost = gone;
  };
  t.is(await close(image), null);
  await cluster.master.handle('removeImage', { image: id, done: false });
  await cluster.master.handle('removeImage', { image: id, done: true });
  await until('the reader is told', () => lost);
  let inside = true;
  const code = await new Promise((resolve) => {
    reader.read(0, BLOCK, (error) => resolve([error?.code, inside]));
    inside = false;
  });
  t.deepEqual(code, ['NOT_FOUND', false]);
  t.throws(() => client.imageByName('image'), { code: 'NOT_FOUND' });
});

test('an image that grew is told to those who have it open', async (t) => {
  const { cluster, image, client } = await openImage(t);
  const changes: boolean[] = [];
  image.onChange = (lost) => changes.push(lost);
  await t.throwsAsync(write(image, 4 * MiB, Buffer.alloc(1)), { code: 'INVALID' });
  await cluster.master.handle('resizeImage', { image: client.imageByName('image').id, sizeBytes: 8 * MiB });
  await until('it is told', () => changes.length > 0);
  t.deepEqual(changes, [false]);
  await write(image, 8 * MiB - 1, Buffer.alloc(1, 5));
  t.is((await read(image, 8 * MiB - 1, 1))[0], 5);
});
