import { connect, createServer, type Socket } from 'node:net';
import test, { type ExecutionContext } from 'ava';
import { sleep, until } from '../lib/processes.ts';
import { FaultProxy } from './fault-proxy.ts';

const ANY = (): boolean => true;

/** A server that answers with what it gets, behind a proxy that knows this process as "tester". */
async function echoBehind(t: ExecutionContext) {
  t.timeout(60_000);
  const sockets: Socket[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.push(socket);
    socket.on('error', () => {}).on('data', (bytes) => socket.write(bytes));
    socket.on('end', () => socket.end('bye'));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  let state = 1;
  const random = (): number => {
    state = (Math.imul(state, 48_271) >>> 0) % 2_147_483_647;
    return state / 2_147_483_647;
  };
  const proxy = new FaultProxy(() => [{ name: 'tester', pid: process.pid }], random);
  const address = await proxy.forward('echo', `127.0.0.1:${(server.address() as { port: number }).port}`);
  t.teardown(() => {
    proxy.close();
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  const open = (): { socket: Socket; got: () => Buffer; isOver: () => boolean } => {
    const socket = connect({ port: Number(address.split(':')[1]), host: '127.0.0.1', allowHalfOpen: true });
    let bytes = Buffer.alloc(0);
    let over = false;
    socket.on('data', (chunk: Buffer) => {
      bytes = Buffer.concat([bytes, chunk]);
    });
    socket
      .on('error', () => {})
      .on('close', () => {
        over = true;
      });
    t.teardown(() => socket.destroy());
    return { socket, got: () => bytes, isOver: () => over };
  };
  return { proxy, open };
}

test.serial('without faults all bytes pass in order, an end is passed on, and the source has a name', async (t) => {
  const { proxy, open } = await echoBehind(t);
  const { socket, got, isOver } = open();
  const sent = Buffer.alloc(3_000_000, 'abcdefghijk');
  socket.write(sent);
  await until('all came back', 20_000, () => got().length === sent.length, 5);
  t.true(got().equals(sent));
  t.deepEqual(proxy.links, ['tester>echo']);
  socket.end();
  await until('the end came back', 10_000, isOver, 5);
  t.is(got().subarray(sent.length).toString(), 'bye');
  t.deepEqual(proxy.links, []);
});

test.serial('one way is held, the other is not; what was held arrives after the fault, once', async (t) => {
  const { proxy, open } = await echoBehind(t);
  const { socket, got } = open();
  socket.write('1');
  await until('it works', 10_000, () => got().length === 1, 5);
  proxy.apply((source, target) => source === 'tester' && target === 'echo', { hold: 'back' });
  socket.write('2');
  await sleep(200);
  t.is(got().toString(), '1');
  proxy.heal();
  await until('it is delivered', 10_000, () => got().length === 2, 5);
  proxy.apply(ANY, { hold: 'forth' });
  socket.write('3');
  await sleep(100);
  t.is(got().toString(), '12');
  proxy.heal();
  await until('it is delivered', 10_000, () => got().toString() === '123', 5);
});

test.serial('delay and trickle take their time and keep the order', async (t) => {
  const { proxy, open } = await echoBehind(t);
  const { socket, got } = open();
  proxy.apply(ANY, { delayMs: 100, jitterMs: 100 });
  const start = performance.now();
  for (const text of ['a', 'b', 'c', 'd']) socket.write(text);
  await until('all came back', 10_000, () => got().length === 4, 5);
  t.true(performance.now() - start >= 195, 'twice the delay');
  t.is(got().toString(), 'abcd');
  proxy.heal();
  proxy.apply(ANY, { bytesPerSecond: 100 });
  const slowStart = performance.now();
  socket.write(Buffer.alloc(50, 'x'));
  await until('all came back', 20_000, () => got().length === 54, 5);
  t.true(performance.now() - slowStart > 400, `${performance.now() - slowStart} ms for 50 bytes`);
});

test.serial('bits are flipped, and counted', async (t) => {
  const { proxy, open } = await echoBehind(t);
  const { socket, got } = open();
  proxy.apply(ANY, { flipEveryBytes: 50_000 });
  const sent = Buffer.alloc(2_000_000, 0x55);
  socket.write(sent);
  await until('all came back', 20_000, () => got().length === sent.length, 5);
  let bits = 0;
  for (const byte of got()) for (let odd = byte ^ 0x55; odd > 0; odd &= odd - 1) bits++;
  t.true(proxy.done.flips > 5);
  t.true(bits > 0 && bits <= proxy.done.flips, `${bits} bits, ${proxy.done.flips} flips`);
});

test.serial(
  'a reset breaks both sides; a half-close ends one direction; refused connections do not come through',
  async (t) => {
    const { proxy, open } = await echoBehind(t);
    const first = open();
    first.socket.write('1');
    await until('it works', 10_000, () => first.got().length === 1, 5);
    t.is(proxy.reset(ANY), 1);
    await until('it broke', 10_000, first.isOver, 5);
    const second = open();
    second.socket.write('2');
    await until('it works', 10_000, () => second.got().length === 1, 5);
    t.is(
      proxy.halfClose((_, target) => target === 'echo', 'forth'),
      1,
    );
    await until('the server saw the end and said so', 10_000, () => second.got().toString() === '2bye', 5);
    proxy.apply(ANY, { refuse: true });
    const third = open();
    await until('it is refused', 10_000, third.isOver, 5);
    t.is(proxy.done.refused, 1);
  },
);
