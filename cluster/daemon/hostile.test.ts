// Whatever comes over the network ends in an error reply or a closed connection. The daemon goes on, and so do others.

import test, { type ExecutionContext } from 'ava';
import { payloadChecksums } from '../../proto/checksum.ts';
import { codeOfStatus, type ErrorCode } from '../../proto/errors.ts';
import { Flag, type Frame, newFrame, Op, replyTo } from '../../proto/frame.ts';
import { encodeActivation, encodePgInfo, type WireEntry } from '../../proto/peer-messages.ts';
import type { Connection } from '../../proto/ports.ts';
import { EntryOp } from '../store/store.ts';
import { createNetwork } from '../world/sockets.ts';
import { Cluster, type Host, read, until, write } from './fixture.ts';

const BLOCK = 4096;
const ORDER = 16;
let connections = 1_000_000;
const open: { close(): void }[] = [];
test.after.always(() => {
  for (const one of open) one.close();
});

/** A connection of somebody who can say anything. */
class Stranger {
  readonly replies: Frame[] = [];
  closed: string | null = null;
  readonly #connection: Connection;
  readonly #cluster: Cluster;
  readonly #host: Host;
  #request = 0;

  constructor(cluster: Cluster, host: Host) {
    this.#cluster = cluster;
    this.#host = host;
    open.push(this);
    this.#connection = createNetwork().connect(cluster.map.daemons.get(host.id)!.address, {
      onFrame: (frame) => this.replies.push(frame),
      onClose: (reason) => {
        this.closed = reason;
      },
    });
  }
  hello(fields: Record<string, unknown> = {}): Promise<string> {
    const hello = newFrame(Op.HELLO);
    hello.meta = Buffer.from(
      JSON.stringify({
        protocol: 1,
        clusterId: this.#cluster.map.clusterId,
        role: 'client',
        id: 4242,
        uuid: 'stranger',
        bootId: `stranger-${connections}`,
        toBootId: this.#host.daemon!.identity.bootId,
        connection: connections++,
        ...fields,
      }),
    );
    return this.ask(hello);
  }
  /** The code of the answer, or 'closed'. */
  async ask(frame: Frame): Promise<string> {
    frame.request = ++this.#request;
    this.#connection.send(frame);
    const answer = (): Frame | undefined => this.replies.find((reply) => reply.request === frame.request);
    await until(`an answer to operation ${frame.op}`, () => answer() !== undefined || this.closed !== null, 8_000);
    const reply = answer();
    return reply === undefined ? 'closed' : codeOfStatus(reply.status);
  }
  say(frame: Frame): void {
    this.#connection.send(frame);
  }
  close(): void {
    this.#connection.close();
  }
}

/** One PG on two daemons, and an image with an object of ones. */
async function twoDaemons(t: ExecutionContext) {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 1 });
  await cluster.createImage('image', 4 * 2 ** 20, ORDER);
  const image = await cluster.writer();
  await write(image, 0, Buffer.alloc(2 ** ORDER, 1));
  return { cluster, image, primary: cluster.primary(), member: cluster.member(), pg: cluster.pg() };
}
type Place = Awaited<ReturnType<typeof twoDaemons>>;

/** A well-formed request for the first two blocks, to be spoiled. */
function clientFrame({ cluster, pg }: Place, op: Op, change: Partial<Frame> = {}): Frame {
  const frame = newFrame(op);
  const image = [...cluster.map.images.values()][0]!;
  Object.assign(frame, { epoch: cluster.map.epoch, pg: pg.pg, image: image.id, order: ORDER, session: 4242, seq: 1 });
  Object.assign(frame, { fence: image.fence, length: 2 * BLOCK });
  if (op === Op.WRITE) {
    frame.payload = Buffer.alloc(2 * BLOCK, 9);
    frame.meta = payloadChecksums(frame.payload, image.id, 0, 0);
  }
  return Object.assign(frame, change);
}
/** The same from the primary to its member, in the interval in force. */
const peerFrame = (place: Place, op: Op, change: Partial<Frame> = {}): Frame =>
  clientFrame(place, op, { since: place.pg.since, seq: place.pg.since, pgSeq: 2, status: EntryOp.WRITE, ...change });
