import test from 'ava';
import { JOBS } from './jobs.ts';
import { median, type Pair, type Run, summaryOf } from './measure.ts';

const job = JOBS.find(({ name }) => name === 'randread-q32')!;

function run(iops: number, changes: Partial<Run> = {}): Run {
  return {
    iops,
    bytesPerSecond: iops * 4096,
    p50Us: 10,
    p99Us: 20,
    flushP50Us: null,
    flushP99Us: null,
    cpuUsPerIo: 5,
    fromMs: 0,
    untilMs: 1000,
    costs: [],
    residentMaxBytes: {},
    ...changes,
  };
}
function pair(round: number, ours: Run | null, theirs: Run | null): Pair {
  const ratio = ours === null || theirs === null ? null : ours.iops / theirs.iops;
  return { job: job.name, round, ours, theirs, ratio, failures: [] };
}

test('a machine that halves its speed in the middle changes the medians of both sides, and no ratio', (t) => {
  const pairs = [pair(1, run(7_000), run(10_000)), pair(2, run(3_500), run(5_000)), pair(3, run(3_500), run(5_000))];
  const summary = summaryOf(job, pairs);
  t.is(summary.ours, 3_500);
  t.deepEqual([summary.ratioMin, summary.ratio, summary.ratioMax], [0.7, 0.7, 0.7]);
  t.true(summary.reached);
});

test('the target is reached by the median of the ratios, not by the best one', (t) => {
  const pairs = [pair(1, run(90), run(100)), pair(2, run(59), run(100)), pair(3, run(20), run(100))];
  t.false(summaryOf(job, pairs).reached);
});

test('a run that failed has no ratio, and the other rounds count without it', (t) => {
  const summary = summaryOf(job, [pair(1, null, run(100)), pair(2, run(60), run(100))]);
  t.is(summary.ratio, 0.6);
  t.is(summary.ours, 60);
  t.is(summary.theirs, 100);
  const failed = summaryOf(job, [pair(1, null, run(100))]);
  t.deepEqual([failed.ratio, failed.ours, failed.reached], [null, null, null]);
});

test('costs of a role are medians over the rounds; unknown ones stay unknown', (t) => {
  const cost = (cpuUs: number) => [{ role: 'daemon', cpuUs, sleeps: 1, calls: null, diskBytesPerByte: 2 }];
  const pairs = [1, 9, 2].map((cpuUs, i) => pair(i, run(100, { costs: cost(cpuUs) }), null));
  t.deepEqual(summaryOf(job, pairs).costs, [{ role: 'daemon', cpuUs: 2, sleeps: 1, calls: null, diskBytesPerByte: 2 }]);
});

test('the median of an even number of values is the mean of the two in the middle', (t) => {
  t.is(median([4, 1, 3, 2]), 2.5);
  t.is(median([]), null);
  t.is(median([1, null]), null);
});
