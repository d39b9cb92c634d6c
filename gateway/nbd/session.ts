// One client's connection, without its socket: haggling first, then requests to an Image and replies back.
//
//   handshake ──GO──> serving ──DISC, end of stream──> leaving ──nothing in flight──> closed
//                        └─────shutDown, lock lost──> refusing ──nothing in flight──> closed
//
// The hot path: receive() parses every request of a chunk, each gets a record from the free list and goes to the image;
// completions gather in a list; one flush per turn of the loop writes all replies at once. A client that asks faster
// than its data moves is not refused: parsing stops and the wire is paused (INFLIGHT_*), and goes on as replies leave.
//
// The session does no I/O and keeps no time of its own: bytes come by receive(), go by the Wire, the turn ends by
// clock.soon().

import type { Image } from '../../cluster/client/image.ts';
import { payloadPool } from '../../proto/buffer-pool.ts';
import { StorageError } from '../../proto/errors.ts';
import { Outbox, type SlabPool } from '../../proto/outbox.ts';
import type { Clock, Log } from '../../proto/ports.ts';
import {
  Command,
  CommandFlag,
  Errno,
  type ExportTerms,
  Handshake,
  type HandshakeHost,
  type Negotiated,
  OptionReply,
  type Refusal,
  RequestDecoder,
  type RequestHeader,
  type RequestSink,
  rulesOf,
} from '../nbd-protocol-ts/index.ts';
import { errnoOf, type FailureLog } from './errno.ts';
import type { ExportTable, ExportUser, SharedExport } from './export-table.ts';
import { INFLIGHT_BYTES_MAX, INFLIGHT_REQUESTS_MAX, READ_DIRECT_BYTES_MIN, STATUS_BYTES_MAX } from './limits.ts';
import { writeReply } from './reply-writer.ts';
import { NbdRequest, type RequestOwner } from './request.ts';
import type { Wire } from './wire.ts';
import { isZeroing, stepZeroing } from './zeroing.ts';

export interface SessionWorld {
  readonly exports: ExportTable;
  readonly slabs: SlabPool;
  readonly clock: Clock;
  readonly log: Log;
  readonly failures: FailureLog;
  /** The client has chosen an export. */
  onEstablished(session: Session): void;
}

type State = 'handshake' | 'serving' | 'refusing' | 'leaving' | 'closed';

const SHUTTING_DOWN: Refusal = { error: Errno.ESHUTDOWN, message: 'the server is shutting down' };
const FAST_WITHOUT_HOLE: Refusal = { error: Errno.ENOTSUP, message: 'zeroes that take space are not fast' };
const FAST_AS_DATA = CommandFlag.FAST_ZERO | CommandFlag.NO_HOLE;
const NOTHING = (): void => {};

export class Session implements HandshakeHost, RequestSink, RequestOwner, ExportUser {
  readonly #world: SessionWorld;
  readonly #wire: Wire;
  readonly #outbox: Outbox;
  readonly #handshake = new Handshake(this);
  #state: State = 'handshake';
  /** Handshake bytes of the present call, to leave together. */
  #said: Buffer[] = [];
  #shared: SharedExport | null = null;
  #image: Image | null = null;
  #decoder: RequestDecoder | null = null;
  #structuredReplies = false;

  /** Chunks that wait because an export is being opened or too much is in flight; #at is into the first. */
  #backlog: Buffer[] = [];
  #at = 0;
  #held = false;
  #paused = false;
  #streamEnded = false;
  #stopping = false;
  #ended = false;

  #free: NbdRequest[] = [];
  #finished: NbdRequest[] = [];
  #inflightRequests = 0;
  #inflightBytes = 0;
  readonly #flush = (): void => this.#onTurnEnd();

  constructor(world: SessionWorld, wire: Wire) {
    this.#world = world;
    this.#wire = wire;
    this.#outbox = new Outbox(wire, world.slabs, () => this.#onSent());
  }

  get peer(): string {
    return this.#wire.peer;
  }
  get state(): State {
    return this.#state;
  }
  /** An export is being opened for this client: it waits for us. */
  get opening(): boolean {
    return this.#handshake.state === 'opening';
  }

  start(): void {
    this.#handshake.start();
    this.#say();
  }

  // --- from the wire

