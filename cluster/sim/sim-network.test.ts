import test from 'ava';
import { blockChecksum } from '../../proto/checksum.ts';
import { type Frame, newFrame, Op } from '../../proto/frame.ts';
import type { Connection, ConnectionEvents } from '../../proto/ports.ts';
import { SimRandom } from './random.ts';
import { type Incarnation, type Machine, Scheduler } from './scheduler.ts';
import { CALM_NETWORK, SimNetwork } from './sim-network.ts';

interface World {
  scheduler: Scheduler;
  network: SimNetwork;
  server: Machine;
  client: Machine;
  life: Incarnation;
  /** "server got 1", "client closed: ..." in order. */
  seen: string[];
  accepted: Connection[];
  connect(): Connection;
  run(ms: number): Promise<unknown>;
}

const request = (n: number): Frame => {
  const frame = newFrame(Op.WRITE);
  frame.request = n;
  return frame;
};

function build(seed: number, serverHost = 'server'): World {
  const scheduler = new Scheduler(new SimRandom(seed));
  const network = new SimNetwork(scheduler, new SimRandom(seed).fork('network'));
  const server = scheduler.machine('server', serverHost);
  const client = scheduler.machine('client');
  const life = client.boot();
  const seen: string[] = [];
  const accepted: Connection[] = [];
  const events = (who: string): ConnectionEvents => ({
    onFrame: (frame) => seen.push(`${who} got ${frame.request}`),
    onClose: (reason) => seen.push(`${who} closed: ${reason}`),
  });
  const port = network.port(life);
  void network.port(server.boot()).listen('server:1', (connection) => {
    connection.events = events('server');
    accepted.push(connection);
  });
  return {
    scheduler,
    network,
    server,
    client,
    life,
    seen,
    accepted,
    connect: () => port.connect('server:1', events('client')),
    run: (ms) => scheduler.run(() => false, ms),
  };
}

test('frames sent before the connection is up arrive after it, all in order, each way', async (t) => {
  const w = build(1);
  const connection = w.connect();
  for (let i = 1; i <= 50; i++) connection.send(request(i));
  await w.run(1_000);
  for (let i = 1; i <= 20; i++) w.accepted[0]!.send(request(100 + i));
  await w.run(1_000);
  const expected = Array.from({ length: 50 }, (_, i) => `server got ${i + 1}`);
  t.deepEqual(w.seen, [...expected, ...Array.from({ length: 20 }, (_, i) => `client got ${101 + i}`)]);
});

test('frames of different connections overtake each other', async (t) => {
  const w = build(2);
  const first = w.connect();
  const second = w.connect();
  for (let i = 1; i <= 30; i++) (i % 2 === 0 ? first : second).send(request(i));
  await w.run(1_000);
  t.is(w.seen.length, 30);
  t.notDeepEqual(
    w.seen,
    Array.from({ length: 30 }, (_, i) => `server got ${i + 1}`),
  );
});

test('nobody listens: refused; a unix socket of another host: refused', async (t) => {
  const w = build(3);
  w.server.end('crash');
  w.connect();
  await w.run(1_000);
  t.deepEqual(w.seen, ['client closed: connection refused']);
  w.seen.length = 0;
  const again = build(3, 'elsewhere');
  await again.network.port(again.server.incarnation!).listen('unix:/run/x', () => t.fail('reached across hosts'));
  again.network
    .port(again.life)
    .connect('unix:/run/x', { onFrame: () => t.fail(), onClose: (r) => again.seen.push(r) });
  await again.run(1_000);
  t.deepEqual(again.seen, ['no such socket']);
});

test('an address can be listened on once, and again by the next process', async (t) => {
  const w = build(3);
  await t.throwsAsync(() => w.network.port(w.life).listen('server:1', () => {}), { message: /in use/ });
  w.server.end('crash');
  await t.notThrowsAsync(() => w.network.port(w.server.boot()).listen('server:1', () => {}));
});

test('a process dies: the peer hears of it, and nothing sent by the dead arrives later', async (t) => {
  const w = build(4);
  const connection = w.connect();
  await w.run(100);
  w.server.end('crash');
  w.accepted[0]!.send(request(9));
  connection.send(request(1));
  await w.run(1_000);
  t.is(w.seen.length, 1);
  t.regex(w.seen[0]!, /client closed/);
  t.is(w.network.openConnections, 0);
});

