// An active PG at its primary: client requests in, replicated entries out.
//
//   write  -> next version -> own log and REPLICATE to every other member at once -> all have it -> committed: answer
//   read   -> waits for writes in flight to the same bytes -> own store -> answer with the stored checksums
//
// Nothing is answered from or for uncommitted data, and an entry commits only when every member of the acting set the
// master recorded has it. A member that fails does not make the set smaller here: the writes wait until the master
// publishes a set without it, and are then sent again by their clients.
//
// Entries commit in order: members apply them in order, and each connection keeps the order.

import { payloadPool } from '../../proto/buffer-pool.ts';
import { firstMismatch } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { Flag, type Frame, newFrame, Op, replyTo } from '../../proto/frame.ts';
import { type DaemonId, type ObjectKey, objectKey, sameVersion, VERSION_ZERO } from '../../proto/ids.ts';
import { EntryOp, type LogEntry } from '../store/store.ts';
import type { Daemon } from './daemon.ts';
import type { Interval } from './interval.ts';
import type { ReadLease } from './lease.ts';
import type { ReplyHandler } from './peers.ts';
import { Repair } from './repair.ts';
import { ObjectHolds } from './repair-holds.ts';
import { invalidRequest, type Request, refuse } from './request.ts';

/** Object numbers per LIST reply. */
const LIST_MAX = 65_536;

