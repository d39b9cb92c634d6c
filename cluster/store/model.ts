// What a store should hold, without any idea of how: numbers instead of bytes. Tests drive a store and a model with the
// same steps and compare them; fault tests replay a prefix of the steps on a fresh model.
//
// Every write has a stamp; a block of payload is the stamp, its block number and filler, so that a block from another
// write, another place or another moment is told apart. Objects exist exactly while they hold a block.

import type { ExecutionContext } from 'ava';
import { payloadPool } from '../../proto/buffer-pool.ts';
import { blockChecksum, NO_DATA, payloadChecksums } from '../../proto/checksum.ts';
import { compareVersions, objectKey, pgId, sameVersion, VERSION_ZERO, type Version } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { ROTTEN } from './redo.ts';
import { type Done, EntryOp, type LogEntry, type Store } from './store.ts';

/** Payload of `length` bytes that starts at `offset` of its object. Stamp 0 is all zeros. */
export function stamped(length: number, stamp: number, offset = 0): Buffer {
  const payload = Buffer.alloc(length, stamp & 255);
  for (let at = 0; stamp !== 0 && at < length; at += BLOCK_BYTES) {
    payload.writeUInt32LE(stamp, at);
    payload.writeUInt32LE((offset + at) / BLOCK_BYTES, at + 4);
  }
  return payload;
}

/** Numbers 0 to 2^32 - 1 from a seed (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}

export interface Step {
  readonly kind: 'append' | 'recover' | 'recoverDelete' | 'setPg' | 'merge' | 'truncate' | 'reset';
  /** Of the entry, or what the others need of it. */
  readonly entry: LogEntry;
  readonly stamp: number;
  /** recover: forget first. setPg: complete. */
  readonly flag: boolean;
}

interface ModelObject {
  pg: number;
  image: number;
  object: number;
  order: number;
  version: Version;
  stamps: Map<number, number>;
}

interface ModelPg {
  les: number;
  complete: boolean;
  last: Version;
  log: Version[];
}

const IMAGE = 3;
const PGS = [pgId(1, 1), pgId(1, 2), pgId(2, 900)];
const OBJECTS = 12;
/** Objects 0 to 11 by turns: small ones, so that whole-object cases are frequent, and a few of 1 MiB and one of 4 MiB. */
const mixedOrder = (object: number): number => (object === 11 ? 22 : object % 4 === 0 ? 20 : 16 + (object % 3));
/** 64 to 256 KiB, for scenarios that are run hundreds of times. */
export const smallOrder = (object: number): number => 16 + (object % 3);

export class Model {
  readonly pgs = PGS;
  readonly objects = new Map<number, ModelObject>();
  private readonly groups = new Map<number, ModelPg>();
  private readonly orderOf: (object: number) => number;
  private stamp = 0;

  constructor(orderOf: (object: number) => number = mixedOrder) {
    this.orderOf = orderOf;
  }

  last(pg: number): Version {
    return this.group(pg).last;
  }

  /** The same state, to go on from. */
  copy(): Model {
    const copy = new Model(this.orderOf);
    copy.stamp = this.stamp;
    for (const [key, object] of this.objects) copy.objects.set(key, { ...object, stamps: new Map(object.stamps) });
    for (const [pg, group] of this.groups) copy.groups.set(pg, { ...group, log: [...group.log] });
    return copy;
  }

  /** A step on `count` blocks of an object from block `first` on, which becomes the newest entry of its PG. */
  make(kind: Step['kind'], op: EntryOp, object: number, first = 0, count = 1, flag = false): Step {
    const pg = PGS[object % PGS.length]!;
    const { last } = this.group(pg);
    return {
      kind,
      entry: {
        pg,
        version: { since: last.since || 1, seq: last.seq + 1 },
        op,
        image: IMAGE,
        object,
        order: this.orderOf(object),
        offset: first * BLOCK_BYTES,
        length: op === EntryOp.DELETE ? 0 : count * BLOCK_BYTES,
        session: 1,
        sessionSeq: this.stamp + 1,
      },
      stamp: ++this.stamp,
      flag,
    };
  }

  /** Versions of the PG's entries, oldest first. */
  entries(pg: number): readonly Version[] {
    return this.group(pg).log;
  }

