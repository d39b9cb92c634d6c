// Repairs copies of an active PG from copies that are proven: one object at a time, while it stands still.
//
//   own block bad   -> PG_READ to the other members, one after the other -> a block whose checksum proves it
//                   -> written over the own one, in the log as recovery does, at the object's version
//   member's bad    -> own block, proven -> PG_PUSH to that member
//   object at another version at a member -> the copy whose version is that of the PG's log, proven entirely, takes the
//                   place of the other in one piece: pushed to the member, or adopted from it
//
// What proves a block: its bytes match the checksum that the primary's own index holds for it. Only where that entry
// itself says "known to be bad" does the member's entry count, and then only at the same version of the object. A block
// that nothing proves is reported and stays as it is; two copies that both match their checksums and yet differ are
// reported and not judged. Never is anything decided by a majority, a time or a size.

import { payloadPool } from '../../proto/buffer-pool.ts';
import { blockChecksum, NO_DATA } from '../../proto/checksum.ts';
import type { Inconsistency } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { Flag, type Frame, newFrame, Op } from '../../proto/frame.ts';
import {
  compareVersions,
  type DaemonId,
  objectKey,
  pgName,
  sameVersion,
  VERSION_ZERO,
  type Version,
} from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { type Done, EntryOp, type ObjectInfo } from '../store/store.ts';
import type { Interval } from './interval.ts';
import { askMember } from './repair-ask.ts';
import type { ObjectHolds } from './repair-holds.ts';
import { BAD_BLOCK, badBlocks, type Copy, type Range, verifyOwn } from './repair-verify.ts';
import type { Findings } from './scrub-findings.ts';

/** Bytes of an object that are compared at a time. */
const PIECE_BYTES = 1024 * 1024;

/** Own copy of a range, after what could be proven was put right. */
interface Proven extends Copy {
  /** Blocks without a proven copy, counted from the start of the range. */
  readonly bad: number[];
}

export class Repair {
  readonly #interval: Interval;
  readonly #holds: ObjectHolds;
  #over = false;

  constructor(interval: Interval, holds: ObjectHolds) {
    this.#interval = interval;
    this.#holds = holds;
  }

  /** What is still being done has no effect any more; its callers hear UNAVAILABLE. */
  end(): void {
    this.#over = true;
  }

