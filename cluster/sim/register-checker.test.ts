import test from 'ava';
import { SimRandom } from './random.ts';
import {
  outsideWindow,
  type RegisterOperation,
  violation,
  violationBySearch,
  violationByZones,
  ZEROS,
} from './register-checker.ts';

/** Tries every order that respects real time; the reference for both algorithms. */
function linearizable(history: readonly RegisterOperation[]): boolean {
  const step = (left: readonly RegisterOperation[], value: number): boolean => {
    if (left.every((op) => op.finish === Infinity && op.kind === 'write')) return true;
    const earliestFinish = Math.min(...left.map((op) => op.finish));
    return left.some((op) => {
      if (op.start > earliestFinish) return false;
      // What expired before the start of something that has taken effect already comes too late.
      if ((op.expires ?? Infinity) < latestStart(history, left)) return false;
      if (op.kind === 'read' && op.stamp !== value) return false;
      return step(
        left.filter((other) => other !== op),
        op.kind === 'write' ? op.stamp : value,
      );
    });
  };
  return step(history, ZEROS);
}

/** When the last of those that have taken effect began. */
const latestStart = (history: readonly RegisterOperation[], left: readonly RegisterOperation[]): number =>
  Math.max(-1, ...history.filter((op) => !left.includes(op)).map((op) => op.start));

/** Up to 7 operations over a few stamps, starts and finishes in random order, some outcomes unknown. */
function randomHistory(random: SimRandom, zeroings: boolean, expiring = false): RegisterOperation[] {
  const count = random.between(1, 7);
  const moments = random.shuffle(Array.from({ length: 2 * count }, (_, i) => i));
  let stamp = 0;
  return Array.from({ length: count }, (_, i) => {
    const [a, b] = [moments[2 * i]!, moments[2 * i + 1]!];
    const kind = random.chance(0.5) ? 'write' : 'read';
    const finish = kind === 'write' && random.chance(0.15) ? Infinity : Math.max(a, b);
    const value = kind === 'read' ? random.below(4) : zeroings && random.chance(0.4) ? ZEROS : ++stamp;
    const operation = { kind, stamp: value, start: Math.min(a, b), finish } as const;
    return expiring && finish === Infinity ? { ...operation, expires: Math.max(a, b) } : operation;
  });
}

test('the zone algorithm agrees with brute force on 60,000 random histories, of both verdicts', (t) => {
  const random = new SimRandom(1);
  const verdicts = { good: 0, bad: 0 };
  for (let i = 0; i < 60_000; i++) {
    const history = randomHistory(random, false);
    const expected = linearizable(history);
    if ((violationByZones(history) === null) !== expected) t.fail(`disagree on ${JSON.stringify(history)}`);
    verdicts[expected ? 'good' : 'bad']++;
  }
  t.true(Math.min(verdicts.good, verdicts.bad) > 10_000, JSON.stringify(verdicts));
});

test('the search agrees with brute force on 30,000 random histories with zeroings', (t) => {
  const random = new SimRandom(2);
  const verdicts = { good: 0, bad: 0 };
  for (let i = 0; i < 30_000; i++) {
    const history = randomHistory(random, true);
    const expected = linearizable(history);
    if ((violationBySearch(history) === null) !== expected) t.fail(`disagree on ${JSON.stringify(history)}`);
    if ((violation(history) === null) !== expected) t.fail(`violation() disagrees on ${JSON.stringify(history)}`);
    verdicts[expected ? 'good' : 'bad']++;
  }
  t.true(Math.min(verdicts.good, verdicts.bad) > 5_000, JSON.stringify(verdicts));
});

test('the search agrees with brute force on 30,000 random histories with writes that expire', (t) => {
  const random = new SimRandom(5);
  const verdicts = { good: 0, bad: 0 };
  for (let i = 0; i < 30_000; i++) {
    const history = randomHistory(random, true, true);
    const expected = linearizable(history);
    if ((violationBySearch(history) === null) !== expected) t.fail(`disagree on ${JSON.stringify(history)}`);
    verdicts[expected ? 'good' : 'bad']++;
  }
  t.true(Math.min(verdicts.good, verdicts.bad) > 5_000, JSON.stringify(verdicts));
});

const write = (stamp: number, start: number, finish: number): RegisterOperation => ({
  kind: 'write',
  stamp,
  start,
  finish,
});
const read = (stamp: number, start: number, finish: number): RegisterOperation => ({
  kind: 'read',
  stamp,
  start,
  finish,
});

test('a lost write, a stale read and a read that goes back are each found, with a sentence that says what', (t) => {
  t.regex(violation([write(1, 0, 1), read(ZEROS, 2, 3)])!, /stamps 0 and 1|stamp 1 was written/);
  t.regex(violation([write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)])!, /stamp 2 was written while 1/);
  t.truthy(violation([write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)]));
  t.regex(violation([read(7, 0, 1)])!, /nobody wrote/);
  t.is(violation([write(1, 0, 1), write(2, 2, 9), read(1, 3, 4), read(2, 5, 6)]), null);
});

test('a write of unknown outcome may take effect at any later time, once', (t) => {
  const lost = write(1, 0, Infinity);
  t.is(violation([lost, read(ZEROS, 2, 3), read(1, 4, 5)]), null);
  t.is(violation([lost, read(ZEROS, 2, 3)]), null);
  t.truthy(violation([lost, read(1, 2, 3), read(ZEROS, 4, 5)]));
  t.truthy(violation([lost, read(1, 2, 3), write(2, 4, 5), read(2, 6, 7), read(1, 8, 9)]));
});

test('300 operations with 30 zeroings and overlapping neighbours are checked in well under a second', (t) => {
  const random = new SimRandom(3);
  const history: RegisterOperation[] = [];
  let value = ZEROS;
  for (let i = 0; i < 300; i++) {
    const start = i * 10 - 1 - random.below(25);
    if (i % 3 === 0) history.push(read(value, i * 10 + 0.5, i * 10 + 9));
    else {
      value = i % 10 === 1 ? ZEROS : i;
      history.push(write(value, start + 0.25, i * 10 + 0.1));
    }
  }
  const before = process.hrtime.bigint();
  t.is(violation(history), null);
  t.true(Number(process.hrtime.bigint() - before) / 1e6 < 1_000);
});

test('after a power cut a read may see any write since the last durable one, never an older one', (t) => {
  const writes = [
    { stamp: 1, start: 0, finish: 1, durable: 3 },
    { stamp: 2, start: 4, finish: 5, durable: Infinity },
    { stamp: 3, start: 6, finish: 7, durable: Infinity },
  ];
  for (const stamp of [1, 2, 3]) t.is(outsideWindow(writes, read(stamp, 10, 11)), null);
  t.regex(outsideWindow(writes, read(ZEROS, 10, 11))!, /stamp 1, written later, was durable/);
  t.regex(outsideWindow(writes, read(9, 10, 11))!, /nobody wrote/);
  t.regex(outsideWindow(writes, read(3, 4, 5))!, /before it was written/);
  writes[2]!.durable = 12;
  t.is(outsideWindow(writes, read(1, 10, 11)), null, 'it became durable while the read was under way');
  t.truthy(outsideWindow(writes, read(2, 13, 14)));
});
