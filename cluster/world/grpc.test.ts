// The gRPC carrier with a real master behind it, on loopback.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import type { Subscriber, Subscription } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { applyUpdate, type StorageMap } from '../../proto/map.ts';
import type { Log } from '../../proto/ports.ts';
import { Master } from '../master/master.ts';
import { MemoryKv } from '../master/memory-kv.ts';
import { openClock, openRandom } from './clock.ts';
import { type MasterLink, openControlLink } from './grpc-link.ts';
import { type GrpcServer, serveGrpc } from './grpc-server.ts';

const quiet: Log = { debug() {}, info() {}, warn() {}, error() {} };

async function serve(t: ExecutionContext, kv = new MemoryKv(), address = '127.0.0.1:0') {
  const onFatal = (error: Error): void => t.fail(error.message);
  const master = await Master.open({ clock: openClock(), log: quiet, random: openRandom(), kv, onFatal });
  t.teardown(() => master.close());
  const server = await serveGrpc(master, address, quiet);
  const close = async (): Promise<void> => {
    await master.close();
    await server.close();
  };
  t.teardown(close);
  return { master, server, close };
}

function linkTo(t: ExecutionContext, server: GrpcServer): MasterLink {
  const link = openControlLink(server.address);
  t.teardown(() => link.close());
  return link;
}

const daemonRequest = (n: number) => ({
  clusterId: '',
  uuid: `uuid-${n}`,
  bootId: `boot-${n}`,
  address: `127.0.0.1:${7000 + n}`,
  unixAddress: '',
  host: 'here',
  domain: `disk-${n}`,
  weight: 1,
  newestEpoch: 0,
});

/** A daemon's life on a link: its map, kept current. */
class Follower {
  map: StorageMap | null;
  closed = '';
  subscription: Subscription;
  constructor(link: MasterLink, subscriber: Subscriber, map: StorageMap | null = null) {
    this.map = map;
    this.subscription = link.subscribe(subscriber, {
      onUpdate: (update) => {
        this.map = applyUpdate(this.map, update);
      },
      onClose: (reason) => {
        this.closed = reason;
      },
    });
  }
}

async function until(t: ExecutionContext, what: string, condition: () => boolean, withinMs = 5_000): Promise<void> {
  const end = performance.now() + withinMs;
  while (!condition()) {
    if (performance.now() > end) {
      t.fail(`waited ${withinMs} ms for: ${what}`);
      throw new Error(what);
    }
    await sleep(5);
  }
}

const space = { usedBytes: 10, freeBytes: 2 ** 40, full: false };

test('a daemon joins, a pool and an image are made, a client locks the image and a write interval begins', async (t) => {
  const { server } = await serve(t);
  const link = linkTo(t, server);
  const { id, clusterId } = await link.call('register', daemonRequest(1));
  t.is(id, 1);
  const daemon = new Follower(link, { role: 'daemon', id, bootId: 'boot-1', epoch: 0 });
  await until(t, 'the daemon is up', () => daemon.map?.daemons.get(1)?.up === true);
  const pool = await link.call('createPool', { name: 'p', pgCount: 4, replicas: 1, minSize: 0, durability: 'sync' });
  t.deepEqual(pool, { id: 1, name: 'p', pgCount: 4, replicas: 1, minSize: 1, durability: 'sync' });
  const order = 20;
  const image = await link.call('createImage', {
    name: 'vol0',
    pool: 'p',
    sizeBytes: 5 * 2 ** 40,
    order,
    stripeUnit: 2 ** 20,
    stripeCount: 1,
  });
  t.is(image.sizeBytes, 5 * 2 ** 40);
  await until(t, 'PGs in the map', () => daemon.map?.pgs.size === 4 && daemon.map.images.size === 1);
  const pgs = [...daemon.map!.pgs.values()].map(({ pg, since }) => ({ pg, since }));
  const { accepted } = await link.call('activate', { id, bootId: 'boot-1', pgs });
  t.deepEqual(
    accepted,
    pgs.map(({ pg }) => pg),
  );
  t.deepEqual((await link.call('clean', { id, bootId: 'boot-1', pgs })).accepted, accepted);

  const opened = await link.call('openSession', { name: 'nbd on here' });
  t.is(opened.clusterId, clusterId);
  const client = new Follower(link, { role: 'client', session: opened.session, epoch: 0 });
  await until(t, 'the client has a map', () => client.map !== null);
  const lock = link.call('lockImage', { session: opened.session, image: image.id, takeOver: false });
  await until(t, 'the fence is published', () => daemon.map!.images.get(image.id)!.fence === 1);
  const heartbeat = { id, bootId: 'boot-1', epoch: daemon.map!.epoch, pgs: [], space, recoveredBytes: 0 };
  t.true((await link.call('heartbeat', heartbeat)).epoch >= daemon.map!.epoch);
  t.is((await lock).fence, 1);
  const status = await link.call('status', {});
  t.deepEqual(status.daemons[0]!.space, space);
  const nothing = { degraded: 0, misplaced: 0, missingBytes: 0 };
  t.deepEqual(status.recovery, {
    ...nothing,
    bytesPerSecond: 0,
    secondsLeft: 0,
    pools: [{ pool: 1, ...nothing }],
  });
  const refused = await t.throwsAsync(link.call('removeDaemon', { id }));
  t.regex(refused!.message, /it takes data; drain it first/);
  t.is(status.images[0]!.owner, 'nbd on here');
});

