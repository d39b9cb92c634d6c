// Brings the members of an active PG up to the primary, object by object, while the PG serves.
//
//   for each object that some member misses: read it here, prove each block by its checksum, PG_PUSH it to the members
//   that miss it; when a member misses nothing more: PG_COMPLETE, durable there; when all are complete: the PG is clean.
//
//   queued ──its turn──> pushing ──all members took it──> done: writes that waited go on
//      ^                    └──a member has no space──> parked (that member only; the others have it)
//      └──the member has space again, asked by trying one object, after a pause that grows──┘
//
// A client's write to an object in the set waits until the object has been pushed (it goes to the front of the queue, and
// is not throttled), so that entries only ever apply to whole objects. What is pushed of an object may be extents
// (missing.ts says why that is enough): the object stays in the set until the last of them is at the member. Reads need
// not wait: the primary has everything.

import { firstMismatch, NO_DATA } from '../../proto/checksum.ts';
import { codeOfStatus, StorageError } from '../../proto/errors.ts';
import { Flag, type Frame, newFrame, Op } from '../../proto/frame.ts';
import { type DaemonId, type ObjectKey, pgName, sameVersion, VERSION_ZERO } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { type Extent, extentBytes, joinedExtents, piecesOf, runsOf } from './extents.ts';
import type { Interval } from './interval.ts';
import type { MissingObject, MissingSet } from './missing.ts';
import { type Request, refuse } from './request.ts';

/** Pause before a PG with an object that could not be recovered is peered again. */
const AGAIN_MS = 1_000;
/** Pause before a member without space is tried again: twice as long each time, up to the most. */
const NO_SPACE_MS = 1_000;
const NO_SPACE_MOST_MS = 10_000;

interface Item {
  readonly object: MissingObject;
  /** Who misses it. */
  members: DaemonId[];
  /** Client writes that wait for it, in order. */
  waiters: Request[];
  state: 'queued' | 'pushing' | 'parked';
  /** What a push of it to one member is, as far as is known. */
  bytes: number;
  /** Gives its turn in the queue back, while it is being pushed. */
  giveBack: (() => void) | null;
  /** Ends its wait for the throttle. */
  hurry: (() => void) | null;
}

export class Recovery {
  readonly #interval: Interval;
  readonly #items = new Map<ObjectKey, Item>();
  /** What is left per member that is not complete yet. */
  readonly #left = new Map<DaemonId, number>();
  /** Members that have refused a push for want of space: they are sent nothing that needs any. */
  readonly #full = new Set<DaemonId>();
  /** Those of which it is being found out with one push whether they have space again. */
  readonly #trying = new Set<DaemonId>();
  #tryAgainMs = NO_SPACE_MS;
  #missingBytes = 0;
  #over = false;

