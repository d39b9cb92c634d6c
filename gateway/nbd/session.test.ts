// Sessions without sockets, on images in memory: what reaches the image, what leaves the wire and in how many pieces,
// and how a connection ends.

import { setImmediate as nextTurn } from 'node:timers/promises';
import test from 'ava';
import { openClock } from '../../cluster/world/clock.ts';
import { type ErrorCode, StorageError } from '../../proto/errors.ts';
import { SlabPool } from '../../proto/outbox.ts';
import type { Clock } from '../../proto/ports.ts';
import {
  Command,
  CommandFlag,
  Conversation,
  type Duplex,
  Errno,
  encodeInfoRequest,
  encodeMetaRequest,
  encodeOption,
  encodeRequest,
  Option,
  OptionReply,
  StreamEnded,
} from '../nbd-protocol-ts/index.ts';
import { FailureLog } from './errno.ts';
import { ExportTable } from './export-table.ts';
import { FAILURE_LINES_PER_SECOND, INFLIGHT_BYTES_MAX, INFLIGHT_REQUESTS_MAX, ZERO_PIECE_BYTES } from './limits.ts';
import { MemoryImageClient, type MemoryVolume } from './memory-image.ts';
import { Session } from './session.ts';
import { RecordedLog } from './testing.ts';
import type { Wire } from './wire.ts';

const MiB = 2 ** 20;
const { READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS, DISC } = Command;

/** A wire that writes down what it is told, and the client at its other end. */
class TestWire implements Wire, Duplex {
  readonly peer = 'test';
  readonly session: Session;
  paused = false;
  ended = false;
  destroyed = false;
  /** Buffers of each write. */
  writes: number[] = [];
  /** `sent` callbacks, kept while this is an array. */
  unsent: (() => void)[] | null = null;
  #received = Buffer.alloc(0);

  constructor(gateway: Gateway) {
    this.session = new Session(gateway.world, this);
  }

  write(bytes: readonly Buffer[] | Buffer, sent: () => void = () => {}): void {
    if (Buffer.isBuffer(bytes)) {
      // As the socket does: the memory is read into again at once.
      const chunk = Buffer.from(bytes);
      this.session.receive(chunk);
      chunk.fill(0xee);
      return;
    }
    this.writes.push(bytes.length);
    this.#received = Buffer.concat([this.#received, ...bytes]);
    if (this.unsent !== null) this.unsent.push(sent);
    else setImmediate(sent);
  }
  pause(): void {
    this.paused = true;
  }
  resume(): void {
    this.paused = false;
  }
  end(): void {
    this.ended = true;
  }
  destroy(): void {
    this.destroyed = true;
  }
  close(): void {
    this.session.closed();
  }
  async read(bytes: number): Promise<Buffer> {
    for (let turn = 0; this.#received.length < bytes; turn++) {
      if (this.ended || this.destroyed) throw new StreamEnded();
      if (turn === 1_000) throw new Error(`no ${bytes} bytes came`);
      await nextTurn();
    }
    const taken = this.#received.subarray(0, bytes);
    this.#received = this.#received.subarray(bytes);
    return taken;
  }
  get receivedBytes(): number {
    return this.#received.length;
  }
}

class Gateway {
  readonly client = new MemoryImageClient();
  readonly log = new RecordedLog();
  /** What the clock says; it goes on only when a test says so. */
  nowMs = 5_000;
  readonly clock: Clock = { ...openClock(), now: () => this.nowMs };
  readonly slabs = new SlabPool();
  readonly exports: ExportTable;
  readonly world;
  established = 0;

  constructor(options: { readOnly?: boolean; takeOver?: boolean } = {}) {
    const { readOnly = false, takeOver = false } = options;
    this.exports = new ExportTable(this.client, { readOnly, takeOver }, this.log);
    this.world = {
      exports: this.exports,
      slabs: this.slabs,
      clock: this.clock,
      log: this.log,
      failures: new FailureLog(this.log, this.clock),
      onEstablished: () => {
        this.established++;
      },
    };
  }
  volume(): MemoryVolume {
    return this.client.volumes.get('disk') ?? this.client.add('disk', 256 * MiB);
  }
  /** A client in the middle of haggling. */
  async haggling(): Promise<{ wire: TestWire; peer: Conversation }> {
    this.volume();
    const wire = new TestWire(this);
    const peer = new Conversation(wire);
    wire.session.start();
    await peer.greet();
    return { wire, peer };
  }
  /** A client that may send requests. */
  async ready(structured = false): Promise<{ wire: TestWire; peer: Conversation }> {
    const { wire, peer } = await this.haggling();
    if (structured) await peer.wantStructuredReplies();
    await peer.go('disk');
    wire.writes = [];
    return { wire, peer };
  }
}

