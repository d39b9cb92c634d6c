// Brings the members of an active PG up to the primary, object by object, while the PG serves.
//
//   for each object that some member misses: read it here, prove each block by its checksum, PG_PUSH it to the members
//   that miss it; when a member misses nothing more: PG_COMPLETE, durable there; when all are complete: the PG is clean.
//
// A client's write to an object in the set waits until the object has been pushed (it goes to the front of the queue),
// so that entries only ever apply to whole objects. Reads need not wait: the primary has everything.

import { firstMismatch, NO_DATA } from '../../proto/checksum.ts';
import { Flag, type Frame, newFrame, Op } from '../../proto/frame.ts';
import { type DaemonId, type ObjectKey, pgName, sameVersion, VERSION_ZERO } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { Interval } from './interval.ts';
import type { MissingObject, MissingSet } from './missing.ts';
import type { Request } from './request.ts';

/** Objects of one PG on their way at a time; the daemon's RecoveryQueue limits all PGs together. */
const PUSH_BYTES_MAX = 1024 * 1024;
/** Pause before a PG with an object that could not be recovered is peered again. */
const AGAIN_MS = 1_000;

interface Item {
  readonly object: MissingObject;
  readonly members: DaemonId[];
  /** Client writes that wait for it, in order. */
  readonly waiters: Request[];
  state: 'queued' | 'pushing';
  /** Gives its turn in the queue back, while it is being pushed. */
  giveBack: (() => void) | null;
}

export class Recovery {
  readonly #interval: Interval;
  readonly #items = new Map<ObjectKey, Item>();
  /** What is left per member that is not complete yet. */
  readonly #left = new Map<DaemonId, number>();
  #over = false;

  constructor(interval: Interval, missing: ReadonlyMap<DaemonId, MissingSet>) {
    this.#interval = interval;
    for (const [id, objects] of missing) {
      this.#left.set(id, objects.size);
      for (const [key, object] of objects) this.#add(key, id, object);
    }
  }

