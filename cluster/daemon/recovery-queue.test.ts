import test from 'ava';
import type { ObjectKey } from '../../proto/ids.ts';
import type { Recovery } from './recovery.ts';
import { RecoveryQueue } from './recovery-queue.ts';

/** Takes turns and keeps them until told to give them back. */
class Taker {
  readonly taken: ObjectKey[] = [];
  readonly #back: (() => void)[] = [];
  /** Keys whose turn is given back at once. */
  readonly #stale: (key: ObjectKey) => boolean;
  constructor(stale: (key: ObjectKey) => boolean = () => false) {
    this.#stale = stale;
  }
  push(key: ObjectKey, done: () => void): void {
    this.taken.push(key);
    if (this.#stale(key)) done();
    else this.#back.push(done);
  }
  giveBack(): void {
    this.#back.shift()!();
  }
  get asRecovery(): Recovery {
    return this as unknown as Recovery;
  }
}

test('four objects at a time, in the order in which they came', (t) => {
  const queue = new RecoveryQueue();
  const taker = new Taker();
  for (let key = 1; key <= 6; key++) queue.add(taker.asRecovery, key, false);
  t.deepEqual(taker.taken, [1, 2, 3, 4]);
  taker.giveBack();
  taker.giveBack();
  t.deepEqual(taker.taken, [1, 2, 3, 4, 5, 6]);
});

test('what a client waits for goes first, beyond the limit as well, but not without one', (t) => {
  const queue = new RecoveryQueue();
  const taker = new Taker();
  for (let key = 1; key <= 10; key++) queue.add(taker.asRecovery, key, false);
  for (let key = 101; key <= 110; key++) queue.add(taker.asRecovery, key, true);
  t.deepEqual(taker.taken, [1, 2, 3, 4, 101, 102, 103, 104]);
  for (let i = 0; i < 6; i++) taker.giveBack();
  t.deepEqual(taker.taken.slice(8), [105, 106, 107, 108, 109, 110]);
});

test('a recovery that ended takes no more turns', (t) => {
  const queue = new RecoveryQueue();
  const [ended, other] = [new Taker(), new Taker()];
  for (let key = 1; key <= 8; key++) queue.add(ended.asRecovery, key, key % 2 === 0);
  queue.add(other.asRecovery, 100, false);
  queue.removeAll(ended.asRecovery);
  for (const _ of ended.taken.slice()) ended.giveBack();
  t.true(ended.taken.length < 8);
  t.deepEqual(other.taken, [100]);
});

test('100,000 turns that are given back at once neither nest nor stop those that follow', (t) => {
  const queue = new RecoveryQueue();
  const taker = new Taker((key) => key < 100_000);
  for (let key = 100_000; key < 100_008; key++) queue.add(taker.asRecovery, key, true); // all turns are taken
  for (let key = 0; key < 100_000; key++) queue.add(taker.asRecovery, key, true);
  queue.add(taker.asRecovery, 200_000, false);
  for (let i = 0; i < 8; i++) taker.giveBack();
  t.is(taker.taken.length, 100_009);
  t.is(taker.taken.at(-1), 200_000);
});