async function turns(count = 5): Promise<void> {
  for (let turn = 0; turn < count; turn++) await nextTurn();
}
/** Many requests as one chunk, as they come from a busy socket. */
function sendTogether(wire: TestWire, peer: Conversation, requests: Parameters<Conversation['send']>[0][]): void {
  const chunks: Buffer[] = [];
  const write = wire.write;
  wire.write = (bytes) => void chunks.push(bytes as Buffer);
  for (const request of requests) peer.send(request);
  wire.write = write;
  const chunk = Buffer.concat(chunks);
  wire.session.receive(chunk);
  chunk.fill(0xee);
}

test('32 requests of one chunk are answered by one write of one buffer', async (t) => {
  for (const structured of [false, true]) {
    const { wire, peer } = await new Gateway().ready(structured);
    await peer.ask({ command: WRITE, offset: 4096, payload: Buffer.alloc(8192, 7) });
    wire.writes = [];
    sendTogether(
      wire,
      peer,
      Array.from({ length: 32 }, (_, i) => ({ command: READ, offset: i * 512, lengthBytes: 4096 })),
    );
    for (let index = 0; index < 32; index++) t.is((await peer.reply()).data.length, 4096);
    t.deepEqual(wire.writes, [1]);
  }
});

test('large data leaves as it is, between headers, in the same write', async (t) => {
  const { wire, peer } = await new Gateway().ready(true);
  const data = Buffer.alloc(2 * MiB, 3);
  await peer.ask({ command: WRITE, offset: 100, payload: data });
  wire.writes = [];
  sendTogether(wire, peer, [
    { command: READ, offset: 100, lengthBytes: data.length },
    { command: READ, offset: 0, lengthBytes: 200 },
  ]);
  const replies = [await peer.reply(), await peer.reply()];
  t.true(replies[0]!.data.equals(data));
  t.true(replies[1]!.data.equals(Buffer.concat([Buffer.alloc(100), data.subarray(0, 100)])));
  t.is(wire.writes.length, 1);
});

test('a chunk may be overwritten as soon as it is received, whatever of it still waits', async (t) => {
  const gateway = new Gateway();
  const { wire, peer } = await gateway.ready();
  gateway.volume().held = [];
  const cookies = Array.from({ length: INFLIGHT_BYTES_MAX / MiB + 2 }, (_, i) => i + 1);
  const reads = cookies.map((cookieLow) => encodeRequest({ command: READ, cookieLow, lengthBytes: MiB }));
  const write = encodeRequest({ command: WRITE, cookieLow: 99, offset: 7, payload: Buffer.alloc(512, 3) });
  const chunk = Buffer.concat([...reads, write]);
  wire.session.receive(chunk);
  chunk.fill(0xee);
  t.true(wire.paused, 'the last requests wait');
  t.is(wire.session.target(), null);
  gateway.volume().release();
  gateway.volume().held = null;
  for (const _ of cookies) t.is((await wire.read(16 + MiB)).readUInt32BE(4), 0);
  t.is((await wire.read(16)).readUInt32BE(12), 99);
  t.true((await peer.ask({ command: READ, offset: 7, lengthBytes: 512 })).data.equals(Buffer.alloc(512, 3)));
});

test('a large WRITE is read to its place, and nothing else is', async (t) => {
  const { wire, peer } = await new Gateway().ready();
  const payload = Buffer.alloc(MiB, 9);
  const bytes = encodeRequest({ command: WRITE, cookieLow: 77, offset: 5, payload });
  wire.session.receive(bytes.subarray(0, 1000));
  for (let at = 1000; at < bytes.length; ) {
    const target = wire.session.target();
    if (target === null) {
      wire.session.receive(bytes.subarray(at));
      break;
    }
    const taken = Math.min(300_000, target.length);
    bytes.copy(target, 0, at, at + taken);
    wire.session.filled(taken);
    at += taken;
  }
  t.is((await wire.read(16)).toString('hex'), '67446698000000000000000000000000'.replace(/..$/, '4d'));
  t.true((await peer.ask({ command: READ, offset: 5, lengthBytes: MiB })).data.equals(payload));
});

