// Ten thousand clients' conversations with a session, each different: haggling in any order, any requests with any
// fields, cut anywhere, while the image fails, is slow, is resized or taken over, and the server shuts down.
//
// Every request is answered exactly once by a well-formed reply, unless the connection ends; nothing throws, and when
// all is over no request is in flight.

import { setImmediate as nextTurn } from 'node:timers/promises';
import test from 'ava';
import { openClock } from '../../cluster/world/clock.ts';
import { StorageError } from '../../proto/errors.ts';
import { SlabPool } from '../../proto/outbox.ts';
import { INPUTS, SEED } from '../../scripts/fuzz/fuzz.ts';
import { type Random, randomOf } from '../../scripts/fuzz/mutator.ts';
import {
  type ClientRequest,
  Command,
  Conversation,
  type Duplex,
  encodeInfoRequest,
  encodeMetaRequest,
  Option,
  StreamEnded,
} from '../nbd-protocol-ts/index.ts';
import { FailureLog } from './errno.ts';
import { ExportTable } from './export-table.ts';
import { MemoryImageClient } from './memory-image.ts';
import { Session, type SessionWorld } from './session.ts';
import { RecordedLog } from './testing.ts';
import type { Wire } from './wire.ts';

const SESSIONS = Math.ceil(INPUTS / 100);
/** Sessions that share a gateway, one after the other or at the same time. */
const PER_GATEWAY = 50;
const IMAGE_BYTES = 2 ** 20;
const TURNS_MOST = 3_000;

class Line implements Wire, Duplex {
  readonly peer = 'fuzz';
  readonly session: Session;
  readonly #random: Random;
  #received: Buffer[] = [];
  #receivedBytes = 0;
  over = false;

