import test from 'ava';
import type { ControlLink, ControlService, Subscriber, SubscriptionEvents } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { MapUpdate } from '../../proto/map.ts';
import { SimRandom } from './random.ts';
import { type Machine, Scheduler } from './scheduler.ts';
import { SimControl } from './sim-control.ts';
import { SimNetwork } from './sim-network.ts';

const update = (to: number): MapUpdate => ({
  clusterId: 'c',
  from: to - 1,
  to,
  daemons: [],
  pools: [],
  pgs: [],
  images: [],
  removedDaemons: [],
  removedPools: [],
  removedPgs: [],
  removedImages: [],
});

/** A master that counts calls and keeps its subscribers. */
class ToyMaster {
  calls = 0;
  readonly requests: unknown[] = [];
  readonly subscribers: SubscriptionEvents[] = [];
  gone = 0;
  refuse = false;

  readonly service: ControlService = {
    handle: async (method, request) => {
      this.calls++;
      this.requests.push(request);
      if (method === 'openSession') return { clusterId: 'c', session: this.calls } as never;
      throw new StorageError('BUSY', 'somebody holds it');
    },
    subscribe: (_subscriber: Subscriber, events: SubscriptionEvents) => {
      if (this.refuse) throw new StorageError('IDENTITY', 'another cluster');
      this.subscribers.push(events);
      return {
        close: () => {
          this.gone++;
        },
      };
    },
  };
}

interface World {
  scheduler: Scheduler;
  network: SimNetwork;
  control: SimControl;
  master: Machine;
  client: Machine;
  toy: ToyMaster;
  link: ControlLink;
  seen: string[];
  ask(): void;
  listen(): void;
  run(ms: number): Promise<unknown>;
}
function build(): World {
  const scheduler = new Scheduler(new SimRandom(1));
  const network = new SimNetwork(scheduler, new SimRandom(1));
  const master = scheduler.machine('master');
  const client = scheduler.machine('client');
  const control = new SimControl(network, master);
  const toy = new ToyMaster();
  control.serve(master.boot(), toy.service);
  const life = client.boot();
  network.port(life);
  const link = control.link(life);
  const seen: string[] = [];
  return {
    scheduler,
    network,
    control,
    master,
    client,
    toy,
    link,
    seen,
    ask: () =>
      void link.call('openSession', { name: 'x' }).then(
        (reply) => seen.push(`session ${reply.session}`),
        (error: StorageError) => seen.push(error.code),
      ),
    listen: () =>
      void link.subscribe(
        { role: 'client', session: 1, epoch: 0 },
        { onUpdate: (u) => seen.push(`epoch ${u.to}`), onClose: (reason) => seen.push(`closed: ${reason}`) },
      ),
    run: (ms) => scheduler.run(() => false, ms),
  };
}

test('a call is answered, a refusal keeps its code, and nobody shares objects', async (t) => {
  const w = build();
  const request = { name: 'mine' };
  const reply = w.link.call('openSession', request);
  const refusal = w.link.call('lockImage', { session: 1, image: 1, takeOver: false });
  request.name = 'changed after the call';
  void refusal.catch(() => {});
  await w.run(1_000);
  t.deepEqual(await reply, { clusterId: 'c', session: 1 });
  t.deepEqual(w.toy.requests[0], { name: 'mine' });
  await t.throwsAsync(refusal, { instanceOf: StorageError, code: 'BUSY' });
});

test('a dead master and a partition both give UNAVAILABLE; behind a partition the call may have been carried out', async (t) => {
  const w = build();
  w.ask();
  await w.run(0.001);
  w.network.block(w.master, w.client);
  await w.run(6_000);
  t.deepEqual(w.seen, ['UNAVAILABLE']);
  t.is(w.toy.calls, 1, 'the request got through, the reply did not');
  w.network.unblock(w.master, w.client);
  w.master.end('crash');
  w.ask();
  await w.run(1_000);
  t.deepEqual(w.seen, ['UNAVAILABLE', 'UNAVAILABLE']);
});

test('updates arrive in order; the end of the master breaks the stream, the end of the subscriber reaches the master', async (t) => {
  const w = build();
  w.listen();
  await w.run(100);
  for (let epoch = 1; epoch <= 20; epoch++) w.toy.subscribers[0]!.onUpdate(update(epoch));
  await w.run(100);
  t.deepEqual(
    w.seen,
    Array.from({ length: 20 }, (_, i) => `epoch ${i + 1}`),
  );
  w.client.end('crash');
  await w.run(100);
  t.is(w.toy.gone, 1);

  const other = build();
  other.listen();
  await other.run(100);
  other.master.end('crash');
  await other.run(100);
  t.deepEqual(other.seen, ['closed: the master is gone']);
});

test('a refused subscription is closed with the reason', async (t) => {
  const w = build();
  w.toy.refuse = true;
  w.listen();
  await w.run(5_000);
  t.deepEqual(w.seen, ['closed: IDENTITY: another cluster']);
});

test('a short partition delays updates, a long one breaks the stream at both ends', async (t) => {
  const w = build();
  w.listen();
  await w.run(100);
  w.network.block(w.master, w.client);
  w.toy.subscribers[0]!.onUpdate(update(1));
  await w.run(4_000);
  t.deepEqual(w.seen, []);
  w.network.unblock(w.master, w.client);
  await w.run(4_000);
  t.deepEqual(w.seen, ['epoch 1']);
  w.network.block(w.master, w.client);
  await w.run(20_000);
  t.deepEqual(w.seen, ['epoch 1', 'closed: no answer to keepalive']);
  t.is(w.toy.gone, 1);
});

test('a subscriber whose host loses power is missed only after the keepalive time', async (t) => {
  const w = build();
  w.listen();
  await w.run(100);
  w.client.end('powerCut');
  await w.run(5_000);
  t.is(w.toy.gone, 0);
  await w.run(10_000);
  t.is(w.toy.gone, 1);
});
