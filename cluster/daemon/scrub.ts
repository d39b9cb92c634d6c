// One scrub of one PG, by its primary.
//
//   light  PG_SCRUB: every member lists (object, version, digest of the checksums); what differs from the own list is
//          compared again while it stands still (repair.ts): a write in between is no inconsistency
//   deep   the same, then every copy of every object is read and verified where it lies (PG_VERIFY), in small steps; an
//          object with a bad block anywhere is compared block by block
//
// So two kinds of damage are told apart: copies that differ from each other, and copies that differ from their own
// checksums (bits that rotted, writes that were lost or went elsewhere: checksums are seeded with the place). Only the
// comparison under the hold reports and repairs; this file decides what must be looked at. A scrub ends with its interval;
// whoever leads the next one gets the order again.

import { payloadPool } from '../../proto/buffer-pool.ts';
import type { ScrubOrder } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { Flag, newFrame, Op } from '../../proto/frame.ts';
import { type ObjectKey, objectKey, sameVersion } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { ObjectInfo } from '../store/store.ts';
import type { Interval } from './interval.ts';
import { askMember } from './repair-ask.ts';
import { digestOf, type Range, verifyOwn } from './repair-verify.ts';
import { decodeDigests, type ObjectDigest } from './scrub-messages.ts';

/** Bytes of one copy that are verified in one step. */
const STEP_BYTES = 512 * 1024;
/** A daemon verifies no more than this, of its own copies, per second, */
const SCRUB_BYTES_PER_SECOND = 64 * 1024 * 1024;
/** and so many times less while clients are served. */
const BUSY_FACTOR = 4;

export class Scrub {
  readonly order: ScrubOrder;
  objects = 0;
  objectsDone = 0;
  readonly #interval: Interval;
  #clientBytes = 0;

  constructor(interval: Interval, order: ScrubOrder) {
    this.#interval = interval;
    this.order = order;
  }

  /** Rejects with UNAVAILABLE if it can't be finished in this interval. */
  async run(): Promise<void> {
    const findings = this.#interval.daemon.findings.of(this.#interval.entry.pg);
    findings.beginScrub();
    await this.#look();
    findings.endScrub(this.order.image);
  }

