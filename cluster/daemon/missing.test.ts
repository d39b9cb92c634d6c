import test from 'ava';
import { payloadChecksums } from '../../proto/checksum.ts';
import { objectKey, pgId, sameVersion, VERSION_ZERO, type Version } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { createMemoryStore } from '../store/memory-store.ts';
import { EntryOp, type LogEntry, type Store } from '../store/store.ts';
import { openClock } from '../world/clock.ts';
import { authorityAmong, type CatchUp, catchUpByList, catchUpByLog, catchUpDiverged } from './missing.ts';

const PG = pgId(1, 3);
const IMAGE = 1;
const ORDER = 16;
const BLOCKS = 2 ** ORDER / BLOCK_BYTES;
const clock = openClock();
const ignore = (): void => {};

function randomFrom(seed: number): (n: number) => number {
  let state = (seed % 2_147_483_646) + 1;
  return (n) => {
    state = (state * 48_271) % 2_147_483_647;
    return state % n;
  };
}

const entryAt = (version: Version, more: Partial<LogEntry> = {}): LogEntry => ({
  pg: PG,
  version,
  op: EntryOp.WRITE,
  image: IMAGE,
  object: 0,
  order: ORDER,
  offset: 0,
  length: BLOCK_BYTES,
  session: 1,
  sessionSeq: version.seq,
  ...more,
});

/** Appends a random entry; its content is its version, so that no two writes are alike. */
function append(stores: Store[], since: number, random: (n: number) => number): void {
  const seq = stores[0]!.pgInfo(PG).last.seq + 1;
  const first = random(BLOCKS);
  const blocks = 1 + random(Math.min(4, BLOCKS - first));
  const dice = random(10);
  const op = dice < 6 ? EntryOp.WRITE : dice < 9 ? EntryOp.ZERO : EntryOp.DELETE;
  const entry = entryAt(
    { since, seq },
    {
      op,
      object: random(4),
      offset: op === EntryOp.DELETE ? 0 : first * BLOCK_BYTES,
      length: op === EntryOp.DELETE ? 2 ** ORDER : blocks * BLOCK_BYTES,
    },
  );
  const payload = op === EntryOp.WRITE ? Buffer.alloc(entry.length, since * 100 + (seq % 100)) : null;
  const checks = payload === null ? null : payloadChecksums(payload, IMAGE, entry.object, entry.offset);
  for (const store of stores) store.append(entry, payload, checks, true, ignore);
}

/** The choice that Interval makes, on two stores. */
function catchUpOf(authority: Store, member: Store): { way: 'log' | 'diverged' | 'list'; catchUp: CatchUp } {
  const mine = authority.pgInfo(PG);
  const theirs = member.pgInfo(PG);
  if (theirs.complete) {
    if (sameVersion(theirs.last, mine.last)) return { way: 'log', catchUp: catchUpByLog(mine.last, []) };
    const after = authority.logAfter(PG, theirs.last);
    if (after !== null) return { way: 'log', catchUp: catchUpByLog(theirs.last, after) };
    const whole = authority.logAfter(PG, mine.tail)!;
    const catchUp = catchUpDiverged(whole, mine.tail, member.logAfter(PG, theirs.tail)!, theirs.tail);
    if (catchUp !== null) return { way: 'diverged', catchUp };
  }
  return {
    way: 'list',
    catchUp: catchUpByList(
      mine.last,
      authority.objects(PG),
      [...member.objects(PG)],
      authority.logAfter(PG, mine.tail)!,
    ),
  };
}

function read(
  store: Store,
  object: number,
  offset: number,
  length: number,
): { checks: Buffer; payload: Buffer | null } {
  let found: { checks: Buffer; payload: Buffer | null } | null = null;
  store.read(IMAGE, object, ORDER, offset, length, (_error, checks, payload) => {
    found = { checks: checks!, payload };
  });
  return found!;
}

/** What activation and pushes do to the member. Returns the bytes pushed. */
function carryOut(authority: Store, member: Store, { mode, version, entries, missing }: CatchUp): number {
  if (mode === 'reset') member.resetLog(PG, version);
  if (mode === 'truncate') member.truncateLog(PG, version);
  member.mergeLog(PG, entries);
  let pushed = 0;
  for (const { object, whole, extents } of missing.values()) {
    const newest = authority.objectVersion(IMAGE, object);
    if (sameVersion(newest, VERSION_ZERO)) member.recoverDelete(PG, IMAGE, object, ignore);
    else {
      const ranges = whole ? [{ start: 0, end: 2 ** ORDER }] : extents;
      ranges.forEach(({ start, end }, i) => {
        const { checks, payload } = read(authority, object, start, end - start);
        const piece = { pg: PG, image: IMAGE, object, order: ORDER, offset: start, length: end - start };
        const last = i === ranges.length - 1;
        member.recover({ ...piece, replace: whole, version: last ? newest : VERSION_ZERO }, payload, checks, ignore);
        pushed += end - start;
      });
    }
  }
  return pushed;
}

function contentOf(store: Store): unknown {
  const objects = [...store.objects(PG)].sort((a, b) => a.object - b.object);
  return objects.map((info) => {
    const { checks, payload } = read(store, info.object, 0, 2 ** ORDER);
    return { ...info, checks: checks.toString('hex'), zeros: payload === null };
  });
}

