// One story per crash rule of README.md: the disk is left in just the state that the rule is for.

import test from 'ava';
import { firstMismatch } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { entryOf, expectStamps, read } from './conformance.ts';
import { openDiskStore } from './disk-store.ts';
import { FaultDisk } from './fault-disk.ts';
import { Lab } from './lab.ts';
import { decodeMeta, metaCopyBytes } from './meta.ts';
import { LOG_BYTES, openOn, silentLog, TestClock } from './scenario.ts';
import { EntryOp } from './store.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

test('a hole that a checkpoint knows as data is not written directly before a newer one is durable', async (t) => {
  const lab = await Lab.open();
  lab.write(1, { length: 1 * MiB });
  lab.checkpoint();
  lab.append(entryOf(EntryOp.ZERO, 2, { offset: 128 * KiB, length: 256 * KiB }));
  lab.write(3, { offset: 128 * KiB, length: 128 * KiB });
  lab.clock.settle();
  // The records are lost, all that went to the data file is kept: the old content must still be there.
  await lab.crash('power', (name) => name.startsWith('data-'));
  await expectStamps(t, lab.store, 5, 1, 20, new Array(256).fill(1));
  t.is(lab.store.pgInfo(entryOf(EntryOp.WRITE, 1).pg).last.seq, 1);

  lab.append(entryOf(EntryOp.ZERO, 2, { offset: 128 * KiB, length: 256 * KiB }));
  lab.checkpoint();
  const writes = lab.disk.counted('write');
  lab.write(3, { offset: 128 * KiB, length: 128 * KiB });
  lab.clock.settle();
  t.is(lab.disk.counted('write') - writes, 2, 'now it is: one write of data, one of the record');
  const stamps = [
    ...new Array(32).fill(1),
    ...new Array(32).fill(3),
    ...new Array(32).fill(0),
    ...new Array(160).fill(1),
  ];
  await expectStamps(t, lab.store, 5, 1, 20, stamps);
  await lab.crash('kill');
  await expectStamps(t, lab.store, 5, 1, 20, stamps);
});

test('a slot freed by a delete is not used before the checkpoint that frees it', async (t) => {
  const lab = await Lab.open();
  lab.write(1, { length: 1 * MiB });
  lab.checkpoint();
  lab.append(entryOf(EntryOp.DELETE, 2));
  lab.write(3, { object: 2, length: 1 * MiB });
  lab.clock.settle();
  await lab.crash('power', (name) => name.startsWith('data-'));
  await expectStamps(t, lab.store, 5, 1, 20, new Array(256).fill(1));
  t.is(lab.store.allocation(5, 2), null);

  lab.append(entryOf(EntryOp.DELETE, 2));
  lab.checkpoint();
  const before = lab.disk.freeBytes();
  lab.disk.capacityPages = 2 ** 30;
  const free = lab.disk.freeBytes();
  lab.write(3, { object: 2, length: 1 * MiB });
  lab.clock.settle();
  t.is(lab.disk.freeBytes(), free, `its place is used again (${before})`);
  await expectStamps(t, lab.store, 5, 2, 20, new Array(256).fill(3));
});

test('metadata of a checkpoint that never came into force does not count later', async (t) => {
  const lab = await Lab.open();
  lab.write(1, { length: 8 * KiB });
  lab.checkpoint();
  lab.write(2, { length: 4 * KiB });
  lab.clock.settle();
  // The process dies when the second checkpoint has written its metadata, before the sync: two of the log went before.
  lab.disk.arm({ at: 3, of: 'sync', what: 'kill' });
  lab.store.checkpoint();
  lab.clock.settle();
  t.is(lab.store.checkpoints, 1);
  t.true(lab.disk.dead);
  await lab.crash('power', (name) => name.startsWith('meta-'));
  const { last } = lab.store.pgInfo(entryOf(EntryOp.WRITE, 1).pg);
  // Another object is written, and two more checkpoints come into force.
  lab.write(last.seq + 1, { object: 7, length: 1 * MiB });
  lab.checkpoint();
  lab.write(last.seq + 2, { object: 7, length: 4 * KiB });
  lab.checkpoint();
  await lab.crash('power');
  await expectStamps(t, lab.store, 5, 1, 20, [2, 1, 0]);
  t.is(lab.fatal, null);
});