  async #look(): Promise<void> {
    const own = this.#listOwn();
    this.objects = own.length;
    const suspects = await this.#suspects(own);
    if (!this.order.deep) this.objects = suspects.size;
    for (const object of suspects.values()) {
      await this.#compare(object);
      if (!this.order.deep) this.objectsDone += 1;
    }
    if (!this.order.deep) return;
    for (const object of own) {
      if (!suspects.has(keyOf(object)) && (await this.#isBad(object))) await this.#compare(object);
      this.objectsDone += 1;
    }
  }

  // --- light

  #wanted = ({ image }: ObjectInfo): boolean => this.order.image === 0 || image === this.order.image;

  #listOwn(): ObjectDigest[] {
    const { store } = this.#interval.daemon;
    return [...store.objects(this.#interval.entry.pg)]
      .filter(this.#wanted)
      .map((info) => ({ ...info, digest: digestOf(store, info.image, info.object) }));
  }

  /** Objects that some member lists differently: damaged, or written meanwhile. */
  async #suspects(own: readonly ObjectDigest[]): Promise<Map<ObjectKey, ObjectInfo>> {
    const suspects = new Map<ObjectKey, ObjectInfo>();
    for (const id of this.#interval.others) {
      const unlisted = new Map(own.map((object) => [keyOf(object), object]));
      for (const theirs of (await this.#listOf(id)).filter(this.#wanted)) {
        const key = keyOf(theirs);
        const mine = unlisted.get(key);
        unlisted.delete(key);
        if (mine === undefined || mine.digest !== theirs.digest || !sameVersion(mine.version, theirs.version))
          suspects.set(key, mine ?? theirs);
      }
      for (const [key, object] of unlisted) suspects.set(key, object);
    }
    return suspects;
  }

  #listOf(id: number): Promise<ObjectDigest[]> {
    const { daemon, entry } = this.#interval;
    const frame = newFrame(Op.PG_SCRUB);
    frame.epoch = daemon.epoch;
    frame.pg = entry.pg;
    frame.since = entry.since;
    const listed: ObjectDigest[] = [];
    return new Promise((resolve, reject) => {
      const refused = (why: string): void => reject(new StorageError('UNAVAILABLE', `daemon ${id}: ${why}`));
      daemon.peer(id).request(frame, {
        onReply: (reply) => {
          if (reply.status !== 0) return refused(`status ${reply.status}`);
          try {
            listed.push(...decodeDigests(reply.meta));
          } catch (error) {
            if (!(error instanceof StorageError)) throw error;
            return refused(error.message);
          }
          if ((reply.flags & Flag.LAST) !== 0) resolve(listed);
        },
        onLost: () => refused('connection lost'),
      });
    });
  }

  // --- deep

  /** Does any copy of the object have a block that can't be read or does not match? Copies are read at the same time. */
  async #isBad({ image, object, order }: ObjectInfo): Promise<boolean> {
    const { daemon, others } = this.#interval;
    for (let offset = 0; offset < 2 ** order; offset += STEP_BYTES) {
      // Deleted meanwhile, or nothing there: other members' holes were compared by their digests.
      if (!holdsData(daemon.store.checksums(image, object), offset)) continue;
      const range = { image, object, order, offset, length: Math.min(STEP_BYTES, 2 ** order - offset) };
      const counts = await Promise.all([this.#verifyHere(range), ...others.map((id) => this.#verifyAt(id, range))]);
      this.#check();
      if (counts.some((count) => count > 0)) return true;
      await this.#rest(range.length);
    }
    return false;
  }

  async #verifyHere(range: Range): Promise<number> {
    const { payload, bad } = await verifyOwn(this.#interval.daemon.store, range);
    payloadPool.give(payload);
    return bad.length;
  }

  async #verifyAt(id: number, range: Range): Promise<number> {
    const { daemon, entry } = this.#interval;
    const frame = newFrame(Op.PG_VERIFY);
    Object.assign(frame, range);
    frame.epoch = daemon.epoch;
    frame.pg = entry.pg;
    frame.since = entry.since;
    try {
      return (await askMember(daemon, id, frame)).meta?.length ?? 0;
    } catch (error) {
      // What the member makes of the object is worth a closer look.
      if (error instanceof StorageError && error.code !== 'UNAVAILABLE') return 1;
      throw error;
    }
  }

  async #compare({ image, object, order }: ObjectInfo): Promise<void> {
    this.#check();
    const { daemon, entry, serving } = this.#interval;
    try {
      await serving!.repair.compare({ image, object, order }, this.order.repair);
    } catch (error) {
      if (!(error instanceof StorageError) || error.code === 'UNAVAILABLE') throw error;
      const place = { image, object, offset: 0, length: 2 ** order, daemon: daemon.id };
      daemon.findings.of(entry.pg).add({ pg: entry.pg, ...place, why: `can't be compared: ${error.message}` });
    }
    await this.#rest(2 ** order);
  }

  /** Leaves the disk and the processor to clients: less is verified while there are any. */
  async #rest(bytes: number): Promise<void> {
    const { daemon } = this.#interval;
    const { clientBytes } = daemon.throttle;
    const busy = clientBytes !== this.#clientBytes ? BUSY_FACTOR : 1;
    this.#clientBytes = clientBytes;
    await new Promise<void>((resolve) => daemon.clock.after((busy * bytes * 1000) / SCRUB_BYTES_PER_SECOND, resolve));
    this.#check();
  }

  #check(): void {
    if (this.#interval.over) throw new StorageError('UNAVAILABLE', 'the interval has ended');
  }
}

const keyOf = ({ image, object }: ObjectInfo): ObjectKey => objectKey(image, object);

function holdsData(checks: Buffer | null, offset: number): boolean {
  const first = (offset / BLOCK_BYTES) * 4;
  return checks?.subarray(first, first + (STEP_BYTES / BLOCK_BYTES) * 4).some((byte) => byte !== 0) ?? false;
}