test('a refusal keeps its code and its words across the wire', async (t) => {
  const { server } = await serve(t);
  const link = linkTo(t, server);
  const error = await t.throwsAsync(
    link.call('createPool', { name: 'p', pgCount: 3, replicas: 1, minSize: 0, durability: 'flush' }),
    { instanceOf: StorageError },
  );
  t.is(error?.code, 'INVALID');
  t.regex(error!.message, /power of two/);
  const stranger = new Follower(link, { role: 'daemon', id: 9, bootId: 'b', epoch: 0 });
  await until(t, 'the stranger is refused', () => stranger.closed !== '');
  t.regex(stranger.closed, /register first/);
});

test('when the master restarts on the same port, calls fail at once, streams end, and both work again after', async (t) => {
  const kv = new MemoryKv();
  const first = await serve(t, kv);
  const link = linkTo(t, first.server);
  await link.call('register', daemonRequest(1));
  const daemon = new Follower(link, { role: 'daemon', id: 1, bootId: 'boot-1', epoch: 0 });
  await until(t, 'up', () => daemon.map?.daemons.get(1)?.up === true);
  const survived = kv.copy();
  await first.close();
  await until(t, 'the stream ends', () => daemon.closed !== '');
  const started = performance.now();
  const error = await t.throwsAsync(link.call('status', {}), { instanceOf: StorageError });
  t.is(error!.code, 'UNAVAILABLE');
  t.true(performance.now() - started < 2_000);

  await serve(t, survived, first.server.address);
  let status = null;
  for (let i = 0; i < 50 && status === null; i++) {
    status = await link.call('status', {}).catch(() => sleep(50, null));
  }
  t.is(status?.epoch, daemon.map!.epoch);
  const again = new Follower(link, { role: 'daemon', id: 1, bootId: 'boot-1', epoch: daemon.map!.epoch }, daemon.map);
  await link.call('setDaemon', { id: 1, weight: 3 });
  await until(t, 'an incremental update', () => again.map!.daemons.get(1)!.weight === 3);
  t.is(again.map!.clusterId, daemon.map!.clusterId);
});

test('a port that is taken is refused with a clear error', async (t) => {
  const { server } = await serve(t);
  const error = await t.throwsAsync(serve(t, new MemoryKv(), server.address), { instanceOf: StorageError });
  t.is(error!.code, 'BUSY');
  t.true(error!.message.includes(server.address));
});

test('an address that cannot be is refused with a clear error', async (t) => {
  const error = await t.throwsAsync(serve(t, new MemoryKv(), '203.0.113.1:1'), { instanceOf: StorageError });
  t.is(error!.code, 'INVALID');
});

