// The store of the one who leads: on the model of etcd, and on etcd itself. What every store must do is in
// kv-conformance.ts; here is also what only a shared one can get wrong.

import test, { type ExecutionContext } from 'ava';
import { StorageError } from '../../proto/errors.ts';
import {
  ABSENT,
  type LeaseStore,
  STORE_BYTES_MAX,
  type StoreOutcome,
  type StoreTransaction,
} from '../../proto/lease-store.ts';
import { openEtcd } from '../world/etcd-client.ts';
import { EtcdProcess, whyNoEtcd } from '../world/etcd-fixture.ts';
import { HandClock } from './fixture.ts';
import { testKeyValueStore } from './kv-conformance.ts';
import { LeaderKv, leaderKeyOf } from './leader-kv.ts';
import { MemoryLeaseStore } from './memory-lease-store.ts';

/** Takes the lead from whoever has it, as an election would when the lease is over, and opens. */
async function lead(store: LeaseStore, prefix: string): Promise<LeaderKv> {
  const key = leaderKeyOf(prefix);
  await store.transact({ compares: [], puts: [], deletes: [key], otherwise: key });
  const { lease } = await store.grant(60_000);
  const claim = { compares: [{ key, created: ABSENT }], puts: [{ key, value: 'here', lease }], deletes: [] };
  const outcome = await store.transact({ ...claim, otherwise: key });
  if (!outcome.done) throw new Error('somebody else leads');
  return LeaderKv.open({ store, prefix, created: outcome.created });
}

testKeyValueStore(test, {
  name: 'model of etcd',
  async create() {
    const store = new MemoryLeaseStore(new HandClock());
    return { store: await lead(store, '/p'), reopen: () => lead(store, '/p') };
  },
});

// --- the real one

const why = whyNoEtcd();
let etcd: EtcdProcess | null = null;
if (why === null)
  test.before(async () => {
    etcd = await EtcdProcess.start();
  });
test.after.always(() => etcd?.remove());
type Define = (title: string, run: (t: ExecutionContext) => Promise<void>) => void;
const withEtcd: Define = (title, run) => (why === null ? test.serial(title, run) : test.skip(`${title} (${why})`, run));

let prefixes = 0;
testKeyValueStore(withEtcd, {
  name: 'etcd',
  async create(t) {
    const store = openEtcd([etcd!.endpoint]);
    t.teardown(() => store.close());
    const prefix = `/conformance/${++prefixes}`;
    return { store: await lead(store, prefix), reopen: () => lead(store, prefix) };
  },
});

const put = (key: string, value: string) => ({ compares: [], puts: [{ key, value }], deletes: [] });
const large = (value: string) => ({
  compares: [{ key: '/epoch', value: '1' }],
  puts: Array.from({ length: 300 }, (_, n) => ({ key: `/k/${n}`, value })),
  deletes: ['/gone'],
});

