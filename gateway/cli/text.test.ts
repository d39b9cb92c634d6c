import test from 'ava';
import { aboutText, bar, sizeText, table } from './text.ts';

test('sizes are shown in the largest unit that fits, with one digit where it is not whole', (t) => {
  t.deepEqual([0, 512, 1024, 1536, 10 * 2 ** 30, 2 ** 50 * 3000].map(sizeText), [
    '0 bytes',
    '512 bytes',
    '1 KiB',
    '1.5 KiB',
    '10 GiB',
    '3000 PiB',
  ]);
});

test('an estimate is said in the unit that people would use, and never as nothing', (t) => {
  t.deepEqual([0, 20, 180, 5_400, 7_200, 3 * 86_400].map(aboutText), [
    'about 1 s',
    'about 20 s',
    'about 3 min',
    'about 90 min',
    'about 2 h',
    'about 3 days',
  ]);
});

test('a table aligns text to the left and numbers to the right, without spaces at the end of a line', (t) => {
  t.is(
    table(
      ['NAME', 'PGS', 'STATE'],
      [
        ['a', 5, 'up'],
        ['longer', 1234, ''],
      ],
    ),
    ['NAME     PGS  STATE', 'a          5  up', 'longer  1234'].join('\n'),
  );
  t.is(table(['NAME', 'SIZE'], []), 'NAME  SIZE');
});

test('a bar is empty at the start, full at the end and never more than full', (t) => {
  t.is(bar(0, 10), `[${'-'.repeat(30)}]   0 %`);
  t.is(bar(1, 3), `[${'#'.repeat(10)}${'-'.repeat(20)}]  33 %`);
  for (const [done, total] of [
    [10, 10],
    [12, 10],
    [0, 0],
  ])
    t.is(bar(done!, total!), `[${'#'.repeat(30)}] 100 %`);
});