test('4,000 random histories: whatever a member missed or did beyond, the catch-up makes it equal to the authority', (t) => {
  const ways = { log: 0, diverged: 0, list: 0 };
  for (let seed = 1; seed <= 4_000; seed++) {
    const random = randomFrom(seed * 7919);
    const logEntriesMax = random(3) === 0 ? 1 + random(12) : 1000;
    const authority = createMemoryStore(clock, { logEntriesMax });
    const member = createMemoryStore(clock, { logEntriesMax });
    for (let i = random(12); i > 0; i--) append([authority, member], 2, random);
    // The member was a primary that died with entries which nobody else has.
    if (random(2) === 0) for (let i = random(5); i > 0; i--) append([member], 2, random);
    for (let since = 3; since < 3 + random(3); since++)
      for (let i = random(8); i > 0; i--) append([authority], since, random);
    if (random(8) === 0) {
      // An earlier recovery that never finished: some objects are there, one is half copied.
      member.setPg(PG, 1, false);
      const piece = { pg: PG, image: IMAGE, object: 0, order: ORDER, replace: true, offset: 0, length: BLOCK_BYTES };
      const { checks, payload } = read(authority, 0, 0, BLOCK_BYTES);
      member.recover({ ...piece, version: VERSION_ZERO }, payload, checks, ignore);
    }
    const { way, catchUp } = catchUpOf(authority, member);
    ways[way] += 1;
    carryOut(authority, member, catchUp);
    t.deepEqual(contentOf(member), contentOf(authority), `seed ${seed}, by ${way}`);
    t.deepEqual(member.pgInfo(PG).last, authority.pgInfo(PG).last, `seed ${seed}`);
    // What follows is appended to both, so both logs must be able to take it.
    append([authority, member], 9, random);
  }
  t.true(ways.log > 400 && ways.diverged > 400 && ways.list > 400, JSON.stringify(ways));
});

test('a member that missed one write of one block fetches one block', (t) => {
  const [authority, member] = [createMemoryStore(clock), createMemoryStore(clock)];
  const random = randomFrom(1);
  for (let i = 0; i < 50; i++) append([authority, member], 2, random);
  const { last } = authority.pgInfo(PG);
  const payload = Buffer.alloc(BLOCK_BYTES, 1);
  const entry = entryAt({ since: 3, seq: last.seq + 1 }, { object: 2 });
  authority.append(entry, payload, payloadChecksums(payload, IMAGE, 2, 0), true, ignore);
  const { way, catchUp } = catchUpOf(authority, member);
  t.is(way, 'log');
  t.is(carryOut(authority, member, catchUp), BLOCK_BYTES);
  t.deepEqual(contentOf(member), contentOf(authority));
});

test('neighbouring and overlapping extents are fetched once; many of them as the whole object; a delete as well', (t) => {
  const write = (seq: number, offset: number, blocks: number): LogEntry =>
    entryAt({ since: 2, seq }, { order: 22, offset: offset * BLOCK_BYTES, length: blocks * BLOCK_BYTES });
  const missingOf = (entries: LogEntry[]) => catchUpByLog(VERSION_ZERO, entries).missing.get(objectKey(IMAGE, 0))!;
  const joined = missingOf([write(1, 4, 2), write(2, 10, 1), write(3, 6, 1), write(4, 0, 1), write(5, 5, 6)]);
  t.deepEqual(
    joined.extents.map(({ start, end }) => [start / BLOCK_BYTES, end / BLOCK_BYTES]),
    [
      [0, 1],
      [4, 11],
    ],
  );
  const many = missingOf(Array.from({ length: 65 }, (_, i) => write(i + 1, 2 * i, 1)));
  t.like(many, { whole: true, extents: [] });
  const deleted = missingOf([
    write(1, 0, 1),
    entryAt({ since: 2, seq: 2 }, { op: EntryOp.DELETE, order: 22 }),
    write(3, 9, 1),
  ]);
  t.true(deleted.whole);
});

test('logs with no version in common have no common ancestor, also when they are empty', (t) => {
  const at = (since: number, seq: number) => entryAt({ since, seq });
  t.is(catchUpDiverged([at(3, 5)], { since: 3, seq: 4 }, [at(2, 5)], { since: 2, seq: 4 }), null);
  t.is(catchUpDiverged([], { since: 3, seq: 4 }, [], { since: 2, seq: 4 }), null);
  const common = catchUpDiverged([at(3, 5)], { since: 2, seq: 4 }, [at(2, 5)], { since: 2, seq: 4 });
  t.like(common, { mode: 'truncate', version: { since: 2, seq: 4 } });
});

test('the authority is complete, was there when writes were last allowed, and has the newest log; else nobody is', (t) => {
  const info = (les: number, complete: boolean, since: number, seq: number) => ({
    les,
    complete,
    last: { since, seq },
    tail: VERSION_ZERO,
  });
  t.is(authorityAmong([info(5, true, 5, 10), info(5, true, 5, 12)], 5), 1, 'the longer log');
  t.is(authorityAmong([info(5, true, 5, 99), info(7, true, 7, 12)], 5), 1, 'the newer interval, however short its log');
  t.is(authorityAmong([info(5, true, 5, 10), info(5, true, 5, 10)], 5), 0, 'the primary if all are equal');
  t.is(authorityAmong([info(6, false, 6, 50), info(5, true, 5, 10)], 5), 1, 'not one that misses something');
  t.is(authorityAmong([info(5, true, 5, 10), info(6, false, 6, 50)], 6), -1, 'not one that was away meanwhile');
  t.is(authorityAmong([info(0, true, 0, 0)], 0), 0, 'a PG that was never used');
  t.is(authorityAmong([], 0), -1);
});