test('a client that asks for more than may be in flight is paused, and served to the end when it reads', async (t) => {
  const gateway = new Gateway();
  const { wire, peer } = await gateway.ready();
  gateway.volume().held = [];
  sendTogether(
    wire,
    peer,
    Array.from({ length: 100 }, (_, i) => ({ command: READ, offset: i * MiB, lengthBytes: MiB })),
  );
  t.is(gateway.volume().held!.length, INFLIGHT_BYTES_MAX / MiB);
  t.true(wire.paused);
  wire.unsent = [];
  gateway.volume().release();
  await turns();
  t.is(wire.receivedBytes, 32 * (MiB + 16), 'all that was in flight is written');
  t.true(wire.paused, 'but as long as it has not left, nothing more is read');
  const sent = wire.unsent;
  wire.unsent = null;
  for (const each of sent) each();
  for (let index = 0; index < 100; index++) t.is((await peer.reply()).error, 0);
  await turns();
  t.false(wire.paused);
  t.is(gateway.slabs.outstanding, 0);
});

test('no more than so many requests are in flight, however small', async (t) => {
  const gateway = new Gateway();
  const { wire, peer } = await gateway.ready();
  gateway.volume().held = [];
  sendTogether(
    wire,
    peer,
    Array.from({ length: 3000 }, () => ({ command: FLUSH })),
  );
  t.is(gateway.volume().held!.length, INFLIGHT_REQUESTS_MAX);
  gateway.volume().release();
  for (let index = 0; index < 3000; index++) await peer.reply();
  t.is(gateway.volume().flushes, 3000);
});

test('FUA reaches the image with WRITE, TRIM and WRITE_ZEROES', async (t) => {
  const gateway = new Gateway();
  const { peer } = await gateway.ready();
  const flags = CommandFlag.FUA;
  await peer.ask({ command: WRITE, payload: Buffer.alloc(512) });
  await peer.ask({ command: TRIM, lengthBytes: 4096 });
  t.is(gateway.volume().fuaWrites, 0);
  await peer.ask({ command: WRITE, flags, payload: Buffer.alloc(512) });
  t.is(gateway.volume().fuaWrites, 1);
  await peer.ask({ command: TRIM, flags, lengthBytes: 4096 });
  t.is(gateway.volume().fuaWrites, 2);
  await peer.ask({ command: WRITE_ZEROES, flags, lengthBytes: 4096 });
  t.is(gateway.volume().fuaWrites, 3);
  await peer.ask({ command: WRITE_ZEROES, flags: flags | CommandFlag.NO_HOLE, lengthBytes: 4096 });
  t.is(gateway.volume().fuaWrites, 4);
  t.is(gateway.volume().flushes, 0);
});

test('zeroes that take space are written in pieces, and flushed once at the end with FUA', async (t) => {
  const gateway = new Gateway();
  const { peer } = await gateway.ready(true);
  await peer.ask({ command: WRITE, payload: Buffer.alloc(30 * MiB, 1) });
  const volume = gateway.volume();
  const lengthBytes = 5 * ZERO_PIECE_BYTES + 77;
  volume.held = [];
  peer.send({ command: WRITE_ZEROES, flags: CommandFlag.NO_HOLE | CommandFlag.FUA, offset: 3, lengthBytes });
  for (let piece = 0; piece < 7; piece++) {
    t.is(volume.held.length, 1, 'one piece at a time');
    t.is(volume.flushes, piece === 6 ? 1 : 0);
    volume.held.shift()!();
  }
  t.is(volume.held.length, 0);
  volume.held = null;
  t.is((await peer.reply()).error, 0);
  const { data } = await peer.ask({ command: READ, lengthBytes: lengthBytes + 4 });
  t.deepEqual([data[2], data[3], data[lengthBytes + 2], data[lengthBytes + 3]], [1, 0, 0, 1]);
  t.true(data.subarray(3, lengthBytes + 3).every((byte) => byte === 0));
  t.is(volume.objects.size, 30, 'they take space');
});

