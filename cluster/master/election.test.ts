// Who leads, told step by step on the model of etcd. Under faults of all kinds: cluster/sim/masters.test.ts.

import test, { type ExecutionContext } from 'ava';
import { NotLeaderError, StorageError } from '../../proto/errors.ts';
import type { LeaseStore, StoredPair, StoreOutcome, StoreTransaction } from '../../proto/lease-store.ts';
import { ElectedMaster } from './elected-master.ts';
import { Election } from './election.ts';
import { HandClock, QUIET } from './fixture.ts';
import { FOLLOW_MS, LEASE_MARGIN_MS, LEASE_MS, RENEW_MS } from './limits.ts';
import { MemoryLeaseStore } from './memory-lease-store.ts';

const KEY = '/p:leader';

/** The model, as one candidate reaches it. */
class Reach implements LeaseStore {
  readonly #clock: HandClock;
  readonly #inner: MemoryLeaseStore;
  away = false;
  /** How long the next transaction's answer takes. */
  slowMs = 0;
  constructor(clock: HandClock, inner: MemoryLeaseStore) {
    this.#clock = clock;
    this.#inner = inner;
  }
  #through<T>(act: () => Promise<T>): Promise<T> {
    return this.away ? Promise.reject(new StorageError('UNAVAILABLE', 'no answer')) : act();
  }
  get(key: string): Promise<StoredPair | null> {
    return this.#through(() => this.#inner.get(key));
  }
  range(prefix: string): Promise<StoredPair[]> {
    return this.#through(() => this.#inner.range(prefix));
  }
  grant(ttlMs: number): Promise<{ lease: string; ttlMs: number }> {
    return this.#through(() => this.#inner.grant(ttlMs));
  }
  renew(lease: string): Promise<boolean> {
    return this.#through(() => this.#inner.renew(lease));
  }
  revoke(lease: string): Promise<void> {
    return this.#through(() => this.#inner.revoke(lease));
  }
  async transact(transaction: StoreTransaction): Promise<StoreOutcome> {
    const outcome = await this.#through(() => this.#inner.transact(transaction));
    const { slowMs } = this;
    this.slowMs = 0;
    if (slowMs > 0) await new Promise<void>((resolve) => this.#clock.after(slowMs, resolve));
    return outcome;
  }
  close(): void {}
}

class Candidate {
  readonly reach: Reach;
  readonly election: Election;
  /** "leads at 12", "deposed at 3000: why" */
  readonly story: string[] = [];
  constructor(clock: HandClock, store: MemoryLeaseStore, name: string) {
    this.reach = new Reach(clock, store);
    this.election = new Election({
      clock,
      log: QUIET,
      store: this.reach,
      key: KEY,
      name,
      onLead: () => this.story.push('leads'),
      onDeposed: (why) => this.story.push(`deposed at ${clock.now()}: ${why}`),
    });
  }
}

async function two(t: ExecutionContext) {
  const clock = new HandClock();
  const store = new MemoryLeaseStore(clock);
  const a = new Candidate(clock, store, 'a:1');
  await clock.advance(1);
  const b = new Candidate(clock, store, 'b:1');
  await clock.advance(FOLLOW_MS);
  t.deepEqual([a.story, b.story], [['leads'], []]);
  t.is(b.election.leader, 'a:1', 'who does not lead knows who does');
  return { clock, store, a, b };
}

test('the first to ask leads, for as long as it renews, and the other waits', async (t) => {
  const { clock, a, b } = await two(t);
  await clock.advance(60_000);
  t.deepEqual([a.story, b.story], [['leads'], []]);
  t.true(a.election.leads);
  t.false(b.election.leads);
});

test('a leader that the store does not hear stops before its lease can end, and then another leads', async (t) => {
  const { clock, a, b } = await two(t);
  const cutAt = clock.now();
  a.reach.away = true;
  while (a.election.leads) await clock.advance(1);
  const stoppedAt = clock.now();
  t.true(stoppedAt - cutAt <= LEASE_MS - LEASE_MARGIN_MS, `it led for ${stoppedAt - cutAt} ms`);
  t.deepEqual(b.story, [], 'nobody else could lead while it thought that it did');
  await clock.advance(LEASE_MARGIN_MS + 500 + 2 * FOLLOW_MS + RENEW_MS);
  t.deepEqual(b.story, ['leads']);
  t.regex(a.story[1]!, /did not renew its lease in time/);
  a.reach.away = false;
  await clock.advance(FOLLOW_MS);
  t.is(a.election.leader, 'b:1');
  t.false(a.election.leads);
});