  /** Nothing refers to `chunk` afterwards. */
  receive(chunk: Buffer): void {
    if (this.#state === 'closed' || this.#state === 'leaving') return;
    if (this.#backlog.push(chunk) === 1) this.#consume();
    const last = this.#backlog.length - 1;
    if (last >= 0) this.#backlog[last] = Buffer.from(chunk);
  }

  /** Where the next bytes belong if they are the data of a large WRITE; null: hand them to receive(). */
  target(): Buffer | null {
    if (this.#decoder === null || this.#held || this.#backlog.length > 0) return null;
    if (this.#state !== 'serving' && this.#state !== 'refusing') return null;
    const { target } = this.#decoder;
    return target !== null && target.length >= READ_DIRECT_BYTES_MIN ? target : null;
  }

  /** So many bytes have been read into what target() gave last. */
  filled(bytes: number): void {
    if (this.#state === 'closed' || this.#state === 'leaving') return;
    this.#decoder!.filled(bytes);
    this.#waitOrGoOn();
  }

  /** The peer will send nothing more. It may still read. */
  streamEnded(): void {
    this.#streamEnded = true;
    if (this.#backlog.length === 0) this.#onStreamEnd();
  }

  /** The connection is gone. What is in flight ends without an answer. */
  closed(): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#backlog.length = 0;
    if (this.#shared === null) this.#world.log.debug('client left during the handshake', { peer: this.peer });
    else this.#world.log.info('client gone', { peer: this.peer, export: this.#shared.name });
    this.#releaseWhenIdle();
  }

  // --- from the server

  /** Options and requests are refused from now on; the connection ends when nothing is in flight. */
  shutDown(): void {
    this.#stopping = true;
    this.#handshake.shutDown();
    this.#refuseAll();
  }

  exportChanged(lost: boolean): void {
    if (lost) this.#refuseAll();
    else if (this.#decoder !== null) this.#decoder.rules.sizeBytes = this.#image!.sizeBytes;
  }

  // --- handshake

  send(bytes: Buffer): void {
    this.#said.push(bytes);
  }
  exports(): Iterable<ExportTerms> {
    return this.#world.exports.list();
  }
  find(name: string): ExportTerms | null {
    return this.#world.exports.find(name);
  }

  open(name: string): void {
    this.#world.exports.acquire(name, this).then(
      (shared) => this.#onOpened(shared),
      (error) => this.#onOpenFailed(name, error),
    );
  }

  #onOpened(shared: SharedExport): void {
    if (this.#state === 'closed' || this.#stopping) {
      this.#world.exports.release(shared, this);
      if (this.#state !== 'closed') this.#refuseOpening(OptionReply.ERR_SHUTDOWN, 'the server is shutting down');
      return;
    }
    this.#shared = shared;
    this.#image = shared.image!;
    this.#handshake.opened(this.#world.exports.termsOf(shared));
    this.#say();
    // The lock may have been lost already.
    if (!shared.usable) this.#refuseAll();
    this.#consume();
  }

  #onOpenFailed(name: string, error: unknown): void {
    if (!(error instanceof StorageError)) throw error;
    this.#world.log.warn('opening the export failed', { peer: this.peer, export: name, code: error.code, error });
    if (this.#state !== 'closed') this.#refuseOpening(replyTypeOf(error), error.message);
  }

  #refuseOpening(type: number, message: string): void {
    this.#handshake.refused(type, message);
    this.#say();
    this.#consume();
  }

  established(negotiated: Negotiated): void {
    this.#structuredReplies = negotiated.structuredReplies;
    this.#decoder = new RequestDecoder(this, rulesOf(negotiated), (bytes) => payloadPool.take(bytes));
    this.#state = 'serving';
    this.#world.log.info('client connected', { peer: this.peer, export: negotiated.terms.name });
    this.#world.onEstablished(this);
  }

  ended(reason: string | null): void {
    if (reason !== null) this.#world.log.warn(`client turned away: ${reason}`, { peer: this.peer });
    this.#state = 'leaving';
    this.#say();
    this.#wire.end();
  }

  #say(): void {
    if (this.#said.length === 0) return;
    this.#wire.write(this.#said, NOTHING);
    this.#said = [];
  }

  // --- bytes to requests

  /** Parses the backlog until it is empty or something must be waited for. */
  #consume(): void {
    while (this.#backlog.length > 0) {
      const chunk = this.#backlog[0]!;
      if (this.#decoder === null) {
        this.#at += this.#handshake.push(this.#at === 0 ? chunk : chunk.subarray(this.#at));
        this.#say();
      } else {
        this.#held = false;
        this.#at = this.#decoder.push(chunk, this.#at);
      }
      if (this.#state === 'leaving' || this.#state === 'closed') {
        this.#backlog.length = 0;
        return;
      }
      if (this.#at === chunk.length) {
        this.#backlog.shift();
        this.#at = 0;
      }
      if (this.#held || this.opening) break;
    }
    this.#waitOrGoOn();
    if (this.#streamEnded && this.#backlog.length === 0) this.#onStreamEnd();
  }

  #waitOrGoOn(): void {
    const waiting = this.#held || this.opening;
    if (waiting !== this.#paused) {
      this.#paused = waiting;
      if (waiting) this.#wire.pause();
      else this.#wire.resume();
    }
  }

  #onStreamEnd(): void {
    if (this.#state === 'closed' || this.#state === 'leaving') return;
    if (this.#decoder === null) {
      if (this.opening) return;
      this.#wire.destroy();
      return;
    }
    if (!this.#decoder.atBoundary)
      this.#world.log.warn('client left in the middle of a request', { peer: this.peer, export: this.#shared!.name });
    this.#leave();
  }

  request(header: RequestHeader, payload: Buffer | null): void {
    if (header.command === Command.DISC) {
      this.#decoder!.hold();
      return this.#leave();
    }
    if (this.#state === 'refusing') return this.refused(header, SHUTTING_DOWN);
    const image = this.#image!;
    const { command, lengthBytes } = header;
    const request = this.#begin(header, command <= Command.WRITE ? lengthBytes : 0);
    const fua = (header.flags & CommandFlag.FUA) !== 0;
    switch (command) {
      case Command.READ:
        if (lengthBytes === 0) this.#finish(request);
        else image.read(header.offset, lengthBytes, request.onRead);
        return;
      case Command.WRITE:
        if (lengthBytes === 0) this.#finish(request);
        else image.write(header.offset, payload!, fua, request.onDone);
        return;
      case Command.FLUSH:
        image.flush(request.onDone);
        return;
      case Command.TRIM:
      case Command.WRITE_ZEROES:
        if (lengthBytes === 0) this.#finish(request);
        else if ((header.flags & FAST_AS_DATA) === FAST_AS_DATA) this.#refuse(request, FAST_WITHOUT_HOLE);
        else stepZeroing(image, request);
        return;
      case Command.CACHE:
        // Advice: nothing here would make a later read faster.
        this.#finish(request);
        return;
      default:
        image.status(header.offset, Math.min(lengthBytes, STATUS_BYTES_MAX), request.onStatus);
    }
  }

  refused(header: RequestHeader, refusal: Refusal): void {
    this.#refuse(this.#begin(header, 0), refusal);
  }

  #refuse(request: NbdRequest, refusal: Refusal): void {
    request.error = refusal.error;
    request.message = refusal.message;
    this.#finish(request);
  }

  broken(reason: string): void {
    this.#world.log.warn(`client cut off: ${reason}`, { peer: this.peer, export: this.#shared!.name });
    this.#state = 'leaving'; // nothing that still waits to be parsed is looked at
    this.#wire.destroy();
  }

  #begin(header: RequestHeader, costBytes: number): NbdRequest {
    const request = this.#free.pop() ?? new NbdRequest(this);
    request.begin(header, costBytes);
    this.#inflightRequests++;
    this.#inflightBytes += costBytes;
    if (this.#full()) {
      this.#held = true;
      this.#decoder!.hold();
    }
    return request;
  }

  #full(): boolean {
    return (
      this.#inflightBytes + this.#outbox.unsentBytes >= INFLIGHT_BYTES_MAX ||
      this.#inflightRequests >= INFLIGHT_REQUESTS_MAX
    );
  }

  // --- results to replies

  onStep(request: NbdRequest): void {
    if (isZeroing(request) && stepZeroing(this.#image!, request)) return;
    this.#finish(request);
  }

  onFailure(request: NbdRequest, error: StorageError): void {
    const { command, offset, lengthBytes } = request;
    this.#world.failures.record(this.#shared!.name, command, offset, lengthBytes, error);
    request.error = errnoOf(error);
    request.message = error.message;
    this.#finish(request);
  }

  #finish(request: NbdRequest): void {
    if (this.#finished.push(request) === 1) this.#world.clock.soon(this.#flush);
  }

  /** The turn is over: everything that has finished is answered with one write. */
  #onTurnEnd(): void {
    const finished = this.#finished;
    const alive = this.#state !== 'closed';
    for (let index = 0; index < finished.length; index++) {
      const request = finished[index]!;
      if (alive) writeReply(this.#outbox, request, this.#structuredReplies);
      this.#inflightRequests--;
      this.#inflightBytes -= request.costBytes;
      request.end();
      this.#free.push(request);
    }
    finished.length = 0;
    if (alive) {
      this.#outbox.send();
      this.#goOn();
    }
    this.#releaseWhenIdle();
  }

  #onSent(): void {
    if (this.#state !== 'closed') this.#goOn();
  }

  /** Something has left: requests that waited may go, or the connection may end. */
  #goOn(): void {
    if (this.#state === 'leaving' || this.#state === 'refusing') {
      if (this.#inflightRequests === 0) return this.#endConnection();
    }
    if (this.#held && !this.#full()) {
      this.#held = false;
      this.#consume();
    }
  }

  // --- the end

  /** No more requests are read; what is in flight is finished and answered. */
  #leave(): void {
    if (this.#state === 'closed') return;
    this.#state = 'leaving';
    if (this.#inflightRequests === 0) this.#endConnection();
  }

  #refuseAll(): void {
    if (this.#state !== 'serving') return;
    this.#state = 'refusing';
    if (this.#inflightRequests === 0) this.#endConnection();
  }

  #endConnection(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#state = 'leaving';
    this.#wire.end();
    this.#releaseWhenIdle();
  }

  #releaseWhenIdle(): void {
    if (this.#image === null || this.#inflightRequests > 0) return;
    if (this.#state !== 'closed' && this.#state !== 'leaving') return;
    this.#image = null;
    this.#world.exports.release(this.#shared!, this);
  }
}

function replyTypeOf(error: StorageError): number {
  switch (error.code) {
    case 'NOT_FOUND':
      return OptionReply.ERR_UNKNOWN;
    case 'UNAVAILABLE':
      return OptionReply.ERR_SHUTDOWN;
    default:
      return OptionReply.ERR_POLICY;
  }
}
