// The server on real sockets: where it listens, what it takes from strangers, and how it stops.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test, { type ExecutionContext } from 'ava';
import { openClock } from '../../cluster/world/clock.ts';
import { StorageError } from '../../proto/errors.ts';
import {
  Command,
  Conversation,
  Errno,
  encodeInfoRequest,
  encodeOption,
  encodeRequest,
  Option,
} from '../nbd-protocol-ts/index.ts';
import { MemoryImageClient } from './memory-image.ts';
import { type NbdServerOptions, startNbdServer } from './server.ts';
import { SocketDuplex } from './socket-duplex.ts';
import { RecordedLog, serve, type TestServer } from './testing.ts';

const MiB = 2 ** 20;
const { READ, WRITE } = Command;

async function ready(server: TestServer): Promise<Conversation> {
  const peer = new Conversation(await server.connect());
  await peer.greet();
  await peer.go('disk');
  return peer;
}
/** The server is still there for others. */
async function serves(t: ExecutionContext, server: TestServer): Promise<void> {
  const peer = await ready(server);
  t.is((await peer.ask({ command: READ, lengthBytes: 4096 })).data.length, 4096);
  peer.duplex.close();
}
/** Waits for something that has no event of its own. */
async function until(t: ExecutionContext, what: string, holds: () => boolean): Promise<void> {
  for (let tries = 0; !holds(); tries++) {
    if (tries === 500) return t.fail(`never came: ${what}`);
    await sleep(10);
  }
}

function options(change: Partial<NbdServerOptions>): NbdServerOptions {
  return {
    client: new MemoryImageClient(),
    listen: null,
    unixPath: null,
    takeOver: false,
    readOnly: false,
    log: new RecordedLog(),
    clock: openClock(),
    ...change,
  };
}

test('TCP and the unix socket serve the same image', async (t) => {
  const server = await serve(t, { disk: MiB });
  const tcp = await ready(server);
  await tcp.ask({ command: WRITE, offset: 10, payload: Buffer.from('through tcp') });
  const socket = connect({ path: server.unixPath });
  const unix = new Conversation(new SocketDuplex(socket));
  await unix.greet();
  await unix.go('disk');
  t.is((await unix.ask({ command: READ, offset: 10, lengthBytes: 11 })).data.toString(), 'through tcp');
  t.is(server.client.volumes.get('disk')!.opens, 1);
});

test('bytes cut anywhere by the network arrive whole', async (t) => {
  const server = await serve(t, { disk: MiB });
  const duplex = await server.connect();
  const payload = Buffer.alloc(70_000).map((_, index) => index % 251);
  const stream = Buffer.concat([
    Buffer.from('00000003', 'hex'),
    encodeOption(Option.GO, encodeInfoRequest('disk')),
    encodeRequest({ command: WRITE, offset: 33, cookieLow: 1, payload: Buffer.from(payload) }),
  ]);
  for (let at = 0; at < stream.length; ) {
    const bytes = at < 200 ? 7 : 9_001;
    duplex.write(stream.subarray(at, at + bytes));
    at += bytes;
    await sleep(1);
  }
  await duplex.read(18 + 32 + 20 + 16);
  duplex.write(encodeRequest({ command: READ, offset: 33, cookieLow: 2, lengthBytes: 70_000 }));
  await duplex.read(16);
  t.true((await duplex.read(70_000)).equals(payload));
});

test('a port that is taken is a clear error', async (t) => {
  const server = await serve(t, { disk: MiB });
  const error = await t.throwsAsync(startNbdServer(options({ listen: { host: server.host, port: server.port } })));
  t.true(error instanceof StorageError);
  t.is(
    error.message,
    `can't serve NBD on 127.0.0.1:${server.port}: another process listens there; choose another address`,
  );
});