/** A connection that claims to be the primary's. */
async function impostor({ cluster, primary, member }: Place): Promise<Stranger> {
  const stranger = new Stranger(cluster, member);
  const { id, daemon } = primary;
  t_is(await stranger.hello({ role: 'daemon', id, uuid: daemon!.identity.uuid }), 'OK');
  return stranger;
}
function t_is(found: string, expected: string): void {
  if (found !== expected) throw new Error(`${found}, not ${expected}`);
}

test('a client request that is malformed, misplaced or outside the object is refused with its code', async (t) => {
  const place = await twoDaemons(t);
  const stranger = new Stranger(place.cluster, place.primary);
  t.is(await stranger.hello(), 'OK');
  const data = Buffer.alloc(2 * BLOCK, 9);
  const cases: [string, Op, Partial<Frame>, ErrorCode][] = [
    ['as it should be', Op.READ, {}, 'OK'],
    ['unknown image', Op.READ, { image: 77 }, 'NOT_FOUND'],
    ['image beyond all', Op.WRITE, { image: 0xffffffff }, 'NOT_FOUND'],
    ['order of another image', Op.READ, { order: 20 }, 'INVALID'],
    ['order 255', Op.WRITE, { order: 255 }, 'INVALID'],
    ['offset between blocks', Op.READ, { offset: 100 }, 'INVALID'],
    ['length between blocks', Op.READ, { length: 100 }, 'INVALID'],
    ['nothing', Op.READ, { length: 0 }, 'INVALID'],
    ['beyond the object', Op.READ, { offset: 2 ** ORDER - BLOCK }, 'INVALID'],
    ['far beyond', Op.READ, { offset: 0xfffff000, length: 0xfffff000 }, 'INVALID'],
    ['a write without data', Op.WRITE, { payload: null }, 'INVALID'],
    ['without checksums', Op.WRITE, { meta: null }, 'INVALID'],
    ['with too few checksums', Op.WRITE, { meta: Buffer.alloc(4) }, 'INVALID'],
    ['with too many', Op.WRITE, { meta: Buffer.alloc(4096) }, 'INVALID'],
    ['with less data than it says', Op.WRITE, { payload: Buffer.alloc(BLOCK) }, 'INVALID'],
    ['with half a block', Op.WRITE, { payload: Buffer.alloc(100), length: 100 }, 'INVALID'],
    ['with data that its checksums deny', Op.WRITE, { payload: data.fill(8) }, 'CHECKSUM'],
    ['by a writer without the lock', Op.WRITE, { fence: 0 }, 'FENCED'],
    ['a zero by one', Op.ZERO, { fence: 0 }, 'FENCED'],
    ['a PG that does not exist', Op.READ, { pg: 0xffffffff }, 'NOT_PRIMARY'],
    ['of an older interval', Op.READ, { epoch: place.pg.since - 1 }, 'STALE'],
    ['a listing of an unknown image', Op.LIST, { image: 77 }, 'NOT_FOUND'],
    ['what only daemons may ask', Op.REPLICATE, {}, 'INVALID'],
    ['and', Op.PG_ACTIVATE, {}, 'INVALID'],
  ];
  for (const [what, op, change, code] of cases) t.is(await stranger.ask(clientFrame(place, op, change)), code, what);
  const member = new Stranger(place.cluster, place.member);
  t.is(await member.hello(), 'OK');
  t.is(await member.ask(clientFrame(place, Op.READ)), 'NOT_PRIMARY');
  t.is((await read(place.image, 0, 1))[0], 1);
  t.is(place.cluster.difference(), null, 'nothing of it was written');
});