test('a TRIM of 4 GiB goes to the image piece by piece, ends at its borders, and leaves room for a READ in between', async (t) => {
  const gateway = new Gateway();
  const volume = gateway.client.add('disk', 8 * 1024 * MiB);
  const { peer } = await gateway.ready();
  await peer.ask({ command: WRITE, offset: 99 * MiB, payload: Buffer.alloc(2 * MiB, 1) });
  volume.held = [];
  const trim = { offset: 100 * MiB, lengthBytes: 4096 * MiB - 4096 };
  peer.send({ command: TRIM, flags: CommandFlag.FUA, ...trim });
  peer.send({ command: READ, cookieHigh: 1, lengthBytes: 512 });
  let steps = 0;
  for (; volume.held.length > 0; steps++) {
    t.true(volume.held.length <= 2, 'one piece, and the READ');
    volume.held.shift()!();
  }
  // 28 MiB to the border at 128 MiB, 63 of 64 MiB, the rest; the READ; a flush.
  t.is(steps, 1 + 63 + 1 + 1 + 1);
  t.is(volume.flushes, 1);
  t.is(volume.fuaWrites, 0);
  volume.held = null;
  t.is((await peer.reply()).cookieHigh, 1, 'the READ is not kept waiting');
  t.is((await peer.reply()).error, 0);
  t.deepEqual([...volume.objects.keys()], [99]);
});

test('zeroes that take space and must be fast are refused and change nothing', async (t) => {
  const { peer } = await new Gateway().ready(true);
  await peer.ask({ command: WRITE, payload: Buffer.from('data') });
  const flags = CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO;
  const reply = await peer.ask({ command: WRITE_ZEROES, flags, lengthBytes: 4 });
  t.deepEqual([reply.error, reply.message], [Errno.ENOTSUP, 'zeroes that take space are not fast']);
  t.is((await peer.ask({ command: READ, lengthBytes: 4 })).data.toString(), 'data');
  t.is((await peer.ask({ command: WRITE_ZEROES, flags: CommandFlag.FAST_ZERO, lengthBytes: 4 })).error, 0);
});

test('each failure of the image has its error on the wire, and is logged with its cause first', async (t) => {
  const gateway = new Gateway();
  const simple = (await gateway.ready()).peer;
  const structured = (await gateway.ready(true)).peer;
  const expected: Partial<Record<ErrorCode, number>> = {
    NO_SPACE: Errno.ENOSPC,
    IO: Errno.EIO,
    CHECKSUM: Errno.EIO,
    INVALID: Errno.EINVAL,
    FENCED: Errno.EIO,
    READ_ONLY: Errno.EPERM,
    UNAVAILABLE: Errno.ESHUTDOWN,
    TIMEOUT: Errno.EIO,
    UNSUPPORTED: Errno.EINVAL,
  };
  let logged = 0;
  for (const [code, errno] of Object.entries(expected)) {
    for (const command of [READ, FLUSH]) {
      const error = new StorageError(code as ErrorCode, `because of ${code}`);
      gateway.volume().failures.push(error);
      const lengthBytes = command === READ ? 512 : 0;
      const reply = await (command === READ ? structured : simple).ask({ command, lengthBytes });
      t.is(reply.error, errno, code);
      t.is(reply.message, command === READ ? `because of ${code}` : '');
      if (++logged <= FAILURE_LINES_PER_SECOND) {
        const line = gateway.log.lines.at(-1)!;
        t.is(line.message, `${command === READ ? 'READ' : 'FLUSH'} failed: because of ${code}`);
        t.is(line.fields.error, error);
      }
    }
  }
  t.is(gateway.log.at('error').length, FAILURE_LINES_PER_SECOND, 'and then the log is left in peace');
  gateway.nowMs += 1_000;
  gateway.volume().failures.push(new StorageError('IO', 'again'));
  await simple.ask({ command: FLUSH });
  t.is(gateway.log.lines.at(-1)!.fields.notLoggedBefore, logged - FAILURE_LINES_PER_SECOND);
});

test('a failed WRITE, TRIM, WRITE_ZEROES and BLOCK_STATUS report it, and the connection goes on', async (t) => {
  const gateway = new Gateway();
  const { peer } = await gateway.haggling();
  await peer.wantStructuredReplies();
  await peer.option(Option.SET_META_CONTEXT, encodeMetaRequest('disk', ['base:allocation']));
  await peer.go('disk');
  for (const flags of [0, CommandFlag.NO_HOLE])
    for (const command of flags === 0 ? [WRITE, TRIM, WRITE_ZEROES, BLOCK_STATUS] : [WRITE_ZEROES]) {
      gateway.volume().failures.push(new StorageError('NO_SPACE', 'full'));
      const payload = Buffer.alloc(512);
      t.is((await peer.ask({ command, flags, payload, lengthBytes: 512 })).error, Errno.ENOSPC);
      t.is((await peer.ask({ command, flags, payload, lengthBytes: 512 })).error, 0);
    }
});

