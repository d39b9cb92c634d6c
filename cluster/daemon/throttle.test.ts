// In virtual time: how much recovery gets through in a second, whatever clients do.

import test from 'ava';
import type { Clock } from '../../proto/ports.ts';
import { CLIENT_SHARE, FLOOR_BYTES_PER_SECOND, IDLE_MS, Throttle } from './throttle.ts';

const MB = 1e6;
const PIECE = 2 ** 20;

class VirtualClock implements Clock {
  ms = 0;
  now(): number {
    return this.ms;
  }
  after(): never {
    throw new Error('the throttle has no timers');
  }
  soon(): never {
    throw new Error('the throttle has no timers');
  }
}

/**
 * Recovers as fast as it may, each push of a piece taking `pushMs`, while clients move `clientBytesPerSecond`.
 * Returns bytes per second over `seconds`.
 */
function recovered(
  clock: VirtualClock,
  throttle: Throttle,
  seconds: number,
  clientBytesPerSecond: number,
  pushMs = 1,
): number {
  const end = clock.ms + seconds * 1000;
  const before = throttle.pushedBytes;
  const pass = (ms: number): void => {
    clock.ms += ms;
    throttle.clientBytes += (clientBytesPerSecond * ms) / 1000;
  };
  while (clock.ms < end) {
    const waitMs = throttle.waitMs();
    if (waitMs > 0) pass(waitMs);
    else {
      throttle.spend(PIECE);
      pass(pushMs);
    }
  }
  return (throttle.pushedBytes - before) / seconds;
}

const near = (found: number, wanted: number, share = 0.05): boolean => Math.abs(found - wanted) <= share * wanted;

test('nobody else is there and no cap is set: recovery never waits', (t) => {
  const clock = new VirtualClock();
  t.true(near(recovered(clock, new Throttle(clock, 0), 10, 0), PIECE * 1000));
});

test('beside clients that move 200 MB/s recovery gets 30 % of that, and the full speed again when they stop', (t) => {
  const clock = new VirtualClock();
  const throttle = new Throttle(clock, 0);
  recovered(clock, throttle, 1, 200 * MB);
  const beside = recovered(clock, throttle, 20, 200 * MB);
  t.true(near(beside, CLIENT_SHARE * 200 * MB), `${beside / MB} MB/s`);
  recovered(clock, throttle, IDLE_MS / 1000 + 0.1, 0);
  t.true(near(recovered(clock, throttle, 5, 0), PIECE * 1000));
});

test('beside clients that move little, recovery gets the floor and not a share of nothing', (t) => {
  const clock = new VirtualClock();
  const throttle = new Throttle(clock, 0);
  recovered(clock, throttle, 1, 0.1 * MB);
  const beside = recovered(clock, throttle, 20, 0.1 * MB);
  t.true(near(beside, FLOOR_BYTES_PER_SECOND), `${beside / MB} MB/s`);
});

test('a cap holds when idle and beside clients, whatever is larger; it can be changed and taken away at any time', (t) => {
  const clock = new VirtualClock();
  const throttle = new Throttle(clock, 20 * MB);
  t.true(near(recovered(clock, throttle, 20, 0), 20 * MB));
  t.true(near(recovered(clock, throttle, 20, 500 * MB), 20 * MB), 'a share of 150 MB/s is not reached');
  throttle.cap(100 * MB);
  t.true(near(recovered(clock, throttle, 20, 0), 100 * MB));
  throttle.cap(0);
  recovered(clock, throttle, 1, 0);
  t.true(near(recovered(clock, throttle, 5, 0), PIECE * 1000));
});

test('a cap below one piece a second is kept on average: what was sent too much is owed', (t) => {
  const clock = new VirtualClock();
  const throttle = new Throttle(clock, 0.1 * MB);
  recovered(clock, throttle, 60, 0);
  const found = recovered(clock, throttle, 300, 0);
  t.true(near(found, 0.1 * MB, 0.15), `${found / MB} MB/s`);
});

test('an idle minute saves up no burst: the cap holds in the second after it', (t) => {
  const clock = new VirtualClock();
  const throttle = new Throttle(clock, 50 * MB);
  throttle.waitMs();
  clock.ms += 60_000;
  t.true(recovered(clock, throttle, 1, 0) < 60 * MB);
});

test('pushes that clients wait for are not held back, and others wait until they are paid for', (t) => {
  const clock = new VirtualClock();
  const throttle = new Throttle(clock, 10 * MB);
  for (let i = 0; i < 20; i++) throttle.spend(PIECE); // nobody asked
  t.true(throttle.waitMs() > 0);
  t.is(throttle.pushedBytes, 20 * PIECE);
  const found = recovered(clock, throttle, 2, 0);
  t.true(found < PIECE, `${found} bytes per second while 2.1 s of debt are paid`);
});
