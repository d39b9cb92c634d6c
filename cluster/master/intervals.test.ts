import test, { type ExecutionContext } from 'ava';
import type { DaemonId, Epoch } from '../../proto/ids.ts';
import { SimRandom } from '../sim/random.ts';
import {
  activated,
  cleaned,
  desiredActing,
  isFresh,
  newPg,
  nextInterval,
  type PgRecord,
  sameOrder,
  waitForOf,
  withoutComplete,
} from './intervals.ts';

const [A, B, C, D] = [1, 2, 3, 4] as const;

/** One PG and the daemons around it, driven as the master drives it. */
class Story {
  record: PgRecord = newPg(65_536, [], 1);
  epoch: Epoch = 1;
  up = new Set<DaemonId>();
  target: DaemonId[] = [];
  /** Daemons that have run full, and what bounds moves. */
  readonly full = new Set<DaemonId>();
  readonly moves = {
    replicas: 2,
    hasRoom: (d: DaemonId) => !this.full.has(d),
    isFull: (d: DaemonId) => this.full.has(d),
  };

  /** Something changed: the new interval, if one begins. */
  settle(rebooted: DaemonId | 0 = 0): this {
    if (rebooted !== 0) this.record = withoutComplete(this.record, rebooted);
    const acting = desiredActing(this.record, this.target, (d) => this.up.has(d), this.moves);
    if (!sameOrder(acting, this.record.acting) || this.record.acting.includes(rebooted))
      this.record = nextInterval(this.record, acting, ++this.epoch);
    return this;
  }
  starts(...daemons: DaemonId[]): this {
    for (const daemon of daemons) this.up.add(daemon);
    return this.settle();
  }
  dies(...daemons: DaemonId[]): this {
    for (const daemon of daemons) this.up.delete(daemon);
    return this.settle();
  }
  aimsAt(...target: DaemonId[]): this {
    this.target = target;
    return this.settle();
  }
  get canServe(): boolean {
    return this.record.acting.length > 0 && waitForOf(this.record).length === 0;
  }
  activates(): this {
    this.record = activated(this.record);
    return this.settle();
  }
  isCleaned(): this {
    this.record = cleaned(this.record);
    return this.settle();
  }
  prefers(daemon: DaemonId): this {
    this.record = { ...this.record, prefer: daemon };
    return this.settle();
  }
  get acting(): DaemonId[] {
    return [...this.record.acting];
  }
}

const cleanOn = (...members: DaemonId[]): Story =>
  new Story()
    .starts(...members)
    .aimsAt(...members)
    .activates()
    .isCleaned();

test('A alone took writes and died; B returns and waits for A, and nobody guesses', (t) => {
  const story = cleanOn(A, B).dies(B);
  t.deepEqual(story.acting, [A]);
  story.activates().dies(A);
  t.deepEqual(story.acting, []);
  story.starts(B);
  t.deepEqual(story.acting, [B]);
  t.false(story.canServe);
  t.deepEqual(waitForOf(story.record), [A]);
  story.starts(A);
  t.deepEqual(story.acting, [B, A]);
  t.true(story.canServe);
});

test('A was alone but never activated, so it took no writes: B returns and serves', (t) => {
  const story = cleanOn(A, B).dies(B).dies(A).starts(B);
  t.deepEqual(story.acting, [B]);
  t.true(story.canServe);
});

test('a PG that moves keeps its old holders until the new one has everything', (t) => {
  const story = cleanOn(A, B).starts(C).aimsAt(A, C);
  t.deepEqual(story.acting, [A, B, C]);
  story.activates();
  t.deepEqual(story.acting, [A, B, C]);
  story.isCleaned();
  t.deepEqual(story.acting, [A, C]);
  t.deepEqual(
    story.record.history.map((past) => past.acting),
    [[A, B, C]],
  );
  story.settle();
  t.deepEqual(story.acting, [A, C], 'the old holder does not come back by itself');
  story.activates().isCleaned();
  t.deepEqual(story.acting, [A, C]);
  t.deepEqual(story.record.history, []);
});

test('before the moved PG serves, the holder that just left may still be the one that is needed', (t) => {
  const story = cleanOn(A, B).starts(C).aimsAt(A, C).activates().isCleaned();
  t.deepEqual(story.acting, [A, C]);
  story.dies(A, C);
  t.deepEqual(story.acting, [B]);
  t.true(story.canServe, 'B was in every interval that took writes');
});

test('a PG moves to quite other daemons by way of both', (t) => {
  const story = cleanOn(A, B).starts(C, D).aimsAt(C, D);
  t.deepEqual(story.acting, [A, B, C, D]);
  story.activates().isCleaned();
  t.deepEqual(story.acting, [C, D]);
});

test('old holders die while the new one copies: it waits for one of them', (t) => {
  const story = cleanOn(A, B).starts(C).aimsAt(A, C).activates().dies(A, B);
  t.deepEqual(story.acting, [C]);
  t.false(story.canServe);
  t.deepEqual(waitForOf(story.record), [A, B]);
  story.starts(B);
  t.deepEqual(story.acting, [C, B]);
  t.true(story.canServe);
});

test('a good copy is not given up while the daemon that it is for is away', (t) => {
  const story = cleanOn(A, B).aimsAt(A, C);
  t.deepEqual(story.acting, [A, B], 'C is down: B stays');
  story.starts(C);
  t.deepEqual(story.acting, [A, B, C]);
  story.activates().dies(C);
  t.deepEqual(story.acting, [A, B]);
});

