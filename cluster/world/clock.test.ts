import test from 'ava';
import { openClock, openRandom } from './clock.ts';

test('a timer never fires early, even when the loop was busy when it was set', async (t) => {
  const clock = openClock();
  for (let round = 0; round < 5; round++) {
    const busyUntil = clock.now() + 15;
    while (clock.now() < busyUntil);
    const start = clock.now();
    await new Promise<void>((done) => clock.after(10, done));
    const waited = clock.now() - start;
    t.true(waited >= 10, `fired after ${waited} ms`);
  }
});

test('a cancelled timer stays silent, also when cancelled twice', async (t) => {
  const clock = openClock();
  let fired = false;
  const timer = clock.after(5, () => {
    fired = true;
  });
  timer.cancel();
  timer.cancel();
  await new Promise<void>((done) => clock.after(20, done));
  t.false(fired);
});

test('soon runs callbacks in order, after the caller, and what they ask for in the next turn', async (t) => {
  const clock = openClock();
  const seen: string[] = [];
  clock.soon(() => {
    seen.push('first');
    clock.soon(() => seen.push('nested'));
  });
  clock.soon(() => seen.push('second'));
  seen.push('caller');
  await new Promise<void>((done) => clock.soon(() => clock.soon(() => clock.soon(done))));
  t.deepEqual(seen, ['caller', 'first', 'second', 'nested']);
});

test('random numbers fill 32 bits and do not repeat from one to the next refill', (t) => {
  const random = openRandom();
  const seen = new Set<number>();
  let any = 0;
  for (let i = 0; i < 2000; i++) {
    const value = random.u32();
    t.true(Number.isInteger(value) && value >= 0 && value < 2 ** 32);
    any = (any | value) >>> 0;
    seen.add(value);
  }
  t.is(any, 2 ** 32 - 1);
  t.true(seen.size > 1990);
});