test('whoever does not introduce itself properly is told why, and closed', async (t) => {
  const place = await twoDaemons(t);
  const { cluster, primary } = place;
  const cases: [Record<string, unknown>, RegExp][] = [
    [{ protocol: 2 }, /protocol 2/],
    [{ clusterId: 'other' }, /cluster other/],
    [{ toBootId: 'boot-0' }, /not the one you look for/],
    [{ role: 'king' }, /unknown role/],
    [{ id: -1.5 }, /hello without id/],
    [{ uuid: { toString: 1 } }, /uuid/],
    [{ bootId: 'x'.repeat(100_000) }, /100000 characters/],
    [{ role: 'daemon', id: place.member.id, uuid: 'not that one' }, /another directory/],
  ];
  for (const [fields, why] of cases) {
    const stranger = new Stranger(cluster, primary);
    t.is(await stranger.hello(fields), 'IDENTITY');
    t.regex(stranger.replies[0]!.meta!.toString(), why);
    await until('it is closed', () => stranger.closed !== null);
  }
  const mute = new Stranger(cluster, primary);
  t.is(await mute.ask(clientFrame(place, Op.READ)), 'closed');
  const twice = new Stranger(cluster, primary);
  t.is(await twice.hello(), 'OK');
  t.is(await twice.hello(), 'IDENTITY');
  const answering = new Stranger(cluster, primary);
  t.is(await answering.hello(), 'OK');
  t.is(await answering.ask(Object.assign(newFrame(Op.READ), { flags: Flag.REPLY })), 'closed');
  const unknown = new Stranger(cluster, primary);
  t.is(await unknown.hello({ role: 'daemon', id: 60_000 }), 'OK', 'a daemon that the map will show later');
  t.is(await unknown.ask(peerFrame(place, Op.REPLICATE)), 'STALE');
  t.is(await unknown.ask(peerFrame(place, Op.PG_QUERY)), 'STALE');
  t.is((await read(place.image, 0, 1))[0], 1);
});

test('a hundred strangers who say nothing do not keep anybody out', async (t) => {
  const place = await twoDaemons(t);
  const mute = Array.from({ length: 130 }, () => new Stranger(place.cluster, place.primary));
  await until('the oldest are closed', () => mute.slice(0, 30).every(({ closed }) => closed !== null));
  const honest = new Stranger(place.cluster, place.primary);
  t.is(await honest.hello(), 'OK');
  t.is(await honest.ask(clientFrame(place, Op.READ)), 'OK');
});

test('a broken message of a primary is refused by its member, who keeps what it has', async (t) => {
  const place = await twoDaemons(t);
  const { cluster, member, pg } = place;
  const before = member.store.pgInfo(pg.pg);
  const stranger = await impostor(place);
  const data = Buffer.alloc(2 * BLOCK, 9);
  const sums = payloadChecksums(data, 1, 0, 0);
  const noise = Buffer.alloc(61, 0xee);
  const bad: [string, Op, Partial<Frame>, ErrorCode][] = [
    ['of an older interval', Op.REPLICATE, { since: pg.since - 1 }, 'STALE'],
    ['of one to come', Op.PG_QUERY, { since: pg.since + 1 }, 'STALE'],
    ['for a PG it is not in', Op.PG_QUERY, { pg: 999 }, 'STALE'],
    ['an entry that leaves one out', Op.REPLICATE, { pgSeq: 3, payload: data, meta: sums }, 'STALE'],
    ['one that comes again', Op.REPLICATE, { pgSeq: 1, payload: data, meta: sums }, 'STALE'],
    ['a write without data', Op.REPLICATE, {}, 'INVALID'],
    ['without checksums', Op.REPLICATE, { payload: data }, 'INVALID'],
    ['with a checksum too few', Op.REPLICATE, { payload: data, meta: sums.subarray(4) }, 'INVALID'],
    ['with half a block', Op.REPLICATE, { payload: data.subarray(100), meta: sums }, 'INVALID'],
    ['with data that its checksums deny', Op.REPLICATE, { payload: Buffer.alloc(2 * BLOCK), meta: sums }, 'CHECKSUM'],
    ['an unknown operation', Op.REPLICATE, { status: 77 }, 'INVALID'],
    ['a zero with data', Op.REPLICATE, { status: EntryOp.ZERO, payload: data, meta: sums }, 'INVALID'],
    ['beyond the object', Op.REPLICATE, { offset: 2 ** ORDER, status: EntryOp.ZERO }, 'INVALID'],
    ['an order that is none', Op.REPLICATE, { order: 3, status: EntryOp.ZERO }, 'INVALID'],
    ['another order than it has', Op.REPLICATE, { order: 20, payload: data, meta: sums }, 'INVALID'],
    ['a push without checksums', Op.PG_PUSH, { payload: data }, 'INVALID'],
    ['with checksums for less', Op.PG_PUSH, { payload: data, meta: sums.subarray(4) }, 'INVALID'],
    ['with data it does not speak of', Op.PG_PUSH, { payload: data, length: 0 }, 'INVALID'],
    ['with data that its checksums deny', Op.PG_PUSH, { payload: Buffer.alloc(2 * BLOCK), meta: sums }, 'CHECKSUM'],
    ['of checksums alone', Op.PG_PUSH, { meta: sums }, 'INVALID'],
    ['beyond the object', Op.PG_PUSH, { offset: 2 ** ORDER, length: BLOCK }, 'INVALID'],
    ['into an interval that can not be', Op.PG_PUSH, { seq: 2 ** 40, flags: Flag.LAST }, 'INVALID'],
    ['an activation without a word', Op.PG_ACTIVATE, {}, 'INVALID'],
    ['of noise', Op.PG_ACTIVATE, { meta: noise }, 'INVALID'],
    ['with half an entry', Op.PG_ACTIVATE, { meta: Buffer.alloc(30) }, 'INVALID'],
    ['a look beyond the object', Op.PG_READ, { offset: 2 ** ORDER }, 'INVALID'],
    ['at half a block', Op.PG_VERIFY, { length: 100 }, 'INVALID'],
    ['at an object of another order', Op.PG_VERIFY, { order: 20 }, 'INVALID'],
    ['a scrub of an older interval', Op.PG_SCRUB, { since: pg.since - 1 }, 'STALE'],
  ];
  for (const [what, op, change, code] of bad) t.is(await stranger.ask(peerFrame(place, op, change)), code, what);
  t.deepEqual(member.store.pgInfo(pg.pg), before);
  t.is((await read(place.image, 0, 1))[0], 1);
  await write(place.image, 0, Buffer.alloc(BLOCK, 2));
  await cluster.settled(2);
});