  /**
   * Reads a range of this daemon's copy that failed, with what another member proves, and repairs it.
   * @returns proven data; the payload may be of payloadPool
   * Rejects with StorageError: IO if a block has no proven copy, UNAVAILABLE if the interval ended.
   */
  read(range: Range): Promise<Copy> {
    return this.#held(range, async () => {
      const own = await this.#proveOwn(range, true);
      if (own.bad.length > 0) throw this.#noCopy(range, own);
      return own;
    });
  }

  /**
   * The same for a member that is being recovered: blocks that nobody can prove come with the checksum BAD_BLOCK, so
   * that they are as bad there as they are here, and the rest of the object gets its copies. But what could not be read
   * may be read another time: then it is an error as in read().
   */
  readMarked(range: Range): Promise<Copy> {
    return this.#held(range, async () => {
      const own = await this.#proveOwn(range, true);
      if (own.bad.length > 0 && own.unreadable) throw this.#noCopy(range, own);
      for (const block of own.bad) own.checks.writeUInt32LE(BAD_BLOCK, block * 4);
      return own;
    });
  }

  #noCopy(range: Range, own: Proven): StorageError {
    payloadPool.give(own.payload);
    const [first] = own.bad;
    return new StorageError('IO', `block at ${range.offset + first! * BLOCK_BYTES} has no proven copy`);
  }

  /**
   * Compares all copies of an object block by block, reports what is wrong and, with `repair`, puts right what can be
   * proven. Rejects with UNAVAILABLE if the interval ended or a member did not answer.
   */
  compare(object: Omit<ObjectInfo, 'version'>, repair: boolean): Promise<void> {
    const { image, object: number, order } = object;
    const whole: Range = { image, object: number, order, offset: 0, length: 2 ** order };
    return this.#held(whole, () => this.#compareWhole(whole, repair));
  }

  async #compareWhole(whole: Range, repair: boolean): Promise<void> {
    const same: DaemonId[] = [];
    const version = this.#interval.daemon.store.objectVersion(whole.image, whole.object);
    for (const id of this.#interval.others) {
      const reply = await this.#ask(id, { ...whole, length: BLOCK_BYTES });
      payloadPool.give(reply.payload);
      const theirs = versionOf(reply);
      if (sameVersion(theirs, version)) same.push(id);
      else if ((await this.#settle(whole, version, id, theirs, repair)) === 'changed')
        // The own copy is another now, the one that the log speaks of: all are compared with that.
        return this.#compareWhole(whole, repair);
    }
    if (sameVersion(version, VERSION_ZERO)) return;
    for (let offset = 0; offset < whole.length; offset += PIECE_BYTES) {
      const length = Math.min(PIECE_BYTES, whole.length - offset);
      await this.#comparePiece({ ...whole, offset, length }, same, repair);
    }
  }

  get #findings(): Findings {
    return this.#interval.daemon.findings.of(this.#interval.entry.pg);
  }

  async #held<T>({ image, object }: Range, run: () => Promise<T>): Promise<T> {
    const release = await this.#holds.hold(objectKey(image, object));
    try {
      this.#check();
      return await run();
    } finally {
      release();
    }
  }

  #check(): void {
    if (this.#over) throw new StorageError('UNAVAILABLE', 'the interval has ended');
  }

  // --- the primary's own copy

  async #proveOwn(range: Range, repair: boolean): Promise<Proven> {
    const { store } = this.#interval.daemon;
    const own = await verifyOwn(store, range);
    this.#check();
    if (own.bad.length === 0) return own;
    const version = store.objectVersion(range.image, range.object);
    let unproven = own.bad;
    for (const id of this.#interval.others) {
      if (unproven.length === 0) break;
      // One that does not answer now may prove nothing now: the others may.
      const reply = await this.#ask(id, range).catch(() => null);
      this.#check();
      if (reply === null) continue;
      unproven = unproven.filter((block) => !takeProven(own, range, block, reply, version));
      payloadPool.give(reply.payload);
    }
    const proven = own.bad.filter((block) => !unproven.includes(block));
    for (const run of runsOf(unproven)) this.#report(range, run, this.#interval.daemon.id, 'no proven copy');
    for (const run of runsOf(proven))
      if (repair) await this.#rewriteOwn(range, run, own, version);
      else this.#report(range, run, this.#interval.daemon.id, 'checksum');
    return { ...own, bad: unproven };
  }

  /** Through the log, as recovered content: after a crash the block is the old, bad one or the new one. */
  async #rewriteOwn(range: Range, run: Run, { payload, checks }: Copy, version: Version): Promise<void> {
    // In an interval that has ended, this would undo a newer write.
    this.#check();
    const { daemon, entry } = this.#interval;
    const part = partOf(range, run);
    const piece = { ...part, pg: entry.pg, replace: false, version };
    // A copy: the payload goes on its way to the client before the log has let go of it.
    const bytes = Buffer.from(payload!.subarray(run.first * BLOCK_BYTES, run.end * BLOCK_BYTES));
    try {
      const proven = checks.subarray(run.first * 4, run.end * 4);
      await done((then) => daemon.store.recover(piece, bytes, proven, then));
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      return this.#report(range, run, daemon.id, `checksum; not rewritten: ${error.message}`);
    }
    this.#repaired(part, daemon.id);
  }

  // --- members' copies

  async #comparePiece(range: Range, members: readonly DaemonId[], repair: boolean): Promise<void> {
    const { store } = this.#interval.daemon;
    const own = await this.#proveOwn(range, repair);
    const version = store.objectVersion(range.image, range.object);
    for (const id of members) {
      const reply = await this.#ask(id, range);
      const theirs = { checks: reply.meta!, payload: reply.payload };
      const bad = theirs.payload === null ? [] : badBlocks(theirs.payload, theirs.checks, range);
      payloadPool.give(theirs.payload);
      const blocks = Array.from({ length: range.length / BLOCK_BYTES }, (_, block) => block);
      const differs = blocks.filter(
        (block) =>
          !bad.includes(block) &&
          !own.bad.includes(block) &&
          own.checks.readUInt32LE(block * 4) !== theirs.checks.readUInt32LE(block * 4),
      );
      for (const run of runsOf(differs))
        this.#report(range, run, id, 'differs from the primary at the same version, and both match their checksums');
      const mendable = bad.filter((block) => !own.bad.includes(block));
      for (const run of runsOf(bad.filter((block) => own.bad.includes(block))))
        this.#report(range, run, id, 'no proven copy');
      for (const run of runsOf(mendable))
        if (repair) await this.#push(id, range, run, own, version, 0);
        else this.#report(range, run, id, 'checksum');
    }
    payloadPool.give(own.payload);
  }

  // --- copies at different versions

  /** A member has the object at another version: the copy that the PG's log speaks of, proven entirely, replaces the other. */
  async #settle(
    whole: Range,
    own: Version,
    id: DaemonId,
    theirs: Version,
    repair: boolean,
  ): Promise<'changed' | 'unchanged'> {
    const right = this.#authority(whole, own, theirs);
    const wrong = right === 'theirs' ? this.#interval.daemon.id : id;
    if (right === 'neither') this.#report(whole, allOf(whole), wrong, 'version; no copy is what the log says');
    else if (!repair) this.#report(whole, allOf(whole), wrong, 'version');
    else if (right === 'own') await this.#replace(whole, own, id);
    else if (await this.#adopt(whole, id, theirs)) return 'changed';
    return 'unchanged';
  }

  /**
   * Whose version of the object is what the PG's log says? Where the log does not reach back, the newer of two versions
   * is a later entry, but only a copy that exists can be that: absence proves nothing.
   */
  #authority({ image, object, order }: Range, own: Version, theirs: Version): 'own' | 'theirs' | 'neither' {
    const { store } = this.#interval.daemon;
    const { pg } = this.#interval.entry;
    const { tail } = store.pgInfo(pg);
    const newest = (store.logAfter(pg, tail) ?? []).findLast(
      (entry) => entry.image === image && entry.object === object,
    );
    if (newest === undefined && !isAbsent(tail))
      return !isAbsent(own) && compareVersions(own, theirs) > 0 ? 'own' : 'neither';
    if (newest !== undefined && sameVersion(newest.version, own)) return 'own';
    if (newest !== undefined && sameVersion(newest.version, theirs)) return 'theirs';
    const gone = newest === undefined || (newest.op !== EntryOp.WRITE && newest.length === 2 ** order);
    if (!gone) return 'neither';
    return isAbsent(own) ? 'own' : isAbsent(theirs) ? 'theirs' : 'neither';
  }

  /** The primary's object, or its absence, takes the place of a member's. */
  async #replace(whole: Range, version: Version, id: DaemonId): Promise<void> {
    if (isAbsent(version)) return this.#push(id, whole, allOf(whole), null, version, Flag.FIRST);
    const own = await this.#proveOwn(whole, true);
    if (own.bad.length > 0) return this.#report(whole, allOf(whole), id, 'version; the primary has bad blocks');
    await this.#push(id, whole, allOf(whole), own, version, Flag.FIRST);
    payloadPool.give(own.payload);
  }

  /** A member's object, or its absence, takes the place of the primary's. False: that copy is not proven entirely. */
  async #adopt(whole: Range, id: DaemonId, version: Version): Promise<boolean> {
    const { daemon, entry } = this.#interval;
    const { image, object } = whole;
    if (isAbsent(version)) await done((then) => daemon.store.recoverDelete(entry.pg, image, object, then));
    else {
      const { meta: checks, payload } = await this.#ask(id, whole);
      if (payload === null || badBlocks(payload, checks!, whole).length > 0) {
        payloadPool.give(payload);
        this.#report(whole, allOf(whole), daemon.id, `version; daemon ${id}, which has it, has bad blocks`);
        return false;
      }
      await done((then) =>
        daemon.store.recover({ ...whole, pg: entry.pg, replace: true, version }, payload, checks, then),
      );
      payloadPool.give(payload);
    }
    this.#repaired(whole, daemon.id);
    return true;
  }

  async #push(id: DaemonId, range: Range, run: Run, own: Copy | null, version: Version, flags: number): Promise<void> {
    this.#check();
    const { daemon, entry } = this.#interval;
    const part = partOf(range, run);
    const frame = newFrame(Op.PG_PUSH);
    Object.assign(frame, part);
    frame.flags = Flag.LAST | flags;
    frame.epoch = daemon.epoch;
    frame.pg = entry.pg;
    frame.since = entry.since;
    frame.seq = version.since;
    frame.pgSeq = version.seq;
    if (own !== null) {
      frame.meta = Buffer.from(own.checks.subarray(run.first * 4, run.end * 4));
      // A copy: it goes out after this piece's memory was given back.
      frame.payload =
        own.payload === null ? null : Buffer.from(own.payload.subarray(run.first * BLOCK_BYTES, run.end * BLOCK_BYTES));
    }
    try {
      await this.#request(id, frame);
    } catch (error) {
      if (!(error instanceof StorageError) || error.code === 'UNAVAILABLE') throw error;
      return this.#report(range, run, id, `not repaired: ${error.message}`);
    }
    this.#repaired(part, id);
  }

  #ask(id: DaemonId, range: Range): Promise<Frame> {
    const { daemon, entry } = this.#interval;
    const frame = newFrame(Op.PG_READ);
    Object.assign(frame, range);
    frame.epoch = daemon.epoch;
    frame.pg = entry.pg;
    frame.since = entry.since;
    return this.#request(id, frame).then((reply) => {
      const { meta, payload } = reply;
      const fits = meta?.length === (range.length / BLOCK_BYTES) * 4;
      if (fits && (payload === null ? meta.every((byte) => byte === 0) : payload.length === range.length)) return reply;
      throw new StorageError('INVALID', `daemon ${id} answers a read with something else`);
    });
  }

  /** Rejects with UNAVAILABLE if there is no answer or the interval ended meanwhile, else with the member's refusal. */
  async #request(id: DaemonId, frame: Frame): Promise<Frame> {
    const reply = await askMember(this.#interval.daemon, id, frame);
    this.#check();
    return reply;
  }

  // --- what is told

  #report(range: Range, run: Run, daemon: DaemonId, why: string): void {
    const finding: Inconsistency = { pg: this.#interval.entry.pg, ...placeOf(partOf(range, run), daemon), why };
    this.#interval.daemon.log.error('a copy is bad', { ...finding, pg: pgName(finding.pg) });
    this.#findings.add(finding);
  }

  #repaired(part: Range, daemon: DaemonId): void {
    this.#interval.daemon.log.warn('repaired a copy', {
      pg: pgName(this.#interval.entry.pg),
      ...placeOf(part, daemon),
    });
    this.#findings.repair(placeOf(part, daemon));
  }
}

