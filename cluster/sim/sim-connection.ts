// One simulated connection: two ends, one pipe in each direction, and how it comes up and breaks.
//
// A pipe is a queue with one event under way, that of its head. A pipe that is held (partition, silence, no power at
// the other end) keeps its queue; one that is cut drops it. The end of a connection travels through the pipe like a
// frame, so a peer behind a partition does not hear of it: that is a half-open connection.
//
// Frames go through the real header codec. Meta and payload are taken when the frame is delivered, the last moment at
// which a real socket might read them: a sender that changes them early is found out by checksums.

import { payloadPool } from '../../proto/buffer-pool.ts';
import { hashBytes } from '../../proto/checksum.ts';
import { codeOfStatus } from '../../proto/errors.ts';
import {
  decodeFrame,
  encodeHeader,
  Flag,
  type Frame,
  HEADER_BYTES,
  invalidHeader,
  metaChecksumAt,
  Op,
} from '../../proto/frame.ts';
import type { Connection, ConnectionEvents } from '../../proto/ports.ts';
import type { Incarnation, Machine } from './scheduler.ts';
import type { SimNetwork } from './sim-network.ts';

export class SimConnection {
  readonly network: SimNetwork;
  readonly address: string;
  /** The end that connected. */
  readonly near: End;
  /** The end that accepted; null until then. */
  far: End | null = null;
  readonly outward: Pipe;
  readonly inward: Pipe;

  constructor(network: SimNetwork, owner: Incarnation, address: string, events: ConnectionEvents) {
    this.network = network;
    this.address = address;
    this.outward = new Pipe(this, 'outward');
    this.inward = new Pipe(this, 'inward');
    this.near = new End(this, owner, address, this.outward, events);
  }

  get nearClosed(): boolean {
    return !this.near.open;
  }

  joins(a: Machine, b: Machine): boolean {
    const near = this.near.owner.machine;
    const far = this.far?.owner.machine;
    return (near === a && far === b) || (near === b && far === a);
  }

  refuse(reason: string): void {
    this.outward.cut();
    this.near.closeLater(this.network.delay(0), reason);
    this.network.forget(this);
  }

  establish(owner: Incarnation, accept: (connection: Connection) => void): void {
    const { scheduler } = this.network;
    const end = new End(this, owner, `${this.near.owner.name}`, this.inward, null);
    this.far = end;
    this.outward.target = end;
    this.inward.target = this.near;
    scheduler.schedule(scheduler.now, owner, 'accept', 0, () => {
      accept(end);
      if (end.open && end.events === null)
        throw new Error(`${owner.name} accepted a connection without setting events`);
    });
    this.outward.kick();
  }

  /** Both sides lose it, and everything under way with it. */
  reset(why: string): void {
    this.network.scheduler.probe(`reset: ${why}`);
    this.outward.cut();
    this.inward.cut();
    this.near.closeLater(this.network.delay(0), 'connection reset');
    this.far?.closeLater(this.network.delay(0), 'connection reset');
    this.network.forget(this);
  }

  onOwnerEnded(life: Incarnation, how: 'crash' | 'powerCut'): void {
    const ended = this.near.owner === life ? this.near : this.far?.owner === life ? this.far : null;
    if (ended === null) return;
    ended.open = false;
    const peer = this.peerOf(ended);
    if (how === 'powerCut') {
      // Nobody is told. What the lost host had sent and was under way still arrives.
      if (peer === null) this.network.forget(this);
      return;
    }
    if (this.network.random.chance(0.5)) ended.pipe.cut();
    ended.pipe.sendEnd('connection closed by peer');
  }

  /** The host of one end has its power back: its kernel knows no connection and answers whatever comes with a reset. */
  onPowerOn(machine: Machine): void {
    for (const end of [this.near, this.far]) {
      if (end === null || end.owner.machine !== machine || end.owner.alive) continue;
      const peer = this.peerOf(end);
      if (peer === null || !peer.open) this.network.forget(this);
      else peer.pipe.kick();
    }
  }

  onUnblocked(from: Machine, to: Machine): void {
    for (const pipe of [this.outward, this.inward]) {
      if (pipe.source?.owner.machine !== from || pipe.target?.owner.machine !== to) continue;
      if (pipe.waiting > 0 && this.network.random.chance(0.3)) this.reset('partition healed too late');
      else pipe.kick();
    }
  }

  peerOf(end: End): End | null {
    return end === this.near ? this.far : this.near;
  }
}

class End implements Connection {
  events: ConnectionEvents | null;
  readonly peer: string;
  readonly owner: Incarnation;
  /** What this end sends into. */
  readonly pipe: Pipe;
  readonly connection: SimConnection;
  open = true;

