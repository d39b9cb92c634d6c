// On real loopback sockets and unix sockets.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, connect as rawConnect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { encodeHeader, Flag, type Frame, HEADER_BYTES, newFrame, Op, replyTo } from '../../proto/frame.ts';
import type { Connection, ConnectionEvents } from '../../proto/ports.ts';
import { createNetwork, hostAndPort } from './sockets.ts';

const network = createNetwork();

/** The end that was asked to keep what comes. */
class Recorder implements ConnectionEvents {
  readonly frames: Frame[] = [];
  closed: string | null = null;
  #wake: (() => void)[] = [];
  onFrame(frame: Frame): void {
    this.frames.push(frame);
    this.#tell();
  }
  onClose(reason: string): void {
    this.closed = reason;
    this.#tell();
  }
  async until(what: () => boolean): Promise<void> {
    while (!what()) await new Promise<void>((resolve) => this.#wake.push(resolve));
  }
  #tell(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }
}
function request(number: number, payload: Buffer | null = null, meta: Buffer | null = null): Frame {
  return Object.assign(newFrame(Op.WRITE), { request: number, payload, meta });
}
/** A listener that answers every frame with its payload. */
async function echo(address: string): Promise<{ address: string; close(): void; accepted: Connection[] }> {
  const accepted: Connection[] = [];
  const listener = await network.listen(address, (connection) => {
    accepted.push(connection);
    connection.events = {
      onFrame: (frame) =>
        connection.send(Object.assign(replyTo(frame, 0, 1), { payload: frame.payload, meta: frame.meta })),
      onClose: () => {},
    };
  });
  return { address: listener.address, close: () => listener.close(), accepted };
}
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const directory = mkdtempSync(join(tmpdir(), 'ashlar-sockets-'));
test.after.always(() => rmSync(directory, { recursive: true }));

for (const [name, address] of [
  ['TCP', '127.0.0.1:0'],
  ['IPv6', '[::1]:0'],
  ['a unix socket', `unix:${join(directory, 'echo.sock')}`],
] as const)
  test(`frames of every size arrive in order over ${name}, those sent before it is up as well`, async (t) => {
    const server = await echo(address);
    const events = new Recorder();
    const connection = network.connect(server.address, events);
    const sizes = [0, 1, 100, 4096, 16 * 1024, 16 * 1024 + 1, 65_536, 0, 1024 * 1024, 4096, 300_000, 0];
    const sent: Frame[] = [];
    for (let round = 0; round < 4; round++) {
      for (const size of sizes) {
        const payload = size === 0 ? null : Buffer.alloc(size, sent.length + 1);
        const frame = request(sent.length + 1, payload, size % 2 === 0 ? Buffer.alloc(size % 1000, 5) : null);
        sent.push(frame);
        connection.send(frame);
      }
      await pause(round);
    }
    await events.until(() => events.frames.length === sent.length);
    events.frames.forEach((reply, i) => {
      t.is(reply.request, i + 1);
      t.is(reply.flags, Flag.REPLY);
      const { payload } = sent[i]!;
      t.true(payload === null ? reply.payload === null : reply.payload!.equals(payload), `frame ${i + 1}`);
    });
    t.is(events.closed, null);
    connection.close();
    server.close();
  });

test('nobody listens: onClose, later, and what was sent is gone', async (t) => {
  const events = new Recorder();
  const connection = network.connect('127.0.0.1:1', events);
  connection.send(request(1));
  t.is(events.closed, null);
  await events.until(() => events.closed !== null);
  t.regex(events.closed!, /ECONNREFUSED/);
  connection.send(request(2));
});

test('an address that is none, as a broken map might hold, is onClose and no exception', async (t) => {
  for (const address of [':::7000', 'nonsense', 'host:99999', '']) {
    const events = new Recorder();
    network.connect(address, events);
    await events.until(() => events.closed !== null);
    t.regex(events.closed!, /not an address/);
  }
});

test('the end of one side is onClose of the other, once; after close() of its own nothing comes', async (t) => {
  const server = await echo('127.0.0.1:0');
  const events = new Recorder();
  const connection = network.connect(server.address, events);
  connection.send(request(1));
  await events.until(() => events.frames.length === 1);
  const far = new Recorder();
  server.accepted[0]!.events = far;
  connection.close();
  await far.until(() => far.closed !== null);
  await pause(10);
  t.is(far.closed, 'connection closed');
  t.is(events.closed, null);
  connection.close();
  server.close();
});

test('what was sent before close() still arrives', async (t) => {
  const far = new Recorder();
  const listener = await network.listen('127.0.0.1:0', (connection) => {
    connection.events = far;
  });
  const connection = network.connect(listener.address, new Recorder());
  connection.send(request(1, Buffer.alloc(2_000_000, 1)));
  connection.send(request(2));
  connection.close();
  await far.until(() => far.closed !== null);
  t.deepEqual(
    far.frames.map((frame) => frame.request),
    [1, 2],
  );
  listener.close();
});

test('what is not a frame ends the connection with the reason; the frames before it count', async (t) => {
  const far = new Recorder();
  const listener = await network.listen('127.0.0.1:0', (connection) => {
    connection.events = far;
  });
  const { host, port } = hostAndPort(listener.address);
  const socket = rawConnect({ host, port });
  socket.on('error', () => {});
  const header = Buffer.alloc(HEADER_BYTES);
  encodeHeader(header, 0, request(1));
  socket.write(Buffer.concat([header, Buffer.from('GET / HTTP/1.1\r\n'.repeat(10))]));
  await far.until(() => far.closed !== null);
  t.is(far.frames.length, 1);
  t.is(far.closed, 'not an Ashlar frame');
  await new Promise((resolve) => socket.once('close', resolve));
  listener.close();
});

test('a peer that does not read its answers is not read either; when it reads again, all are answered', async (t) => {
  const answer = Buffer.alloc(16 * 1024 * 1024, 6);
  let asked = 0;
  const listener = await network.listen('127.0.0.1:0', (connection) => {
    connection.events = {
      onFrame: (frame) => {
        asked += 1;
        connection.send(Object.assign(replyTo(frame, 0, 1), { payload: answer }));
      },
      onClose: () => {},
    };
  });
  const { host, port } = hostAndPort(listener.address);
  const socket: Socket = rawConnect({ host, port });
  socket.pause();
  const REQUESTS = 40;
  const header = Buffer.alloc(HEADER_BYTES);
  encodeHeader(header, 0, newFrame(Op.READ));
  socket.write(Buffer.concat(Array.from({ length: REQUESTS }, () => header)));
  let whileMute = 0;
  for (let before = -1; whileMute === 0 || whileMute !== before; await pause(200)) {
    before = whileMute;
    whileMute = asked;
  }
  t.true(whileMute >= 4 && whileMute <= 8, `${whileMute} requests were read, each worth 16 MiB of memory`);
  let received = 0;
  await new Promise<void>((resolve) => {
    socket.on('data', (chunk) => {
      received += chunk.length;
      if (received === REQUESTS * (HEADER_BYTES + answer.length)) resolve();
    });
    socket.resume();
  });
  t.is(asked, REQUESTS);
  socket.destroy();
  listener.close();
});

test('a taken address is refused with the reason; a socket file that a dead process left is not in the way', async (t) => {
  const server = await echo('127.0.0.1:0');
  await t.throwsAsync(
    network.listen(server.address, () => {}),
    { code: 'UNAVAILABLE', message: /EADDRINUSE/ },
  );
  server.close();

  const path = join(directory, 'left.sock');
  const first = await echo(`unix:${path}`);
  await t.throwsAsync(
    network.listen(`unix:${path}`, () => {}),
    { message: /another process does/ },
  );
  first.close();
  writeFileSync(path, ''); // nobody answers there
  const second = await echo(`unix:${path}`);
  const events = new Recorder();
  const connection = network.connect(second.address, events);
  connection.send(request(1));
  await events.until(() => events.frames.length === 1);
  t.is(events.frames[0]!.request, 1);
  connection.close();
  second.close();
});

test('addresses: host and port, IPv6 in brackets, any interface; all else is named and refused', (t) => {
  t.deepEqual(hostAndPort('127.0.0.1:7000'), { host: '127.0.0.1', port: 7000 });
  t.deepEqual(hostAndPort('[::1]:0'), { host: '::1', port: 0 });
  t.deepEqual(hostAndPort('disk-7.example:65535'), { host: 'disk-7.example', port: 65_535 });
  t.deepEqual(hostAndPort(':7000'), { host: '', port: 7000 });
  for (const bad of ['', 'host', 'host:', 'host:65536', '::1:7000', 'host:7x', '[::1]7000'])
    t.throws(() => hostAndPort(bad), { code: 'INVALID', message: /HOST:PORT/ });
});

test('a peer that accepts and never reads is let go some time after close()', async (t) => {
  const sockets: Socket[] = [];
  const server = createServer({ pauseOnConnect: true }, (socket) => sockets.push(socket));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  const connection = network.connect(`127.0.0.1:${port}`, new Recorder());
  for (let i = 0; i < 4; i++) connection.send(request(i, Buffer.alloc(16 * 1024 * 1024)));
  while (sockets.length === 0) await pause(5);
  connection.close();
  const begun = performance.now();
  await new Promise<void>((resolve) => {
    // Reading nothing, the far end sees the reset as an error on its own write.
    const poke = setInterval(() => sockets[0]!.write('x'), 100);
    sockets[0]!.once('error', () => {
      clearInterval(poke);
      resolve();
    });
  });
  t.true(performance.now() - begun > 4_000, 'it had time to read');
  server.close();
});