test('a checkpoint holds the state at its position, whatever is written while it is being made', async (t) => {
  const lab = await Lab.open();
  lab.write(1);
  lab.clock.settle();
  lab.store.checkpoint();
  lab.write(2);
  lab.clock.settle();
  t.is(lab.store.checkpoints, 1);
  const meta = Buffer.alloc(metaCopyBytes(20));
  lab.disk.open('meta-20', false).read(meta, 0);
  t.is(decodeMeta(meta, 20, 0)?.seq, 1);
  await lab.crash('power', () => false);
  await expectStamps(t, lab.store, 5, 1, 20, [2, 0]);
});

test('what stood after a torn batch does not come back when the same batch is written again', async (t) => {
  const lab = await Lab.open();
  lab.write(1);
  lab.clock.settle();
  lab.write(2, { object: 2 });
  lab.clock.settle();
  // The payload of the first batch is lost, all else is kept: neither entry is there.
  await lab.crash('power', (name, page) => name !== 'log-0000' || page !== 1);
  const { pg } = entryOf(EntryOp.WRITE, 1);
  t.is(lab.store.pgInfo(pg).last.seq, 0);
  lab.write(1);
  lab.clock.settle();
  await lab.crash('kill');
  t.is(lab.store.pgInfo(pg).last.seq, 1, 'the second entry was not asked for again');
  await expectStamps(t, lab.store, 5, 2, 20, [0]);
});

test('a restart makes durable what it found, so that a power cut after it takes nothing back', async (t) => {
  const lab = await Lab.open();
  lab.write(1, { length: 1 * MiB });
  lab.write(2, { object: 2 });
  lab.clock.settle();
  await lab.crash('kill');
  await lab.crash('power', () => false);
  await expectStamps(t, lab.store, 5, 1, 20, new Array(256).fill(1));
  await expectStamps(t, lab.store, 5, 2, 20, [2]);
});

test('a large write is written once; its record without its data is a torn tail', async (t) => {
  const lab = await Lab.open();
  const writes = () => lab.disk.counted('write');
  lab.disk.arm(null);
  lab.write(1, { length: 1 * MiB });
  lab.clock.settle();
  t.is(writes(), 2, 'data, record');
  await lab.crash('power', (name) => name.startsWith('log-'));
  t.is(lab.store.allocation(5, 1), null);
  lab.write(1, { length: 1 * MiB });
  t.true(lab.sync());
  await lab.crash('power', () => false);
  await expectStamps(t, lab.store, 5, 1, 20, new Array(256).fill(1));
});

test('an object moved with a rotten block keeps the rot visible, and a restart does not take it for a tear', async (t) => {
  const lab = await Lab.open();
  lab.write(1, { length: 1 * MiB });
  lab.checkpoint();
  lab.disk.flipBit('data-20', 900 * KiB, 3);
  lab.write(2, { length: 512 * KiB });
  lab.clock.settle();
  await lab.crash('kill');
  t.is(lab.store.pgInfo(entryOf(EntryOp.WRITE, 1).pg).last.seq, 2);
  await expectStamps(t, lab.store, 5, 1, 20, [...new Array(128).fill(2), ...new Array(97).fill(1)]);
  let checks: Buffer | null = null;
  lab.store.read(5, 1, 20, 900 * KiB, BLOCK_BYTES, (_error, sums) => {
    checks = sums;
  });
  t.is((checks as Buffer | null)?.readUInt32LE(0), 0xffff_ffff);
});