test('an activation with entries that do not follow is refused, and the member knows that it is not complete', async (t) => {
  const place = await twoDaemons(t);
  const { cluster, member, pg } = place;
  const stranger = await impostor(place);
  const entry: WireEntry = {
    pg: pg.pg,
    version: { since: pg.since, seq: 500 },
    op: EntryOp.WRITE,
    image: 1,
    object: 0,
    order: ORDER,
    offset: 0,
    length: BLOCK,
    session: 1,
    sessionSeq: 1,
  };
  const last = member.store.pgInfo(pg.pg).last;
  for (const activation of [
    { mode: 'keep', version: last, complete: false, entries: [entry] },
    { mode: 'truncate', version: { since: 1, seq: 400 }, complete: false, entries: [] },
  ] as const) {
    const meta = encodeActivation({ ...activation, entries: [...activation.entries] });
    t.is(await stranger.ask(peerFrame(place, Op.PG_ACTIVATE, { meta })), 'INVALID');
  }
  t.false(member.store.pgInfo(pg.pg).complete, 'nobody may take it for whole');
  stranger.close();
  // The true primary finds it out as soon as it needs the member, and brings it up again.
  await write(place.image, 0, Buffer.alloc(BLOCK, 2));
  await cluster.settled(2);
});

test('4,000 frames of noise from a client and from an impostor: both daemons are still there', async (t) => {
  const place = await twoDaemons(t);
  let state = 12_345;
  const random = (n: number): number => {
    state = (state * 48_271) % 2_147_483_647;
    return state % n;
  };
  const pick = <V>(...values: V[]): V => values[random(values.length)]!;
  const ops = Object.values(Op).filter((op) => op !== Op.HELLO);
  const bytes = (): Buffer | null => {
    const length = pick(0, 0, 4, 8, 16, 24, 44, 60, 100, 4096, 8192);
    return length === 0 ? null : Buffer.alloc(length, pick(0, 1, 255));
  };
  const noise = (): Frame => {
    const frame = pick(clientFrame, peerFrame)(place, ops[random(ops.length)]!);
    const spoil: Partial<Frame>[] = [
      { flags: random(256) & ~Flag.REPLY },
      { status: random(70_000) & 0xffff },
      { order: random(256) },
      { image: pick(0, 1, 2 ** 21, 0xffffffff) },
      { object: pick(0, 1, 0xffffffff) },
      { offset: pick(0, 4096, 2 ** ORDER, 0xfffff000, 5) },
      { length: pick(0, 4096, 8192, 2 ** 25, 0xffffffff, 5) },
      { seq: pick(0, 1, 2 ** 32, Number.MAX_SAFE_INTEGER) },
      { pgSeq: pick(0, 1, 2, 3, Number.MAX_SAFE_INTEGER) },
      { since: pick(0, place.pg.since, 0xffffffff) },
      { pg: pick(0, place.pg.pg, 0xffffffff) },
      { fence: pick(0, 1, 0xffffffff) },
      { meta: bytes() },
      { payload: bytes() },
    ];
    for (let i = random(4); i >= 0; i--) Object.assign(frame, spoil[random(spoil.length)]);
    return frame;
  };
  const client = new Stranger(place.cluster, place.primary);
  t.is(await client.hello(), 'OK');
  for (let sent = 0; sent < 2_000; sent++) client.say(noise());
  t.is(await client.ask(newFrame(Op.PING)), 'OK');
  t.true(client.replies.length > 1_000, `${client.replies.length} answers`);
  // The true primary may come back at any time, and the impostor is closed then.
  let answers = 0;
  for (let round = 0; round < 20; round++) {
    const speaker = await impostor(place);
    for (let sent = 0; sent < 100; sent++) speaker.say(noise());
    await speaker.ask(newFrame(Op.PING));
    answers += speaker.replies.length;
  }
  t.true(answers > 500, `${answers} answers`);
  for (const host of [place.primary, place.member]) {
    const honest = new Stranger(place.cluster, host);
    t.is(await honest.hello(), 'OK');
    t.is(await honest.ask(newFrame(Op.PING)), 'OK');
  }
});