test('an address that can not be used leaves nothing listening behind', async (t) => {
  const blocker = createServer();
  await new Promise<void>((resolve) => blocker.listen(0, '127.0.0.1', resolve));
  const { port } = blocker.address() as { port: number };
  blocker.close();
  const unixPath = '/no/such/directory/nbd.sock';
  await t.throwsAsync(startNbdServer(options({ listen: { host: '127.0.0.1', port }, unixPath })), {
    message: /unix:\/no/,
  });
  const server = await startNbdServer(options({ listen: { host: '127.0.0.1', port } }));
  t.is(server.address, `127.0.0.1:${port}`);
  await server.close();
});

test('a stale socket file is replaced; one that is in use, or no socket, is not', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-test-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const unixPath = join(directory, 'nbd.sock');
  const first = await startNbdServer(options({ unixPath }));
  await t.throwsAsync(startNbdServer(options({ unixPath })), { message: /another process listens there/ });
  t.true(existsSync(unixPath), 'the file of the living server stays');
  await first.close();
  t.false(existsSync(unixPath));

  // A listener that goes without removing its file leaves what a killed process leaves.
  const script = `require('net').createServer().listen(${JSON.stringify(unixPath)}, () => process.kill(process.pid, 'SIGKILL'))`;
  spawnSync(process.execPath, ['-e', script]);
  t.true(existsSync(unixPath));
  const second = await startNbdServer(options({ unixPath }));
  await second.close();

  writeFileSync(unixPath, 'precious');
  await t.throwsAsync(startNbdServer(options({ unixPath })), { message: /no socket has that name/ });
  t.true(existsSync(unixPath));
});

test('one connection too many is turned away, and there is room again when one leaves', async (t) => {
  const server = await serve(t, { disk: MiB }, { limits: { connectionsMax: 2 } });
  const first = await ready(server);
  await ready(server);
  const refused = new Conversation(await server.connect());
  await refused.ended();
  t.deepEqual(server.log.at('warn'), ['too many connections: client turned away']);
  first.duplex.close();
  await until(t, 'room for another', () => server.log.at('info').includes('client gone'));
  await serves(t, server);
});

test('those who choose no export are limited on their own, and cut off in time; those who chose are not', async (t) => {
  const server = await serve(t, { disk: MiB }, { limits: { handshakesMax: 2, handshakeMs: 1_000 } });
  const chosen = await ready(server);
  const silent = new Conversation(await server.connect());
  const slow = new Conversation(await server.connect());
  await silent.duplex.read(18);
  await slow.greet();
  const third = new Conversation(await server.connect());
  await third.ended();
  await silent.ended();
  await slow.ended();
  t.is(server.log.at('warn').filter((line) => line === 'client cut off: no export chosen in time').length, 2);
  t.is((await chosen.ask({ command: READ, lengthBytes: 512 })).error, 0);
  await serves(t, server);
});

test('a client whose image takes long to open is not cut off by the deadline of the handshake', async (t) => {
  const server = await serve(t, { disk: MiB }, { limits: { handshakeMs: 1_000 } });
  const volume = server.client.volumes.get('disk')!;
  const first = await ready(server);
  volume.held = [];
  first.duplex.close();
  await until(t, 'the image being closed', () => volume.held!.length === 1);
  const waiting = new Conversation(await server.connect());
  await waiting.greet();
  const going = waiting.go('disk');
  await sleep(2_500);
  volume.release();
  t.is((await going).sizeBytes, MiB);
});