test('an object with an unreadable block is moved without it; reading that block fails, before and after', async (t) => {
  const lab = await Lab.open();
  lab.write(1, { length: 1 * MiB });
  lab.checkpoint();
  const page = 200;
  lab.disk.unreadable.add(`data-20:${page}`);
  const codes: (string | null)[] = [];
  lab.store.read(5, 1, 20, page * BLOCK_BYTES, BLOCK_BYTES, (error) => {
    codes.push(error instanceof StorageError ? error.code : null);
  });
  t.deepEqual(codes, ['IO']);
  lab.write(2, { length: 512 * KiB });
  lab.clock.settle();
  t.is(lab.fatal, null);
  await lab.crash('kill');
  await expectStamps(t, lab.store, 5, 1, 20, [...new Array(128).fill(2), ...new Array(72).fill(1)]);
  await expectStamps(t, lab.store, 5, 1, 20, new Array(55).fill(1), (page + 1) * BLOCK_BYTES);
  const rotten = await read(lab.store, 5, 1, 20, page * BLOCK_BYTES, BLOCK_BYTES);
  t.not(firstMismatch(rotten.payload!, rotten.checks, 5, 1, page * BLOCK_BYTES), -1);
});

test('when writers outrun the checkpoint, done waits for it; when the log is full, the write does', async (t) => {
  const lab = await Lab.open();
  const states: { done: boolean }[] = [];
  let seq = 0;
  // 64 KiB over old data goes through the log (2 MiB); no turn of the loop, so the checkpoint gets nowhere.
  lab.write(++seq, { length: 1 * MiB });
  lab.checkpoint();
  for (let i = 0; i < 27; i++) states.push(lab.write(++seq, { offset: (i % 4) * 64 * KiB, length: 64 * KiB }));
  lab.clock.turn();
  t.true(states[0]!.done, 'the log has room');
  t.false(states[26]!.done, 'more than three quarters of it are in use');
  lab.clock.settle();
  t.true(states[26]!.done);
  states.length = 0;
  for (let i = 0; i < 100; i++) states.push(lab.write(++seq, { offset: (i % 4) * 64 * KiB, length: 64 * KiB }));
  t.true(lab.store.checkpoints > 3, 'the log went round');
  t.false(states.some((state) => state.done));
  lab.clock.settle();
  t.true(states.every((state) => state.done));
  await lab.crash('kill');
  const stamps = [124, 125, 126, 127].flatMap((stamp) => new Array(16).fill(stamp + 1));
  await expectStamps(t, lab.store, 5, 1, 20, [...stamps, 1, 1]);
});

test('a flipped bit in the durable log: every page of it is either refused, or a block that fails its checksum', async (t) => {
  const lab = await Lab.open();
  for (let seq = 1; seq <= 12; seq++) {
    lab.write(seq, { object: seq % 3, offset: (seq % 5) * BLOCK_BYTES });
    if (seq % 2 === 0) lab.clock.settle();
  }
  t.true(lab.sync());
  lab.write(13);
  lab.clock.settle();
  const ends = { refused: 0, rotten: 0, torn: 0 };
  for (let page = 0; page < 20; page++) {
    const clock = new TestClock();
    const disk = lab.disk.survivor('kill', clock);
    disk.flipBit('log-0000', page * BLOCK_BYTES + 40, 1);
    try {
      const store = await openOn(disk, clock, () => {});
      const { seq } = store.pgInfo(entryOf(EntryOp.WRITE, 1).pg).last;
      if (seq === 12) ends.torn++;
      else {
        t.is(seq, 13, `page ${page}: what was synced must be there`);
        ends.rotten++;
      }
    } catch (error) {
      t.true(error instanceof StorageError && error.code === 'IO');
      t.regex(String(error), /corrupt at byte \d+ of log-0000/);
      ends.refused++;
    }
  }
  // 6 batches of a table and two payloads; then the one after the sync: its table and its payload.
  t.deepEqual(ends, { refused: 6, rotten: 12, torn: 2 });
});