  /** The next step; call apply() or run() with it before asking for another. */
  random(random: () => number): Step {
    const object = random() % OBJECTS;
    const pg = PGS[object % PGS.length]!;
    const order = this.orderOf(object);
    const blocks = 2 ** order / BLOCK_BYTES;
    const dice = random() % 100;
    const count = dice < 60 ? 1 + (random() % Math.min(blocks, 4)) : dice < 70 ? blocks : 1 + (random() % blocks);
    const first = random() % (blocks - count + 1);
    const { last, log } = this.group(pg);
    const pick = random() % 1000;
    const kind =
      pick < 930
        ? 'append'
        : pick < 960
          ? 'recover'
          : pick < 965
            ? 'recoverDelete'
            : pick < 975
              ? 'setPg'
              : pick < 985
                ? 'merge'
                : pick < 997 && log.length > 8
                  ? 'truncate'
                  : 'reset';
    const op = pick % 10 < 7 ? EntryOp.WRITE : pick % 10 < 9 ? EntryOp.ZERO : EntryOp.DELETE;
    const since = last.since + (random() % 50 === 0 ? 1 : 0) || 1;
    const cut = kind === 'truncate' ? log[log.length - 1 - (random() % 5)]! : null;
    return {
      kind,
      entry: {
        pg,
        version: cut ?? { since, seq: last.seq + (kind === 'reset' ? 3 : 1) },
        op: kind === 'append' || kind === 'merge' ? op : EntryOp.WRITE,
        image: IMAGE,
        object,
        order,
        offset: op === EntryOp.DELETE ? 0 : first * BLOCK_BYTES,
        length: op === EntryOp.DELETE && kind === 'append' ? 0 : count * BLOCK_BYTES,
        session: 1 + (random() % 3),
        sessionSeq: random(),
      },
      stamp: ++this.stamp,
      flag: random() % 3 === 0,
    };
  }

  /** Asks the store for the step. Steps without a callback are over when it returns. */
  perform(store: Store, step: Step, done: Done): void {
    const { entry, stamp, kind } = step;
    const { pg, image, object, order, offset, length, version } = entry;
    if (kind === 'append' || kind === 'recover') {
      const payload = entry.op === EntryOp.WRITE ? stamped(length, stamp, offset) : null;
      const checks = payload === null ? null : payloadChecksums(payload, image, object, offset);
      if (kind === 'append') return store.append(entry, payload, checks, true, done);
      for (let i = 0; i < length / BLOCK_BYTES; i++) if (hole(stamp, i)) checks!.writeUInt32LE(NO_DATA, i * 4);
      return store.recover(
        { pg, image, object, order, replace: step.flag, offset, length, version },
        payload,
        checks,
        done,
      );
    }
    if (kind === 'recoverDelete') return store.recoverDelete(pg, image, object, done);
    if (kind === 'setPg') store.setPg(pg, version.since, step.flag);
    else if (kind === 'merge') store.mergeLog(pg, [entry]);
    else if (kind === 'truncate') store.truncateLog(pg, version);
    else store.resetLog(pg, version);
    done(null);
  }

  /** The same on the model. */
  apply(step: Step): void {
    const { entry, kind } = step;
    const { pg, image, object, version } = entry;
    const group = this.group(pg);
    this.stamp = step.stamp;
    if (kind === 'setPg') {
      group.les = version.since;
      group.complete = step.flag;
    } else if (kind === 'truncate') {
      group.log.length = group.log.findIndex((known) => sameVersion(known, version)) + 1;
      group.last = version;
    } else if (kind === 'reset') {
      group.log = [];
      group.last = version;
    } else if (kind === 'recoverDelete') this.objects.delete(objectKey(image, object));
    else if (kind === 'recover') this.write(step, version);
    else {
      group.last = version;
      group.log.push(version);
      if (kind === 'append') this.applyEntry(step);
    }
  }

