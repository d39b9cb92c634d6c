import test from 'ava';
import { BufferPool } from './buffer-pool.ts';

const MiB = 2 ** 20;

test('memory that was given is handed out again, for any length of the same power of two', (t) => {
  const pool = new BufferPool();
  const first = pool.take(MiB);
  pool.give(first);
  const second = pool.take(MiB - 5000);
  t.is(second.buffer, first.buffer);
  t.is(second.length, MiB - 5000);
  t.not(pool.take(MiB).buffer, first.buffer, 'it is taken');
});

test('any view gives the whole memory back, and giving twice does not hand it out twice', (t) => {
  const pool = new BufferPool();
  const taken = pool.take(MiB);
  pool.give(taken.subarray(4096, 8192));
  pool.give(taken);
  t.is(pool.take(MiB).buffer, taken.buffer);
  t.not(pool.take(MiB).buffer, taken.buffer);
});

test('memory from elsewhere is ignored: shared zeros stay what they are', (t) => {
  const pool = new BufferPool();
  pool.poison = true;
  const zeros = Buffer.alloc(MiB);
  pool.give(zeros);
  pool.give(null);
  t.is(zeros[0], 0);
  t.not(pool.take(MiB).buffer, zeros.buffer);
});

test('small and huge lengths are allocated as asked, and ignored when given', (t) => {
  const pool = new BufferPool();
  for (const length of [0, 1, 4095, 4 * MiB + 1]) {
    const taken = pool.take(length);
    t.is(taken.length, length);
    pool.give(taken);
    pool.give(taken);
  }
});

test('with poison small ones are pooled too', (t) => {
  const pool = new BufferPool();
  pool.poison = true;
  const taken = pool.take(16);
  pool.give(taken);
  t.is(pool.take(16).buffer, taken.buffer);
});

test('no more than the limit is kept free', (t) => {
  const pool = new BufferPool();
  const taken = Array.from({ length: 20 }, () => pool.take(4 * MiB));
  for (const buffer of taken) pool.give(buffer);
  const known = new Set(taken.map((buffer) => buffer.buffer));
  let again = 0;
  for (let i = 0; i < 20; i++) if (known.has(pool.take(4 * MiB).buffer)) again++;
  t.is(again, 8);
});

test('whatever sizes filled the pool before, another size soon has its share of it', (t) => {
  for (const [before, after] of [
    [4 * MiB, 4096],
    [4096, MiB],
  ] as const) {
    const pool = new BufferPool();
    const old = Array.from({ length: (64 * MiB) / before }, () => pool.take(before));
    for (const buffer of old) pool.give(buffer);
    const taken = Array.from({ length: (8 * MiB) / after }, () => pool.take(after));
    for (const buffer of taken) pool.give(buffer);
    const known = new Set(taken.map((buffer) => buffer.buffer));
    for (const _ of taken) if (!known.delete(pool.take(after).buffer)) return t.fail(`${after} after ${before}`);
  }
  return t.pass();
});

test('with poison a late reader finds garbage', (t) => {
  const pool = new BufferPool();
  pool.poison = true;
  const taken = pool.take(64 * 1024);
  taken.fill(1);
  pool.give(taken);
  t.true(taken.every((byte) => byte === 0xdb));
});