export class Serving {
  readonly #interval: Interval;
  readonly #daemon: Daemon;
  readonly #since: number;
  #nextSeq: number;
  /** Entries on their way to the members, oldest first: a few, since a daemon has some hundred PGs. */
  readonly #inflight: Write[] = [];
  readonly #holds = new ObjectHolds(
    (key) => this.#newestOver(key, 0, Infinity) === null,
    (request) => this.handle(request),
  );
  readonly repair: Repair;
  readonly #lease: ReadLease;
  #over = false;

  constructor(interval: Interval) {
    this.#interval = interval;
    this.repair = new Repair(interval, this.#holds);
    this.#daemon = interval.daemon;
    this.#since = interval.entry.since;
    this.#nextSeq = interval.daemon.store.pgInfo(interval.entry.pg).last.seq + 1;
    this.#lease = interval.daemon.leases.reader(interval.others, (request) => this.handle(request));
  }

  /**
   * Stops; hands back what is unanswered, oldest first, marked as sent before: whether it was applied is for the log
   * to say.
   */
  end(): Request[] {
    if (this.#over) return [];
    this.#over = true;
    const requests: Request[] = [];
    for (const write of this.#inflight) {
      write.over = true;
      if (write.request !== null) {
        write.request.frame.flags |= Flag.RETRY;
        requests.push(write.request);
      }
      if (write.readers !== null) requests.push(...write.readers);
    }
    this.#inflight.length = 0;
    this.repair.end();
    requests.push(...this.#holds.end(), ...this.#lease.end());
    return requests;
  }

  handle(request: Request): void {
    const { frame } = request;
    const { epoch } = this.#daemon;
    // It ended while a list of requests was being handed to it.
    if (this.#over) return refuse(request, 'UNAVAILABLE', epoch);
    if (frame.epoch < this.#since) return refuse(request, 'STALE', epoch);
    const why = invalidRequest(frame, this.#daemon.map!);
    if (why !== null) return refuse(request, why, epoch);
    switch (frame.op) {
      case Op.READ:
        return this.#lease.covers(request) ? this.#read(request) : undefined;
      case Op.WRITE:
      case Op.ZERO:
      case Op.DELETE:
        return this.#write(request);
      case Op.STATUS:
        return this.#lease.covers(request) ? this.#status(request) : undefined;
      case Op.LIST:
        return this.#lease.covers(request) ? this.#list(request) : undefined;
      default:
        return refuse(request, 'INVALID', epoch);
    }
  }

  #read(request: Request): void {
    const { frame } = request;
    if (this.#inflight.length > 0) {
      const write = this.#newestOver(objectKey(frame.image, frame.object), frame.offset, frame.offset + frame.length);
      if (write !== null) return waitFor(write, request);
    }
    if ((frame.flags & Flag.VERIFY) !== 0) return this.#readProven(request);
    this.#daemon.store.read(
      frame.image,
      frame.object,
      frame.order,
      frame.offset,
      frame.length,
      (error, checks, payload) => {
        if (error === null) return this.#answerRead(request, checks, payload);
        this.#daemon.log.error('read failed', { image: frame.image, object: frame.object, why: error.message });
        this.#readProven(request);
      },
    );
  }

  /** This daemon's copy can't be read, or the client found it bad: another member's may be good. */
  #readProven(request: Request): void {
    const { image, object, order, offset, length } = request.frame;
    this.repair.read({ image, object, order, offset, length }).then(
      ({ checks, payload }) => this.#answerRead(request, checks, payload),
      (error: unknown) => {
        if (!(error instanceof StorageError)) throw error;
        if (this.#over) return refuse(request, 'STALE', this.#daemon.epoch);
        this.#daemon.log.error('no copy can be read', { image, object, why: error.message });
        refuse(request, error.code, this.#daemon.epoch);
      },
    );
  }

  #answerRead(request: Request, checks: Buffer | null, payload: Buffer | null): void {
    // An ended interval must not answer: a newer one may have taken writes elsewhere meanwhile.
    if (this.#over) return refuse(request, 'STALE', this.#daemon.epoch);
    const reply = replyTo(request.frame, 0, this.#daemon.epoch);
    if (payload === null) reply.flags |= Flag.HOLE;
    else {
      reply.meta = checks;
      reply.payload = payload;
      reply.givePayload = true;
    }
    request.from.send(reply);
  }

  #write(request: Request): void {
    const { frame } = request;
    const daemon = this.#daemon;
    const key = objectKey(frame.image, frame.object);
    // An object that some member misses is recovered first: entries then apply to whole objects only.
    if (this.#interval.recovery?.defer(key, request) === true) return;
    // One that is compared or repaired stands still meanwhile.
    if (this.#holds.any && this.#holds.defer(key, request)) return;
    if ((frame.flags & Flag.RETRY) !== 0 && this.#answeredBefore(request)) return;
    if (frame.op === Op.WRITE) {
      const bad = firstMismatch(frame.payload!, frame.meta!, frame.image, frame.object, frame.offset);
      if (bad !== -1) return refuse(request, 'CHECKSUM', daemon.epoch);
      if (daemon.fullPeers.size > 0 && this.#interval.others.some((id) => daemon.fullPeers.has(id)))
        return refuse(request, 'NO_SPACE', daemon.epoch);
    } else if (
      this.#newestOver(key, 0, Infinity) === null &&
      sameVersion(daemon.store.objectVersion(frame.image, frame.object), VERSION_ZERO)
    )
      // Nothing to remove, here or at any member; the members are not asked.
      return this.#lease.covers(request) ? this.#acknowledgeLogged(request) : undefined;
    const deletes = frame.op === Op.DELETE;
    const entry: LogEntry = {
      pg: frame.pg,
      version: { since: this.#since, seq: this.#nextSeq },
      op: deletes ? EntryOp.DELETE : frame.op === Op.ZERO ? EntryOp.ZERO : EntryOp.WRITE,
      image: frame.image,
      object: frame.object,
      order: frame.order,
      offset: deletes ? 0 : frame.offset,
      length: deletes ? 1 << frame.order : frame.length,
      session: frame.session,
      sessionSeq: frame.seq,
    };
    const durable = (frame.flags & Flag.FUA) !== 0 || this.#interval.pool.durability === 'sync';
    const write = new Write(this, request, key, entry, durable);
    try {
      daemon.store.append(entry, frame.payload, frame.meta, frame.op !== Op.WRITE, write.onLogged);
    } catch (error) {
      if (error instanceof StorageError) return refuse(request, error.code, daemon.epoch);
      throw error;
    }
    this.#nextSeq += 1;
    this.#inflight.push(write);
    const { others } = this.#interval;
    write.awaited = others.length + 1;
    for (const id of others) daemon.peer(id).request(replicateFrame(frame, entry, durable, daemon.epoch), write);
    if (deletes) this.#interval.recovery?.deleted(key);
  }

  /**
   * The newest write in flight to bytes [start, end) of an object. Those of overlapping bytes commit in order, so waiting
   * for it is waiting for all of them.
   */
  #newestOver(key: ObjectKey, start: number, end: number): Write | null {
    for (let i = this.#inflight.length - 1; i >= 0; i--) {
      const write = this.#inflight[i]!;
      if (write.key === key && write.start < end && write.end > start) return write;
    }
    return null;
  }

  /** The request is in the log already: answer it when it is committed and, if asked, durable. */
  #answeredBefore(request: Request): boolean {
    const { frame } = request;
    const version = this.#daemon.store.findRequest(frame.pg, frame.session, frame.seq);
    if (version === null) return false;
    const write = this.#inflight.find((one) => sameVersion(one.entry.version, version));
    if (write !== undefined) {
      write.request = request;
      return true;
    }
    this.#acknowledgeLogged(request);
    return true;
  }

  /** Answers a request whose effect is in every member's log already; durable first, if it must be. */
  #acknowledgeLogged(request: Request): void {
    if ((request.frame.flags & Flag.FUA) === 0 && this.#interval.pool.durability === 'flush')
      return this.#acknowledge(request);
    this.#syncMembers((done) => {
      if (done) this.#acknowledge(request);
      else refuse(request, 'UNAVAILABLE', this.#daemon.epoch);
    });
  }

  /** Puts everything logged so far on stable storage of all members. */
  #syncMembers(done: (synced: boolean) => void): void {
    let awaited = this.#interval.others.length + 1;
    let all = true;
    const one = (synced: boolean): void => {
      if (!synced) all = false;
      if (--awaited === 0) done(all && !this.#over);
    };
    this.#daemon.store.sync((error) => one(error === null));
    for (const id of this.#interval.others) {
      const frame = newFrame(Op.SYNC);
      frame.epoch = this.#daemon.epoch;
      this.#daemon.peer(id).request(frame, { onReply: (reply) => one(reply.status === 0), onLost: () => one(false) });
    }
  }

  syncOwn(done: (error: Error | null) => void): void {
    this.#daemon.store.sync(done);
  }

  /** Every member has the entry. */
  commit(write: Write): void {
    this.#inflight.splice(this.#inflight.indexOf(write), 1);
    if (write.request !== null) {
      this.#acknowledge(write.request);
      // Logged here, and taken in by every other member.
      payloadPool.give(write.request.frame.payload);
    }
    if (write.readers !== null) for (const reader of write.readers) this.handle(reader);
    if (this.#holds.any) this.#holds.quiet(write.key);
  }

  #acknowledge(request: Request): void {
    const reply = replyTo(request.frame, 0, this.#daemon.epoch);
    // The client keeps the write until it is flushed, and replays it if this interval has ended by then.
    reply.since = this.#since;
    request.from.send(reply);
  }

  /** A member did not take an entry, or is gone: start the interval over; only the master can leave the member out. */
  memberFailed(id: DaemonId, why: string): void {
    if (this.#over) return;
    this.#daemon.log.warn('member did not take a write', { daemon: id, why });
    this.#daemon.restartInterval(this.#interval);
  }

  /** A member took the entry out of its reserve: no more writes that need space until it has some again. */
  memberFull(id: DaemonId): void {
    this.#daemon.peerFull(id);
  }

  #status(request: Request): void {
    const { frame } = request;
    const newest = this.#newestOver(objectKey(frame.image, frame.object), 0, Infinity);
    if (newest !== null) return waitFor(newest, request);
    const reply = replyTo(frame, 0, this.#daemon.epoch);
    reply.meta = this.#daemon.store.allocation(frame.image, frame.object);
    request.from.send(reply);
  }

  #list(request: Request): void {
    const { frame } = request;
    const numbers: number[] = [];
    for (const info of this.#daemon.store.objects(frame.pg)) if (info.image === frame.image) numbers.push(info.object);
    for (let at = 0; at < numbers.length || at === 0; at += LIST_MAX) {
      const page = numbers.slice(at, at + LIST_MAX);
      const reply = replyTo(frame, 0, this.#daemon.epoch);
      reply.meta = Buffer.alloc(page.length * 4);
      for (let i = 0; i < page.length; i++) reply.meta.writeUInt32LE(page[i]!, i * 4);
      if (at + LIST_MAX >= numbers.length) reply.flags |= Flag.LAST;
      request.from.send(reply);
    }
  }
}

/** The request is handled once the write is committed. */
function waitFor(write: Write, request: Request): void {
  write.readers ??= [];
  write.readers.push(request);
}

/** One entry between its append and its commit; also what waits for the members' answers. */
export class Write implements ReplyHandler {
  readonly #serving: Serving;
  /** Whom to answer; null when nobody waits any more. */
  request: Request | null;
  readonly key: ObjectKey;
  readonly entry: LogEntry;
  readonly start: number;
  readonly end: number;
  readonly durable: boolean;
  /** Members, this daemon among them, that have not answered yet. */
  awaited = 0;
  /** Reads of the same bytes, in order. */
  readers: Request[] | null = null;
  over = false;
  readonly onLogged: (error: Error | null) => void;
  readonly #onSynced: (error: Error | null) => void;

  constructor(serving: Serving, request: Request, key: ObjectKey, entry: LogEntry, durable: boolean) {
    this.#serving = serving;
    this.request = request;
    this.key = key;
    this.entry = entry;
    this.start = entry.offset;
    this.end = entry.offset + entry.length;
    this.durable = durable;
    this.onLogged = (error) => {
      // A store that can't log tells the daemon itself, which stops.
      if (error !== null || this.over) return;
      if (durable) serving.syncOwn(this.#onSynced);
      else this.#answered();
    };
    this.#onSynced = (error) => {
      if (error === null && !this.over) this.#answered();
    };
  }

  onReply(reply: Frame, from: DaemonId): void {
    if (this.over) return;
    if ((reply.flags & Flag.FULL) !== 0) this.#serving.memberFull(from);
    if (reply.status !== 0) this.#serving.memberFailed(from, `status ${reply.status}`);
    else this.#answered();
  }

  onLost(from: DaemonId): void {
    if (!this.over) this.#serving.memberFailed(from, 'connection lost');
  }

  #answered(): void {
    if (--this.awaited === 0) this.#serving.commit(this);
  }
}

function replicateFrame(request: Frame, entry: LogEntry, durable: boolean, epoch: number): Frame {
  const frame = newFrame(Op.REPLICATE);
  frame.status = entry.op;
  frame.flags = durable ? Flag.FUA : 0;
  frame.order = entry.order;
  frame.session = entry.session;
  frame.epoch = epoch;
  frame.pg = entry.pg;
  frame.image = entry.image;
  frame.object = entry.object;
  frame.offset = entry.offset;
  frame.length = entry.length;
  frame.seq = entry.sessionSeq;
  frame.since = entry.version.since;
  frame.pgSeq = entry.version.seq;
  frame.meta = request.meta;
  frame.payload = request.payload;
  return frame;
}