  constructor(
    connection: SimConnection,
    owner: Incarnation,
    peer: string,
    pipe: Pipe,
    events: ConnectionEvents | null,
  ) {
    this.connection = connection;
    this.owner = owner;
    this.peer = peer;
    this.pipe = pipe;
    this.events = events;
    pipe.source = this;
  }

  send(frame: Frame): void {
    if (this.open && this.owner.alive) this.pipe.sendFrame(frame);
  }

  close(): void {
    if (!this.open || !this.owner.alive) return;
    this.open = false;
    this.pipe.sendEnd('connection closed by peer');
    if (this.connection.far === null) this.connection.network.forget(this.connection);
  }

  /** Tells the owner, unless it closed in the meantime. */
  closeLater(ms: number, reason: string): void {
    const { scheduler } = this.connection.network;
    scheduler.schedule(scheduler.now + ms, this.owner, 'closed', 0, () => this.closeNow(reason));
  }

  closeNow(reason: string): void {
    if (!this.open) return;
    this.open = false;
    this.events?.onClose(reason);
  }
}

interface Item {
  /** null: the end of the connection. */
  readonly header: Buffer | null;
  readonly meta: Buffer | null;
  readonly payload: Buffer | null;
  readonly givePayload: boolean;
  readonly reason: string;
  /** Not before. */
  readonly due: number;
}

class Pipe {
  readonly connection: SimConnection;
  readonly name: string;
  source: End | null = null;
  target: End | null = null;
  #queue: Item[] = [];
  #underWay = false;
  #silentUntil = 0;
  #due = 0;

  constructor(connection: SimConnection, name: string) {
    this.connection = connection;
    this.name = name;
  }

  get waiting(): number {
    return this.#queue.length;
  }

  sendFrame(frame: Frame): void {
    const header = Buffer.allocUnsafe(HEADER_BYTES);
    encodeHeader(header, 0, frame);
    const bytes = HEADER_BYTES + (frame.meta?.length ?? 0) + (frame.payload?.length ?? 0);
    const { meta, payload, givePayload } = frame;
    this.#enqueue({ header, meta, payload, givePayload, reason: '', due: this.#dueAfter(bytes) });
    this.#misbehave();
  }

  sendEnd(reason: string): void {
    this.#enqueue({ header: null, meta: null, payload: null, givePayload: false, reason, due: this.#dueAfter(0) });
  }

  /** Drops everything under way. */
  cut(): void {
    this.#queue = [];
  }

  /** Sends the head on its way, unless it is already, or nothing may pass now. */
  kick(): void {
    const { network } = this.connection;
    const { scheduler } = network;
    const head = this.#queue[0];
    const { target } = this;
    if (this.#underWay || head === undefined || target === null || this.#held()) return;
    this.#underWay = true;
    if (!target.owner.alive) {
      // The process is gone and its host runs: whatever reaches it is answered with a reset.
      scheduler.schedule(scheduler.now + network.delay(0), null, 'answer of a dead port', 0, () => {
        if (this.source?.open) this.connection.reset('peer is dead');
      });
      return;
    }
    const time = Math.max(head.due, this.#silentUntil, scheduler.now);
    scheduler.schedule(time, null, 'pipe', this.#queue.length, () => {
      this.#underWay = false;
      // A cut, a partition or another silence may have come in the meantime.
      if (this.#queue[0] === head && scheduler.now >= this.#silentUntil && !this.#held()) {
        this.#queue.shift();
        this.#deliver(head, target);
      }
      this.kick();
    });
  }

  #held(): boolean {
    const { network } = this.connection;
    const from = this.source!.owner.machine;
    const to = this.target!.owner.machine;
    if (network.isPowerless(to)) return true;
    return !this.connection.address.startsWith('unix:') && network.isBlocked(from, to);
  }

