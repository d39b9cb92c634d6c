// Whole simulated clusters whose writers and readers use the image through NBD: every request of the workload is encoded
// as a client does, goes through the codec and a real session in pieces of any size, and its reply is decoded.
//
//   workload -> NbdImage -> bytes, cut anywhere -> Session -> Image -> simulated cluster -> Session -> bytes -> workload
//
// The judges are the simulation's (cluster/sim): every read of every block, the copies of all daemons. Status goes past
// NBD: it needs structured replies, which the conformance suite covers.

import assert from 'node:assert/strict';
import test from 'ava';
import type { Done, Image, ReadDone, StatusDone } from '../../cluster/client/image.ts';
import type { PoolImage } from '../../cluster/client/pool-image.ts';
import { type ClusterSim, IMAGE_NAME } from '../../cluster/sim/cluster-sim.ts';
import type { SimRandom } from '../../cluster/sim/random.ts';
import { describeFailure, runSeed } from '../../cluster/sim/run-seed.ts';
import type { Incarnation } from '../../cluster/sim/scheduler.ts';
import { type ErrorCode, StorageError } from '../../proto/errors.ts';
import { SlabPool } from '../../proto/outbox.ts';
import { encodeClientFlags, encodeOption, encodeRequest } from '../nbd-protocol-ts/client.ts';
import { Command, CommandFlag, Magic, Size } from '../nbd-protocol-ts/constants.ts';
import { FailureLog } from './errno.ts';
import { ExportTable } from './export-table.ts';
import { Session } from './session.ts';
import type { Wire } from './wire.ts';

const SEEDS = 40;
/** Fixed newstyle, and no zeroes behind the reply to EXPORT_NAME. */
const CLIENT_FLAGS = 3;
const OPTION_EXPORT_NAME = 1;
/** Size u64, flags u16. */
const EXPORT_BYTES = 10;
const ENOSPC = 28;

interface Pending {
  readonly readBytes: number;
  readonly answer: (error: StorageError | null, data: Buffer | null) => void;
}

/** An image on the far side of an NBD connection inside one simulated process. */
class NbdImage implements Image {
  readonly readOnly: boolean;
  onChange: ((lost: boolean) => void) | null = null;
  readonly #image: Image;
  readonly #life: Incarnation;
  readonly #random: SimRandom;
  readonly #session: Session;
  readonly #pending = new Map<number, Pending>();
  #nextCookie = 1;
  #received: Buffer = Buffer.alloc(0);
  #state: 'greeting' | 'export' | 'transmission' = 'greeting';
  #toSend: Buffer[] = [];
  #gone = false;

  constructor(image: Image, life: Incarnation, cluster: ClusterSim) {
    this.#image = image;
    this.readOnly = image.readOnly;
    this.#life = life;
    this.#random = cluster.random.fork(`nbd of ${life.name}`);
    const log = cluster.log(life);
    const entry = [...cluster.map.images.values()].find(({ name }) => name === IMAGE_NAME)!;
    const client = { images: () => [entry], open: () => Promise.resolve(image), close: () => Promise.resolve() };
    const wire: Wire = {
      peer: life.name,
      write: (buffers, sent) => {
        const bytes = Buffer.concat(buffers);
        life.soon(() => this.#receive(bytes));
        life.soon(sent);
      },
      pause: () => {},
      resume: () => {},
      end: () => life.soon(() => this.#end()),
      destroy: () => life.soon(() => this.#end()),
    };
    this.#session = new Session(
      {
        exports: new ExportTable(client, { readOnly: image.readOnly, takeOver: true }, log),
        slabs: new SlabPool(),
        clock: life,
        log,
        failures: new FailureLog(log, life),
        onEstablished: () => {},
      },
      wire,
    );
    this.#session.start();
  }

  get name(): string {
    return this.#image.name;
  }
  get sizeBytes(): number {
    return this.#image.sizeBytes;
  }

  read(offset: number, length: number, done: ReadDone): void {
    this.#request(Command.READ, offset, length, null, false, (error, data) =>
      done(error, data === null ? null : [data]),
    );
  }
  write(offset: number, data: Buffer, fua: boolean, done: Done): void {
    this.#request(Command.WRITE, offset, data.length, data, fua, done);
  }
  zero(offset: number, length: number, fua: boolean, done: Done): void {
    this.#request(Command.WRITE_ZEROES, offset, length, null, fua, done);
  }
  flush(done: Done): void {
    this.#request(Command.FLUSH, 0, 0, null, false, done);
  }
  status(offset: number, length: number, done: StatusDone): void {
    this.#image.status(offset, length, (error, runs) => done(error === null ? null : this.#error(error.code), runs));
  }
  close(done: Done): void {
    this.#image.close(done);
  }

  #request(
    command: number,
    offset: number,
    lengthBytes: number,
    payload: Buffer | null,
    fua: boolean,
    answer: Pending['answer'],
  ): void {
    if (this.#gone) return this.#life.soon(() => answer(this.#error('FENCED'), null));
    const cookie = this.#nextCookie++;
    this.#pending.set(cookie, { readBytes: command === Command.READ ? lengthBytes : 0, answer });
    const flags = fua ? CommandFlag.FUA : 0;
    const data = payload === null ? {} : { payload };
    const bytes = encodeRequest({ command, flags, cookieLow: cookie, offset, lengthBytes, ...data });
    if (this.#state === 'transmission') this.#send(bytes);
    else this.#toSend.push(bytes);
  }

  /** In pieces of any size, as a socket brings them. Those of one connection keep their order. */
  #send(bytes: Buffer): void {
    for (let at = 0; at < bytes.length; ) {
      const end = this.#random.chance(0.5) ? bytes.length : Math.min(bytes.length, at + 1 + this.#random.below(9_000));
      const piece = Buffer.from(bytes.subarray(at, end));
      at = end;
      this.#life.soon(() => this.#deliver(piece));
    }
  }

  /** Large data is read straight to where it belongs, if the session says where. */
  #deliver(piece: Buffer): void {
    for (let at = 0; at < piece.length; ) {
      const target = this.#session.target();
      if (target === null) return this.#session.receive(piece.subarray(at));
      const bytes = piece.copy(target, 0, at);
      at += bytes;
      this.#session.filled(bytes);
    }
  }

