// After a sync that failed, pages are right in memory, marked clean, and never reach the disk: no later sync speaks of
// them. The store ends itself; these stories are about the next start, which finds those pages, and a power cut after it.

import test from 'ava';
import { entryOf, expectStamps } from './conformance.ts';
import { Lab } from './lab.ts';
import { randomFrom } from './model.ts';
import { openOn, TestClock } from './scenario.ts';
import { EntryOp } from './store.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const { pg } = entryOf(EntryOp.WRITE, 1);

test('what a start found after a failed sync of the log and the data stays, although the power goes', async (t) => {
  const lab = await Lab.open();
  lab.write(1, { length: 1 * MiB });
  lab.write(2, { object: 2 });
  lab.disk.arm({ at: 1, of: 'sync', what: 'IO', forEver: true });
  t.false(lab.sync());
  t.not(lab.fatal, null);
  lab.disk.arm(null);
  await lab.crash('kill');
  t.is(lab.store.pgInfo(pg).last.seq, 2, 'both are in the page cache');
  await lab.harshCut();
  t.is(lab.store.pgInfo(pg).last.seq, 2);
  await expectStamps(t, lab.store, 5, 1, 20, new Array(256).fill(1));
  await expectStamps(t, lab.store, 5, 2, 20, [2, 0]);
});

test('the same when the sync of the first start fails as well', async (t) => {
  const lab = await Lab.open();
  lab.write(1, { length: 512 * KiB });
  lab.disk.arm({ at: 1, of: 'sync', what: 'IO', forEver: true });
  t.false(lab.sync());
  lab.disk = lab.disk.survivor('kill', new TestClock());
  lab.disk.arm({ at: 1, of: 'sync', what: 'IO', forEver: true });
  await t.throwsAsync(lab.start(), { message: /made to fail/ });
  lab.disk.arm(null);
  await lab.crash('kill');
  await lab.harshCut();
  await expectStamps(t, lab.store, 5, 1, 20, [...new Array(128).fill(1), 0]);
});

for (const what of ['IO', 'NO_SPACE'] as const)
  test(`new files whose names could not be synced (${what}) end the store, and the next start syncs them`, async (t) => {
    const lab = await Lab.open();
    lab.disk.arm({ at: 1, of: 'syncDirectory', what });
    t.throws(() => lab.write(1), { message: /names of new files/ });
    t.not(lab.fatal, null);
    lab.disk.arm(null);
    await lab.crash('kill');
    lab.write(1);
    lab.checkpoint();
    await lab.harshCut();
    await expectStamps(t, lab.store, 5, 1, 20, [1, 0]);
  });

test('a process that dies between making files and syncing their names leaves no store that forgets them later', async (t) => {
  const lab = await Lab.open();
  lab.disk.arm({ at: 1, of: 'syncDirectory', what: 'kill' });
  t.throws(() => lab.write(1));
  await lab.crash('kill');
  lab.write(1);
  lab.checkpoint();
  await lab.harshCut();
  await expectStamps(t, lab.store, 5, 1, 20, [1, 0]);
});

test('a sync that says ENOSPC in the checkpoint of a shutdown is fatal, and what it was to copy is still there', async (t) => {
  for (let at = 1; ; at++) {
    const lab = await Lab.open();
    lab.write(1);
    t.true(lab.sync());
    lab.disk.arm({ at, of: 'sync', what: 'NO_SPACE' });
    let ended: Error | null | undefined;
    lab.store.close((error) => {
      ended = error;
    });
    for (let i = 0; i < 10; i++) lab.clock.pass(10);
    if (lab.disk.counted('sync') < at) {
      t.is(ended, null);
      t.true(at > 4, 'the mark, data, metadata, both checkpoint files');
      return;
    }
    t.true(ended instanceof Error, `sync ${at}`);
    t.not(lab.fatal, null, `sync ${at}`);
    lab.disk.arm(null);
    await lab.crash('kill');
    lab.checkpoint();
    await lab.harshCut();
    await expectStamps(t, lab.store, 5, 1, 20, [1, 0]);
  }
});

test('a checkpoint that is in the page cache only does not cost both files when the next start is cut short', async (t) => {
  const make = async (): Promise<Lab> => {
    const lab = await Lab.open();
    // A checkpoint of more than one sector, so that it can be torn.
    for (let other = 1; other <= 40; other++) lab.store.setPg(pg + other, 7, true);
    lab.write(1);
    lab.checkpoint();
    lab.write(2);
    lab.checkpoint();
    lab.write(3, { object: 2 });
    t.true(lab.sync());
    return lab;
  };
  const whole = await make();
  whole.disk.arm(null);
  whole.checkpoint();
  const syncs = whole.disk.counted('sync');
  // The last sync is of the second file; the one before of the first, which is in force when it is there.
  const lab = await make();
  lab.disk.arm({ at: syncs - 1, of: 'sync', what: 'IO' });
  lab.store.checkpoint();
  lab.clock.settle();
  t.not(lab.fatal, null);
  for (let at = 1; ; at++) {
    const clock = new TestClock();
    const disk = lab.disk.survivor('kill', clock);
    disk.arm({ at, what: 'kill' });
    await openOn(disk, clock, () => {}).catch(() => {});
    if (disk.counted() < at) return t.true(at > 5, 'the start has steps');
    for (let seed = 1; seed <= 80; seed++) {
      const after = new TestClock();
      const store = await openOn(disk.survivor('power', after, randomFrom(seed)), after, () => {});
      await expectStamps(t, store, 5, 1, 20, [2, 0]);
      await expectStamps(t, store, 5, 2, 20, [3, 0]);
    }
  }
});