  private applyEntry(step: Step): void {
    const { entry } = step;
    const key = objectKey(entry.image, entry.object);
    const known = this.objects.get(key);
    if (entry.op === EntryOp.WRITE) return this.write(step, entry.version);
    if (known === undefined) return;
    known.version = entry.version;
    for (const block of [...known.stamps.keys()]) {
      const place = block * BLOCK_BYTES;
      if (entry.op === EntryOp.DELETE || (place >= entry.offset && place < entry.offset + entry.length))
        known.stamps.delete(block);
    }
    if (known.stamps.size === 0) this.objects.delete(key);
  }

  private write(step: Step, version: Version): void {
    const { pg, image, object, order, offset, length } = step.entry;
    const key = objectKey(image, object);
    const kept = step.kind === 'recover' && step.flag ? undefined : this.objects.get(key);
    const written = kept ?? { pg, image, object, order, version, stamps: new Map() };
    written.version = version;
    for (let i = 0; i < length / BLOCK_BYTES; i++) {
      const block = offset / BLOCK_BYTES + i;
      if (step.kind === 'recover' && hole(step.stamp, i)) written.stamps.delete(block);
      else written.stamps.set(block, step.stamp);
    }
    if (written.stamps.size === 0) this.objects.delete(key);
    else this.objects.set(key, written);
  }

  /** Does the store call back for the step? The others are in the log when the turn ends. */
  calledBack(step: Step): boolean {
    return step.kind === 'append' || step.kind === 'recover' || step.kind === 'recoverDelete';
  }

  /** Performs and applies; resolves when done, or at once so that many steps share a turn. */
  async run(store: Store, step: Step, wait: boolean): Promise<void> {
    this.apply(step);
    const finished = new Promise<void>((resolve, reject) =>
      this.perform(store, step, (error) => (error === null ? resolve() : reject(error))),
    );
    if (wait) await finished;
  }

  /** Where the store differs from the model, or null. */
  async difference(store: Store): Promise<string | null> {
    for (const pg of PGS) {
      const why = this.pgDifference(store, pg);
      if (why !== null) return why;
    }
    for (let object = 0; object < OBJECTS; object++) {
      const why = await this.objectDifference(store, IMAGE, object);
      if (why !== null) return why;
    }
    return null;
  }

  /** The cheap part of difference(): PG states and logs. */
  pgDifference(store: Store, pg: number): string | null {
    const group = this.group(pg);
    const info = store.pgInfo(pg);
    if (info.les !== group.les || info.complete !== group.complete || !sameVersion(info.last, group.last))
      return `PG ${pg}: ${JSON.stringify(info)}, expected ${JSON.stringify({ ...group, log: undefined })}`;
    const entries = store.logAfter(pg, info.tail);
    if (entries === null) return `PG ${pg}: the log does not reach its tail`;
    const expected = group.log.slice(group.log.length - entries.length);
    if (entries.length > group.log.length)
      return `PG ${pg}: ${entries.length} log entries, at most ${group.log.length}`;
    if (!entries.every((entry, i) => compareVersions(entry.version, expected[i]!) === 0))
      return `PG ${pg}: other log entries than expected`;
    const before = group.log[group.log.length - entries.length - 1];
    if (before !== undefined && !sameVersion(info.tail, before)) return `PG ${pg}: tail ${JSON.stringify(info.tail)}`;
    const members = [...this.objects.values()].filter((object) => object.pg === pg);
    const listed = new Map([...store.objects(pg)].map((object) => [object.object, object.version]));
    if (listed.size !== members.length) return `PG ${pg}: ${listed.size} objects, expected ${members.length}`;
    for (const { object, version } of members)
      if (!sameVersion(listed.get(object) ?? { since: -1, seq: 0 }, version))
        return `object ${object}: version ${JSON.stringify(listed.get(object))}, expected ${JSON.stringify(version)}`;
    const bytes = members.reduce((sum, object) => sum + object.stamps.size * BLOCK_BYTES, 0);
    const usage = store.pgUsage(pg);
    return usage.bytes === bytes && usage.objects === members.length ? null : `PG ${pg}: usage ${usage.bytes}`;
  }