test('close() ends it for the other side only, which may still have been told what was sent before', async (t) => {
  const w = build(5);
  const connection = w.connect();
  connection.send(request(1));
  await w.run(100);
  connection.send(request(2));
  connection.close();
  connection.send(request(3));
  await w.run(100);
  t.deepEqual(w.seen, ['server got 1', 'server got 2', 'server closed: connection closed by peer']);
});

test('a host without power is silent; once it is back, the first frame to the dead connection is answered by a reset', async (t) => {
  const w = build(6);
  const connection = w.connect();
  await w.run(100);
  w.server.end('powerCut');
  connection.send(request(1));
  await w.run(60_000);
  t.deepEqual(w.seen, []);
  w.server.boot();
  await w.run(1_000);
  t.deepEqual(w.seen, ['client closed: connection reset']);
});

test('an idle connection to a host that lost its power stays half open until something is sent', async (t) => {
  const w = build(7);
  const connection = w.connect();
  await w.run(100);
  w.server.end('powerCut');
  w.server.boot();
  await w.run(10_000);
  t.deepEqual(w.seen, []);
  connection.send(request(1));
  await w.run(1_000);
  t.deepEqual(w.seen, ['client closed: connection reset']);
});

test('a one-way partition holds what goes that way and nothing else; the end of a connection does not pass either', async (t) => {
  const w = build(8);
  const connection = w.connect();
  await w.run(100);
  w.network.block(w.client, w.server);
  connection.send(request(1));
  w.accepted[0]!.send(request(2));
  await w.run(5_000);
  t.deepEqual(w.seen, ['client got 2']);
  connection.close();
  await w.run(5_000);
  t.deepEqual(w.seen, ['client got 2'], 'half open: the server has not heard of the close');
  w.network.unblock(w.client, w.server);
  await w.run(5_000);
  t.regex(w.seen.at(-1)!, /server closed/);
});

test('connecting into a partition that lasts times out; into one that heals, it comes up late', async (t) => {
  const w = build(9);
  w.network.block(w.server, w.client);
  w.connect();
  await w.run(30_000);
  t.deepEqual(w.seen, ['client closed: connect timed out']);
  const late = w.connect();
  late.send(request(5));
  await w.run(3_000);
  w.network.unblock(w.server, w.client);
  await w.run(3_000);
  t.is(w.seen.at(-1), 'server got 5');
});

test('random resets and silences end connections or delay frames, but never reorder or duplicate them', async (t) => {
  let closed = 0;
  for (let seed = 1; seed <= 40; seed++) {
    const w = build(seed);
    w.network.faults = { ...CALM_NETWORK, lossChance: 0.01, resetChance: 0.005, clogChance: 0.05, clogMaxMs: 500 };
    const connection = w.connect();
    for (let i = 1; i <= 100; i++) w.scheduler.after(i, 'send', () => connection.send(request(i)));
    await w.run(120_000);
    const got = w.seen.filter((line) => line.startsWith('server got')).map((line) => Number(line.split(' ')[2]));
    t.deepEqual(
      got,
      Array.from({ length: got.length }, (_, i) => i + 1),
    );
    const ended = w.seen.some((line) => line.includes('closed'));
    if (ended) closed++;
    else t.is(got.length, 100);
  }
  t.true(closed > 5 && closed < 40);
});

test('a flipped bit in header or meta ends the connection; in the payload it is delivered, for checksums to find', async (t) => {
  let delivered = 0;
  let refused = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const w = build(seed);
    const payload = Buffer.alloc(4096, 7);
    const frame = request(1);
    frame.meta = Buffer.from([1, 2, 3, 4]);
    frame.payload = payload;
    let arrived: Buffer | null = null;
    const connection = w.connect();
    await w.run(100);
    w.accepted[0]!.events = {
      onFrame: (got) => {
        arrived = got.payload;
      },
      onClose: (reason) => w.seen.push(`server closed: ${reason}`),
    };
    w.network.faults.flipChance = 1;
    connection.send(frame);
    await w.run(1_000);
    if (arrived !== null) {
      delivered++;
      t.not(blockChecksum(arrived, 1, 1, 0), blockChecksum(payload, 1, 1, 0));
    } else {
      refused++;
      t.is(w.seen.filter((line) => line.includes('closed')).length, 2, w.seen.join());
    }
    t.true(
      payload.every((byte) => byte === 7),
      "the sender's buffer is untouched",
    );
  }
  t.true(delivered > 5 && refused > 20);
});