  #dueAfter(bytes: number): number {
    const { network } = this.connection;
    this.#due = Math.max(this.#due, network.scheduler.now + network.delay(bytes));
    return this.#due;
  }

  #enqueue(item: Item): void {
    this.#queue.push(item);
    this.kick();
  }

  /** Rolls the dice of the seed for one frame. */
  #misbehave(): void {
    const { network } = this.connection;
    const { faults, random, scheduler } = network;
    if (faults.clogChance > 0 && random.chance(faults.clogChance)) {
      scheduler.probe('clog');
      this.#due = Math.max(this.#due, scheduler.now + random.unit() * faults.clogMaxMs);
    }
    if (faults.lossChance > 0 && random.chance(faults.lossChance)) this.#goSilent();
    if (faults.resetChance > 0 && random.chance(faults.resetChance)) this.connection.reset('random');
  }

  #goSilent(): void {
    const { network } = this.connection;
    const { random, scheduler } = network;
    scheduler.probe('silence');
    this.#silentUntil = Math.max(
      this.#silentUntil,
      scheduler.now + 200 + random.exponential(network.faults.silenceMeanMs),
    );
    scheduler.schedule(this.#silentUntil, null, 'silence ends', 0, () => {
      if (network.faults.lossChance > 0 && random.chance(0.5) && (this.source?.open || this.target?.open))
        this.connection.reset('after silence');
      else this.kick();
    });
  }

  #deliver(item: Item, target: End): void {
    const { network } = this.connection;
    const { scheduler } = network;
    const { header } = item;
    if (header === null) {
      // Both directions end: what the receiver of the end still sends goes nowhere.
      target.closeLater(0, item.reason);
      network.forget(this.connection);
      return;
    }
    if (!target.open) return;
    const arrived = this.#perhapsFlipped(header, item.meta, item.payload);
    if (item.givePayload) payloadPool.give(item.payload);
    const why = invalidHeader(arrived.header, 0);
    if (why !== null) {
      this.#refuse(target, why);
      return;
    }
    const metaSum = arrived.meta === null ? 0 : hashBytes(arrived.meta);
    if (metaSum !== metaChecksumAt(arrived.header, 0)) {
      this.#refuse(target, 'meta checksum is wrong');
      return;
    }
    const frame = decodeFrame(arrived.header, 0, arrived.meta, arrived.payload);
    // Checksums heal what they find, and would hide that somebody still needed memory that was given back to the pool.
    if (
      !scheduler.probes.has('payload bit flip') &&
      (frame.flags & Flag.REPLY) !== 0 &&
      codeOfStatus(frame.status) === 'CHECKSUM'
    )
      throw new Error(`op ${frame.op}: data failed its checksum, though no bit was flipped so far`);
    const { repeatChance } = network.faults;
    const again = repeatChance > 0 && network.random.chance(repeatChance) && mayRepeat(frame) ? copyOf(frame) : null;
    scheduler.schedule(scheduler.now, target.owner, frameKind(frame), frame.request, () => {
      if (target.open) target.events?.onFrame(frame);
    });
    if (again === null) return;
    scheduler.probe('frame repeated');
    scheduler.schedule(scheduler.now, target.owner, 'repeated frame', frame.request, () => {
      if (target.open) target.events?.onFrame(again);
    });
  }

  /** What a decoder does with bytes that are not a frame: says so to its owner and closes. */
  #refuse(target: End, why: string): void {
    this.cut();
    target.pipe.sendEnd('connection closed by peer');
    target.closeLater(0, why);
  }

  #perhapsFlipped(
    header: Buffer,
    meta: Buffer | null,
    payload: Buffer | null,
  ): { header: Buffer; meta: Buffer | null; payload: Buffer | null } {
    const arrived = {
      header: Buffer.from(header),
      meta: meta && Buffer.from(meta),
      payload: payload && pooledCopy(payload),
    };
    const { faults, random, scheduler } = this.connection.network;
    if (faults.flipChance === 0 || !random.chance(faults.flipChance)) return arrived;
    const parts = [arrived.header, arrived.meta, arrived.payload].filter((part) => part !== null && part.length > 0);
    const part = random.pick(parts)!;
    part[random.below(part.length)]! ^= 1 << random.below(8);
    scheduler.probe(part === arrived.payload ? 'payload bit flip' : 'frame bit flip');
    return arrived;
  }
}

/** Memory as a real connection's decoder would take it: given too early, somebody finds the pool's poison. */
function pooledCopy(payload: Buffer): Buffer {
  const copy = payloadPool.take(payload.length);
  payload.copy(copy);
  return copy;
}

/** Hellos and pages of lists are counted by their receivers; a client's change is told from its double by RETRY alone. */
function mayRepeat({ op, flags }: Frame): boolean {
  const changes = op === Op.WRITE || op === Op.ZERO || op === Op.DELETE;
  if (op === Op.HELLO || op === Op.LIST || op === Op.PG_LIST) return false;
  return !changes || (flags & (Flag.RETRY | Flag.REPLY)) !== 0;
}

function copyOf(frame: Frame): Frame {
  const { meta, payload } = frame;
  return { ...frame, meta: meta && Buffer.from(meta), payload: payload && pooledCopy(payload) };
}

const KINDS = new Map<number, string>();
/** "frame 3", "reply 3 status 1": one string per kind for ever. */
function frameKind(frame: Frame): string {
  const key = frame.op * 65_536 + (frame.flags & 1) * 256 + frame.status;
  let kind = KINDS.get(key);
  if (kind === undefined) {
    kind = (frame.flags & 1) === 0 ? `request op ${frame.op}` : `reply op ${frame.op} status ${frame.status}`;
    KINDS.set(key, kind);
  }
  return kind;
}
