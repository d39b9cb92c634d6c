import test from 'ava';
import { Expected } from './expected.ts';
import type { Verdict } from './stamps.ts';

const stamp = (value: number): Verdict => ({ is: 'stamp', stamp: value });
const ZEROS: Verdict = { is: 'zeros' };
const readOne = (expected: Expected, block: number, verdict: Verdict): string[] =>
  expected.endRead(expected.beginRead(block, 1), [verdict]);

test('a block holds zeros until it is written, then what was acked, and nothing older', (t) => {
  const expected = new Expected(4, 'acked');
  t.deepEqual(readOne(expected, 0, ZEROS), []);
  expected.issue(0, 2, 1, false);
  t.deepEqual(readOne(expected, 1, ZEROS), [], 'not answered yet: still possible');
  expected.ack(0, 2, 1, false);
  t.deepEqual(readOne(expected, 0, stamp(1)), []);
  t.regex(readOne(expected, 0, ZEROS)[0]!, /block 0: zeros is stale; expected \[1 \.\. 1\]/);
  t.regex(readOne(expected, 0, stamp(9))[0]!, /stamp 9 was never sent/);
});

test('a change without an answer is possible until it was seen; then it must not go away again', (t) => {
  const expected = new Expected(1, 'acked');
  expected.issue(0, 1, 1, false);
  expected.ack(0, 1, 1, false);
  expected.issue(0, 1, 2, false);
  t.deepEqual(readOne(expected, 0, stamp(1)), []);
  t.deepEqual(readOne(expected, 0, stamp(2)), []);
  t.regex(readOne(expected, 0, stamp(1))[0]!, /stamp 1 is stale/);
});

test('a read that overlaps a write may return either, one that begins after its answer only the new', (t) => {
  const expected = new Expected(1, 'acked');
  expected.issue(0, 1, 1, false);
  expected.ack(0, 1, 1, false);
  const overlapping = [expected.beginRead(0, 1), expected.beginRead(0, 1)];
  expected.issue(0, 1, 2, false);
  expected.ack(0, 1, 2, false);
  t.deepEqual(expected.endRead(overlapping[0]!, [stamp(2)]), []);
  t.deepEqual(expected.endRead(overlapping[1]!, [stamp(1)]), []);
  t.is(readOne(expected, 0, stamp(1)).length, 1);
});

test('zeroing is a change like any other', (t) => {
  const expected = new Expected(1, 'acked');
  for (const [value, zeros] of [
    [1, false],
    [2, true],
  ] as const) {
    expected.issue(0, 1, value, zeros);
    expected.ack(0, 1, value, false);
  }
  t.regex(readOne(expected, 0, stamp(1))[0]!, /stale/);
  t.deepEqual(readOne(expected, 0, ZEROS), []);
});

test('after a crash an unflushed write may be gone; the first value read is pinned', (t) => {
  const expected = new Expected(2, 'flushed');
  expected.issue(0, 2, 1, false);
  expected.ack(0, 2, 1, false);
  expected.flushed(expected.beforeFlush());
  for (const value of [2, 3]) {
    expected.issue(0, 2, value, false);
    expected.ack(0, 2, value, false);
  }
  t.regex(readOne(expected, 0, stamp(2))[0]!, /stale/, 'nothing has crashed yet');
  expected.crash();
  t.deepEqual(readOne(expected, 0, stamp(2)), []);
  t.regex(readOne(expected, 0, stamp(3))[0]!, /a change that a crash had undone/);
  t.regex(readOne(expected, 0, stamp(1))[0]!, /stale/);
  t.regex(readOne(expected, 1, ZEROS)[0]!, /stale/, 'what was flushed has survived');
  t.is(expected.promised(0), 2, 'what survived a crash was on a disk');
});

test('a flush covers what was acked before it was sent, FUA its own write', (t) => {
  const expected = new Expected(3, 'flushed');
  expected.issue(0, 1, 1, false);
  expected.ack(0, 1, 1, false);
  const covered = expected.beforeFlush();
  expected.issue(1, 1, 2, false);
  expected.ack(1, 1, 2, false);
  expected.flushed(covered);
  expected.issue(2, 1, 3, false);
  expected.ack(2, 1, 3, true);
  t.deepEqual(
    [0, 1, 2].map((block) => expected.promised(block)),
    [1, 0, 3],
  );
});

test('damage is always reported', (t) => {
  const expected = new Expected(1, 'acked');
  t.deepEqual(readOne(expected, 0, { is: 'damage', why: 'torn' }), ['block 0: torn; expected [0 .. 0]']);
});
