// A link to several masters: real ones on a model of etcd, and programs that misbehave as masters do when they are ill.

import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import test, { type ExecutionContext } from 'ava';
import type { ControlService } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { Log } from '../../proto/ports.ts';
import { ElectedMaster } from '../master/elected-master.ts';
import { MemoryLeaseStore } from '../master/memory-lease-store.ts';
import { openClock, openRandom } from './clock.ts';
import { type MasterLink, openControlLink } from './grpc-link.ts';
import { type GrpcServer, serveGrpc } from './grpc-server.ts';

const quiet: Log = { debug() {}, info() {}, warn() {}, error() {} };
const image = { name: 'i', pool: 'p', sizeBytes: 4096, order: 20, stripeUnit: 2 ** 20, stripeCount: 1 };
const heartbeat = {
  id: 1,
  bootId: 'b',
  epoch: 1,
  pgs: [],
  space: { usedBytes: 0, freeBytes: 1, full: false },
  recoveredBytes: 0,
};

interface Served {
  readonly master: ElectedMaster;
  readonly server: GrpcServer;
}

/** Masters on one store, the first of which leads. */
async function masters(
  t: ExecutionContext,
  count: number,
  store = new MemoryLeaseStore(openClock()),
): Promise<Served[]> {
  const all: Served[] = [];
  for (let n = 0; n < count; n++) {
    const onFatal = (error: Error): void => t.fail(error.message);
    const master = new ElectedMaster({
      clock: openClock(),
      log: quiet,
      random: openRandom(),
      store,
      prefix: '/p',
      onFatal,
    });
    const server = await serveGrpc(master, '127.0.0.1:0', quiet);
    t.teardown(async () => {
      await master.close();
      await server.close();
    });
    master.campaign(server.address);
    all.push({ master, server });
    if (n === 0) await until(() => master.leads);
  }
  return all;
}