  constructor(interval: Interval, missing: ReadonlyMap<DaemonId, MissingSet>) {
    this.#interval = interval;
    for (const [id, objects] of missing) {
      this.#left.set(id, objects.size);
      for (const [key, object] of objects) this.#add(key, id, object);
    }
    for (const item of this.#items.values()) {
      item.bytes = extentBytes(this.#extentsOf(item.object));
      this.#missingBytes += item.bytes * item.members.length;
    }
  }

  /** (object, member) pairs still to do. */
  get missing(): number {
    let sum = 0;
    for (const left of this.#left.values()) sum += left;
    return sum;
  }

  /** Bytes still to be pushed to all members together. */
  get missingBytes(): number {
    return this.#missingBytes;
  }

  /** Members that have no space for what they miss. */
  get noSpace(): DaemonId[] {
    return [...this.#full, ...this.#trying];
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
    for (const item of this.#items.values()) {
      // A push to a member that is gone is never answered: its turn must not be lost with it.
      this.#giveBack(item);
      item.hurry?.();
    }
    return [...this.#items.values()].flatMap((item) => item.waiters);
  }

  /**
   * Takes a change of an object that some member misses; it is handled again when the object is whole everywhere, or
   * refused when a member has no space for it. A DELETE of such an object goes through: it needs nothing of what was there.
   */
  defer(key: ObjectKey, request: Request): boolean {
    if (this.#items.size === 0) return false;
    const item = this.#items.get(key);
    if (item === undefined) return false;
    if (item.state === 'parked') {
      const { op, flags, pg, session, seq } = request.frame;
      if (op === Op.DELETE) return false;
      // It may be in the log already, from an earlier interval: then it can be neither refused nor answered before the
      // member has it.
      const { store } = this.#interval.daemon;
      if ((flags & Flag.RETRY) !== 0 && store.findRequest(pg, session, seq) !== null) item.waiters.push(request);
      else refuse(request, 'NO_SPACE', this.#interval.daemon.epoch);
      return true;
    }
    item.waiters.push(request);
    if (item.state === 'queued') this.#interval.daemon.recoveryQueue.add(this, key, true);
    item.hurry?.();
    return true;
  }

  /**
   * The object's DELETE is on its way to every member. Each handles what the primary sends in order, so the member is
   * told that it is complete only after it has deleted the object.
   */
  deleted(key: ObjectKey): void {
    const item = this.#items.get(key);
    if (item?.state === 'parked') this.#pushed(key, item, item.members);
  }

  /** Called by the queue when it is this object's turn; `done` gives the turn back. */
  push(key: ObjectKey, done: () => void): void {
    const item = this.#items.get(key);
    if (this.#over || item === undefined || item.state === 'pushing') return done();
    item.state = 'pushing';
    item.giveBack = done;
    void this.#pushObject(item).then(
      (took) => {
        this.#giveBack(item);
        if (!this.#over) this.#pushed(key, item, took);
      },
      (error: Error) => {
        this.#giveBack(item);
        if (this.#over) return;
        this.#log('cannot recover an object', item, error.message);
        // An unreadable block will be the same again: not at once.
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
    const known = this.#items.get(key);
    if (known === undefined) {
      const item: Item = { object, members: [id], waiters: [], state: 'queued', bytes: 0, giveBack: null, hurry: null };
      this.#items.set(key, item);
      return;
    }
    known.members.push(id);
    // Members that miss different parts all get the sum of them.
    const all = known.object;
    if (object.whole || all.whole) {
      all.whole = true;
      all.extents = [];
    } else all.extents = joinedExtents([...all.extents, ...object.extents]);
  }

  /** What has to be sent of it: the extents that are missing, or the runs of the whole object that hold data. */
  #extentsOf(object: MissingObject): readonly Extent[] {
    if (!object.whole) return object.extents;
    return runsOf(this.#interval.daemon.store.allocation(object.image, object.object), 2 ** object.order);
  }

  /** Resolves with the members that have it now; the others have no space. */
  async #pushObject(item: Item): Promise<DaemonId[]> {
    const { object } = item;
    const { store, throttle } = this.#interval.daemon;
    const version = store.objectVersion(object.image, object.object);
    const gone = sameVersion(version, VERSION_ZERO);
    // A removal needs no space.
    let members = gone ? item.members : item.members.filter((id) => !this.#full.has(id));
    const pieces = gone ? [{ start: 0, end: 0 }] : piecesOf(this.#extentsOf(object));
    for (let i = 0; i < pieces.length && members.length > 0; i++) {
      const { start, end } = pieces[i]!;
      const frame = newFrame(Op.PG_PUSH);
      frame.flags = (i === 0 && object.whole ? Flag.FIRST : 0) | (i === pieces.length - 1 ? Flag.LAST : 0);
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
      if (end > start) {
        await this.#turn(item);
        if (this.#over) return [];
        await this.#fill(frame);
      }
      // The interval may have begun anew under the same name while this was read: what was read may be old by now, and
      // the members would take it.
      if (this.#over) return [];
      throttle.spend((end - start) * members.length);
      const answers = await Promise.all(members.map((id) => this.#send(id, { ...frame })));
      if (this.#over) return [];
      members = members.filter((_, at) => answers[at] === 'OK');
    }
    return members;
  }

  /** Waits until the throttle lets the next piece go; not at all when a client waits for the object. */
  async #turn(item: Item): Promise<void> {
    const { clock, throttle } = this.#interval.daemon;
    while (item.waiters.length === 0 && !this.#over) {
      const waitMs = throttle.waitMs();
      if (waitMs === 0) return;
      await new Promise<void>((resolve) => {
        const timer = clock.after(waitMs, resolve);
        item.hurry = () => {
          timer.cancel();
          resolve();
        };
      });
      item.hurry = null;
    }
  }

  /** Reads the frame's range and proves it: a block that fails its checksum must not spread. */
  #fill(frame: Frame): Promise<void> {
    return new Promise((resolve, reject) => {
      const { store } = this.#interval.daemon;
      const filled = (checks: Buffer | null, payload: Buffer | null): void => {
        // All holes now: the member gets holes.
        frame.meta = payload === null ? Buffer.alloc((frame.length / BLOCK_BYTES) * 4, NO_DATA) : checks;
        frame.payload = payload;
        resolve();
      };
      store.read(frame.image, frame.object, frame.order, frame.offset, frame.length, (error, checks, payload) => {
        const isGood =
          error === null &&
          (payload === null || firstMismatch(payload, checks!, frame.image, frame.object, frame.offset) === -1);
        if (isGood) return filled(checks, payload);
        if (this.#over) return resolve();
        // Another member may have it whole, even one that misses something else.
        const { image, object, order, offset, length } = frame;
        this.#interval
          .serving!.repair.readMarked({ image, object, order, offset, length })
          .then((copy) => filled(copy.checks, copy.payload), reject);
      });
    });
  }

  /** Resolves when the member has it, or has said that it has no space for it. */
  #send(id: DaemonId, frame: Frame): Promise<'OK' | 'NO_SPACE'> {
    return new Promise((resolve, reject) => {
      this.#interval.daemon.peer(id).request(frame, {
        onReply: (reply) => {
          const code = codeOfStatus(reply.status);
          if (code === 'OK' || code === 'NO_SPACE') resolve(code);
          else reject(new StorageError(code, `daemon ${id} answers ${code}`));
        },
        onLost: () => reject(new Error(`lost the connection to daemon ${id}`)),
      });
    });
  }

  /** These members have the object now; whoever else misses it has no space, and the object is parked for it. */
  #pushed(key: ObjectKey, item: Item, took: readonly DaemonId[]): void {
    const without = item.members.filter((id) => !took.includes(id));
    item.members = without;
    this.#missingBytes -= item.bytes * took.length;
    if (without.length === 0) this.#items.delete(key);
    else this.#park(item, without);
    for (const id of took) {
      if (this.#trying.delete(id)) this.#hasSpace(id);
      const left = this.#left.get(id)! - 1;
      this.#left.set(id, left);
      if (left === 0) this.#completeMember(id);
    }
    const { waiters } = item;
    item.waiters = [];
    for (const request of waiters) this.#interval.serving?.handle(request);
  }

  // --- members without space

  #park(item: Item, without: readonly DaemonId[]): void {
    item.state = 'parked';
    for (const id of without) {
      this.#trying.delete(id);
      if (this.#full.has(id)) continue;
      this.#log('a member has no space for what it misses', item, `daemon ${id} answers NO_SPACE`);
      this.#full.add(id);
      this.#tryLater(id);
    }
  }

  /** One object that is parked for it is tried; if the member takes it, all the others are, else a longer pause begins. */
  #tryLater(id: DaemonId): void {
    const pauseMs = this.#tryAgainMs;
    this.#tryAgainMs = Math.min(2 * pauseMs, NO_SPACE_MOST_MS);
    this.#interval.daemon.clock.after(pauseMs, () => {
      if (this.#over || !this.#full.has(id)) return;
      this.#full.delete(id);
      for (const [key, item] of this.#items)
        if (item.state === 'parked' && item.members.includes(id)) {
          this.#trying.add(id);
          return this.#unpark(key, item);
        }
    });
  }

  #hasSpace(id: DaemonId): void {
    this.#tryAgainMs = NO_SPACE_MS;
    for (const [key, item] of this.#items)
      if (item.state === 'parked' && item.members.includes(id)) this.#unpark(key, item);
  }

  #unpark(key: ObjectKey, item: Item): void {
    item.state = 'queued';
    this.#interval.daemon.recoveryQueue.add(this, key, item.waiters.length > 0);
  }

  #completeMember(id: DaemonId): void {
    const frame = newFrame(Op.PG_COMPLETE);
    frame.epoch = this.#interval.daemon.epoch;
    frame.pg = this.#interval.entry.pg;
    frame.since = this.#interval.entry.since;
    this.#send(id, frame).then(
      (code) => {
        if (this.#over) return;
        if (code === 'NO_SPACE') return this.#completeLater(id);
        this.#left.delete(id);
        this.#interval.daemon.log.info('member is complete', { pg: pgName(this.#interval.entry.pg), daemon: id });
        if (this.#left.size === 0) this.#clean();
      },
      () => {
        if (!this.#over) this.#interval.startOverLater();
      },
    );
  }

  #completeLater(id: DaemonId): void {
    this.#interval.daemon.clock.after(NO_SPACE_MS, () => {
      if (!this.#over) this.#completeMember(id);
    });
  }

  #clean(): void {
    this.#interval.clean();
  }

  #log(message: string, { object }: Item, why: string): void {
    const { image, object: number } = object;
    this.#interval.daemon.log.error(message, { pg: pgName(this.#interval.entry.pg), image, object: number, why });
  }
}
