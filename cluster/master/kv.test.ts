import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { SqliteKv } from '../world/sqlite-kv.ts';
import { testKeyValueStore } from './kv-conformance.ts';
import { MemoryKv } from './memory-kv.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-kv-'));
test.after.always(() => rmSync(directory, { recursive: true }));
let files = 0;
const freshFile = (): string => join(directory, `${files++}.db`);

testKeyValueStore(test, {
  name: 'memory',
  create() {
    const store = new MemoryKv();
    return { store, reopen: () => store.copy() };
  },
});

testKeyValueStore(test, {
  name: 'sqlite',
  create() {
    const path = freshFile();
    return { store: new SqliteKv(path), reopen: () => new SqliteKv(path) };
  },
});

const code = (error: unknown) => (error as { code?: string }).code;

test('sqlite: a file that is open is refused, from this process and from another, and free when that one is killed', async (t) => {
  const path = freshFile();
  const program = `
    const { SqliteKv } = await import(${JSON.stringify(join(import.meta.dirname, '../world/sqlite-kv.ts'))});
    const kv = new SqliteKv(${JSON.stringify(path)});
    await kv.batch({ compares: [], puts: [{ key: '/a', value: 'acked' }], deletes: [] });
    console.log('acked');
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  t.is(code(t.throws(() => new SqliteKv(path))), 'BUSY');
  child.kill('SIGKILL');
  await once(child, 'exit');
  const kv = new SqliteKv(path);
  t.is(await kv.get('/a'), 'acked');
  t.is(code(t.throws(() => new SqliteKv(path))), 'BUSY');
  await kv.close();
});

test("sqlite: another program's database, or no database at all, is refused and left as it is", async (t) => {
  const { DatabaseSync } = await import('node:sqlite');
  const foreign = freshFile();
  const database = new DatabaseSync(foreign);
  database.exec('CREATE TABLE bookmarks (url TEXT)');
  database.close();
  t.is(code(t.throws(() => new SqliteKv(foreign))), 'UNSUPPORTED');
  const text = freshFile();
  writeFileSync(text, 'dear diary, '.repeat(200));
  t.is(code(t.throws(() => new SqliteKv(text))), 'UNSUPPORTED');
  t.is(code(t.throws(() => new SqliteKv(join(directory, 'no', 'such', 'place.db')))), 'IO');
});

test('sqlite: whoever copies the one file, of a store in use, has everything that was acked', async (t) => {
  const path = freshFile();
  const kv = new SqliteKv(path);
  await kv.batch({ compares: [], puts: [{ key: '/a', value: '1' }], deletes: [] });
  t.false(existsSync(`${path}-wal`));
  copyFileSync(path, `${path}.copy`);
  const copy = new SqliteKv(`${path}.copy`);
  t.is(await copy.get('/a'), '1');
  await copy.close();
  await kv.close();
});