  async objectDifference(store: Store, image: number, object: number): Promise<string | null> {
    const order = this.orderOf(object);
    const { checks, payload } = await new Promise<{ checks: Buffer; payload: Buffer | null }>((resolve, reject) =>
      store.read(image, object, order, 0, 2 ** order, (error, checks, payload) =>
        error === null ? resolve({ checks: checks!, payload }) : reject(error),
      ),
    );
    const exists = store.allocation(image, object) !== null;
    const difference = this.contentDifference(image, object, exists, checks, payload);
    payloadPool.give(payload);
    return difference;
  }

  private contentDifference(
    image: number,
    object: number,
    exists: boolean,
    checks: Buffer,
    payload: Buffer | null,
  ): string | null {
    const known = this.objects.get(objectKey(image, object));
    if (exists !== (known !== undefined)) return `object ${object}: existence`;
    if ((payload === null) !== (known === undefined)) return `object ${object}: payload of an object with no block`;
    for (let block = 0; block < 2 ** this.orderOf(object) / BLOCK_BYTES; block++) {
      const stamp = known?.stamps.get(block) ?? 0;
      const place = block * BLOCK_BYTES;
      const bytes = payload?.subarray(place, place + BLOCK_BYTES) ?? EMPTY;
      const found = bytes.readUInt32LE(0);
      if (found !== stamp) return `object ${object} block ${block}: stamp ${found}, expected ${stamp}`;
      if (bytes.readUInt32LE(4) !== (stamp === 0 ? 0 : block) || filler(stamp).compare(bytes, 8) !== 0)
        return `object ${object} block ${block}: torn or misplaced, stamp ${stamp}`;
      const check = stamp === 0 ? NO_DATA : blockChecksum(bytes, image, object, block);
      if (checks.readUInt32LE(block * 4) !== check) return `object ${object} block ${block}: checksum`;
    }
    return null;
  }

  /**
   * The same for a store whose disk was damaged: a block that can't be read or fails its checksum shows it. What is
   * reported is wrong and looks right.
   */
  async unprovenDifference(store: Store): Promise<string | null> {
    for (let object = 0; object < OBJECTS; object++) {
      const order = this.orderOf(object);
      const known = this.objects.get(objectKey(IMAGE, object));
      if ((store.allocation(IMAGE, object) === null) !== (known === undefined)) return `object ${object}: existence`;
      for (let block = 0; block < 2 ** order / BLOCK_BYTES; block++) {
        const stamp = known?.stamps.get(block) ?? 0;
        const place = block * BLOCK_BYTES;
        const found = await new Promise<{ check: number; bytes: Buffer } | null>((resolve) =>
          store.read(IMAGE, object, order, place, BLOCK_BYTES, (error, checks, payload) =>
            resolve(error === null ? { check: checks!.readUInt32LE(0), bytes: payload ?? EMPTY } : null),
          ),
        );
        if (found === null || found.check === ROTTEN) continue;
        const right = stamped(BLOCK_BYTES, stamp, place);
        const check = stamp === 0 ? NO_DATA : blockChecksum(right, IMAGE, object, block);
        if (found.check !== check) return `object ${object} block ${block}: another checksum`;
        const proven = check === NO_DATA || blockChecksum(found.bytes, IMAGE, object, block) === check;
        if (proven && !right.equals(found.bytes)) return `object ${object} block ${block}: wrong bytes, right checksum`;
      }
    }
    return null;
  }

  async compare(t: ExecutionContext, store: Store): Promise<void> {
    t.is(await this.difference(store), null);
  }

  async compareObject(t: ExecutionContext, store: Store, image: number, object: number): Promise<void> {
    t.is(await this.objectDifference(store, image, object), null);
  }

  private group(pg: number): ModelPg {
    let group = this.groups.get(pg);
    if (group === undefined) {
      group = { les: 0, complete: true, last: VERSION_ZERO, log: [] };
      this.groups.set(pg, group);
    }
    return group;
  }
}

/** Every few blocks of a recovered piece are holes. */
const hole = (stamp: number, block: number): boolean => (stamp + block) % 5 === 0;

const EMPTY = Buffer.alloc(BLOCK_BYTES);
const fillers: Buffer[] = [];
/** What a block with this stamp holds from its ninth byte on. */
const filler = (stamp: number): Buffer => {
  fillers[stamp & 255] ??= Buffer.alloc(BLOCK_BYTES - 8, stamp & 255);
  return fillers[stamp & 255]!;
};
