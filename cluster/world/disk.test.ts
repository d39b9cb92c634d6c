import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test from 'ava';
import { DiskError } from '../../proto/ports.ts';
import { openDirectory } from './disk.ts';

const temporary = (): string => fs.mkdtempSync(path.join(os.tmpdir(), 'ashlar-disk-'));

test('parts of every size land one after the other, more of them than one writev takes', async (t) => {
  const disk = openDirectory(path.join(temporary(), 'new'));
  const file = disk.open('log', true);
  const parts = Array.from({ length: 2500 }, (_, i) => Buffer.alloc(i % 5, i % 251));
  const all = Buffer.concat(parts);
  file.write(parts, 4096);
  t.is(file.size(), 4096 + all.length);
  const back = Buffer.alloc(all.length + 10);
  t.is(file.read(back, 4096), all.length, 'short at the end of the file');
  t.deepEqual(back.subarray(0, all.length), all);
  const later = Buffer.alloc(100);
  const bytes = await new Promise((resolve) => file.readLater(later, 4096, (_error, count) => resolve(count)));
  t.is(bytes, 100);
  t.deepEqual(later, all.subarray(0, 100));
  t.is(await new Promise((resolve) => file.sync(resolve)), null);
  file.syncNow();
  file.truncate(10);
  t.is(file.size(), 10);
  file.close();
});

test('names are made, renamed, listed and removed; free space is told', (t) => {
  const disk = openDirectory(temporary());
  disk.open('a', true).close();
  disk.rename('a', 'b');
  disk.syncDirectory();
  t.true(disk.exists('b'));
  t.false(disk.exists('a'));
  t.deepEqual(disk.list(), ['b']);
  disk.remove('b');
  t.deepEqual(disk.list(), []);
  t.true(disk.freeBytes() > 0);
});

test('errors of the system become DiskErrors that say what was tried', async (t) => {
  const disk = openDirectory(temporary());
  const missing = t.throws(() => disk.open('nothing', false), { instanceOf: DiskError });
  t.is(missing.code, 'NOT_FOUND');
  t.regex(missing.message, /open nothing/);
  const file = disk.open('a', true);
  file.close();
  t.is(t.throws(() => file.write([Buffer.alloc(1)], 0), { instanceOf: DiskError }).code, 'IO');
  t.is(t.throws(() => file.read(Buffer.alloc(1), 0), { instanceOf: DiskError }).code, 'IO');
  const error = await new Promise<DiskError | null>((resolve) => file.sync(resolve));
  t.is(error?.code, 'IO');
});

test('a device without space says NO_SPACE', (t) => {
  const disk = openDirectory('/dev');
  const file = disk.open('full', false);
  t.is(t.throws(() => file.write([Buffer.alloc(4096)], 0), { instanceOf: DiskError }).code, 'NO_SPACE');
  t.is(t.throws(() => file.write([Buffer.alloc(10), Buffer.alloc(10)], 0), { instanceOf: DiskError }).code, 'NO_SPACE');
  file.close();
});
