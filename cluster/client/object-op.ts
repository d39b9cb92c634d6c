// One operation on one object, from submit() until its answer: whatever happens to maps, daemons and connections.

import { firstMismatch, payloadChecksums } from '../../proto/checksum.ts';
import { codeOfStatus, type ErrorCode, StorageError } from '../../proto/errors.ts';
import { Flag, type Frame, newFrame, Op } from '../../proto/frame.ts';
import type { Epoch, PgId } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { DaemonLink, ReplyHandler } from './daemon-link.ts';
import type { ObjectRouter } from './object-router.ts';

/** Whoever submitted an operation. Called once per operation, from the event loop. */
export interface OpOwner {
  onOpDone(op: ObjectOp, error: StorageError | null): void;
}

/** A read whose data fails its checksum on the way is asked again this often before it is an error. */
const CHECKSUM_TRIES = 6;

export class ObjectOp implements ReplyHandler {
  readonly owner: OpOwner;
  readonly op: Op;
  readonly image: number;
  readonly object: number;
  readonly order: number;
  /** Whole blocks. */
  readonly offset: number;
  readonly length: number;
  /** Bytes into the owner's request; the owner's business. */
  readonly at: number;
  readonly fence: number;
  readonly fua: boolean;
  /** WRITE: the bytes. READ, when done: the bytes, or null if they are all zeros. */
  payload: Buffer | null;
  checks: Buffer | null = null;
  /** STATUS and LIST: what the daemon said. */
  metas: (Buffer | null)[] = [];
  /** The session's number of a write; given once, kept when it is sent again. */
  seq = 0;
  /** A daemon may have applied it already. */
  retry = false;
  pg: PgId = 0;
  /** Interval it was sent in, which is also the one a read was served in; after a write, the one that committed it. */
  since: Epoch = 0;
  link: DaemonLink | null = null;
  request = 0;
  /** READ: what came did not match its checksums; if the daemon's copy is bad, another's may be good. */
  #verify = false;
  #checksumTries = 0;
  readonly #router: ObjectRouter;

  constructor(
    router: ObjectRouter,
    owner: OpOwner,
    op: Op,
    place: { image: number; object: number; order: number; fence: number },
    offset: number,
    length: number,
    at: number,
    payload: Buffer | null,
    fua: boolean,
  ) {
    this.#router = router;
    this.owner = owner;
    this.op = op;
    this.image = place.image;
    this.object = place.object;
    this.order = place.order;
    this.fence = place.fence;
    this.offset = offset;
    this.length = length;
    this.at = at;
    this.payload = payload;
    this.fua = fua;
    if (op === Op.WRITE) this.checks = payloadChecksums(payload!, place.image, place.object, offset);
  }

  get mutates(): boolean {
    return this.op === Op.WRITE || this.op === Op.ZERO || this.op === Op.DELETE;
  }

  /** Payload that it brings or fetches. */
  get carriedBytes(): number {
    return this.op === Op.READ || this.op === Op.WRITE ? this.length : 0;
  }

  frame(epoch: Epoch, session: number): Frame {
    this.metas.length = 0; // a listing that broke off begins anew
    const frame = newFrame(this.op);
    frame.flags = (this.retry ? Flag.RETRY : 0) | (this.fua ? Flag.FUA : 0) | (this.#verify ? Flag.VERIFY : 0);
    frame.order = this.order;
    frame.session = session;
    frame.epoch = epoch;
    frame.pg = this.pg;
    frame.image = this.image;
    frame.object = this.object;
    frame.fence = this.fence;
    frame.offset = this.offset;
    frame.length = this.length;
    frame.seq = this.seq;
    if (this.op === Op.WRITE) {
      frame.meta = this.checks;
      frame.payload = this.payload;
    }
    return frame;
  }

  onReply(reply: Frame, link: DaemonLink): void {
    if (reply.status === 0) return this.#onSuccess(reply, link);
    this.link = null;
    const code = codeOfStatus(reply.status);
    switch (code) {
      case 'STALE':
      case 'NOT_PRIMARY':
      case 'UNAVAILABLE':
      case 'TIMEOUT':
        return this.#router.again(this, reply.epoch);
      case 'CHECKSUM':
        if (this.#mayTryAgain()) return this.#router.again(this, 0);
        return this.#fail('IO', 'the daemon says that the data does not match its checksums');
      default:
        return this.#fail(code, `daemon ${link.entry.id} refuses`);
    }
  }

  onLost(_link: DaemonLink): void {
    this.link = null;
    this.#router.again(this, 0);
  }

  #onSuccess(reply: Frame, link: DaemonLink): void {
    if (this.op === Op.READ && !this.#takeData(reply)) {
      this.link = null;
      this.#verify = true;
      if (this.#mayTryAgain()) return this.#router.again(this, 0);
      return this.#fail('IO', `data from daemon ${link.entry.id} does not match its checksums`);
    }
    if (this.op === Op.STATUS || this.op === Op.LIST) this.metas.push(reply.meta);
    if (this.op === Op.LIST && (reply.flags & Flag.LAST) === 0) return;
    if (this.op === Op.LIST) link.forget(this.request);
    this.link = null;
    if (this.mutates) this.since = reply.since;
    this.#router.done(this, null);
  }

  /** Checks what a READ brought. False: it can't be right. */
  #takeData(reply: Frame): boolean {
    if ((reply.flags & Flag.HOLE) !== 0) {
      this.payload = null;
      return reply.payload === null;
    }
    const { payload, meta } = reply;
    if (payload === null || payload.length !== this.length || meta?.length !== (this.length / BLOCK_BYTES) * 4)
      return false;
    if (firstMismatch(payload, meta, this.image, this.object, this.offset) !== -1) return false;
    zeroHoles(payload, meta);
    this.payload = payload;
    return true;
  }

  #mayTryAgain(): boolean {
    this.#checksumTries += 1;
    return this.#checksumTries < CHECKSUM_TRIES;
  }

  #fail(code: ErrorCode, why: string): void {
    const what = `object ${this.image}/${this.object} [${this.offset}, +${this.length})`;
    this.#router.done(this, new StorageError(code, `${what}: ${why} (${code})`));
  }
}

/** A block without data reads as zeros, whatever came over the wire in its place. */
function zeroHoles(payload: Buffer, checks: Buffer): void {
  for (let at = 0; at < checks.length; at += 4)
    if (checks.readUInt32LE(at) === 0) payload.fill(0, (at / 4) * BLOCK_BYTES, (at / 4 + 1) * BLOCK_BYTES);
}
