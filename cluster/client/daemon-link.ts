// The client's connection to one daemon process, and the object operations in flight on it.

import { codeOfStatus } from '../../proto/errors.ts';
import { type Frame, newFrame, Op } from '../../proto/frame.ts';
import type { DaemonEntry } from '../../proto/map.ts';
import { encodeHello, type Hello } from '../../proto/peer-messages.ts';
import type { Connection, ConnectionEvents, Network } from '../../proto/ports.ts';
import { RequestTable } from '../../proto/request-table.ts';

/** Checks in a row (one per second) without a word from a daemon that owes an answer: then it is asked with a PING, */
const PING_AT = 1;
/** and given up at this one: a new connection may do what this one does not. */
const GIVE_UP_AT = 10;

/** Whoever waits for a daemon's answer; one of the two is called, once, unless the operation was taken back. */
export interface ReplyHandler {
  onReply(reply: Frame, link: DaemonLink): void;
  onLost(link: DaemonLink): void;
}

export class DaemonLink implements ConnectionEvents {
  readonly entry: DaemonEntry;
  readonly #onLost: (link: DaemonLink, reason: string) => void;
  readonly #connection: Connection;
  readonly #waiting = new RequestTable<ReplyHandler>();
  #heard = false;
  #quietChecks = 0;
  #over = false;

  constructor(
    network: Network,
    entry: DaemonEntry,
    local: boolean,
    hello: Hello,
    onLost: (link: DaemonLink, reason: string) => void,
  ) {
    this.entry = entry;
    this.#onLost = onLost;
    this.#connection = network.connect(local && entry.unixAddress !== '' ? entry.unixAddress : entry.address, this);
    const frame = newFrame(Op.HELLO);
    frame.meta = encodeHello(hello);
    this.#connection.send(frame);
  }

  get over(): boolean {
    return this.#over;
  }

  /** Sends `frame` with a request number of its own, which it returns. */
  send(frame: Frame, handler: ReplyHandler): number {
    frame.request = this.#waiting.add(handler);
    this.#connection.send(frame);
    return frame.request;
  }

  /** Those who wait for an answer, in the order in which they asked. */
  waiting(): ReplyHandler[] {
    return this.#waiting.values();
  }

  /** Nobody wants the answer to this request any more. */
  forget(request: number): void {
    this.#waiting.delete(request);
  }

  onFrame(reply: Frame): void {
    this.#heard = true;
    if (reply.op === Op.HELLO) {
      if (reply.status !== 0)
        this.end(`${codeOfStatus(reply.status)}: ${reply.meta?.toString('utf8') ?? 'no reason given'}`);
      return;
    }
    const handler = this.#waiting.get(reply.request);
    // An answer to a forgotten request is normal: the request went elsewhere meanwhile.
    if (handler === null) return;
    if (reply.op !== Op.LIST || reply.status !== 0) this.#waiting.delete(reply.request);
    handler.onReply(reply, this);
  }

  onClose(reason: string): void {
    this.end(reason);
  }

  /** Called every second: a daemon that owes an answer and says nothing is behind a connection that does not work. */
  check(): void {
    if (this.#heard || this.#waiting.size === 0) {
      this.#heard = false;
      this.#quietChecks = 0;
      return;
    }
    this.#quietChecks += 1;
    if (this.#quietChecks === PING_AT) this.send(newFrame(Op.PING), PING_HANDLER);
    if (this.#quietChecks === GIVE_UP_AT) this.end('it does not answer');
  }

  /** Closes it and tells everybody who waits. */
  end(reason: string): void {
    if (this.#over) return;
    this.#over = true;
    this.#connection.close();
    this.#onLost(this, reason);
    const handlers = this.#waiting.values();
    this.#waiting.clear();
    for (const handler of handlers) handler.onLost(this);
  }
}

const PING_HANDLER: ReplyHandler = { onReply: () => {}, onLost: () => {} };