test('many connections to one export share one image, which is closed behind the last of them', async (t) => {
  const gateway = new Gateway();
  const clients = await Promise.all([gateway.ready(), gateway.ready(), gateway.ready(true)]);
  const volume = gateway.volume();
  t.is(volume.opens, 1);
  await clients[0]!.peer.ask({ command: WRITE, payload: Buffer.from('shared') });
  t.is((await clients[2]!.peer.ask({ command: READ, lengthBytes: 6 })).data.toString(), 'shared');
  clients[0]!.wire.close();
  clients[1]!.peer.send({ command: DISC });
  await turns();
  t.true(clients[1]!.wire.ended);
  t.not(volume.image, null);
  clients[2]!.wire.close();
  await turns();
  t.is(volume.image, null);
  await gateway.exports.drained();
  await gateway.ready();
  t.is(volume.opens, 2);
});

test('who comes while the image is being closed waits, and opens it anew', async (t) => {
  const gateway = new Gateway();
  const first = await gateway.ready();
  const volume = gateway.volume();
  volume.held = [];
  first.wire.close();
  await turns();
  const second = await gateway.haggling();
  second.wire.write(encodeOption(Option.GO, encodeInfoRequest('disk')));
  await turns();
  t.is(volume.opens, 1);
  t.true(second.wire.session.opening);
  t.true(second.wire.paused);
  volume.release();
  t.is((await second.peer.answers(Option.GO)).at(-1)!.type, OptionReply.ACK);
  t.is(volume.opens, 2);
});

test('a client that leaves while its export is being opened leaves it closed', async (t) => {
  const gateway = new Gateway();
  const { wire } = await gateway.haggling();
  wire.write(encodeOption(Option.GO, encodeInfoRequest('disk')));
  wire.close();
  await turns();
  t.is(gateway.volume().opens, 1);
  t.is(gateway.volume().image, null);
  await gateway.exports.drained();
});

test('an image that is in use elsewhere is refused with the reason, and haggling goes on', async (t) => {
  const gateway = new Gateway();
  gateway.volume();
  await gateway.client.open('disk', { readOnly: false, takeOver: false });
  const { peer } = await gateway.haggling();
  const [answer] = await peer.option(Option.GO, encodeInfoRequest('disk'));
  t.is(answer!.type, OptionReply.ERR_POLICY);
  t.regex(answer!.data.toString(), /in use/);
  t.is((await peer.option(Option.LIST)).length, 2);
  const taking = new Gateway({ takeOver: true });
  taking.client.volumes.set('disk', gateway.volume());
  await taking.ready();
  t.is(taking.established, 1);
});

test('the default export is the only one there is; with two there is none', async (t) => {
  const gateway = new Gateway();
  const { peer } = await gateway.haggling();
  t.is((await peer.option(Option.INFO, encodeInfoRequest(''))).at(-1)!.type, OptionReply.ACK);
  gateway.client.add('other', MiB);
  t.is((await peer.option(Option.INFO, encodeInfoRequest(''))).at(-1)!.type, OptionReply.ERR_UNKNOWN);
  t.is((await peer.go('disk')).sizeBytes, 256 * MiB);
});

test('an export that grows is read behind its old end at once, and a new client sees the new size', async (t) => {
  const gateway = new Gateway();
  const old = await gateway.ready();
  const offset = 256 * MiB;
  t.is((await old.peer.ask({ command: READ, offset, lengthBytes: 1 })).error, Errno.EINVAL);
  gateway.volume().resize(offset + 10);
  t.is((await old.peer.ask({ command: READ, offset, lengthBytes: 10 })).error, 0);
  t.is((await old.peer.ask({ command: READ, offset, lengthBytes: 11 })).error, Errno.EINVAL);
  const { peer } = await gateway.haggling();
  t.is((await peer.go('disk')).sizeBytes, offset + 10);
});