test('damage in the log before the checkpoint costs entries of the PG log, and nothing else', async (t) => {
  const lab = await Lab.open();
  for (let seq = 1; seq <= 6; seq++) {
    lab.write(seq, { object: seq });
    lab.clock.settle();
  }
  lab.checkpoint();
  lab.write(7, { object: 7 });
  lab.clock.settle();
  const { pg } = entryOf(EntryOp.WRITE, 1);
  await lab.crash('kill');
  t.is(lab.store.logAfter(pg, { since: 0, seq: 0 })?.length, 7, 'older segments still hold what was checkpointed');
  // Batches are a table and a payload: the third begins at page 4.
  lab.disk.flipBit('log-0000', 4 * BLOCK_BYTES + 70, 0);
  await lab.crash('kill');
  t.deepEqual(lab.store.pgInfo(pg).last, { since: 3, seq: 7 });
  t.deepEqual(lab.store.pgInfo(pg).tail, { since: 3, seq: 6 });
  for (let object = 1; object <= 7; object++) await expectStamps(t, lab.store, 5, object, 20, [object, 0]);
});

test('one unreadable checkpoint file does not matter; two, or damaged metadata, are refused', async (t) => {
  const lab = await Lab.open();
  lab.write(1, { length: 1 * MiB });
  lab.checkpoint();
  lab.write(2);
  lab.checkpoint();
  lab.write(3);
  lab.clock.settle();
  const attempt = async (...flips: [string, number][]): Promise<string> => {
    const clock = new TestClock();
    const disk = lab.disk.survivor('kill', clock);
    for (const [name, position] of flips) disk.flipBit(name, position, 0);
    try {
      const store = await openOn(disk, clock, () => {});
      await expectStamps(t, store, 5, 1, 20, [3, 1]);
      return 'opened';
    } catch (error) {
      return error instanceof StorageError ? error.message : 'failed';
    }
  };
  t.is(await attempt(), 'opened');
  t.is(await attempt(['checkpoint.a', 100]), 'opened');
  t.is(await attempt(['checkpoint.b', 20]), 'opened');
  t.regex(await attempt(['checkpoint.a', 100], ['checkpoint.b', 100]), /neither checkpoint.a nor checkpoint.b/);
  // Slot 0 of meta-20: copy A is of the first checkpoint, copy B of the second.
  t.is(await attempt(['meta-20', 100]), 'opened', 'the older copy is not needed');
  t.regex(await attempt(['meta-20', 4096 + 100]), /metadata .* damaged/);
});

test('a store that lost its checkpoint files is not taken for an empty directory', async (t) => {
  const lab = await Lab.open();
  lab.write(1);
  lab.checkpoint();
  lab.disk.remove('checkpoint.a');
  lab.disk.remove('checkpoint.b');
  await t.throwsAsync(
    openOn(lab.disk, lab.clock, () => {}),
    { message: /lost its beginning/ },
  );
});

test('a store of another cluster is refused', async (t) => {
  const clock = new TestClock();
  const disk = new FaultDisk(clock);
  const options = { disk, clock, log: silentLog, logBytes: LOG_BYTES, onFatal: () => {} };
  await openDiskStore({ ...options, clusterId: 'one' });
  const error = await t.throwsAsync(openDiskStore({ ...options, clusterId: 'two' }), { instanceOf: StorageError });
  t.is(error?.code, 'IDENTITY');
  await t.notThrowsAsync(openDiskStore({ ...options, clusterId: 'one' }));
});