for (const [name, define] of [
  ['model of etcd', test],
  ['etcd', withEtcd],
] as [string, Define][]) {
  const open = (): LeaseStore => (name === 'etcd' ? openEtcd([etcd!.endpoint]) : new MemoryLeaseStore(new HandClock()));

  define(
    `${name}: a deposed master writes nothing, neither small nor large, and learns that it is deposed`,
    async (t) => {
      const store = open();
      t.teardown(() => store.close());
      const prefix = `/deposed/${++prefixes}`;
      const old = await lead(store, prefix);
      await old.batch(put('/epoch', '1'));
      const asleep = await lead(store, `${prefix}-other`);
      await asleep.batch(put('/epoch', '1'));
      const second = await lead(store, prefix);
      await second.batch(put('/by', 'second'));
      await lead(store, `${prefix}-other`);
      const before = await store.range('/deposed/');
      const error = await t.throwsAsync(old.batch(put('/by', 'first')), { instanceOf: StorageError });
      t.is(error!.code, 'UNAVAILABLE');
      t.regex(error!.message, /deposed: the master at here leads/);
      await t.throwsAsync(asleep.batch(large('x')), { message: /deposed/ });
      t.deepEqual(await store.range('/deposed/'), before, 'nothing at all has changed, no journal either');
      await t.throwsAsync(old.get('/by'), { message: /deposed/ }, 'and it does not read any more');
      t.is(await second.get('/by'), 'second');
    },
  );

  define(`${name}: a key vanishes with its lease, and each life of a key has another name`, async (t) => {
    const store = open();
    t.teardown(() => store.close());
    const key = `/life/${++prefixes}`;
    const { lease } = await store.grant(60_000);
    t.true(await store.renew(lease));
    const make = {
      compares: [{ key, created: ABSENT }],
      puts: [{ key, value: 'ü', lease }],
      deletes: [],
      otherwise: key,
    };
    const made = (await store.transact(make)) as StoreOutcome & { done: true };
    t.true(made.done);
    t.deepEqual(await store.get(key), { key, value: 'ü', created: made.created, lease });
    const refused = (await store.transact(make)) as StoreOutcome & { done: false };
    t.false(refused.done);
    t.is(refused.found!.created, made.created);
    await store.revoke(lease);
    await store.revoke(lease);
    t.is(await store.get(key), null);
    t.false(await store.renew(lease));
    await t.throwsAsync(store.transact(make), { instanceOf: StorageError }, 'a lease that is over gives no life');
    const second = await store.grant(60_000);
    const again = (await store.transact({ ...make, puts: [{ key, value: '', lease: second.lease }] })) as typeof made;
    t.not(again.created, made.created);
  });

  define(`${name}: a value larger than the store takes is refused before anything is written`, async (t) => {
    const store = open();
    t.teardown(() => store.close());
    const prefix = `/huge/${++prefixes}`;
    const kv = await lead(store, prefix);
    const batch = {
      compares: [],
      puts: [
        { key: '/a', value: '1' },
        { key: '/b', value: 'x'.repeat(STORE_BYTES_MAX) },
      ],
      deletes: [],
    };
    const error = await t.throwsAsync(kv.batch(batch), { instanceOf: StorageError });
    t.is(error!.code, 'INVALID');
    t.regex(error!.message, /\/b: \d+ bytes are more than the store takes/);
    t.is(await kv.get('/a'), null);
    t.true(await kv.batch(put('/a', '2')), 'the store is not broken by it');
    t.deepEqual(
      (await store.range(prefix)).map(({ key }) => key),
      [`${prefix}/a`, `${prefix}:leader`],
    );
  });
}

/** A store whose n-th transaction from now fails: before it happened, or after, when only the answer is lost. */
class FailingStore extends MemoryLeaseStore {
  failAt = Number.POSITIVE_INFINITY;
  happens = false;
  override async transact(transaction: StoreTransaction): Promise<StoreOutcome> {
    if (--this.failAt !== 0) return super.transact(transaction);
    if (this.happens) await super.transact(transaction);
    throw new StorageError('UNAVAILABLE', 'no answer');
  }
}

test('a large batch that is cut off at any transaction happens wholly or not at all when the next leader has opened', async (t) => {
  let outcomes = '';
  for (const happens of [false, true])
    for (let failAt = 1; ; failAt++) {
      const store = new FailingStore(new HandClock());
      const kv = await lead(store, '/p');
      await kv.batch({
        compares: [],
        puts: [
          { key: '/epoch', value: '1' },
          { key: '/gone', value: '' },
          { key: '/k/5', value: 'old' },
        ],
        deletes: [],
      });
      Object.assign(store, { failAt, happens });
      // 300 pairs of 6 KB: two parts in the journal, three transactions to carry them out.
      const outcome = await kv.batch(large('n'.repeat(6_000))).catch((error: StorageError) => error.code);
      if (outcome === true) {
        t.true(failAt > 6, 'all transactions of the batch were cut off once');
        break;
      }
      t.is(outcome, 'UNAVAILABLE');
      await t.throwsAsync(kv.batch(put('/x', '')), { message: 'no answer' }, 'who does not know must not go on');
      store.failAt = Number.POSITIVE_INFINITY;
      // The next leader may be cut off too, anywhere in what it finishes.
      store.failAt = 4 + (failAt % 4);
      let next = await lead(store, '/p').catch(() => null);
      store.failAt = Number.POSITIVE_INFINITY;
      next ??= await lead(store, '/p');
      const values = new Set((await next.range('/k/')).map(({ value }) => value));
      const count = (await next.range('/k/')).length;
      const gone = (await next.get('/gone')) === null;
      if (gone) t.deepEqual([count, [...values]], [300, ['n'.repeat(6_000)]]);
      else t.deepEqual([count, [...values]], [1, ['old']]);
      outcomes += gone ? '1' : '0';
      t.deepEqual(await store.range('/p:journal/'), []);
    }
  t.regex(outcomes, /^0+1+0+1+$/, 'before the point of no return never, after it always');
});
