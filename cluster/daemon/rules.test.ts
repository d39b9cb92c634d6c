// Rules that are hardly ever missed when they are broken: each has a story here in which it is.

import test from 'ava';
import { payloadChecksums } from '../../proto/checksum.ts';
import { codeOfStatus } from '../../proto/errors.ts';
import { Flag, type Frame, newFrame, Op } from '../../proto/frame.ts';
import { PROTOCOL_VERSION } from '../../proto/peer-messages.ts';
import type { Connection } from '../../proto/ports.ts';
import type { Store } from '../store/store.ts';
import { createNetwork } from '../world/sockets.ts';
import { Cluster, flush, pause, read, until, write } from './fixture.ts';

const BLOCK = 4096;
const ORDER = 16;
const block = (byte: number): Buffer => Buffer.alloc(BLOCK, byte);

/** `store` with some methods replaced. */
function storeWith(store: Store, replaced: Partial<Store>): Store {
  return new Proxy(store, {
    get: (target, name) => {
      const own = replaced[name as keyof Store];
      if (own !== undefined) return own;
      const value = Reflect.get(target, name) as unknown;
      return typeof value === 'function' ? (value as (...a: unknown[]) => unknown).bind(target) : value;
    },
  });
}

/** Calls that are kept until release(), while `held`. */
class Gate {
  held = false;
  readonly #kept: (() => void)[] = [];
  pass(call: () => void): void {
    if (this.held) this.#kept.push(call);
    else call();
  }
  get kept(): number {
    return this.#kept.length;
  }
  release(): void {
    this.held = false;
    for (const call of this.#kept.splice(0)) call();
  }
}

const lead = (cluster: Cluster, daemon: number) =>
  cluster.master.handle('preferPrimary', { pg: cluster.pg().pg, since: cluster.pg().since, daemon });

for (const who of ['the new primary', 'its member'] as const)
  test(`a PG does not serve before the activation is on stable storage of ${who}`, async (t) => {
    const gates = new Map<number, Gate>([1, 2].map((id) => [id, new Gate()]));
    const cluster = await Cluster.start(t, {
      daemons: 2,
      replicas: 2,
      pgCount: 1,
      wrapStore: (store, id) =>
        storeWith(store, { sync: (done) => store.sync((error) => gates.get(id)!.pass(() => done(error))) }),
    });
    await cluster.createImage();
    const image = await cluster.writer();
    await write(image, 0, block(1));
    const [first, second] = cluster.pg().acting as [number, number];
    const gate = gates.get(who === 'the new primary' ? second : first)!;
    gate.held = true;
    await lead(cluster, second);
    await until('the other leads', () => cluster.pg().acting[0] === second);
    let acked = false;
    const writing = write(image, 0, block(2)).then(() => {
      acked = true;
    });
    await until('the activation is to be synced', () => gate.kept > 0);
    await pause(200);
    t.false(acked);
    gate.release();
    await writing;
    t.is((await read(image, 0, BLOCK))[0], 2);
  });

test('a read that the disk answers after the interval has ended is refused: what it found may never become true', async (t) => {
  const gate = new Gate();
  let slow = 0;
  const cluster = await Cluster.start(t, {
    daemons: 3,
    replicas: 3,
    pgCount: 1,
    wrapStore: (store, id) =>
      storeWith(store, {
        read: (image, object, order, offset, length, done) => {
          if (id === slow) gate.pass(() => store.read(image, object, order, offset, length, done));
          else store.read(image, object, order, offset, length, done);
        },
      }),
  });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, block(1));
  const [p, q, x] = cluster.pg().acting as [number, number, number];
  const peer = await Peer.connect(cluster, p, 4242, 1);
  slow = p;
  gate.held = true;
  const reading = peer.ask(peer.frame(Op.READ));
  await until('the disk is asked', () => gate.kept > 0);
  await lead(cluster, q);
  await until('the other leads', () => cluster.pg().acting[0] === q);
  // X has it and can't say so: the write is not committed.
  cluster.host(x).wire.onSend = (frame) => frame.op !== Op.REPLICATE;
  const writing = write(image, 0, block(2));
  const { pg } = cluster.pg();
  await until('the former primary has it', () => cluster.host(p).store.pgInfo(pg).last.since === cluster.pg().since);
  gate.release();
  t.is(codeOfStatus((await reading).status), 'STALE');
  cluster.host(x).wire.release();
  await writing;
});

