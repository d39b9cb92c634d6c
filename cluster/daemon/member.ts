// What a daemon does for PGs that another daemon is primary of: log what the primary sends, and answer its questions.
//
// A member answers only for the interval it is in: the frame's `since` must be the one in its map, the sender that
// interval's primary, and (for entries) the member activated in it, the sequence without a gap. Everything else is
// STALE, and the primary starts over.

import { payloadPool } from '../../proto/buffer-pool.ts';
import { firstMismatch } from '../../proto/checksum.ts';
import { type ErrorCode, StorageError, wireStatus } from '../../proto/errors.ts';
import { Flag, type Frame, Op, replyTo } from '../../proto/frame.ts';
import { type PgId, pgName } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { PgEntry } from '../../proto/map.ts';
import { decodeActivation, encodeEntries, encodeListing, encodePgInfo, LISTED_MAX } from '../../proto/peer-messages.ts';
import type { EntryOp, LogEntry } from '../store/store.ts';
import type { Daemon } from './daemon.ts';
import { BAD_BLOCK, badBlocks } from './repair-verify.ts';
import type { Request } from './request.ts';
import { answerScrub } from './scrub-member.ts';

/** An interval is named by an epoch, 32 bits; in a push it travels in a field of 64. */
const SINCE_MAX = 2 ** 32 - 1;

/** A PG that its primary has activated in the current interval. */
interface Activated {
  readonly since: number;
  /** Where its log ends. */
  lastSeq: number;
  /** The activation is on stable storage. */
  durable: boolean;
}

export class Members {
  readonly #daemon: Daemon;
  readonly #active = new Map<PgId, Activated>();

  constructor(daemon: Daemon) {
    this.#daemon = daemon;
  }

  /** The interval is over for this daemon: the PG has a new one, or this daemon has left it. */
  leave(entry: PgEntry): void {
    this.#active.delete(entry.pg);
    this.#daemon.leases.leave(entry);
  }

  handle(request: Request, sender: number): void {
    const { frame } = request;
    const entry = this.#daemon.map!.pgs.get(frame.pg);
    const inForce = entry !== undefined && entry.since === frame.since && entry.acting[0] === sender;
    if (!inForce || !entry.acting.includes(this.#daemon.id)) return this.#answer(request, 'STALE');
    try {
      switch (frame.op) {
        case Op.REPLICATE:
          return this.#onReplicate(request);
        case Op.PG_QUERY:
          this.#active.delete(frame.pg);
          return this.#answer(request, 'OK', this.#pgInfo(entry));
        case Op.PG_LOG:
          return this.#onLog(request);
        case Op.PG_LIST:
          return this.#onList(request);
        case Op.PG_ACTIVATE:
          return this.#onActivate(request);
        case Op.PG_PUSH:
          return this.#onPush(request);
        case Op.PG_COMPLETE:
          return this.#onComplete(request);
        case Op.PG_READ:
        case Op.PG_SCRUB:
        case Op.PG_VERIFY:
          if (this.#activated(frame) === null) return this.#answer(request, 'STALE');
          return answerScrub(this.#daemon, request);
        default:
          return this.#answer(request, 'INVALID');
      }
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      this.#daemon.log.error('refused a message of the primary', { pg: pgName(frame.pg), why: error.message });
      this.#answer(request, error.code);
    }
  }

  #onReplicate(request: Request): void {
    const { frame } = request;
    const state = this.#activated(frame);
    if (state === null || frame.pgSeq !== state.lastSeq + 1) return this.#answer(request, 'STALE');
    this.#daemon.throttle.clientBytes += frame.length;
    const why = invalidData(frame);
    if (why !== null) return this.#answer(request, why);
    const entry: LogEntry = {
      pg: frame.pg,
      version: { since: frame.since, seq: frame.pgSeq },
      op: frame.status as EntryOp,
      image: frame.image,
      object: frame.object,
      order: frame.order,
      offset: frame.offset,
      length: frame.length,
      session: frame.session,
      sessionSeq: frame.seq,
    };
    this.#daemon.store.append(entry, frame.payload, frame.meta, true, (error) => {
      if (error !== null) return;
      payloadPool.give(frame.payload);
      if ((frame.flags & Flag.FUA) === 0) this.#answer(request, 'OK');
      else this.#daemon.store.sync((failed) => failed === null && this.#answer(request, 'OK'));
    });
    state.lastSeq = frame.pgSeq;
  }

  #pgInfo(entry: PgEntry): Buffer {
    return encodePgInfo(this.#daemon.store.pgInfo(entry.pg), this.#daemon.leases.outstanding(entry));
  }

  #onLog(request: Request): void {
    const { store } = this.#daemon;
    const entries = store.logAfter(request.frame.pg, store.pgInfo(request.frame.pg).tail);
    this.#answer(request, 'OK', encodeEntries(entries ?? []));
  }

