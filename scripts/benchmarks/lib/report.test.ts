import test from 'ava';
import { JOBS } from './jobs.ts';
import { summaryOf } from './measure.ts';
import { type Findings, markdownTable, reportOf, targetsOf, textTable } from './report.ts';

const MIB = 2 ** 20;
const findings: Findings = {
  circumstances: ['on a slow machine'],
  summaries: [summaryOf(JOBS[0]!, [])],
  pairs: [
    {
      job: 'write-1m',
      round: 2,
      ours: null,
      theirs: null,
      ratio: null,
      failures: ['ashlar: fio ended with exit code 1'],
    },
  ],
  idle: [
    { role: 'daemon', id: 1, cpuMsPerSecond: 1 },
    { role: 'daemon', id: 2, cpuMsPerSecond: 7 },
  ],
  residentMaxBytes: { daemon: 240 * MIB, nbd: 251 * MIB },
};

test('the busiest idle process and the biggest one decide about their targets; what was not measured decides nothing', (t) => {
  t.deepEqual(
    targetsOf(findings).map(({ found, reached }) => [found, reached]),
    [
      ['not measured', null],
      ['7.0 ms per second', false],
      ['251 MiB', false],
    ],
  );
  const calm = { ...findings, idle: findings.idle.slice(0, 1), residentMaxBytes: { daemon: 250 * MIB } };
  t.deepEqual(
    targetsOf(calm).map(({ reached }) => reached),
    [null, true, true],
  );
});

test('a failed run is told with its job, round and reason in both formats', (t) => {
  for (const format of ['text', 'markdown'] as const)
    t.regex(reportOf(findings, format), /Failed\s+write-1m, round 2: ashlar: fio ended with exit code 1/);
});

test('words stand left and figures right', (t) => {
  const rows = [
    ['a', '1'],
    ['long', '10,000'],
  ];
  t.is(textTable(['job', 'ours'], rows, 1), 'job     ours\na          1\nlong  10,000');
  t.is(markdownTable(['job', 'ours'], rows, 1), '| job | ours |\n| --- | ---: |\n| a | 1 |\n| long | 10,000 |');
});