test('garbage on the port harms nobody', async (t) => {
  const { server } = await serve(t);
  const link = linkTo(t, server);
  await link.call('register', daemonRequest(1));
  const daemon = new Follower(link, { role: 'daemon', id: 1, bootId: 'boot-1', epoch: 0 });
  await until(t, 'up', () => daemon.map?.daemons.get(1)?.up === true);
  const port = Number(server.address.split(':')[1]);
  const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  const frameOfGiant = Buffer.from('ffffff0000000000010000', 'hex');
  const random = Buffer.from(Array.from({ length: 4_096 }, (_, at) => (at * 7_919) & 255));
  for (const bytes of [
    Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n'),
    random,
    preface,
    Buffer.concat([preface, frameOfGiant]),
    Buffer.concat([preface, random]),
    Buffer.alloc(0),
  ]) {
    const socket = connect(port, '127.0.0.1');
    socket.on('error', () => {}); // being cut off is the expected answer
    await once(socket, 'connect');
    socket.write(bytes);
    await sleep(30);
    socket.destroy();
  }
  t.is((await link.call('status', {})).daemons.length, 1);
  t.is(daemon.closed, '');
});

/** A client in a process of its own: it subscribes as daemon 1, says so, and then does what its signals make it do. */
async function startChild(t: ExecutionContext, address: string): Promise<ChildProcess> {
  const program = `
    const { openControlLink } = await import(${JSON.stringify(join(import.meta.dirname, 'grpc-link.ts'))});
    const link = openControlLink('${address}');
    await link.call('register', ${JSON.stringify(daemonRequest(1))});
    link.subscribe({ role: 'daemon', id: 1, bootId: 'boot-1', epoch: 0 }, {
      onUpdate: (update) => console.log('epoch ' + update.to),
      onClose: (reason) => console.log('closed ' + reason),
    });
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout!, 'data');
  return child;
}

test('a killed process is noticed at once, a stopped one within about four seconds', async (t) => {
  const { master, server } = await serve(t);
  const closings: string[] = [];
  const subscribe = master.subscribe.bind(master);
  // Heartbeats would tell as well; here only the stream may.
  master.subscribe = (subscriber, events) => {
    const subscription = subscribe(subscriber, events);
    return {
      close() {
        closings.push(`daemon ${subscriber.role === 'daemon' ? subscriber.id : 0}`);
        subscription.close();
      },
    };
  };
  const killed = await startChild(t, server.address);
  await until(t, 'up', () => master.map.daemons.get(1)?.up === true);
  let started = performance.now();
  killed.kill('SIGKILL');
  await until(t, 'down', () => master.map.daemons.get(1)?.up === false);
  t.true(performance.now() - started < 1_000, `noticed after ${performance.now() - started} ms`);
  t.is(closings.length, 1);

  const stopped = await startChild(t, server.address);
  await until(t, 'up again', () => master.map.daemons.get(1)?.up === true);
  started = performance.now();
  stopped.kill('SIGSTOP');
  await until(t, 'the stream is cut', () => closings.length === 2, 8_000);
  const took = performance.now() - started;
  t.log(`a stopped process was noticed after ${took.toFixed(0)} ms`);
  t.true(took < 5_000);
});

test('a subscriber that does not read for a while gets what it missed in a few updates, not in all of them', async (t) => {
  const { master, server } = await serve(t);
  const link = linkTo(t, server);
  const child = await startChild(t, server.address);
  let text = '';
  child.stdout!.on('data', (data) => {
    text += data;
  });
  await link.call('createPool', { name: 'p', pgCount: 2_048, replicas: 1, minSize: 0, durability: 'sync' });
  child.kill('SIGSTOP');
  // Each change empties or fills every acting set: about 20 KB, so that sockets are full after a few.
  for (let i = 0; i < 25; i++) await link.call('setDaemon', { id: 1, in: i % 2 === 1 });
  child.kill('SIGCONT');
  await until(t, 'the reader catches up', () => text.includes(`epoch ${master.map.epoch}\n`));
  const messages = text.split('\n').length - 1;
  t.log(`${messages} messages for ${master.map.epoch} epochs`);
  t.false(text.includes('closed'));
  t.true(messages < 20, 'the rest was joined');
});
