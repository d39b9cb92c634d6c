// Connections that this daemon opens to other daemons, as primary of PGs they are members of.
//
// One connection per daemon and per process of it (boot id): what was sent to a process that died is lost for good,
// and everybody who waits for an answer hears so at once. Requests are answered in any order. The hello goes first and
// nobody waits for its answer: a daemon that refuses it closes the connection.
//
// A peer that owes an answer and says nothing, not even to a PING, may be behind a broken link while the master hears
// it well: it is reported, and the connection given up in the end.

import { Flag, type Frame, newFrame, Op } from '../../proto/frame.ts';
import type { DaemonId } from '../../proto/ids.ts';
import type { DaemonEntry } from '../../proto/map.ts';
import { encodeHello, type Hello } from '../../proto/peer-messages.ts';
import type { Connection, ConnectionEvents, Network } from '../../proto/ports.ts';
import { RequestTable } from '../../proto/request-table.ts';

/** Checks in a row (one per heartbeat) without a word from a peer that owes an answer: then it is asked with a PING, */
const PING_AT = 1;
/** reported to the master at this one and at each that follows, */
const REPORT_AT = 4;
/** and connected anew at this one. */
const GIVE_UP_AT = 10;

/** Whoever waits for a peer's answer. Exactly one of the two is called, once. */
export interface ReplyHandler {
  onReply(reply: Frame, from: DaemonId): void;
  onLost(from: DaemonId): void;
}

export class PeerLink implements ConnectionEvents {
  readonly entry: DaemonEntry;
  readonly #onLost: (link: PeerLink, reason: string) => void;
  readonly #connection: Connection;
  readonly #waiting = new RequestTable<ReplyHandler>();
  /** The peer has said something on this connection, or at least since the last check. */
  #everHeard = false;
  #heard = false;
  #quietChecks = 0;
  #over = false;

  constructor(
    network: Network,
    entry: DaemonEntry,
    local: boolean,
    hello: Hello,
    onLost: (link: PeerLink, reason: string) => void,
  ) {
    this.entry = entry;
    this.#onLost = onLost;
    this.#connection = network.connect(local && entry.unixAddress !== '' ? entry.unixAddress : entry.address, this);
    const frame = newFrame(Op.HELLO);
    frame.meta = encodeHello(hello);
    this.#connection.send(frame);
  }

  /** Sends `frame` with a request number of its own. */
  request(frame: Frame, handler: ReplyHandler): void {
    if (this.#over) return handler.onLost(this.entry.id);
    frame.request = this.#waiting.add(handler);
    this.#connection.send(frame);
  }

  onFrame(reply: Frame): void {
    this.#heard = true;
    this.#everHeard = true;
    if (reply.op === Op.HELLO) {
      if (reply.status !== 0) this.#end(`refused: ${reply.meta?.toString('utf8') ?? 'no reason given'}`);
      return;
    }
    const handler = this.#waiting.get(reply.request);
    if (handler === null) return this.#end('an answer to a question that was not asked');
    const listing = reply.op === Op.PG_LIST || reply.op === Op.PG_SCRUB;
    if (!listing || (reply.flags & Flag.LAST) !== 0 || reply.status !== 0) this.#waiting.delete(reply.request);
    handler.onReply(reply, this.entry.id);
  }

  onClose(reason: string): void {
    this.#end(reason);
  }

  /**
   * Did it never get through to the peer? The end of a connection that did may be anything: the next attempt will tell.
   * A process that died is seen by the master at once.
   */
  get inVain(): boolean {
    return !this.#everHeard;
  }

  /** Called once per heartbeat. True: the peer owes an answer and has said nothing for too long. */
  isSilent(): boolean {
    if (this.#heard || this.#waiting.size === 0) {
      this.#heard = false;
      this.#quietChecks = 0;
      return false;
    }
    this.#quietChecks += 1;
    if (this.#quietChecks === PING_AT) this.request(newFrame(Op.PING), PING_HANDLER);
    if (this.#quietChecks === GIVE_UP_AT) this.#end('it does not answer');
    return this.#quietChecks >= REPORT_AT;
  }

  /** Ends it without a report: the map says that the process is gone. */
  drop(): void {
    if (this.#over) return;
    this.#over = true;
    this.#connection.close();
    this.#tellAll();
  }

  #end(reason: string): void {
    if (this.#over) return;
    this.#over = true;
    this.#connection.close();
    // First, so that those who ask again at once get a new connection.
    this.#onLost(this, reason);
    this.#tellAll();
  }

  #tellAll(): void {
    const handlers = this.#waiting.values();
    this.#waiting.clear();
    for (const handler of handlers) handler.onLost(this.entry.id);
  }
}

const PING_HANDLER: ReplyHandler = { onReply: () => {}, onLost: () => {} };