test('a daemon that answers its primary with nonsense keeps its PG waiting, and harms nobody else', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 1, replicas: 2, minSize: 1, pgCount: 1 });
  await cluster.createImage('image', 2 ** 20, ORDER);
  const image = await cluster.writer();
  await write(image, 0, Buffer.alloc(BLOCK, 1));
  const asked: number[] = [];
  const answers: ((frame: Frame) => Frame)[] = [
    (frame) => replyTo(frame, 0, 1),
    (frame) => Object.assign(replyTo(frame, 0, 1), { meta: Buffer.alloc(31) }),
    (frame) => Object.assign(replyTo(frame, 0, 1), { meta: Buffer.alloc(32, 0xff) }),
    (frame) => replyTo(frame, 0xffff, 0xffffffff),
    (frame) => Object.assign(replyTo(frame, 0, 1), { request: 77 }),
    // A log from nowhere, and then a listing that is cut.
    (frame) => {
      const info = { les: 0, complete: true, last: { since: 9, seq: 9 }, tail: { since: 8, seq: 8 } };
      const meta = frame.op === Op.PG_QUERY ? encodePgInfo(info) : Buffer.alloc(45);
      return Object.assign(replyTo(frame, 0, 1), { meta, flags: Flag.REPLY });
    },
  ];
  const listener = await createNetwork().listen('127.0.0.1:0', (connection) => {
    connection.events = {
      onFrame: (frame) => {
        if (frame.op !== Op.HELLO) connection.send(answers[asked.push(frame.op) % answers.length]!(frame));
      },
      onClose: () => {},
    };
  });
  open.push(listener);
  const rogue = { uuid: 'rogue', bootId: 'rogue', address: listener.address, unixAddress: '', host: 'h', domain: 'd' };
  const request = { ...rogue, clusterId: '', weight: 100, newestEpoch: 0 };
  const { id } = await cluster.master.handle('register', request);
  const subscription = cluster.master.subscribe(
    { role: 'daemon', id, bootId: 'rogue', epoch: 0 },
    { onUpdate: () => {}, onClose: () => {} },
  );
  await until('it was asked by all means', () => new Set(asked).size >= 2 && asked.length > 14);
  const honest = new Stranger(cluster, cluster.host(1));
  t.is(await honest.hello(), 'OK');
  t.is(await honest.ask(newFrame(Op.PING)), 'OK');
  subscription.close(); // it is down: the PG goes on without it
  await write(image, 0, Buffer.alloc(BLOCK, 2));
  t.is((await read(image, 0, 1))[0], 2);
});
