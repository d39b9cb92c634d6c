import test from 'ava';
import { SimRandom } from './random.ts';

const draw = (random: SimRandom, count: number): number[] => Array.from({ length: count }, () => random.u32());

test('the same seed gives the same numbers, the next seed unrelated ones', (t) => {
  t.deepEqual(draw(new SimRandom(7), 100), draw(new SimRandom(7), 100));
  const other = new Set(draw(new SimRandom(8), 100));
  t.deepEqual(
    draw(new SimRandom(7), 100).filter((n) => other.has(n)),
    [],
  );
});

test('a fork does not depend on what was drawn before it, and its label tells it apart', (t) => {
  const fresh = new SimRandom(3).fork('disk');
  const used = new SimRandom(3);
  draw(used, 1000);
  const late = used.fork('disk');
  t.deepEqual(draw(fresh, 50), draw(late, 50));
  t.notDeepEqual(draw(new SimRandom(3).fork('disk'), 50), draw(new SimRandom(3).fork('network'), 50));
});

test('draws are spread evenly: every one of 16 buckets gets its share of 160,000 numbers', (t) => {
  const random = new SimRandom(1);
  const counts = new Array<number>(16).fill(0);
  for (let i = 0; i < 160_000; i++) counts[random.below(16)]!++;
  for (const count of counts) t.true(count > 9_600 && count < 10_400, `a bucket has ${count}`);
});

test('exponential delays have the mean that was asked for', (t) => {
  const random = new SimRandom(2);
  let sum = 0;
  for (let i = 0; i < 100_000; i++) sum += random.exponential(5);
  t.true(Math.abs(sum / 100_000 - 5) < 0.1);
});