  #onList(request: Request): void {
    const objects = [...this.#daemon.store.objects(request.frame.pg)];
    for (let at = 0; at === 0 || at < objects.length; at += LISTED_MAX) {
      const reply = replyTo(request.frame, 0, this.#daemon.epoch);
      reply.meta = encodeListing(objects.slice(at, at + LISTED_MAX));
      if (at + LISTED_MAX >= objects.length) reply.flags |= Flag.LAST;
      request.from.send(reply);
    }
  }

  #onActivate(request: Request): void {
    const { store } = this.#daemon;
    const { pg, since } = request.frame;
    const { mode, version, complete, entries } = decodeActivation<LogEntry>(pg, request.frame.meta);
    // Should it fail half way, no entry of the activation before may be taken any more: the primary peers anew.
    this.#active.delete(pg);
    // Incomplete first: if the power goes in the middle, what follows must not look like a whole copy.
    if (!complete) store.setPg(pg, store.pgInfo(pg).les, false);
    if (mode === 'reset') store.resetLog(pg, version);
    else if (mode === 'truncate') store.truncateLog(pg, version);
    if (entries.length > 0) store.mergeLog(pg, entries);
    store.setPg(pg, since, complete);
    const state: Activated = { since, lastSeq: store.pgInfo(pg).last.seq, durable: false };
    this.#active.set(pg, state);
    store.sync((error) => {
      // A newer interval, or a primary that began anew, has made it void meanwhile.
      if (error !== null || this.#active.get(pg) !== state) return;
      state.durable = true;
      this.#answer(request, 'OK');
    });
  }

  #onPush(request: Request): void {
    const { frame } = request;
    const { store } = this.#daemon;
    if (this.#activated(frame) === null) return this.#answer(request, 'STALE');
    const done = (error: Error | null): void => {
      if (error !== null) return;
      payloadPool.give(frame.payload);
      this.#answer(request, 'OK');
    };
    const last = (frame.flags & Flag.LAST) !== 0;
    // A push without a version is the removal of an object that the primary does not have.
    if (frame.pgSeq === 0) return store.recoverDelete(frame.pg, frame.image, frame.object, done);
    const why = invalidPush(frame);
    if (why !== null) return this.#answer(request, why);
    store.recover(
      {
        pg: frame.pg,
        image: frame.image,
        object: frame.object,
        order: frame.order,
        replace: (frame.flags & Flag.FIRST) !== 0,
        offset: frame.offset,
        length: frame.length,
        version: last ? { since: frame.seq, seq: frame.pgSeq } : { since: 0, seq: 0 },
      },
      frame.payload,
      frame.meta,
      done,
    );
  }

  #onComplete(request: Request): void {
    const { store } = this.#daemon;
    const { pg, since } = request.frame;
    if (this.#activated(request.frame) === null) return this.#answer(request, 'STALE');
    store.setPg(pg, since, true);
    store.sync((error) => error === null && this.#answer(request, 'OK'));
  }

  /** The PG's state if it is activated in the interval that the frame belongs to. */
  #activated(frame: Frame): Activated | null {
    const state = this.#active.get(frame.pg);
    return state?.durable === true && state.since === frame.since ? state : null;
  }

  #answer(request: Request, code: ErrorCode, meta: Buffer | null = null): void {
    const reply: Frame = replyTo(request.frame, wireStatus(code), this.#daemon.epoch);
    reply.meta = meta;
    if (this.#daemon.full) reply.flags |= Flag.FULL;
    request.from.send(reply);
  }
}

/** Why the data of an entry or a push can't be right, or null. Whether there must be any is for the store to say. */
function invalidData({ payload, meta, image, object, offset, length }: Frame): ErrorCode | null {
  if (payload === null) return null;
  if (payload.length !== length || meta?.length !== (length / BLOCK_BYTES) * 4) return 'INVALID';
  return firstMismatch(payload, meta, image, object, offset) === -1 ? null : 'CHECKSUM';
}

/** A push may bring blocks that are known to be bad in every copy: they are bad here too. All others must match. */
function invalidPush(frame: Frame): ErrorCode | null {
  const why = frame.seq > SINCE_MAX ? 'INVALID' : invalidData(frame);
  if (why !== 'CHECKSUM') return why;
  const bad = badBlocks(frame.payload!, frame.meta!, frame);
  return bad.every((block) => frame.meta!.readUInt32LE(block * 4) === BAD_BLOCK) ? null : why;
}
