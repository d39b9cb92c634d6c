// The gRPC carrier with a real master behind it, on loopback.

import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import type { Subscription } from '../../proto/control.ts';
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
  map: StorageMap | null = null;
  closed = '';
  subscription: Subscription;
  constructor(link: MasterLink, subscriber: Parameters<MasterLink['subscribe']>[0]) {
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
  const heartbeat = { id, bootId: 'boot-1', epoch: daemon.map!.epoch, pgs: [], space };
  t.true((await link.call('heartbeat', heartbeat)).epoch >= daemon.map!.epoch);
  t.is((await lock).fence, 1);
  const status = await link.call('status', {});
  t.deepEqual(status.daemons[0]!.space, space);
  t.is(status.images[0]!.owner, 'nbd on here');
  client.subscription.close();
  await until(t, 'the session is over', () => true);
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