test('garbage, monsters, half a WRITE and resets leave the server serving and its log without an error', async (t) => {
  const server = await serve(t, { disk: MiB });
  const inputs: [string, Buffer[]][] = [
    ['nothing', []],
    ['HTTP', [Buffer.from('GET / HTTP/1.1\r\n\r\n')]],
    ['wrong flags', [Buffer.from('ffffffff', 'hex')]],
    [
      'an option of 4 GiB',
      [Buffer.from('00000003', 'hex'), encodeOption(Option.GO, Buffer.alloc(100_000), 0xffffffff)],
    ],
    ['a name of 4 GiB', [Buffer.from('00000003', 'hex'), encodeOption(Option.GO, Buffer.from('ffffffff0000', 'hex'))]],
    [
      'half a WRITE',
      [
        Buffer.from('00000003', 'hex'),
        encodeOption(Option.GO, encodeInfoRequest('disk')),
        encodeRequest({ command: WRITE, payload: Buffer.alloc(500_000) }).subarray(0, 300_000),
      ],
    ],
    [
      'wrong magic',
      [Buffer.from('00000003', 'hex'), encodeOption(Option.GO, encodeInfoRequest('disk')), Buffer.alloc(5_000, 0x47)],
    ],
  ];
  for (const [what, chunks] of inputs)
    for (const farewell of ['end', 'reset', 'wait'] as const) {
      const duplex = await server.connect();
      for (const chunk of chunks) duplex.write(chunk);
      await duplex.read(18);
      if (farewell === 'end') duplex.socket.end();
      else if (farewell === 'reset') duplex.socket.resetAndDestroy();
      await t.notThrowsAsync(serves(t, server), `${what}, then ${farewell}`);
      if (farewell !== 'reset') duplex.close();
    }
  t.deepEqual(server.log.at('error'), []);
  const volume = server.client.volumes.get('disk')!;
  await until(t, 'the image closed', () => volume.image === null);
});

test('a client that sends and never reads is paused, and does not slow the others or fill the memory', async (t) => {
  const server = await serve(t, { disk: 64 * MiB });
  const greedy = await ready(server);
  (greedy.duplex as SocketDuplex).socket.pause();
  const read = encodeRequest({ command: READ, lengthBytes: 8 * MiB });
  for (let index = 0; index < 1_000; index++) greedy.duplex.write(read);
  for (let index = 0; index < 20; index++) await serves(t, server);
  const volume = server.client.volumes.get('disk')!;
  greedy.duplex.close();
  await until(t, 'the image closed', () => volume.image === null);
});

test('a client that closes its half reads the answers to what it asked', async (t) => {
  const server = await serve(t, { disk: MiB });
  const peer = await ready(server);
  for (let index = 0; index < 10; index++) peer.send({ command: READ, lengthBytes: 65_536 });
  (peer.duplex as SocketDuplex).socket.end();
  for (let index = 0; index < 10; index++) t.is((await peer.reply()).data.length, 65_536);
  await peer.ended();
});

test('close() refuses new requests, finishes those in flight, gives the lock back and takes the socket file away', async (t) => {
  const server = await serve(t, { disk: MiB });
  const volume = server.client.volumes.get('disk')!;
  const busy = await ready(server);
  const haggling = new Conversation(await server.connect());
  await haggling.greet();
  volume.held = [];
  busy.send({ command: READ, lengthBytes: 512 });
  await until(t, 'the request in flight', () => volume.held!.length === 1);
  const closing = server.server.close();
  busy.send({ command: WRITE, payload: Buffer.alloc(512) });
  t.is((await busy.reply()).error, Errno.ESHUTDOWN);
  const late = connect(server.port, server.host);
  await t.throwsAsync(new Promise((_, reject) => late.once('error', reject)), { code: 'ECONNREFUSED' });
  volume.release();
  t.is((await busy.reply()).error, 0);
  await busy.ended();
  await haggling.ended();
  await closing;
  t.is(volume.image, null);
  t.false(existsSync(server.unixPath));
});

test('close() waits only so long for requests that do not end', async (t) => {
  const server = await serve(t, { disk: MiB }, { limits: { drainMs: 200 } });
  const volume = server.client.volumes.get('disk')!;
  const peer = await ready(server);
  volume.held = [];
  peer.send({ command: READ, lengthBytes: 512 });
  await until(t, 'the request in flight', () => volume.held!.length === 1);
  await server.server.close();
  await peer.ended();
  t.true(server.log.at('warn').includes('requests are still in flight: connections are cut'));
});
