// Ten thousand conversations with a daemon that begin right and go wrong: clients, and daemons that say anything in the
// name of a primary. Each request is answered at most once, or the connection is closed; the daemon never stops.

import test, { type ExecutionContext } from 'ava';
import { payloadChecksums } from '../../proto/checksum.ts';
import { Flag, type Frame, newFrame, Op } from '../../proto/frame.ts';
import { encodeActivation, encodeEntries, encodeListing } from '../../proto/peer-messages.ts';
import type { Connection, ConnectionEvents } from '../../proto/ports.ts';
import { INPUTS, SEED } from '../../scripts/fuzz/fuzz.ts';
import { type Random, randomOf } from '../../scripts/fuzz/mutator.ts';
import { Cluster, type Host, read, until, Wire, write } from './fixture.ts';

const SESSIONS = Math.ceil(INPUTS / 100);
const FRAMES_MOST = 16;
const ORDER = 16;
const BLOCK = 4096;
const MANY_REPLIES: readonly number[] = [Op.LIST, Op.PG_LIST];

/** What each wire does with a connection that comes in. */
const accepts = new WeakMap<Wire, (connection: Connection) => void>();
const { listen } = Wire.prototype;
Wire.prototype.listen = function (address, accept) {
  accepts.set(this, accept);
  return listen.call(this, address, accept);
};

/** The stranger's end of a connection to the daemon, without a socket. */
class Line implements Connection {
  readonly peer = 'stranger';
  events: ConnectionEvents | null = null;
  closed = false;
  readonly asked = new Map<number, Op>();
  readonly answers = new Map<number, number>();
  /** What the daemon did that it must not do. */
  fault: string | null = null;

  constructor(host: Host) {
    accepts.get(host.wire)!(this);
  }
  send(frame: Frame): void {
    const op = this.asked.get(frame.request);
    const before = this.answers.get(frame.request) ?? 0;
    if (this.closed) return; // as a real connection does
    if ((frame.flags & Flag.REPLY) === 0) this.fault = `a question: operation ${frame.op}`;
    else if (op === undefined) this.fault = `an answer to request ${frame.request}, which was not asked`;
    else if (before > 0 && !MANY_REPLIES.includes(op)) this.fault = `${before + 1} answers to operation ${op}`;
    this.answers.set(frame.request, before + 1);
  }
  close(): void {
    this.closed = true;
  }
  say(frame: Frame): void {
    if (this.closed) return;
    frame.request = this.asked.size + 1;
    this.asked.set(frame.request, frame.op);
    this.events!.onFrame(frame);
  }
  leave(): void {
    if (this.closed) return;
    this.closed = true;
    this.events!.onClose('the stranger leaves');
  }
}

const NUMBERS = [0, 1, 2, 3, 255, 4095, 4096, 8192, 65_535, 65_536, 2 ** 25, 2 ** 31, 2 ** 32 - 4096, 2 ** 32 - 1];
/** Fields of 32 bits, and those of 64. */
const WORDS = ['session', 'epoch', 'pg', 'image', 'object', 'fence', 'offset', 'length', 'since', 'request'] as const;
const LONGS = ['seq', 'pgSeq'] as const;
const OPS = Object.values(Op).filter((op) => op !== Op.HELLO);

class Stage {
  readonly cluster: Cluster;
  readonly image: number;
  readonly data = Buffer.alloc(2 * BLOCK, 9);
  readonly checks: Buffer;

  constructor(cluster: Cluster) {
    this.cluster = cluster;
    this.image = [...cluster.map.images.keys()][0]!;
    this.checks = payloadChecksums(this.data, this.image, 0, 0);
  }

  hello(host: Host, random: Random, number: number, asDaemon: boolean): Frame {
    const { cluster } = this;
    const other = cluster.hosts.find((one) => one !== host)!;
    const fields: Record<string, unknown> = {
      protocol: 1,
      clusterId: cluster.map.clusterId,
      role: asDaemon ? 'daemon' : 'client',
      id: asDaemon ? other.id : 4242 + random(4),
      uuid: asDaemon ? other.daemon!.identity.uuid : 'stranger',
      bootId: `stranger-${number}`,
      toBootId: host.daemon!.identity.bootId,
      connection: number,
    };
    if (random(10) === 0) fields[Object.keys(fields)[random(8)]!] = [null, -1, '', 'x'.repeat(300), 1e300][random(5)];
    const hello = newFrame(Op.HELLO);
    hello.meta = Buffer.from(JSON.stringify(fields));
    if (random(30) === 0) hello.meta = hello.meta.subarray(0, random(hello.meta.length));
    return hello;
  }

  /** A frame that would do, with up to three fields changed. */
  frame(random: Random, number: number): Frame {
    const { cluster } = this;
    const pg = cluster.pg();
    const op = OPS[random(OPS.length)]!;
    const frame = newFrame(op);
    const image = cluster.map.images.get(this.image)!;
    Object.assign(frame, { epoch: cluster.map.epoch, pg: pg.pg, image: image.id, order: ORDER, session: 4242 });
    Object.assign(frame, { fence: image.fence, length: 2 * BLOCK, since: pg.since, seq: number, pgSeq: 2 + random(3) });
    if (op === Op.WRITE || op === Op.REPLICATE || op === Op.PG_PUSH) {
      frame.payload = Buffer.from(this.data);
      frame.meta = this.checks;
      frame.status = op === Op.REPLICATE ? 1 + random(3) : 0;
    } else if (op > Op.REPLICATE) frame.meta = this.#meta(random, pg.pg, pg.since);
    for (let changes = random(4); changes > 0; changes--) this.#spoil(frame, random);
    return frame;
  }