test('when another writer takes the image, what is in flight fails, new requests are refused, and the client is sent away', async (t) => {
  const gateway = new Gateway({ takeOver: true });
  const { wire, peer } = await gateway.ready();
  const idle = await gateway.ready();
  const volume = gateway.volume();
  volume.held = [];
  peer.send({ command: READ, lengthBytes: 512 });
  volume.fence();
  t.true(idle.wire.ended);
  t.false(wire.ended, 'something is in flight');
  peer.send({ command: WRITE, payload: Buffer.alloc(512) });
  await turns();
  t.is((await peer.reply()).error, Errno.ESHUTDOWN);
  volume.release();
  t.is((await peer.reply()).cookieLow, 1);
  await peer.ended();
  t.true(wire.ended);
  t.deepEqual(gateway.log.at('error'), ['the image has another writer now: its clients are sent away']);
  wire.close();
  idle.wire.close();
  await gateway.exports.drained();
  await gateway.ready();
  t.is(volume.opens, 2);
});

test('requests that the image fences fail with EIO', async (t) => {
  const gateway = new Gateway();
  const { peer } = await gateway.ready();
  gateway.volume().owner++;
  t.is((await peer.ask({ command: WRITE, payload: Buffer.alloc(512) })).error, Errno.EIO);
});

test('DISC, or the end of the stream, comes after the answers to what was asked before', async (t) => {
  for (const farewell of ['DISC', 'end'] as const) {
    const gateway = new Gateway();
    const { wire, peer } = await gateway.ready();
    gateway.volume().held = [];
    peer.send({ command: READ, lengthBytes: 512 });
    if (farewell === 'DISC') peer.send({ command: DISC });
    else wire.session.streamEnded();
    wire.session.receive(encodeRequest({ command: WRITE, payload: Buffer.from('ignored') }));
    await turns();
    t.false(wire.ended);
    t.is(gateway.volume().held!.length, 1);
    gateway.volume().release();
    t.is((await peer.reply()).data.length, 512);
    await peer.ended();
    await gateway.exports.drained();
    t.deepEqual(gateway.log.at('warn', 'error'), []);
  }
});

test('a client that vanishes is forgotten when its requests have ended, and the image is closed then', async (t) => {
  const gateway = new Gateway();
  const { wire, peer } = await gateway.ready();
  const volume = gateway.volume();
  volume.held = [];
  peer.send({ command: WRITE, payload: Buffer.alloc(512) });
  wire.close();
  await turns();
  t.not(volume.image, null);
  volume.release();
  await gateway.exports.drained();
  t.is(volume.image, null);
  t.is(gateway.slabs.outstanding, 0);
});

test('a stream that ends inside a request is a warning; one that ends in the handshake is not', async (t) => {
  const gateway = new Gateway();
  const { wire } = await gateway.ready();
  wire.write(encodeRequest({ command: WRITE, payload: Buffer.alloc(512) }).subarray(0, 400));
  wire.session.streamEnded();
  t.true(wire.ended);
  t.deepEqual(gateway.log.at('warn'), ['client left in the middle of a request']);
  const probe = await gateway.haggling();
  probe.wire.session.streamEnded();
  t.true(probe.wire.destroyed);
  t.is(gateway.log.at('warn').length, 1);
});

test('told to stop, a session refuses options and requests, finishes what is in flight and ends', async (t) => {
  const gateway = new Gateway();
  const busy = await gateway.ready();
  const idle = await gateway.ready();
  const haggling = await gateway.haggling();
  gateway.volume().held = [];
  busy.peer.send({ command: READ, lengthBytes: 512 });
  for (const { wire } of [busy, idle, haggling]) wire.session.shutDown();
  t.true(idle.wire.ended);
  t.is((await haggling.peer.option(Option.GO, encodeInfoRequest('disk'))).at(-1)!.type, OptionReply.ERR_SHUTDOWN);
  busy.peer.send({ command: FLUSH });
  await turns();
  t.is((await busy.peer.reply()).error, Errno.ESHUTDOWN);
  gateway.volume().release();
  t.is((await busy.peer.reply()).data.length, 512);
  await busy.peer.ended();
});

test('garbage where a request must begin cuts the connection, and says so once', async (t) => {
  const gateway = new Gateway();
  const { wire } = await gateway.ready();
  wire.write(Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n'));
  t.true(wire.destroyed);
  t.deepEqual(gateway.log.at('warn'), ['client cut off: no request where one must begin']);
});