test('the one that is whole is older than the newest interval, the one that was in it is not whole: they wait for the third', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 3, replicas: 2, minSize: 1, pgCount: 1 });
  await cluster.createImage();
  const image = await cluster.writer();
  await write(image, 0, block(1));
  await flush(image);
  const [a, b] = cluster.pg().acting as [number, number];
  const c = 6 - a - b;
  const { pg } = cluster.pg();
  // The PG moves from A and B to A and C; C never gets the old objects.
  cluster.host(a).wire.onSend = (frame) => frame.op !== Op.PG_PUSH;
  await cluster.master.handle('setDaemon', { id: b, in: false });
  await until('C has joined', () => cluster.pg().acting.includes(c) && cluster.host(c).store.pgInfo(pg).les > 0);
  await write(image, 65_536, block(2));
  cluster.kill(b);
  await until('B is gone', () => !cluster.pg().acting.includes(b));
  await write(image, 2 * 65_536, block(3));
  await flush(image);
  await cluster.endClients();
  cluster.kill(a);
  await cluster.startDaemon(b);
  await until('B and C are what is left', () => cluster.pg().acting.length === 2 && cluster.pg().acting.includes(b));
  t.deepEqual(cluster.pg().waitFor, [], 'a member of every interval is here');
  const { les, complete } = cluster.host(b).store.pgInfo(pg);
  t.true(complete && les < cluster.pg().lastActive);
  const reasons = async (): Promise<string> => (await cluster.master.handle('status', {})).reasons.join();
  await until('it waits for A by name', async () => new RegExp(`waits for daemon ${a} \\(down`).test(await reasons()));
  await cluster.startDaemon(a);
  const heir = await cluster.writer();
  t.is((await read(heir, 2 * 65_536, BLOCK))[0], 3);
  await cluster.settled(2);
});

// --- requests that come late, or twice

/** A client that can say anything, as often as it likes. */
class Peer {
  readonly replies: Frame[] = [];
  closed = false;
  readonly #cluster: Cluster;
  readonly #session: number;
  #connection!: Connection;
  #request = 0;