  constructor(world: SessionWorld, random: Random) {
    this.#random = random;
    this.session = new Session(world, this);
  }
  /** From the session, or (one buffer) from its client: cut at random places. */
  write(bytes: readonly Buffer[] | Buffer, sent: () => void = () => {}): void {
    if (!Buffer.isBuffer(bytes)) {
      for (const part of bytes) {
        this.#received.push(Buffer.from(part));
        this.#receivedBytes += part.length;
      }
      setImmediate(sent);
      return;
    }
    for (let at = 0; at < bytes.length; ) {
      const most = bytes.length - at;
      const cut = this.#random(3) === 0 ? 1 + this.#random(most) : most;
      const chunk = Buffer.from(bytes.subarray(at, at + cut));
      if (!this.over) this.session.receive(chunk);
      chunk.fill(0xee); // as the socket does: the memory is read into again at once
      at += cut;
    }
  }
  pause(): void {}
  resume(): void {}
  end(): void {
    this.over = true;
  }
  destroy(): void {
    this.over = true;
  }
  close(): void {}
  async read(bytes: number): Promise<Buffer> {
    for (let turn = 0; this.#receivedBytes < bytes; turn++) {
      if (this.over) throw new StreamEnded();
      if (turn === TURNS_MOST) throw new Error(`no ${bytes} bytes came`);
      await nextTurn();
    }
    if (this.#received.length > 1) this.#received = [Buffer.concat(this.#received)];
    const all = this.#received[0] ?? Buffer.alloc(0);
    this.#received = [all.subarray(bytes)];
    this.#receivedBytes -= bytes;
    return all.subarray(0, bytes);
  }
}

class Gateway {
  readonly client = new MemoryImageClient();
  readonly world: SessionWorld;
  constructor() {
    this.client.add('disk', IMAGE_BYTES);
    const log = new RecordedLog();
    const clock = openClock();
    this.world = {
      exports: new ExportTable(this.client, { readOnly: false, takeOver: true }, log),
      slabs: new SlabPool(),
      clock,
      log,
      failures: new FailureLog(log, clock),
      onEstablished() {},
    };
  }
  get volume() {
    return this.client.volumes.get('disk')!;
  }
}

const COMMANDS = Object.values(Command).filter((command) => command !== Command.DISC);
/** The client makes room for what it asked for, as clients do. */
const READ_BYTES_MOST = 2 ** 26;
const LENGTHS = [0, 1, 511, 512, 4095, 4096, 4097, 65_536, IMAGE_BYTES, IMAGE_BYTES + 1, 2 ** 31, 2 ** 32 - 1];
const OFFSETS = [0, 1, 512, 4096, IMAGE_BYTES - 4096, IMAGE_BYTES - 1, IMAGE_BYTES, 2 ** 40, 2 ** 53 - 1];

function requestOf(random: Random): ClientRequest {
  if (random(40) === 0) return { command: Command.DISC };
  const command = random(40) === 0 ? 8 + random(1000) : COMMANDS[random(COMMANDS.length)]!;
  const offset = random(3) === 0 ? OFFSETS[random(OFFSETS.length)]! : random(IMAGE_BYTES);
  const lengthBytes = random(3) === 0 ? LENGTHS[random(LENGTHS.length)]! : 1 + random(16_384);
  const flags = random(3) === 0 ? 1 << random(6) : random(30) === 0 ? random(65_536) : 0;
  if (command === Command.WRITE)
    return { command, flags, offset, payload: Buffer.alloc(Math.min(lengthBytes, 70_000), random(256)) };
  const most = command === Command.READ ? READ_BYTES_MOST : Number.POSITIVE_INFINITY;
  return { command, flags, offset, lengthBytes: Math.min(lengthBytes, most) };
}

async function haggle(peer: Conversation, random: Random): Promise<void> {
  await peer.greet();
  for (let options = random(5); options > 0; options--)
    switch (random(6)) {
      case 0:
        await peer.option(Option.LIST, random(8) === 0 ? Buffer.alloc(5) : null);
        break;
      case 1:
        if (!peer.structuredReplies) await peer.wantStructuredReplies();
        break;
      case 2:
        await peer.option(Option.INFO, encodeInfoRequest(random(2) === 0 ? 'disk' : 'nope', [random(5)]));
        break;
      case 3:
        await peer.option(20 + random(1000), Buffer.alloc(random(200)));
        break;
      case 4:
        await peer.option(Option.GO, Buffer.alloc(random(20), 1 + random(255))); // zeros would be a good one
        break;
      default:
        await peer.option(Option.SET_META_CONTEXT, encodeMetaRequest('disk', ['base:allocation', 'x:y']));
    }
  await peer.go('disk');
}

/** What disturbs a session. Returns true if the connection may end by it. */
function disturb(gateway: Gateway, line: Line, random: Random): boolean {
  const { volume } = gateway;
  switch (random(14)) {
    case 0:
      volume.failures.push(new StorageError('IO', 'the disk fails'), new StorageError('NO_SPACE', 'it is full'));
      return false;
    case 1:
      volume.held ??= [];
      setImmediate(() => setImmediate(() => volume.release()));
      return false;
    case 2:
      if (random(4) === 0) volume.resize(IMAGE_BYTES);
      return false;
    case 3:
      if (random(6) > 0) return false;
      volume.fence();
      return true;
    case 4:
      if (random(6) > 0) return false;
      line.session.shutDown();
      return true;
    case 5:
      if (random(4) > 0) return false;
      line.write(Buffer.alloc(28 + random(100), random(256)));
      return true;
    default:
      return false;
  }
}

/** One session to its end. Returns how many requests were answered, and whether it ended early. */
async function converse(gateway: Gateway, random: Random): Promise<{ answered: number; early: boolean }> {
  const line = new Line(gateway.world, random);
  const peer = new Conversation(line);
  let mayEnd = false;
  let sent = 0;
  let answered = 0;
  line.session.start();
  try {
    await haggle(peer, random);
    for (let requests = 1 + random(20); requests > 0; requests--) {
      const request = requestOf(random);
      if (disturb(gateway, line, random)) mayEnd = true;
      if (request.command === Command.DISC) {
        mayEnd = true;
        peer.send(request);
        break;
      }
      peer.send(request);
      sent++;
      if (random(4) === 0) await nextTurn();
    }
    while (answered < sent) {
      await peer.reply();
      answered++;
    }
    line.session.closed();
    return { answered, early: false };
  } catch (error) {
    line.session.closed();
    // An export whose image has just been taken over by another session, or was fenced, refuses or ends.
    if (error instanceof StreamEnded && mayEnd) return { answered, early: true };
    throw error;
  }
}

test('conversations of any kind: each request has one answer, or the connection ends with a reason', async (t) => {
  t.timeout(600_000);
  const random = randomOf(SEED);
  let gateway = new Gateway();
  let answered = 0;
  let early = 0;
  for (let number = 1; number <= SESSIONS; number++) {
    if (number % PER_GATEWAY === 0) gateway = new Gateway();
    try {
      const session = await converse(gateway, random);
      answered += session.answered;
      if (session.early) early++;
    } catch (error) {
      return t.fail(`seed ${SEED}, session ${number}: ${(error as Error).stack}`);
    }
  }
  t.log(`${SESSIONS} sessions, ${answered} requests answered, ${early} sessions ended early`);
  t.true(answered > SESSIONS && early > SESSIONS / 100, 'both outcomes occurred');
});