test('a full disk refuses writes and goes on reading, zeroing and deleting; space comes back', async (t) => {
  // 2 MiB of log, 24 MiB for data.
  const pages = (26 * MiB) / BLOCK_BYTES;
  const lab = await Lab.open((disk) => {
    disk.capacityPages = pages;
  });
  let seq = 0;
  const fill = (reserve: boolean, length: number, first: number): number => {
    for (let object = first; ; object++)
      try {
        lab.append(entryOf(EntryOp.WRITE, seq + 1, { object, length }), seq + 1, reserve);
        seq++;
        lab.clock.settle();
      } catch (error) {
        t.is(error instanceof StorageError ? error.code : null, 'NO_SPACE');
        return object;
      }
  };
  const large = fill(false, 1 * MiB, 0);
  t.true(large > 18 && large < 24, `${large} objects`);
  const small = fill(false, 4 * KiB, large);
  t.true(lab.store.space().full || lab.store.space().freeBytes < 2 * MiB);
  const kept = fill(true, 4 * KiB, small);
  t.true(kept > small, 'the reserve takes what must not fail');
  t.is(lab.fatal, null);
  lab.write(++seq, { object: 3, offset: 64 * KiB, length: 4 * KiB });
  lab.clock.settle();
  await expectStamps(t, lab.store, 5, 3, 20, [4], 0);
  await expectStamps(t, lab.store, 5, 3, 20, [seq], 64 * KiB);
  lab.checkpoint();
  t.is(lab.fatal, null);
  await lab.crash('power');
  await expectStamps(t, lab.store, 5, 3, 20, [4], 0);
  t.throws(() => lab.write(seq + 1, { object: 1000, length: 1 * MiB }), { message: /full/ });
  lab.append(entryOf(EntryOp.ZERO, ++seq, { object: 4, length: 512 * KiB }));
  for (let object = 5; object < 9; object++) lab.append(entryOf(EntryOp.DELETE, ++seq, { object }));
  lab.clock.settle();
  lab.checkpoint();
  for (let object = 1000; object < 1004; object++) lab.write(++seq, { object, length: 1 * MiB });
  lab.write(++seq, { object: 4, length: 512 * KiB });
  t.true(lab.sync());
  await lab.crash('power');
  await expectStamps(t, lab.store, 5, 1003, 20, new Array(256).fill(seq - 1));
  await expectStamps(t, lab.store, 5, 4, 20, [...new Array(128).fill(seq), ...new Array(128).fill(5)]);
});

test('a checkpoint that finds the disk full by surprise is put off; after room is made it succeeds', async (t) => {
  const lab = await Lab.open();
  let seq = 0;
  for (let object = 0; object < 60; object++) lab.write(++seq, { object });
  lab.clock.settle();
  // Somebody else takes all the space.
  const free = lab.disk.freeBytes();
  lab.disk.arm({ at: 1, of: 'write', what: 'NO_SPACE', forEver: false });
  lab.store.checkpoint();
  lab.disk.arm({ at: 2, of: 'write', what: 'NO_SPACE' });
  lab.clock.settle();
  t.is(lab.store.checkpoints, 0);
  t.true(lab.store.space().full);
  t.throws(() => lab.write(seq + 1, { object: 100 }), { message: /full/ });
  await expectStamps(t, lab.store, 5, 59, 20, [60]);
  lab.append(entryOf(EntryOp.DELETE, ++seq, { object: 3 }));
  lab.disk.arm(null);
  lab.clock.pass(2000);
  t.is(lab.store.checkpoints, 1);
  t.false(lab.store.space().full);
  lab.write(++seq, { object: 100 });
  lab.clock.settle();
  t.is(lab.fatal, null);
  t.true(free > 0);
  await lab.crash('kill');
  await expectStamps(t, lab.store, 5, 59, 20, [60]);
  await expectStamps(t, lab.store, 5, 3, 20, [0]);
});

test('idle changes are checkpointed after a while', async (t) => {
  const lab = await Lab.open();
  lab.write(1);
  lab.clock.settle();
  lab.clock.pass(29_000);
  t.is(lab.store.checkpoints, 0);
  lab.clock.pass(2_000);
  t.is(lab.store.checkpoints, 1);
  lab.clock.pass(100_000);
  t.is(lab.store.checkpoints, 1);
});
