// The conformance suite: what every backend of Store must do, told as AVA tests. Call conformance() from a test file.
//
// A Bench is one store and a way to stop and start it again; a backend without a disk starts again as it was. The last
// test drives thousands of random operations against model.ts, which knows nothing of how stores work.

import test, { type ExecutionContext } from 'ava';
import { NO_DATA, payloadChecksums } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { pgId, sameVersion, VERSION_ZERO, type Version } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { Model, randomFrom, type Step, stamped } from './model.ts';
import { EntryOp, type LogEntry, type Store } from './store.ts';

export interface Bench {
  store: Store;
  /** Closes the store and opens it again on the same disk. */
  reopen(): Promise<void>;
}

const PG = pgId(1, 7);
const KiB = 1024;
const MiB = 1024 * KiB;

/** A WRITE, ZERO or DELETE with what the tests do not care about filled in. */
export function entryOf(op: EntryOp, seq: number, over: Partial<LogEntry> = {}): LogEntry {
  return {
    pg: PG,
    version: { since: 3, seq },
    op,
    image: 5,
    object: 1,
    order: 20,
    offset: 0,
    length: op === EntryOp.DELETE ? 0 : BLOCK_BYTES,
    session: 9,
    sessionSeq: seq,
    ...over,
  };
}

/** Appends with a payload of blocks stamped with the entry's seq; resolves when done. */
export function append(store: Store, entry: LogEntry, stamp = entry.version.seq, reserve = false): Promise<void> {
  const payload = entry.op === EntryOp.WRITE ? stamped(entry.length, stamp, entry.offset) : null;
  const checks = payload === null ? null : payloadChecksums(payload, entry.image, entry.object, entry.offset);
  return new Promise((resolve, reject) => {
    store.append(entry, payload, checks, reserve, (error) => (error === null ? resolve() : reject(error)));
  });
}

export const synced = (store: Store): Promise<void> =>
  new Promise((resolve, reject) => store.sync((error) => (error === null ? resolve() : reject(error))));

export const closed = (store: Store): Promise<void> =>
  new Promise((resolve, reject) => store.close((error) => (error === null ? resolve() : reject(error))));

export function read(
  store: Store,
  image: number,
  object: number,
  order: number,
  offset: number,
  length: number,
): Promise<{ checks: Buffer; payload: Buffer | null }> {
  return new Promise((resolve, reject) => {
    store.read(image, object, order, offset, length, (error, checks, payload) => {
      if (error !== null) reject(error);
      else resolve({ checks: checks!, payload });
    });
  });
}

/** Reads the object and compares it with stamps, one per block, 0 for a hole. */
export async function expectStamps(
  t: ExecutionContext,
  store: Store,
  image: number,
  object: number,
  order: number,
  stamps: readonly number[],
  offset = 0,
): Promise<void> {
  const { checks, payload } = await read(store, image, object, order, offset, stamps.length * BLOCK_BYTES);
  const expected = Buffer.concat(stamps.map((stamp, i) => stamped(BLOCK_BYTES, stamp, offset + i * BLOCK_BYTES)));
  const sums = payloadChecksums(expected, image, object, offset);
  stamps.forEach((stamp, i) => {
    if (stamp === 0) sums.writeUInt32LE(NO_DATA, i * 4);
  });
  const all = (payload ?? Buffer.alloc(expected.length)).equals(expected);
  t.true(payload !== null || stamps.every((stamp) => stamp === 0));
  if (!all || !checks.equals(sums)) {
    const found = stamps.map((_, i) => payload?.readUInt32LE(i * BLOCK_BYTES) ?? 0);
    t.deepEqual(found, [...stamps], `object ${object}: stamps`);
    t.deepEqual(checks, sums, `object ${object}: checksums`);
    t.fail('same stamps, other bytes');
  }
  if (stamps.every((stamp) => stamp === 0)) t.is(payload, null);
}

const versionsOf = (entries: readonly LogEntry[] | null): number[] | null =>
  entries === null ? null : entries.map((entry) => entry.version.seq);

const at = (seq: number, since = 3): Version => ({ since, seq });

