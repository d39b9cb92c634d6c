import test from 'ava';
import { type CpuProfile, type HeapProfile, summarise, summaryText } from './profile-summary.ts';

const frame = (functionName: string, url = '', lineNumber = -1) => ({ functionName, url, lineNumber });

// send() calls itself; write() under it is native. Samples, 1 ms each: idle, send, send in send, write, (program).
const cpu: CpuProfile = {
  nodes: [
    { id: 1, callFrame: frame('(root)'), children: [2, 3, 6] },
    { id: 2, callFrame: frame('(idle)') },
    { id: 3, callFrame: frame('send', 'file:///product/net/send.ts', 9), children: [4] },
    { id: 4, callFrame: frame('send', 'file:///product/net/send.ts', 9), children: [5] },
    { id: 5, callFrame: frame('write') },
    { id: 6, callFrame: frame('(program)') },
  ],
  startTime: 0,
  endTime: 5_000,
  samples: [2, 3, 4, 5, 6, 6],
  timeDeltas: [0, 1_000, 1_000, 1_000, 1_000, 1_000],
};

test('idle time is left out, and a function that calls itself is charged once in total', (t) => {
  const summary = summarise([cpu], '/product');
  t.is(summary.busy, 4);
  t.is(summary.elapsed, 5);
  t.deepEqual(summary.functions, [
    { name: 'send net/send.ts:10', self: 2, total: 3 },
    { name: 'write ← send net/send.ts:10', self: 1, total: 1 },
    { name: '(program)', self: 1, total: 1 },
  ]);
  t.deepEqual(
    summary.files.map(({ name, self }) => [name, self]),
    [
      ['net/send.ts', 2],
      ['(native)', 1],
      ['(program)', 1],
    ],
  );
});

test('the text shows as many functions as wanted, the costliest first', (t) => {
  const text = summaryText(summarise([cpu], '/product'), 1);
  t.regex(text, /busy 4 ms of 5 ms \(80 % of a core\)/);
  t.regex(text, /2\.0 {2}50\.0 % {8}3\.0 {2}75\.0 % {2}send net\/send\.ts:10/);
  t.notRegex(text, /write/);
});

test('profiles of several processes of a role add up', (t) => {
  const summary = summarise([cpu, cpu], '/product');
  t.is(summary.busy, 8);
  t.is(summary.elapsed, 10);
  t.deepEqual(summary.functions[0], { name: 'send net/send.ts:10', self: 4, total: 6 });
});

test('a heap profile is charged in KiB by who allocated', (t) => {
  const heap: HeapProfile = {
    head: {
      callFrame: frame('(root)'),
      selfSize: 0,
      children: [{ callFrame: frame('make', 'file:///product/a.ts', 0), selfSize: 4096, children: [] }],
    },
  };
  const summary = summarise([heap], '/product');
  t.deepEqual(summary.functions, [{ name: 'make a.ts:1', self: 4, total: 4 }]);
  t.is(summary.unit, 'KiB');
});
