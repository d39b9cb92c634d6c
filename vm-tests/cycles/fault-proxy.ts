// TCP forwarding between processes, with faults: what a bad network does, without root and without touching the kernel's.
//
//   source ──► [ listening port per target ] ──► target        a link is "source>target", such as "daemon-1>daemon-2"
//
// Every target has one port here and says that this is its address. Who connects is found out from the kernel's table of
// sockets, so that a fault can hit one pair of processes and one direction only. What is held or slowed is queued here in
// order and never lost: as TCP, which sends again, would have it. Bytes are lost only together with their connection.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';

/** What is done to a link, each direction for itself. */
export interface LinkFault {
  delayMs?: number;
  /** Up to so much more, by chance. */
  jitterMs?: number;
  bytesPerSecond?: number;
  /** Nothing passes: loss in one direction, or in both. */
  hold?: 'forth' | 'back' | 'both';
  /** One bit in about so many bytes is turned. */
  flipEveryBytes?: number;
  /** New connections are reset. */
  refuse?: boolean;
}
export interface Peer {
  name: string;
  pid: number;
}
type Pattern = (source: string, target: string) => boolean;

/** A reader that is slower than its writer makes the writer wait, as a network does. */
const QUEUE_BYTES_MAX = 1024 * 1024;
const TICK_MS = 20;

export class FaultProxy {
  /** What was done, by kind: a fault that never happened proves nothing. */
  readonly done = { connections: 0, bytes: 0, flips: 0, resets: 0, refused: 0, halfCloses: 0 };
  readonly #peers: () => Peer[];
  readonly #random: () => number;
  readonly #servers: Server[] = [];
  readonly #links = new Set<Link>();
  #rules: { pattern: Pattern; fault: LinkFault }[] = [];

  /** @param peers who may connect now  @param random 0 to 1 */
  constructor(peers: () => Peer[], random: () => number) {
    this.#peers = peers;
    this.#random = random;
  }