/** Registers the suite. `open` makes an empty store of at least 64 MiB. */
export function conformance(name: string, open: () => Promise<Bench>): void {
  const scenario = (title: string, run: (t: ExecutionContext, bench: Bench) => Promise<void>) =>
    test(`${name}: ${title}`, async (t) => {
      const bench = await open();
      await run(t, bench);
      await closed(bench.store);
    });

  scenario('a PG and an object never heard of are empty', async (t, { store }) => {
    t.deepEqual(store.pgInfo(PG), { les: 0, complete: true, last: VERSION_ZERO, tail: VERSION_ZERO });
    t.deepEqual(store.pgs(), []);
    t.deepEqual(store.logAfter(PG, VERSION_ZERO), []);
    t.is(store.logAfter(PG, at(1)), null);
    t.is(store.findRequest(PG, 1, 1), null);
    t.is(store.allocation(5, 1), null);
    t.is(store.objectVersion(5, 1), VERSION_ZERO);
    t.deepEqual(store.pgUsage(PG), { objects: 0, bytes: 0 });
    t.deepEqual([...store.objects(PG)], []);
    await expectStamps(t, store, 5, 1, 20, [0, 0]);
  });

  scenario('what is written is read, with its checksums, before and after a restart', async (t, bench) => {
    await append(bench.store, entryOf(EntryOp.WRITE, 1, { offset: 8 * KiB, length: 8 * KiB }));
    await append(bench.store, entryOf(EntryOp.WRITE, 2, { offset: 12 * KiB }));
    await append(bench.store, entryOf(EntryOp.WRITE, 3, { object: 2, length: 1 * MiB }));
    for (let run = 0; run < 2; run++) {
      const { store } = bench;
      await expectStamps(t, store, 5, 1, 20, [0, 0, 1, 2, 0]);
      await expectStamps(t, store, 5, 2, 20, new Array(256).fill(3));
      t.deepEqual(store.allocation(5, 1)?.subarray(0, 2), Buffer.from([0b1100, 0]));
      t.deepEqual(store.objectVersion(5, 1), at(2));
      t.deepEqual(store.pgInfo(PG), { les: 0, complete: true, last: at(3), tail: VERSION_ZERO });
      t.deepEqual(store.pgUsage(PG), { objects: 2, bytes: 258 * BLOCK_BYTES });
      t.is(store.space().usedBytes, 258 * BLOCK_BYTES);
      await bench.reopen();
    }
  });

  scenario('every object size holds its first and last block and a whole overwrite', async (t, bench) => {
    let seq = 0;
    for (let order = 16; order <= 25; order++) {
      const last = 2 ** order - BLOCK_BYTES;
      await append(bench.store, entryOf(EntryOp.WRITE, ++seq, { object: order, order }));
      await append(bench.store, entryOf(EntryOp.WRITE, ++seq, { object: order, order, offset: last }));
      if (order <= 22) {
        await append(bench.store, entryOf(EntryOp.WRITE, ++seq, { object: 100 + order, order }));
        await append(bench.store, entryOf(EntryOp.WRITE, ++seq, { object: 100 + order, order, length: 2 ** order }));
      }
    }
    for (let run = 0; run < 2; run++) {
      seq = 0;
      for (let order = 16; order <= 25; order++) {
        await expectStamps(t, bench.store, 5, order, order, [++seq, 0]);
        await expectStamps(t, bench.store, 5, order, order, [0, ++seq], 2 ** order - 2 * BLOCK_BYTES);
        if (order > 22) continue;
        seq += 2;
        await expectStamps(t, bench.store, 5, 100 + order, order, new Array(2 ** order / BLOCK_BYTES).fill(seq));
      }
      await bench.reopen();
    }
  });

  scenario('writes of every size over old data give the newest bytes', async (t, bench) => {
    const stamps = new Array<number>(256).fill(0);
    let seq = 0;
    for (const blocks of [1, 16, 64, 100, 200, 255, 256, 17, 129, 3, 256, 90]) {
      for (const first of [0, 256 - blocks]) {
        const extent = { offset: first * BLOCK_BYTES, length: blocks * BLOCK_BYTES };
        await append(bench.store, entryOf(EntryOp.WRITE, ++seq, extent));
        stamps.fill(seq, first, first + blocks);
        await expectStamps(t, bench.store, 5, 1, 20, stamps);
      }
      if (blocks === 200) await bench.reopen();
    }
    await bench.reopen();
    await expectStamps(t, bench.store, 5, 1, 20, stamps);
  });

  scenario('zeroed blocks are holes, and an object without blocks is gone', async (t, bench) => {
    const { store } = bench;
    await append(store, entryOf(EntryOp.WRITE, 1, { length: 16 * KiB }));
    await append(store, entryOf(EntryOp.ZERO, 2, { offset: 4 * KiB, length: 8 * KiB }));
    await expectStamps(t, store, 5, 1, 20, [1, 0, 0, 1]);
    t.deepEqual(store.objectVersion(5, 1), at(2));
    t.deepEqual(store.pgUsage(PG), { objects: 1, bytes: 8 * KiB });
    await append(store, entryOf(EntryOp.WRITE, 3, { offset: 8 * KiB }));
    await expectStamps(t, store, 5, 1, 20, [1, 0, 3, 1]);
    await bench.reopen();
    await expectStamps(t, bench.store, 5, 1, 20, [1, 0, 3, 1]);
    await append(bench.store, entryOf(EntryOp.ZERO, 4, { offset: 0, length: 64 * KiB }));
    await append(bench.store, entryOf(EntryOp.WRITE, 5, { object: 2, length: 64 * KiB, order: 16 }));
    await append(bench.store, entryOf(EntryOp.ZERO, 6, { object: 2, length: 64 * KiB, order: 16 }));
    await append(bench.store, entryOf(EntryOp.ZERO, 7, { object: 3 }));
    for (let run = 0; run < 2; run++) {
      for (const object of [1, 2, 3]) {
        t.is(bench.store.allocation(5, object), null);
        t.deepEqual(bench.store.objectVersion(5, object), VERSION_ZERO);
      }
      t.deepEqual(bench.store.pgUsage(PG), { objects: 0, bytes: 0 });
      t.deepEqual(bench.store.pgInfo(PG).last, at(7));
      await bench.reopen();
    }
  });

  scenario('a deleted object is gone, and one written in its place holds nothing of it', async (t, bench) => {
    await append(bench.store, entryOf(EntryOp.WRITE, 1, { length: 1 * MiB }));
    await append(bench.store, entryOf(EntryOp.DELETE, 2));
    await expectStamps(t, bench.store, 5, 1, 20, [0, 0, 0]);
    await append(bench.store, entryOf(EntryOp.DELETE, 3));
    await append(bench.store, entryOf(EntryOp.WRITE, 4, { offset: 4 * KiB }));
    for (let run = 0; run < 2; run++) {
      await expectStamps(t, bench.store, 5, 1, 20, [0, 4, 0]);
      t.deepEqual(bench.store.objectVersion(5, 1), at(4));
      await bench.reopen();
    }
  });

  scenario('writes of one turn are done in order, and a read among them sees the last', async (t, { store }) => {
    const order: number[] = [];
    const all: Promise<void>[] = [];
    for (let seq = 1; seq <= 100; seq++) {
      const over = { offset: (seq % 3) * BLOCK_BYTES, object: seq % 2 };
      all.push(append(store, entryOf(EntryOp.WRITE, seq, over)).then(() => void order.push(seq)));
    }
    t.deepEqual(order, []);
    await expectStamps(t, store, 5, 0, 20, [96, 100, 98]);
    await Promise.all(all);
    t.deepEqual(
      order,
      Array.from({ length: 100 }, (_, i) => i + 1),
    );
    await expectStamps(t, store, 5, 1, 20, [99, 97, 95]);
  });

  scenario('the log tells what came after a version, and finds requests', async (t, bench) => {
    for (let seq = 1; seq <= 20; seq++)
      await append(bench.store, entryOf(EntryOp.WRITE, seq, { version: at(seq, seq > 10 ? 4 : 3), object: seq }));
    for (let run = 0; run < 2; run++) {
      const { store } = bench;
      t.deepEqual(versionsOf(store.logAfter(PG, at(17, 4))), [18, 19, 20]);
      t.deepEqual(versionsOf(store.logAfter(PG, at(20, 4))), []);
      t.is(versionsOf(store.logAfter(PG, VERSION_ZERO))?.length, 20);
      t.is(store.logAfter(PG, at(17, 3)), null, 'same number, other interval');
      t.is(store.logAfter(PG, at(21, 4)), null);
      t.deepEqual(store.logAfter(PG, at(9))?.[0], entryOf(EntryOp.WRITE, 10, { object: 10 }));
      t.deepEqual(store.findRequest(PG, 9, 12), at(12, 4));
      t.is(store.findRequest(PG, 9, 21), null);
      t.is(store.findRequest(PG, 8, 12), null);
      await bench.reopen();
    }
  });

  scenario('the log takes merged entries, is cut and is reset, and remembers it', async (t, bench) => {
    for (let seq = 1; seq <= 5; seq++) await append(bench.store, entryOf(EntryOp.WRITE, seq));
    bench.store.truncateLog(PG, at(3));
    t.deepEqual(bench.store.pgInfo(PG).last, at(3));
    t.is(bench.store.findRequest(PG, 9, 5), null);
    t.deepEqual(bench.store.objectVersion(5, 1), at(5), 'objects keep their version');
    bench.store.mergeLog(PG, [
      entryOf(EntryOp.WRITE, 4, { version: at(4, 6), session: 10 }),
      entryOf(EntryOp.ZERO, 5, { version: at(5, 6), session: 10 }),
    ]);
    await synced(bench.store);
    for (let run = 0; run < 2; run++) {
      t.deepEqual(bench.store.pgInfo(PG).last, at(5, 6));
      t.deepEqual(
        bench.store.logAfter(PG, at(2))?.map((entry) => entry.version),
        [at(3), at(4, 6), at(5, 6)],
      );
      t.deepEqual(bench.store.findRequest(PG, 10, 5), at(5, 6));
      await expectStamps(t, bench.store, 5, 1, 20, [5]);
      await bench.reopen();
    }
    bench.store.resetLog(PG, at(40, 8));
    await append(bench.store, entryOf(EntryOp.WRITE, 41, { version: at(41, 8) }));
    for (let run = 0; run < 2; run++) {
      t.deepEqual(bench.store.pgInfo(PG), { les: 0, complete: true, last: at(41, 8), tail: at(40, 8) });
      t.deepEqual(versionsOf(bench.store.logAfter(PG, at(40, 8))), [41]);
      t.is(bench.store.logAfter(PG, at(5, 6)), null);
      await bench.reopen();
    }
    bench.store.truncateLog(PG, at(40, 8));
    t.deepEqual(bench.store.pgInfo(PG).last, at(40, 8));
    await bench.reopen();
    t.deepEqual(bench.store.pgInfo(PG), { les: 0, complete: true, last: at(40, 8), tail: at(40, 8) });
  });

  scenario('les and complete are kept per PG', async (t, bench) => {
    bench.store.setPg(PG, 12, false);
    bench.store.setPg(PG + 1, 13, true);
    await synced(bench.store);
    for (let run = 0; run < 2; run++) {
      t.deepEqual(bench.store.pgInfo(PG), { les: 12, complete: false, last: VERSION_ZERO, tail: VERSION_ZERO });
      t.deepEqual(bench.store.pgInfo(PG + 1).les, 13);
      t.deepEqual(
        [...bench.store.pgs()].sort((a, b) => a - b),
        [PG, PG + 1],
      );
      await bench.reopen();
    }
  });

  scenario('recovered pieces replace an object, holes included, without a log entry', async (t, bench) => {
    await append(bench.store, entryOf(EntryOp.WRITE, 1, { length: 1 * MiB }));
    const recover = (offset: number, stamps: number[], replace: boolean, version: Version) => {
      const payload = Buffer.concat(stamps.map((stamp, i) => stamped(BLOCK_BYTES, stamp, offset + i * BLOCK_BYTES)));
      const checks = payloadChecksums(payload, 5, 1, offset);
      stamps.forEach((stamp, i) => {
        if (stamp === 0) checks.writeUInt32LE(NO_DATA, i * 4);
      });
      const piece = { pg: PG, image: 5, object: 1, order: 20, replace, offset, length: payload.length, version };
      return new Promise<void>((resolve) => bench.store.recover(piece, payload, checks, () => resolve()));
    };
    await recover(4 * KiB, [7, 0, 8], true, VERSION_ZERO);
    await expectStamps(t, bench.store, 5, 1, 20, [0, 7, 0, 8, 0]);
    t.deepEqual(bench.store.objectVersion(5, 1), VERSION_ZERO);
    await recover(64 * KiB, new Array(100).fill(9), false, at(5));
    for (let run = 0; run < 2; run++) {
      await expectStamps(t, bench.store, 5, 1, 20, [0, 7, 0, 8, 0]);
      await expectStamps(t, bench.store, 5, 1, 20, [0, ...new Array(100).fill(9), 0], 60 * KiB);
      t.deepEqual(bench.store.objectVersion(5, 1), at(5));
      t.deepEqual(bench.store.pgInfo(PG).last, at(1));
      t.deepEqual(bench.store.pgUsage(PG), { objects: 1, bytes: 102 * BLOCK_BYTES });
      t.deepEqual([...bench.store.objects(PG)], [{ image: 5, object: 1, order: 20, version: at(5) }]);
      await bench.reopen();
    }
    await recover(4 * KiB, [0, 11, 0], false, at(6));
    await expectStamps(t, bench.store, 5, 1, 20, [0, 0, 11, 0, 0]);
    await new Promise<void>((resolve) => bench.store.recoverDelete(PG, 5, 1, () => resolve()));
    for (let run = 0; run < 2; run++) {
      t.is(bench.store.allocation(5, 1), null);
      t.deepEqual(bench.store.pgUsage(PG), { objects: 0, bytes: 0 });
      await bench.reopen();
    }
  });

  scenario('what makes no sense is refused and changes nothing', async (t, { store }) => {
    await append(store, entryOf(EntryOp.WRITE, 1));
    const refused = (over: Partial<LogEntry>, op: EntryOp = EntryOp.WRITE) => {
      const entry = entryOf(op, 2, over);
      const payload = op === EntryOp.WRITE ? Buffer.alloc(BLOCK_BYTES, 1) : null;
      const checks = payload === null ? null : Buffer.alloc(4, 1);
      const error = t.throws(() => store.append(entry, payload, checks, false, () => t.fail('it was done')));
      t.is(error instanceof StorageError ? error.code : null, 'INVALID', JSON.stringify(over));
    };
    refused({ offset: 512 });
    refused({ length: 8 * KiB });
    refused({ offset: 1 * MiB });
    refused({ order: 15 });
    refused({ order: 21 });
    refused({ version: at(3) });
    refused({ version: at(1) });
    refused({ version: at(2, 2) });
    refused({ length: 0 }, EntryOp.ZERO);
    const gap = [entryOf(EntryOp.WRITE, 2), entryOf(EntryOp.WRITE, 4)];
    t.throws(() => store.mergeLog(PG, gap), { message: /does not follow/ });
    const refusal = t.throws(() => store.truncateLog(PG, at(9)));
    t.is(refusal instanceof StorageError ? refusal.code : null, 'INVALID');
    t.deepEqual(store.pgInfo(PG).last, at(1));
    await expectStamps(t, store, 5, 1, 20, [1, 0]);
  });

  test(`${name}: thousands of random operations and restarts agree with a simple model`, async (t) => {
    const bench = await open();
    const random = randomFrom(20_261_120);
    const model = new Model();
    for (let step = 0; step < 4000; step++) {
      const next: Step = model.random(random);
      await model.run(bench.store, next, step % 7 === 0);
      if (step % 23 === 0) await model.compareObject(t, bench.store, next.entry.image, next.entry.object);
      if (step % 500 === 499) {
        await bench.reopen();
        await model.compare(t, bench.store);
      }
    }
    await model.compare(t, bench.store);
    t.true(sameVersion(bench.store.pgInfo(model.pgs[0]!).last, model.last(model.pgs[0]!)));
    await closed(bench.store);
  });
}