  /** (object, member) pairs still to do. */
  get missing(): number {
    let sum = 0;
    for (const left of this.#left.values()) sum += left;
    return sum;
  }

  begin(): void {
    if (this.#left.size === 0) return this.#clean();
    for (const key of this.#items.keys()) this.#interval.daemon.recoveryQueue.add(this, key, false);
  }

  /** Stops; hands back the writes that waited. */
  end(): Request[] {
    if (this.#over) return [];
    this.#over = true;
    this.#interval.daemon.recoveryQueue.removeAll(this);
    // A push to a member that is gone is never answered: its turn must not be lost with it.
    for (const item of this.#items.values()) this.#giveBack(item);
    return [...this.#items.values()].flatMap((item) => item.waiters);
  }

  /** Takes a write to an object that some member misses; it is handled again when the object is whole everywhere. */
  defer(key: ObjectKey, request: Request): boolean {
    const item = this.#items.get(key);
    if (item === undefined) return false;
    item.waiters.push(request);
    if (item.state === 'queued') this.#interval.daemon.recoveryQueue.add(this, key, true);
    return true;
  }

  /** Called by the queue when it is this object's turn; `done` gives the turn back. */
  push(key: ObjectKey, done: () => void): void {
    const item = this.#items.get(key);
    if (this.#over || item === undefined || item.state === 'pushing') return done();
    item.state = 'pushing';
    item.giveBack = done;
    void this.#pushObject(item).then(
      () => {
        this.#giveBack(item);
        if (!this.#over) this.#pushed(key, item);
      },
      (error: Error) => {
        this.#giveBack(item);
        if (this.#over) return;
        const { object } = item.object;
        this.#interval.daemon.log.error('cannot recover an object', {
          pg: pgName(this.#interval.entry.pg),
          image: item.object.image,
          object,
          why: error.message,
        });
        // A full member or an unreadable block will be the same again: not at once.
        this.#interval.startOverLater(AGAIN_MS);
      },
    );
  }

  #giveBack(item: Item): void {
    const { giveBack } = item;
    item.giveBack = null;
    giveBack?.();
  }

  #add(key: ObjectKey, id: DaemonId, object: MissingObject): void {
    const item = this.#items.get(key);
    if (item === undefined) {
      this.#items.set(key, { object, members: [id], waiters: [], state: 'queued', giveBack: null });
      return;
    }
    item.members.push(id);
    // Members that miss different parts all get the sum of them.
    if (object.whole || item.object.whole) {
      item.object.whole = true;
      item.object.extents = [];
    } else item.object.extents = joined([...item.object.extents, ...object.extents]);
  }

  async #pushObject({ object, members }: Item): Promise<void> {
    const { store } = this.#interval.daemon;
    const version = store.objectVersion(object.image, object.object);
    const gone = sameVersion(version, VERSION_ZERO);
    const extents = gone ? [{ start: 0, end: 0 }] : this.#extentsToPush(object);
    for (let i = 0; i < extents.length; i++) {
      const { start, end } = extents[i]!;
      const frame = newFrame(Op.PG_PUSH);
      frame.flags = (i === 0 && object.whole ? Flag.FIRST : 0) | (i === extents.length - 1 ? Flag.LAST : 0);
      frame.epoch = this.#interval.daemon.epoch;
      frame.pg = this.#interval.entry.pg;
      frame.since = this.#interval.entry.since;
      frame.image = object.image;
      frame.object = object.object;
      frame.order = object.order;
      frame.offset = start;
      frame.length = end - start;
      frame.seq = version.since;
      frame.pgSeq = version.seq;
      if (end > start) await this.#fill(frame);
      // The interval may have begun anew under the same name while this was read: what was read may be old by now, and
      // the members would take it.
      if (this.#over) return;
      await Promise.all(members.map((id) => this.#send(id, { ...frame })));
      if (this.#over) return;
    }
  }

  /** Byte ranges no longer than one push. A whole object: the runs that hold data, and at least one (empty) range. */
  #extentsToPush(object: MissingObject): { start: number; end: number }[] {
    const ranges = object.whole ? this.#allocatedRuns(object) : object.extents;
    const pieces: { start: number; end: number }[] = [];
    for (const { start, end } of ranges)
      for (let at = start; at < end; at += PUSH_BYTES_MAX)
        pieces.push({ start: at, end: Math.min(end, at + PUSH_BYTES_MAX) });
    return pieces.length > 0 ? pieces : [{ start: 0, end: 0 }];
  }

  #allocatedRuns(object: MissingObject): { start: number; end: number }[] {
    const bits = this.#interval.daemon.store.allocation(object.image, object.object);
    const runs: { start: number; end: number }[] = [];
    if (bits === null) return runs;
    const blocks = 2 ** object.order / BLOCK_BYTES;
    for (let block = 0; block < blocks; block++) {
      if ((bits[block >> 3]! & (1 << (block & 7))) === 0) continue;
      const last = runs[runs.length - 1];
      if (last !== undefined && last.end === block * BLOCK_BYTES) last.end += BLOCK_BYTES;
      else runs.push({ start: block * BLOCK_BYTES, end: (block + 1) * BLOCK_BYTES });
    }
    return runs;
  }

  /** Reads the frame's range and proves it: a block that fails its checksum must not spread. */
  #fill(frame: Frame): Promise<void> {
    return new Promise((resolve, reject) => {
      const { store } = this.#interval.daemon;
      store.read(frame.image, frame.object, frame.order, frame.offset, frame.length, (error, checks, payload) => {
        if (error !== null) return reject(error);
        if (payload === null) {
          // All holes now: the member gets holes.
          frame.meta = Buffer.alloc((frame.length / BLOCK_BYTES) * 4, NO_DATA);
          return resolve();
        }
        const bad = firstMismatch(payload, checks!, frame.image, frame.object, frame.offset);
        if (bad !== -1)
          return reject(new Error(`block at ${frame.offset + bad * BLOCK_BYTES} fails its checksum here`));
        frame.meta = checks;
        frame.payload = payload;
        resolve();
      });
    });
  }

  #send(id: DaemonId, frame: Frame): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#interval.daemon.peer(id).request(frame, {
        onReply: (reply) => {
          if (reply.status === 0) resolve();
          else reject(new Error(`daemon ${id} answers with status ${reply.status}`));
        },
        onLost: () => reject(new Error(`lost the connection to daemon ${id}`)),
      });
    });
  }

  #pushed(key: ObjectKey, item: Item): void {
    this.#items.delete(key);
    for (const id of item.members) {
      const left = this.#left.get(id)! - 1;
      this.#left.set(id, left);
      if (left === 0) this.#completeMember(id);
    }
    for (const request of item.waiters) this.#interval.serving?.handle(request);
  }

  #completeMember(id: DaemonId): void {
    const frame = newFrame(Op.PG_COMPLETE);
    frame.epoch = this.#interval.daemon.epoch;
    frame.pg = this.#interval.entry.pg;
    frame.since = this.#interval.entry.since;
    this.#send(id, frame).then(
      () => {
        if (this.#over) return;
        this.#left.delete(id);
        this.#interval.daemon.log.info('member is complete', { pg: pgName(this.#interval.entry.pg), daemon: id });
        if (this.#left.size === 0) this.#clean();
      },
      () => {
        if (!this.#over) this.#interval.startOverLater();
      },
    );
  }

  #clean(): void {
    this.#interval.daemon.reporter.clean(this.#interval);
  }
}

function joined(extents: { start: number; end: number }[]): { start: number; end: number }[] {
  extents.sort((a, b) => a.start - b.start);
  const result: { start: number; end: number }[] = [];
  for (const extent of extents) {
    const last = result[result.length - 1];
    if (last !== undefined && extent.start <= last.end) last.end = Math.max(last.end, extent.end);
    else result.push({ ...extent });
  }
  return result;
}