  #meta(random: Random, pg: number, since: number): Buffer | null {
    const version = { since, seq: random(5) };
    const entry = { pg, version, op: 1, image: this.image, object: 0, order: ORDER, offset: 0, length: BLOCK };
    const entries = [{ ...entry, session: 1, sessionSeq: 1 }].slice(random(2));
    switch (random(5)) {
      case 0:
        return encodeActivation({ mode: 'keep', version, complete: random(2) === 0, entries });
      case 1:
        return encodeActivation({ mode: random(2) === 0 ? 'truncate' : 'reset', version, complete: false, entries });
      case 2:
        return encodeEntries(entries);
      case 3:
        return encodeListing([{ image: this.image, object: 0, order: ORDER, version }]);
      default:
        return null;
    }
  }

  #spoil(frame: Frame, random: Random): void {
    const value = NUMBERS[random(NUMBERS.length)]!;
    switch (random(8)) {
      case 0:
        frame.flags = random(4) === 0 ? random(2 ** 16) : random(2 ** 16) & ~Flag.REPLY;
        break;
      case 1:
        frame.order = [0, 15, 16, 17, 20, 25, 26, 255][random(8)]!;
        break;
      case 2:
        frame[LONGS[random(2)]!] = random(2) === 0 ? value : 2 ** 53 - 1;
        break;
      case 3:
        frame.meta = random(3) === 0 ? null : Buffer.alloc(random(100), random(256));
        break;
      case 4:
        frame.payload = random(3) === 0 ? null : Buffer.alloc(random(4) * BLOCK + (random(4) === 0 ? 7 : 0), 3);
        break;
      case 5:
        frame.status = random(2 ** 16);
        break;
      default:
        frame[WORDS[random(WORDS.length)]!] = value;
    }
  }
}

async function converse(t: ExecutionContext, stage: Stage, hosts: readonly Host[], asDaemon: boolean): Promise<void> {
  const random = randomOf(SEED);
  let asked = 0;
  let answered = 0;
  let closed = 0;
  const lines: Line[] = [];
  for (let number = 1; number <= SESSIONS; number++) {
    const host = hosts[random(hosts.length)]!;
    const line = new Line(host);
    lines.push(line);
    const where = `seed ${SEED}, session ${number}`;
    try {
      if (random(50) > 0) line.say(stage.hello(host, random, number, asDaemon));
      for (let frames = random(FRAMES_MOST); frames >= 0; frames--) {
        line.say(stage.frame(random, number * FRAMES_MOST + frames));
        if (random(4) === 0) await new Promise((turn) => setImmediate(turn));
      }
    } catch (error) {
      return t.fail(`${where}: ${(error as Error).stack}`);
    }
    if (lines.length < 20) continue;
    await new Promise((turn) => setImmediate(turn));
    for (const old of lines.splice(0)) {
      asked += old.asked.size;
      answered += old.answers.size;
      if (old.closed) closed++;
      old.leave();
      if (old.fault !== null) return t.fail(`${where} or shortly before: ${old.fault}`);
    }
  }
  t.log(
    `${SESSIONS} sessions, ${asked} requests, ${answered} answered at once, ${closed} sessions closed by the daemon`,
  );
  t.true(answered > asked / 10 && closed > SESSIONS / 50, 'both outcomes occurred');
}

async function stage(t: ExecutionContext): Promise<Stage> {
  t.timeout(600_000);
  const cluster = await Cluster.start(t, { daemons: 2, replicas: 2, pgCount: 1 });
  await cluster.createImage('image', 4 * 2 ** 20, ORDER);
  return new Stage(cluster);
}

test.serial('clients that say anything: an honest one is served all along, and the copies stay equal', async (t) => {
  const place = await stage(t);
  const { cluster } = place;
  await converse(t, place, cluster.hosts, false);
  const image = await cluster.writer();
  await write(image, 2 ** ORDER, Buffer.alloc(2 ** ORDER, 5));
  t.true((await read(image, 2 ** ORDER, 2 ** ORDER)).every((byte) => byte === 5));
  await until('both copies are equal', () => cluster.difference() === null);
  t.is(cluster.difference(), null);
});

test.serial('strangers in the name of another daemon: whatever they do to the copies, no process stops', async (t) => {
  const place = await stage(t);
  const { cluster } = place;
  await converse(t, place, cluster.hosts, true);
  for (const host of cluster.hosts) {
    const honest = new Line(host);
    honest.say(place.hello(host, () => 1, 2 ** 31, false));
    honest.say(newFrame(Op.PING));
    t.is(honest.answers.size, 2);
    t.false(honest.closed);
    honest.leave();
  }
});
