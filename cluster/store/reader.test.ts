// Reads that leave the event loop, and what goes on meanwhile.

import test from 'ava';
import { firstMismatch, payloadChecksums } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { entryOf } from './conformance.ts';
import type { DiskStore } from './engine.ts';
import { FaultDisk } from './fault-disk.ts';
import { Model, randomFrom, smallOrder, stamped } from './model.ts';
import { openOn, TestClock } from './scenario.ts';
import { EntryOp } from './store.ts';

const IMAGE = 3;

/** A store whose blocking reads take so long. */
async function slowStore(readMs: number): Promise<{ store: DiskStore; clock: TestClock; disk: FaultDisk }> {
  const clock = new TestClock();
  const disk = new FaultDisk(clock);
  const store = await openOn(disk, clock, () => {});
  disk.onRead = () => clock.block(readMs);
  return { store, clock, disk };
}

/** The object's stamps, one per block. */
function stampsIn(model: Model, object: number): string {
  const { stamps } = model.objects.get(IMAGE * 2 ** 32 + object) ?? { stamps: new Map<number, number>() };
  const blocks = 2 ** smallOrder(object) / BLOCK_BYTES;
  return Array.from({ length: blocks }, (_, block) => stamps.get(block) ?? 0).join();
}

for (const readMs of [0, 2])
  test(`reads of ${readMs} ms among writes and checkpoints see one state each, of the time they took`, async (t) => {
    const { store, clock, disk } = await slowStore(readMs);
    const model = new Model(smallOrder);
    const random = randomFrom(11);
    disk.laterTurns = () => 1 + (random() % 12);
    let reads = 0;
    let overtaken = 0;
    for (let round = 0; round < 600; round++) {
      const object = random() % 12;
      const states = [stampsIn(model, object)];
      let result: string | null = null;
      const order = smallOrder(object);
      const begin = (): void =>
        store.read(IMAGE, object, order, 0, 2 ** order, (error, checks, payload) => {
          t.is(error, null);
          if (payload !== null) t.is(firstMismatch(payload, checks!, IMAGE, object, 0), -1);
          const blocks = checks!.length / 4;
          result = Array.from({ length: blocks }, (_, block) =>
            checks!.readUInt32LE(block * 4) === 0 ? 0 : payload!.readUInt32LE(block * BLOCK_BYTES),
          ).join();
        });
      begin();
      for (let i = 0; i < 6 && result === null; i++) {
        const step = model.random(random);
        model.perform(store, step, () => {});
        model.apply(step);
        states.push(stampsIn(model, object));
        if (random() % 4 === 0) store.checkpoint();
        for (let turns = random() % 8; turns > 0; turns--) clock.turn();
      }
      const step = model.random(random);
      model.perform(store, step, () => {});
      model.apply(step);
      clock.settle();
      states.push(stampsIn(model, object));
      t.true(states.includes(result!), `round ${round}, object ${object}: ${result} is none of ${states.join(' | ')}`);
      reads++;
      if (new Set(states).size > 1) overtaken++;
    }
    t.is(reads, 600);
    t.is(overtaken > 100, readMs > 0, `${overtaken} were overtaken`);
    t.is(store.readsLater > 100, readMs > 0, `${store.readsLater} reads left the loop`);
  });

test('after a cold spell reads come back to the event loop', async (t) => {
  const { store, clock, disk } = await slowStore(2);
  const model = new Model(smallOrder);
  const random = randomFrom(1);
  for (let i = 0; i < 50; i++) {
    const step = model.random(random);
    model.perform(store, step, () => {});
    model.apply(step);
  }
  store.checkpoint();
  clock.settle();
  clock.pass(200);
  const [some] = [...model.objects.values()];
  const read = (): boolean => {
    let done = false;
    store.read(IMAGE, some!.object, some!.order, 0, 2 ** some!.order, () => {
      done = true;
    });
    return done;
  };
  t.true(read(), 'the first is blocking and slow');
  t.false(read());
  clock.settle();
  disk.onRead = null;
  clock.pass(150);
  t.true(read(), 'tried again, fast');
  t.true(read());
});

test('a read from the log that takes longer than the log lives is begun again', async (t) => {
  const { store, clock, disk } = await slowStore(2);
  let seq = 0;
  const write = (object: number, blocks: number): void => {
    const entry = entryOf(EntryOp.WRITE, ++seq, { object, order: 18, length: blocks * BLOCK_BYTES });
    const payload = stamped(entry.length, seq, 0);
    store.append(entry, payload, payloadChecksums(payload, entry.image, object, 0), false, () => {});
  };
  write(1, 1);
  clock.settle();
  disk.laterTurns = () => 1;
  store.read(5, 1, 18, 0, BLOCK_BYTES, () => {}); // slow: the next one leaves the loop
  disk.laterTurns = () => 2000;
  let found: Buffer | null = null;
  store.read(5, 1, 18, 0, BLOCK_BYTES, (_error, _checks, payload) => {
    found = payload;
  });
  t.is(store.readsLater, 1);
  disk.laterTurns = () => 1;
  // The log, 2 MiB, goes round twice under it.
  for (let i = 0; i < 400; i++) {
    write(2 + (i % 3), 15);
    clock.turn();
  }
  t.is(found, null);
  t.true(store.checkpoints > 3);
  clock.settle();
  t.deepEqual(found, stamped(BLOCK_BYTES, 1, 0));
});

test('a read of nonsense is refused', async (t) => {
  const { store } = await slowStore(0);
  for (const [offset, length] of [
    [1, BLOCK_BYTES],
    [0, 100],
    [0, 2 ** 21],
  ] as const)
    store.read(IMAGE, 1, 20, offset, length, (error, checks, payload) => {
      t.true(error instanceof StorageError && error.code === 'INVALID');
      t.is(checks, null);
      t.is(payload, null);
    });
});