  #receive(bytes: Buffer): void {
    this.#received = Buffer.concat([this.#received, bytes]);
    while (this.#step());
  }

  /** Takes one message; false: it is not all there. */
  #step(): boolean {
    const bytes = this.#received;
    if (this.#state === 'greeting') {
      if (bytes.length < Size.GREETING) return false;
      assert.equal(bytes.readUInt32BE(0), Magic.GREETING_HIGH);
      this.#received = bytes.subarray(Size.GREETING);
      this.#state = 'export';
      this.#send(encodeClientFlags(CLIENT_FLAGS));
      this.#send(encodeOption(OPTION_EXPORT_NAME, Buffer.from(this.name)));
      return true;
    }
    if (this.#state === 'export') {
      if (bytes.length < EXPORT_BYTES) return false;
      assert.equal(Number(bytes.readBigUInt64BE(0)), this.sizeBytes);
      this.#received = bytes.subarray(EXPORT_BYTES);
      this.#state = 'transmission';
      for (const request of this.#toSend.splice(0)) this.#send(request);
      return true;
    }
    if (bytes.length < Size.SIMPLE_REPLY) return false;
    assert.equal(bytes.readUInt32BE(0), Magic.SIMPLE_REPLY);
    const errno = bytes.readUInt32BE(4);
    const cookie = bytes.readUInt32BE(12);
    const pending = this.#pending.get(cookie);
    assert(pending !== undefined, `an answer to request ${cookie}, which nobody made or which is answered already`);
    const dataBytes = errno === 0 ? pending.readBytes : 0;
    if (bytes.length < Size.SIMPLE_REPLY + dataBytes) return false;
    this.#received = bytes.subarray(Size.SIMPLE_REPLY + dataBytes);
    this.#pending.delete(cookie);
    const data = Buffer.from(bytes.subarray(Size.SIMPLE_REPLY, Size.SIMPLE_REPLY + dataBytes));
    pending.answer(errno === 0 ? null : this.#error(errno === ENOSPC ? 'NO_SPACE' : 'IO'), data);
    return true;
  }

  /** A kernel hears a number only; whether the lock was lost is for the image to say. */
  #error(code: ErrorCode): StorageError {
    const { failure } = this.#image as PoolImage;
    return failure ?? new StorageError(code, `NBD says so: ${code}`);
  }

  #end(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#session.closed();
    const lost = [...this.#pending.values()];
    this.#pending.clear();
    for (const { answer } of lost) answer(this.#error('IO'), null);
  }
}

test(`${SEEDS} seeds through NBD: what clients are told is judged as if they had the image itself, twice the same`, async (t) => {
  t.timeout(5 * 60_000);
  const hooks = {
    wrapImage: (image: Image, life: Incarnation, cluster: ClusterSim): Image => new NbdImage(image, life, cluster),
  };
  let acked = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const outcome = await runSeed(seed, { hooks });
    if (outcome.failure !== null) t.log(describeFailure(outcome));
    t.is(outcome.failure, null, `seed ${seed}`);
    if (outcome.failure !== null) return;
    acked += outcome.ackedOperations;
    if (seed % 10 === 0) t.is((await runSeed(seed, { hooks })).digest, outcome.digest, `seed ${seed} must repeat`);
  }
  t.true(acked > SEEDS * 100, `${acked} operations`);
  t.log(`${acked} operations acked and judged`);
});