  static async connect(cluster: Cluster, daemon: number, session: number, connection: number): Promise<Peer> {
    const peer = new Peer(cluster, session);
    peer.#connection = createNetwork().connect(cluster.map.daemons.get(daemon)!.address, {
      onFrame: (frame) => peer.replies.push(frame),
      onClose: () => {
        peer.closed = true;
      },
    });
    const hello = newFrame(Op.HELLO);
    const { clusterId } = cluster.map;
    const toBootId = cluster.host(daemon).daemon!.identity.bootId;
    const [uuid, bootId] = [`peer-${session}`, `peer-${session}`];
    const fields = { protocol: PROTOCOL_VERSION, clusterId, role: 'client', id: session, uuid, bootId, toBootId };
    hello.meta = Buffer.from(JSON.stringify({ ...fields, connection }));
    await peer.ask(hello);
    return peer;
  }
  private constructor(cluster: Cluster, session: number) {
    this.#cluster = cluster;
    this.#session = session;
  }
  /** For the first block of the image. */
  frame(op: Op, change: Partial<Frame> = {}): Frame {
    const frame = newFrame(op);
    const image = [...this.#cluster.map.images.values()][0]!;
    const { pg } = this.#cluster.pg();
    Object.assign(frame, { epoch: this.#cluster.map.epoch, pg, image: image.id, order: ORDER, fence: image.fence });
    return Object.assign(frame, { session: this.#session, length: BLOCK }, change);
  }
  write(seq: number, byte: number, change: Partial<Frame> = {}): Frame {
    const payload = block(byte);
    const frame = this.frame(Op.WRITE, { seq, payload, ...change });
    frame.meta = payloadChecksums(payload, frame.image, 0, 0);
    return frame;
  }
  send(frame: Frame): void {
    frame.request = ++this.#request;
    this.#connection.send(frame);
  }
  async ask(frame: Frame): Promise<Frame> {
    this.send(frame);
    const { request } = frame;
    const answer = (): Frame | undefined => this.replies.find((reply) => reply.request === request);
    await until(`an answer to operation ${frame.op}`, () => answer() !== undefined);
    return answer()!;
  }
  async code(frame: Frame): Promise<string> {
    return codeOfStatus((await this.ask(frame)).status);
  }
  close(): void {
    this.#connection.close();
  }
}

test('a change that comes twice is made once: after its answer, after a newer one, while it is in flight, by an old session, over an old connection', async (t) => {
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 1 });
  await cluster.createImage('image', 4 * 2 ** 20, ORDER);
  const owner = await cluster.writer();
  await write(owner, 0, block(1));
  const { store, id: primary } = cluster.primary();
  const { pg } = cluster.pg();
  const entries = (): number => store.pgInfo(pg).last.seq;
  const peer = await Peer.connect(cluster, primary, 4242, 1);
  t.teardown(() => peer.close());
  const now = async (): Promise<number> => (await read(owner, 0, BLOCK))[0]!;

  t.is(await peer.code(peer.write(1, 2)), 'OK');
  const after = entries();
  t.is(await peer.code(peer.write(1, 2)), 'OK', 'it is answered again');
  t.is(entries(), after, 'and not made again');

  t.is(await peer.code(peer.write(2, 3)), 'OK');
  t.is(await peer.code(peer.write(1, 2)), 'OK');
  t.is(await peer.code(peer.write(1, 2, { flags: Flag.RETRY })), 'OK');
  t.deepEqual([entries(), await now()], [after + 1, 3], 'the newer one stays');

  // The member's answer is under way: the second comes while the first is in flight.
  cluster.member().wire.onSend = (frame) => frame.op !== Op.REPLICATE;
  peer.send(peer.write(3, 4));
  const twice = peer.ask(peer.write(3, 4));
  await pause(100);
  t.is(entries(), after + 2);
  cluster.member().wire.release();
  await twice;
  t.deepEqual([entries(), await now()], [after + 2, 4]);

  // The same session has connected again: nothing of the old connection is read any more.
  const again = await Peer.connect(cluster, primary, 4242, 2);
  t.teardown(() => again.close());
  peer.send(peer.write(4, 5));
  await until('the old connection is closed', () => peer.closed);
  const late = await Peer.connect(cluster, primary, 4242, 1);
  await until('so is one whose hello was delayed', () => late.closed);
  t.deepEqual([entries(), await now()], [after + 2, 4]);

  // Another owner: whatever the old one sends, first or again, over whatever connection.
  const { fence } = [...cluster.map.images.values()][0]!;
  await cluster.endClients();
  const heir = await cluster.writer('image', undefined, true);
  for (const seq of [3, 5]) t.is(await again.code(again.write(seq, 6, { fence })), 'FENCED');
  t.is(await again.code(again.frame(Op.ZERO, { seq: 6, fence })), 'FENCED');
  t.is(await again.code(again.frame(Op.DELETE, { seq: 7, fence })), 'FENCED');
  t.is(await again.code(again.write(8, 6, { fence, epoch: cluster.pg().since - 1 })), 'STALE', 'of an older interval');
  const before = cluster.pg().since;
  t.is(await again.code(again.write(9, 6, { fence, epoch: before })), 'FENCED', 'stamped with a map before the fence');
  t.is((await read(heir, 0, BLOCK))[0], 4);
  t.is(entries(), after + 2);
});