test('a leader whose lease was taken away learns of it at the next renewal', async (t) => {
  const { clock, store, a, b } = await two(t);
  await store.revoke((await store.get(KEY))!.lease);
  await clock.advance(RENEW_MS);
  t.regex(a.story[1]!, /its lease is over/);
  await clock.advance(FOLLOW_MS);
  t.is([a, b].filter(({ election }) => election.leads).length, 1);
});

test('one that is told to stop hands over at once', async (t) => {
  const { clock, a, b } = await two(t);
  const closed = a.election.close();
  await clock.advance(FOLLOW_MS);
  await closed;
  t.deepEqual(b.story, ['leads']);
  await clock.advance(60_000);
  t.is(a.story.length, 2, 'and takes no part any more');
});

test('one that resigns may lead again, in another life of the key', async (t) => {
  const { clock, store, a, b } = await two(t);
  await b.election.close();
  const { created } = (await store.get(KEY))!;
  a.election.resign('its store failed');
  t.false(a.election.leads);
  await clock.advance(2 * FOLLOW_MS);
  t.true(a.election.leads);
  t.not((await store.get(KEY))!.created, created);
});

test('a lease that could not be given back is given back when the store answers again: nobody waits for its end', async (t) => {
  const { clock, a, b } = await two(t);
  a.reach.away = true;
  a.election.resign('its store failed');
  await clock.advance(FOLLOW_MS);
  t.deepEqual(b.story, [], 'the key is still there');
  a.reach.away = false;
  await clock.advance(2 * FOLLOW_MS);
  t.is([a, b].filter(({ election }) => election.leads).length, 1);
});

test('a claim whose answer comes too late is given back, not lived in', async (t) => {
  const clock = new HandClock();
  const store = new MemoryLeaseStore(clock);
  const a = new Candidate(clock, store, 'a:1');
  a.reach.slowMs = LEASE_MS;
  await clock.advance(LEASE_MS - 1);
  t.not(await store.get(KEY), null, 'the claim was heard');
  await clock.advance(1);
  t.deepEqual(a.story, []);
  t.is(await store.get(KEY), null);
  await clock.advance(FOLLOW_MS);
  t.deepEqual(a.story, ['leads'], 'the next one counts');
});

test('a master that loses the lead while it works on a call neither answers nor refuses: it knows nothing any more', async (t) => {
  const clock = new HandClock();
  const store = new MemoryLeaseStore(clock);
  const reach = new Reach(clock, store);
  const master = new ElectedMaster({
    clock,
    log: QUIET,
    random: { u32: () => 7 },
    store: reach,
    prefix: '/p',
    onFatal: (error) => t.fail(error.message),
  });
  master.campaign('a:1');
  await clock.advance(FOLLOW_MS);
  t.true(master.leads);
  const image = { name: 'i', pool: 'none', sizeBytes: 4096, order: 20, stripeUnit: 2 ** 20, stripeCount: 1 };
  const refused = await t.throwsAsync(clocked(clock, master.handle('createImage', image)), {
    instanceOf: StorageError,
  });
  t.is(refused!.code, 'NOT_FOUND', 'while it leads it refuses what makes no sense');

  // Its process stops, after it has begun, for longer than its lease.
  const call = master.handle('createImage', image);
  const asleep = t.throwsAsync(call, { instanceOf: StorageError });
  clock.skip(LEASE_MS);
  await clock.settle();
  t.is((await asleep)!.code, 'UNAVAILABLE');
  await t.throwsAsync(clocked(clock, master.handle('status', {})), { instanceOf: NotLeaderError });
});

async function clocked<T>(clock: HandClock, call: Promise<T>): Promise<T> {
  call.catch(() => {}); // looked at below
  await clock.settle();
  return call;
}