test('after its clean report a PG has the order that placement wants, so that primaries are balanced', (t) => {
  const story = cleanOn(A, B).dies(A).activates().starts(A);
  t.deepEqual(story.acting, [B, A], 'the one with the newest data leads while A catches up');
  story.activates().isCleaned();
  t.deepEqual(story.acting, [A, B]);
  t.false(story.record.activated);
});

test('a preferred primary stays first, even when the PG is clean, until it leaves', (t) => {
  const story = cleanOn(A, B).prefers(B);
  t.deepEqual(story.acting, [B, A]);
  story.activates().isCleaned();
  t.deepEqual(story.acting, [B, A]);
  story.dies(B).starts(B);
  t.is(story.record.prefer, 0);
});

test('a daemon that restarted must earn its place again before the PG gives up another', (t) => {
  const story = cleanOn(A, B, C);
  story.settle(B);
  t.deepEqual(story.record.complete, [A, C]);
  story.aimsAt(A, B);
  t.deepEqual(story.acting, [A, B, C], 'B may have lost what was not flushed: C stays');
  story.activates().isCleaned();
  t.deepEqual(story.acting, [A, B]);
});

test('a move that fills the disk it goes to is given up, and taken up again when there is room', (t) => {
  const story = cleanOn(A, B).starts(C).aimsAt(A, C).activates();
  t.deepEqual(story.acting, [A, B, C]);
  story.full.add(C);
  story.settle();
  t.deepEqual(story.acting, [A, B]);
  story.activates().isCleaned();
  t.deepEqual(story.acting, [A, B], 'it stays where it is');
  story.full.delete(C);
  story.settle();
  t.deepEqual(story.acting, [A, B, C]);
});

test('a full daemon stays in a PG that would have too few copies without it', (t) => {
  const story = cleanOn(A, B).dies(B).activates();
  story.full.add(B);
  story.starts(B);
  t.deepEqual(story.acting, [A, B], 'it may have nearly everything');
  story.activates().isCleaned();
  t.deepEqual(story.acting, [A, B]);
  story.starts(C).aimsAt(A, C).activates();
  t.deepEqual(story.acting, [A, B, C], 'nor does a holder go that is complete');
});

test('the same set coming and going does not make the history grow', (t) => {
  const story = cleanOn(A, B);
  for (let round = 0; round < 50; round++) story.dies(B).activates().starts(B).activates();
  t.true(story.record.history.length <= 2, `${story.record.history.length} intervals`);
});

/** What a random run knows beyond the record: which daemon has which acked writes. */
class Ghost extends Story {
  readonly has = new Map<DaemonId, Set<number>>();
  readonly acked = new Set<number>();
  #write = 0;

  #hasOf(daemon: DaemonId): Set<number> {
    let has = this.has.get(daemon);
    if (has === undefined) {
      has = new Set();
      this.has.set(daemon, has);
    }
    return has;
  }
  /** The primary asks to serve; if it may, a write reaches every member and is acked. */
  tryWrite(t: ExecutionContext): void {
    if (!this.canServe) return;
    const together = new Set(this.acting.flatMap((daemon) => [...this.#hasOf(daemon)]));
    for (const write of this.acked) t.true(together.has(write), 'an acked write is with nobody of a serving set');
    this.activates();
    if (!this.record.activated) return;
    this.acked.add(++this.#write);
    for (const daemon of this.acting) this.#hasOf(daemon).add(this.#write);
  }
  recover(): void {
    if (!this.record.activated) return;
    for (const daemon of this.record.acting) for (const write of this.acked) this.#hasOf(daemon).add(write);
    this.isCleaned();
  }
  check(t: ExecutionContext): void {
    for (const daemon of this.record.complete)
      for (const write of this.acked) t.true(this.#hasOf(daemon).has(write), `complete daemon ${daemon} lacks a write`);
    const again = desiredActing(this.record, this.target, (d) => this.up.has(d), this.moves);
    t.deepEqual(again, this.acting, 'the acting set is a fixed point');
    t.true(this.acting.every((daemon) => this.up.has(daemon)));
    t.is(new Set(this.acting).size, this.acting.length);
    if (this.acked.size > 0) t.false(isFresh(this.record), 'a PG that took writes is never taken for new');
  }
}

test('whatever fails in whatever order, a PG that serves has a holder of every acked write', (t) => {
  const random = new SimRandom(20);
  let served = 0;
  let blocked = 0;
  for (let run = 0; run < 150; run++) {
    const ghost = new Ghost();
    for (let step = 0; step < 120; step++) {
      const daemon = random.between(1, 5);
      const dice = random.below(10);
      if (random.chance(0.1)) {
        if (!ghost.full.delete(daemon)) ghost.full.add(daemon);
        ghost.settle();
      }
      if (dice < 3) ghost.starts(daemon);
      else if (dice < 5) ghost.dies(daemon);
      else if (dice < 6) ghost.aimsAt(...new Set([random.between(1, 5), random.between(1, 5)]));
      else if (dice < 8) ghost.tryWrite(t);
      else if (dice < 9) ghost.recover();
      else if (random.chance(0.5)) ghost.settle(daemon);
      else if (ghost.acting.includes(daemon)) ghost.prefers(daemon);
      ghost.check(t);
      if (ghost.canServe) served++;
      else if (ghost.acting.length > 0) blocked++;
    }
  }
  t.true(served > 1_000 && blocked > 100, `${served} steps could serve, ${blocked} were blocked`);
});
