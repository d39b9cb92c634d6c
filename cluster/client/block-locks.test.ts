import test from 'ava';
import { BlockLocks, type LockHolder } from './block-locks.ts';

class Holder implements LockHolder {
  readonly key: number;
  readonly start: number;
  readonly end: number;
  begun = false;
  readonly #onBegin: (holder: Holder) => void;
  constructor(key: number, start: number, end: number, onBegin: (holder: Holder) => void) {
    this.key = key;
    this.start = start;
    this.end = end;
    this.#onBegin = onBegin;
  }
  begin(): void {
    this.#onBegin(this);
  }
}
const overlap = (a: Holder, b: Holder): boolean => a.key === b.key && a.start < b.end && b.start < a.end;

test('changes of different blocks go on together; a third that touches both waits for both', (t) => {
  const locks = new BlockLocks();
  const begun: Holder[] = [];
  const holder = (start: number, end: number, key = 1): Holder => {
    const made = new Holder(key, start, end, (one) => begun.push(one));
    locks.acquire(made);
    return made;
  };
  const first = holder(0, 8);
  const second = holder(8, 16);
  const both = holder(4, 12);
  const elsewhere = holder(0, 16, 2);
  t.deepEqual(begun, [first, second, elsewhere]);
  locks.release(first);
  t.false(both.begun);
  locks.release(second);
  t.deepEqual(begun.slice(3), [both]);
});

test('who comes later waits behind who waits, even if the block is free', (t) => {
  const locks = new BlockLocks();
  const make = (start: number, end: number): Holder => {
    const made = new Holder(1, start, end, () => {});
    locks.acquire(made);
    return made;
  };
  const held = make(0, 4);
  const waits = make(0, 8);
  const later = make(4, 8);
  t.false(later.begun, 'it was asked for after the one that waits');
  locks.release(held);
  t.true(waits.begun);
  t.false(later.begun);
  locks.release(waits);
  t.true(later.begun);
});

test('2,000 random schedules: overlapping changes begin in the order they came, none overlap, none is forgotten', (t) => {
  for (let seed = 1; seed <= 2_000; seed++) {
    let state = seed * 131;
    const random = (n: number): number => {
      state = (state * 48_271) % 2_147_483_647;
      return state % n;
    };
    const locks = new BlockLocks();
    const all: Holder[] = [];
    const running = new Set<Holder>();
    const done = new Set<Holder>();
    let why: string | null = null;
    const finish = (holder: Holder): void => {
      running.delete(holder);
      done.add(holder);
      locks.release(holder);
    };
    const onBegin = (holder: Holder): void => {
      for (const other of running) if (overlap(other, holder)) why = 'two overlap';
      for (const earlier of all.slice(0, all.indexOf(holder)))
        if (overlap(earlier, holder) && !done.has(earlier)) why = 'one overtook another';
      running.add(holder);
      if (random(10) === 0) finish(holder); // some are over before begin() returns
    };
    while (all.length < 30 || running.size > 0) {
      if (all.length < 30 && (running.size === 0 || random(2) === 0)) {
        const start = random(12);
        const holder = new Holder(1 + random(2), start, start + 1 + random(6), onBegin);
        all.push(holder);
        locks.acquire(holder);
      } else finish([...running][random(running.size)]!);
    }
    t.is(why, null, `seed ${seed}`);
    t.is(done.size, 30, `seed ${seed}`);
  }
});