async function until(condition: () => boolean): Promise<void> {
  for (const end = performance.now() + 10_000; !condition(); ) {
    if (performance.now() > end) throw new Error('waited in vain');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

function linkTo(t: ExecutionContext, ...addresses: string[]): MasterLink {
  const link = openControlLink(addresses.join(','));
  t.teardown(() => link.close());
  return link;
}

/** An address where nobody listens any more. */
async function deadAddress(): Promise<string> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return `127.0.0.1:${port}`;
}

/** Accepts connections and says nothing, as the kernel does for a stopped process. */
async function stoppedProcess(t: ExecutionContext): Promise<string> {
  const sockets: Socket[] = [];
  const server = createServer((socket) => sockets.push(socket.on('error', () => {}))).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return `127.0.0.1:${(server.address() as { port: number }).port}`;
}

/** Serves what a puppet does with each call. */
async function puppet(t: ExecutionContext, handle: (method: string) => Promise<unknown>): Promise<string> {
  const service = {
    handle,
    subscribe: () => {
      throw new StorageError('UNAVAILABLE', 'a puppet');
    },
  } as unknown as ControlService;
  const server = await serveGrpc(service, '127.0.0.1:0', quiet);
  t.teardown(() => server.close());
  return server.address;
}

test('past a dead one and one that does not lead, a call finds the leader; the next goes there at once', async (t) => {
  const [leader, follower] = await masters(t, 2);
  const link = linkTo(t, await deadAddress(), follower!.server.address, leader!.server.address);
  const { clusterId } = await link.call('status', {});
  t.not(clusterId, '');
  const start = performance.now();
  for (let i = 0; i < 20; i++) await link.call('status', {});
  t.true(performance.now() - start < 2_000);
});

test('one address is enough: who does not lead says who does, and is believed', async (t) => {
  const [, follower] = await masters(t, 2);
  const link = linkTo(t, follower!.server.address);
  await link.call('createPool', { name: 'p', pgCount: 1, replicas: 1, minSize: 0, durability: 'flush' });
  t.is((await link.call('createImage', image)).name, 'i');
});

test('a stopped process that still accepts connections is passed over within about a second', async (t) => {
  const [leader] = await masters(t, 1);
  const link = linkTo(t, await stoppedProcess(t), leader!.server.address);
  const start = performance.now();
  await link.call('status', {});
  const tookMs = performance.now() - start;
  t.log(`${tookMs.toFixed(0)} ms`);
  t.true(tookMs < 5_000);
});

test('a call made while nobody leads waits for the next leader; a subscription follows it too', async (t) => {
  const [first, second] = await masters(t, 2);
  const link = linkTo(t, first!.server.address, second!.server.address);
  const { session } = await link.call('openSession', { name: 's' });
  let epochs = 0;
  let closed = '';
  const subscribe = () =>
    link.subscribe(
      { role: 'client', session, epoch: 0 },
      { onUpdate: () => epochs++, onClose: (reason) => (closed = reason) },
    );
  subscribe();
  await until(() => epochs === 1);
  await first!.master.close();
  t.is((await link.call('openSession', { name: 's' })).session, session + 1, 'the next leader knows what was before');
  t.true(second!.master.leads);
  await until(() => closed !== '');
  t.regex(closed, /does not lead any more/);
  subscribe();
  await until(() => epochs === 2);
});

test('with one master, and with none that leads, a call fails and says so', async (t) => {
  const start = performance.now();
  const dead = await t.throwsAsync(linkTo(t, await deadAddress()).call('status', {}), { instanceOf: StorageError });
  t.is(dead!.code, 'UNAVAILABLE');
  t.true(performance.now() - start < 2_500, 'at once: there is nobody else to ask');
  const [leader, follower] = await masters(t, 2);
  await Promise.all([leader!.master.close(), follower!.master.close()]);
  const link = linkTo(t, leader!.server.address, follower!.server.address);
  const error = await t.throwsAsync(link.call('status', {}), { instanceOf: StorageError });
  t.is(error!.code, 'UNAVAILABLE');
  t.is(error!.message, 'no master leads at the moment');
});

test('what may have been carried out is not sent again if it would then be refused; what is safe to repeat is', async (t) => {
  const heard: string[] = [];
  const mute = await puppet(t, (method) => {
    heard.push(`mute ${method}`);
    return new Promise(() => {});
  });
  const other = await puppet(t, async (method) => {
    heard.push(`other ${method}`);
    return { clusterId: 'c', session: 7 };
  });
  const link = linkTo(t, mute, other);
  const error = await t.throwsAsync(link.call('createImage', image), { instanceOf: StorageError });
  t.is(error!.code, 'UNAVAILABLE');
  t.deepEqual(heard, ['mute createImage']);
  const again = linkTo(t, mute, other);
  t.is((await again.call('openSession', { name: 's' })).session, 7);
  t.deepEqual(heard.slice(1), ['mute openSession', 'other openSession']);
});

test('a heartbeat is sent once: later it would not be true any more', async (t) => {
  const [leader, follower] = await masters(t, 2);
  const link = linkTo(t, follower!.server.address, leader!.server.address);
  await t.throwsAsync(link.call('heartbeat', heartbeat), { message: /^not the leader: the leader is 127/ });
  const error = await t.throwsAsync(link.call('heartbeat', heartbeat), { instanceOf: StorageError });
  t.is(error!.code, 'IDENTITY', 'the next one goes to the leader, who does not know this daemon');
});

test("a refusal by the leader is the leader's answer: nobody else is asked", async (t) => {
  const heard: string[] = [];
  const busy = await puppet(t, async (method) => {
    heard.push(method);
    throw new StorageError('UNAVAILABLE', 'daemon 3: up, but does not obey');
  });
  const other = await puppet(t, async () => t.fail('the other was asked'));
  const error = await t.throwsAsync(
    linkTo(t, busy, other).call('lockImage', { session: 1, image: 1, takeOver: false }),
  );
  t.is(error!.message, 'daemon 3: up, but does not obey');
  t.deepEqual(heard, ['lockImage']);
});