  /** A way to `address`, known as `target`. Resolves to the address to use instead. */
  async forward(target: string, address: string): Promise<string> {
    const at = address.lastIndexOf(':');
    const to = { host: address.slice(0, at), port: Number(address.slice(at + 1)) };
    const server = createServer({ noDelay: true, allowHalfOpen: true }, (socket) => this.#accept(socket, target, to));
    this.#servers.push(server);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return `127.0.0.1:${(server.address() as { port: number }).port}`;
  }
  /** From now on, also for connections that exist. */
  apply(pattern: Pattern, fault: LinkFault): void {
    this.#rules.push({ pattern, fault });
    for (const link of this.#links) link.onRules(this.#faultOf(link.source, link.target));
  }
  /** All faults end: what was held is delivered. */
  heal(): void {
    this.#rules = [];
    for (const link of this.#links) link.onRules({});
  }
  /** Connections break, with what is under way in them. Returns how many. */
  reset(pattern: Pattern): number {
    const hit = [...this.#links].filter((link) => pattern(link.source, link.target));
    for (const link of hit) link.reset();
    this.done.resets += hit.length;
    return hit.length;
  }
  /** One direction ends properly, the other goes on. Returns how many. */
  halfClose(pattern: Pattern, direction: 'forth' | 'back'): number {
    const hit = [...this.#links].filter((link) => pattern(link.source, link.target));
    for (const link of hit) link.halfClose(direction);
    this.done.halfCloses += hit.length;
    return hit.length;
  }
  /** "source>target" of every connection. */
  get links(): string[] {
    return [...this.#links].map(({ source, target }) => `${source}>${target}`).sort();
  }
  close(): void {
    for (const server of this.#servers) server.close();
    for (const link of this.#links) link.reset();
  }

  #faultOf(source: string, target: string): LinkFault {
    const hit = this.#rules.filter(({ pattern }) => pattern(source, target)).map(({ fault }) => fault);
    return Object.assign({}, ...hit);
  }
  #accept(socket: Socket, target: string, to: { host: string; port: number }): void {
    const source = sourceOf(socket, this.#peers()) ?? 'unknown';
    const fault = this.#faultOf(source, target);
    if (fault.refuse === true) {
      this.done.refused++;
      breakOff(socket.on('error', () => {}));
      return;
    }
    this.done.connections++;
    const onward = connect({ ...to, noDelay: true, allowHalfOpen: true });
    const link = new Link(source, target, socket, onward, this.#random, this.done, () => this.#links.delete(link));
    this.#links.add(link);
    link.onRules(fault);
  }
}

/** With a reset where the kernel allows it: not before there is a connection, and not while an end is being sent. */
function breakOff(socket: Socket): void {
  if (socket.destroyed) return;
  if (socket.connecting || socket.writableEnded) socket.destroy();
  else socket.resetAndDestroy();
}

class Link {
  readonly source: string;
  readonly target: string;
  readonly #near: Socket;
  readonly #far: Socket;
  readonly #forth: Pipe;
  readonly #back: Pipe;
  readonly #onEnd: () => void;
  #over = false;

  constructor(
    source: string,
    target: string,
    near: Socket,
    far: Socket,
    random: () => number,
    done: FaultProxy['done'],
    onEnd: () => void,
  ) {
    this.source = source;
    this.target = target;
    this.#near = near;
    this.#far = far;
    this.#onEnd = onEnd;
    this.#forth = new Pipe(near, far, random, done);
    this.#back = new Pipe(far, near, random, done);
    for (const socket of [near, far]) socket.on('error', () => this.reset()).on('close', () => this.#closed());
  }
  onRules(fault: LinkFault): void {
    const held = (direction: 'forth' | 'back') => fault.hold === direction || fault.hold === 'both';
    this.#forth.onRules(fault, held('forth'));
    this.#back.onRules(fault, held('back'));
  }
  halfClose(direction: 'forth' | 'back'): void {
    (direction === 'forth' ? this.#forth : this.#back).cut();
  }
  reset(): void {
    for (const socket of [this.#near, this.#far]) breakOff(socket);
    this.#end();
  }
  #closed(): void {
    if (this.#near.destroyed && this.#far.destroyed) this.#end();
    else if (this.#near.errored !== null || this.#far.errored !== null) this.reset();
  }
  #end(): void {
    if (this.#over) return;
    this.#over = true;
    this.#forth.end();
    this.#back.end();
    this.#onEnd();
  }
}

/** One direction of a connection. */
class Pipe {
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #random: () => number;
  readonly #done: FaultProxy['done'];
  #fault: LinkFault = {};
  #held = false;
  #queue: { bytes: Buffer; dueAt: number }[] = [];
  #queued = 0;
  #lastDue = 0;
  #allowance = 0;
  #allowanceAt = 0;
  #ended = false;
  #cut = false;
  #timer: NodeJS.Timeout | null = null;

  constructor(from: Socket, to: Socket, random: () => number, done: FaultProxy['done']) {
    this.#from = from;
    this.#to = to;
    this.#random = random;
    this.#done = done;
    from.on('data', (bytes: Buffer) => this.#take(bytes));
    from.on('end', () => {
      this.#ended = true;
      this.#pump();
    });
    to.on('drain', () => this.#pump());
  }
  onRules(fault: LinkFault, held: boolean): void {
    if (fault.bytesPerSecond !== undefined && this.#fault.bytesPerSecond === undefined) {
      this.#allowance = 0;
      this.#allowanceAt = performance.now();
    }
    this.#fault = fault;
    this.#held = held;
    if (fault.delayMs === undefined) for (const item of this.#queue) item.dueAt = 0;
    this.#pump();
  }
  /** The receiver sees the end; what still comes is dropped. */
  cut(): void {
    if (this.#cut) return;
    this.#cut = true;
    this.#queue = [];
    this.#queued = 0;
    this.#from.resume();
    if (!this.#to.destroyed) this.#to.end();
  }
  end(): void {
    this.#queue = [];
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  #take(bytes: Buffer): void {
    if (this.#cut) return;
    const { delayMs = 0, jitterMs = 0, flipEveryBytes } = this.#fault;
    if (flipEveryBytes !== undefined && this.#random() < bytes.length / flipEveryBytes) {
      bytes[Math.floor(this.#random() * bytes.length)]! ^= 1 << Math.floor(this.#random() * 8);
      this.#done.flips++;
    }
    const due = delayMs === 0 ? 0 : performance.now() + delayMs + this.#random() * jitterMs;
    this.#lastDue = Math.max(this.#lastDue, due); // jitter does not change the order
    this.#queue.push({ bytes, dueAt: due === 0 ? 0 : this.#lastDue });
    this.#queued += bytes.length;
    if (this.#queued > QUEUE_BYTES_MAX) this.#from.pause();
    this.#pump();
  }
  #pump(): void {
    if (this.#to.destroyed || this.#cut) return;
    while (this.#queue.length > 0 && !this.#held) {
      if (this.#to.writableNeedDrain) return;
      const head = this.#queue[0]!;
      const wait = head.dueAt - performance.now();
      if (wait > 0) return this.#later(wait);
      const count = Math.min(head.bytes.length, this.#mayPass());
      if (count === 0) return this.#later(TICK_MS);
      this.#to.write(head.bytes.subarray(0, count));
      this.#done.bytes += count;
      this.#queued -= count;
      if (count === head.bytes.length) this.#queue.shift();
      else head.bytes = head.bytes.subarray(count);
    }
    if (this.#queued < QUEUE_BYTES_MAX / 2 && this.#from.isPaused()) this.#from.resume();
    if (this.#ended && this.#queue.length === 0 && !this.#held) this.#to.end();
  }
  #mayPass(): number {
    const rate = this.#fault.bytesPerSecond;
    if (rate === undefined) return Number.POSITIVE_INFINITY;
    const now = performance.now();
    this.#allowance = Math.min(rate, this.#allowance + ((now - this.#allowanceAt) * rate) / 1000);
    this.#allowanceAt = now;
    const whole = Math.floor(Math.max(this.#allowance, 0));
    this.#allowance -= Math.min(whole, this.#queue[0]!.bytes.length);
    return whole;
  }
  #later(ms: number): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.#pump();
    }, ms);
  }
}

/** Which of `peers` is at the other end of an accepted connection? null: it is gone already, or none of them. */
function sourceOf(socket: Socket, peers: readonly Peer[]): string | null {
  const { remotePort, localPort } = socket;
  if (remotePort === undefined || localPort === undefined) return null;
  const hex = (port: number): string => port.toString(16).toUpperCase().padStart(4, '0');
  const ends = `0100007F:${hex(remotePort)} 0100007F:${hex(localPort)} `;
  const line = readFileSync('/proc/net/tcp', 'latin1')
    .split('\n')
    .find((candidate) => candidate.includes(ends));
  const inode = line?.trim().split(/\s+/)[9];
  if (inode === undefined || inode === '0') return null;
  const wanted = `socket:[${inode}]`;
  return peers.find(({ pid }) => socketsOf(pid).includes(wanted))?.name ?? null;
}
function socketsOf(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
      } catch {
        return []; // closed in between
      }
    });
  } catch {
    return []; // the process is gone
  }
}
