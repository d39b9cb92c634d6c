// What every key-value store must do, as tests: run on each backend.

import type { ExecutionContext } from 'ava';
import type { KeyValueStore } from '../../proto/kv.ts';

export interface Backend {
  readonly name: string;
  /** A store with nothing in it, and a way to open what it holds again after close(). */
  create(t: ExecutionContext): Promise<Opened> | Opened;
}
export interface Opened {
  readonly store: KeyValueStore;
  readonly reopen: () => Promise<KeyValueStore> | KeyValueStore;
}
type Define = (title: string, run: (t: ExecutionContext) => Promise<void>) => void;

const put = (key: string, value: string) => ({ compares: [], puts: [{ key, value }], deletes: [] });

export function testKeyValueStore(test: Define, { name, create }: Backend): void {
  test(`${name}: what was put is read back, changed, and gone when deleted`, async (t) => {
    const { store } = await create(t);
    t.is(await store.get('/a'), null);
    t.true(await store.batch(put('/a', '1')));
    t.is(await store.get('/a'), '1');
    await store.batch(put('/a', '{"ü":"\\u0000"}'));
    t.is(await store.get('/a'), '{"ü":"\\u0000"}');
    await store.batch({ compares: [], puts: [], deletes: ['/a', '/never'] });
    t.is(await store.get('/a'), null);
    await store.close();
  });

  test(`${name}: a range holds the keys with the prefix, ordered, and no others`, async (t) => {
    const { store } = await create(t);
    const keys = [
      '/pgs/1.a',
      '/pgs/1.2',
      '/pgs/',
      '/pgs0',
      '/pg',
      '/pgs/1.2a',
      '/PGS/x',
      '/pgs/%_',
      '/pgs/ü',
      '/pgs/\u{1f980}',
    ];
    await store.batch({ compares: [], puts: keys.map((key) => ({ key, value: key })), deletes: [] });
    const found = await store.range('/pgs/');
    const expected = ['/pgs/', '/pgs/%_', '/pgs/1.2', '/pgs/1.2a', '/pgs/1.a', '/pgs/ü', '/pgs/\u{1f980}'];
    t.deepEqual(
      found.map(({ key }) => key),
      expected,
    );
    t.true(found.every(({ key, value }) => key === value));
    t.is((await store.range('/')).length, keys.length);
    t.deepEqual(await store.range('/none'), []);
    await store.close();
  });

  test(`${name}: a batch happens wholly or, when a compare fails, not at all`, async (t) => {
    const { store } = await create(t);
    await store.batch(put('/epoch', '1'));
    const change = (epoch: string | null) => ({
      compares: [
        { key: '/epoch', value: epoch },
        { key: '/absent', value: null },
      ],
      puts: [
        { key: '/epoch', value: '2' },
        { key: '/b', value: 'new' },
      ],
      deletes: ['/c'],
    });
    await store.batch(put('/c', 'stays'));
    for (const wrong of ['0', null, '1 ']) {
      t.false(await store.batch(change(wrong)));
      t.deepEqual([await store.get('/epoch'), await store.get('/b'), await store.get('/c')], ['1', null, 'stays']);
    }
    t.true(await store.batch(change('1')));
    t.deepEqual([await store.get('/epoch'), await store.get('/b'), await store.get('/c')], ['2', 'new', null]);
    await store.batch(put('/absent', 'here'));
    t.false(await store.batch(change('2')));
    await store.close();
  });

  test(`${name}: of batches that compete only one wins`, async (t) => {
    const { store } = await create(t);
    await store.batch(put('/epoch', '1'));
    const contenders = Array.from({ length: 5 }, (_, n) => ({
      compares: [{ key: '/epoch', value: '1' }],
      puts: [{ key: '/epoch', value: `by ${n}` }],
      deletes: [],
    }));
    const won = await Promise.all(contenders.map((batch) => store.batch(batch)));
    t.is(won.filter(Boolean).length, 1);
    t.is(await store.get('/epoch'), `by ${won.indexOf(true)}`);
    await store.close();
  });

  test(`${name}: everything is there when the store is opened again`, async (t) => {
    const { store, reopen } = await create(t);
    const puts = Array.from({ length: 500 }, (_, n) => ({ key: `/k/${n}`, value: 'v'.repeat(n) }));
    await store.batch({ compares: [], puts, deletes: [] });
    await store.batch({ compares: [], puts: [], deletes: ['/k/7'] });
    await store.close();
    await t.throwsAsync(async () => store.get('/k/8'));
    const again = await reopen();
    t.is((await again.range('/k/')).length, 499);
    t.is(await again.get('/k/499'), 'v'.repeat(499));
    await again.close();
  });

  test(`${name}: a batch of many thousand keys and some megabytes happens wholly or not at all, like any other`, async (t) => {
    const { store, reopen } = await create(t);
    await store.batch(put('/epoch', '1'));
    const keys = Array.from({ length: 4_000 }, (_, n) => `/pgs/${n}`);
    const change = (epoch: string, value: string, deletes: string[] = []) => ({
      compares: [{ key: '/epoch', value: epoch }],
      puts: keys.map((key) => ({ key, value: JSON.stringify({ key, value }) })),
      deletes,
    });
    t.true(await store.batch(change('1', 'a'.repeat(1_000))));
    const first = await store.range('/pgs/');
    t.is(first.length, keys.length);
    t.true(first.every(({ key, value }) => value === JSON.stringify({ key, value: 'a'.repeat(1_000) })));
    t.false(await store.batch(change('0', 'b', ['/epoch'])));
    t.deepEqual(await store.range('/pgs/'), first);
    t.true(await store.batch(change('1', '"\n\u0000ü', ['/epoch'])));
    await store.close();
    const again = await reopen();
    const second = await again.range('/pgs/');
    t.true(second.every(({ key, value }) => value === JSON.stringify({ key, value: '"\n\u0000ü' })));
    t.is(second.length, keys.length);
    t.is(await again.get('/epoch'), null);
    t.true(await again.batch({ compares: [], puts: [], deletes: keys }));
    t.deepEqual(await again.range('/'), []);
    await again.close();
  });
}
