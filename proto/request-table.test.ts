import test from 'ava';
import { RequestTable } from './request-table.ts';

test('an answer finds its request once; a number that is unknown, given up or long past finds nobody', (t) => {
  const table = new RequestTable<string>();
  const first = table.add('first');
  const second = table.add('second');
  t.is(table.get(first), 'first');
  table.delete(first);
  t.is(table.get(first), null);
  t.is(table.get(0), null);
  t.is(table.get(second + 64), null, 'the same slot, another number');
  t.is(table.get(second), 'second');
  t.is(table.size, 1);
  table.delete(first);
  t.is(table.size, 1, 'deleting what is gone changes nothing');
});

test('a request that is never answered stays, while 100,000 others come and go, and its number is not given again', (t) => {
  const table = new RequestTable<object>();
  const stuck = { stuck: true };
  const number = table.add(stuck);
  for (let i = 0; i < 100_000; i++) {
    const other = table.add({});
    if (other === number) return t.fail();
    table.delete(other);
  }
  t.is(table.get(number), stuck);
  return t.is(table.size, 1);
});

test('it behaves like a Map of the same numbers under random use, and lists what waits in the order of asking', (t) => {
  const table = new RequestTable<number>();
  const model = new Map<number, number>();
  let random = 7;
  for (let step = 0; step < 50_000; step++) {
    random = (Math.imul(random, 1_103_515_245) + 12_345) & 0x7fffffff;
    const busy = step % 10_000 < 5_000;
    if ((random >> 8) % 10 < (busy ? 6 : 4)) {
      const number = table.add(step);
      t.false(model.has(number));
      model.set(number, step);
    } else {
      const numbers = [...model.keys()];
      const number = numbers[(random >> 8) % Math.max(1, numbers.length)];
      if (number === undefined) continue;
      if (table.get(number) !== model.get(number)) return t.fail(`step ${step}`);
      table.delete(number);
      model.delete(number);
    }
  }
  t.true(model.size > 100);
  t.is(table.size, model.size);
  t.deepEqual(table.values(), [...model.values()]);
  table.clear();
  t.is(table.size, 0);
  return t.deepEqual(table.values(), []);
});