/** Blocks [first, end), counted from the start of a range. */
interface Run {
  readonly first: number;
  readonly end: number;
}

const allOf = (range: Range): Run => ({ first: 0, end: range.length / BLOCK_BYTES });

const isAbsent = (version: Version): boolean => sameVersion(version, VERSION_ZERO);

/** A call of the store as a promise. */
const done = (call: (then: Done) => void): Promise<void> =>
  new Promise((resolve, reject) => call((error) => (error === null ? resolve() : reject(error))));

/** Consecutive blocks together. `blocks` is in order. */
function runsOf(blocks: readonly number[]): Run[] {
  const runs: { first: number; end: number }[] = [];
  for (const block of blocks) {
    const last = runs[runs.length - 1];
    if (last !== undefined && last.end === block) last.end += 1;
    else runs.push({ first: block, end: block + 1 });
  }
  return runs;
}

const partOf = ({ image, object, order, offset }: Range, { first, end }: Run): Range => ({
  image,
  object,
  order,
  offset: offset + first * BLOCK_BYTES,
  length: (end - first) * BLOCK_BYTES,
});

const placeOf = ({ image, object, offset, length }: Range, daemon: DaemonId) => ({
  image,
  object,
  offset,
  length,
  daemon,
});

const versionOf = (reply: Frame): Version => ({ since: reply.since, seq: reply.pgSeq });

/** Takes a member's block into the own copy if it is proven. */
function takeProven(own: Copy, range: Range, block: number, reply: Frame, version: Version): boolean {
  if (reply.payload === null) return false;
  const check = reply.meta!.readUInt32LE(block * 4);
  const expected = own.checks.readUInt32LE(block * 4);
  if (check === NO_DATA) return false;
  if (check !== expected && !(expected === BAD_BLOCK && sameVersion(versionOf(reply), version))) return false;
  const bytes = reply.payload.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
  if (blockChecksum(bytes, range.image, range.object, range.offset / BLOCK_BYTES + block) !== check) return false;
  bytes.copy(own.payload!, block * BLOCK_BYTES);
  own.checks.writeUInt32LE(check, block * 4);
  return true;
}
