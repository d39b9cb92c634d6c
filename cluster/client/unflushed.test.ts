// Against a model of one object's bytes: what was acked, and what daemons may still have after they lost power.

import test from 'ava';
import type { StorageMap } from '../../proto/map.ts';
import { type Change, Unflushed } from './unflushed.ts';

const PG = 65_537;
const BLOCKS = 24;

/** A map in which the PG's interval began at `since`. */
const mapSince = (since: number): StorageMap => ({
  clusterId: 'c',
  epoch: since,
  daemons: new Map(),
  pools: new Map(),
  pgs: new Map([[PG, { pg: PG, acting: [1], since, waitFor: [], lastActive: 0 }]]),
  images: new Map(),
});
function randomFrom(seed: number): (n: number) => number {
  let state = (seed % 2_147_483_646) + 1;
  return (n) => {
    state = (state * 48_271) % 2_147_483_647;
    return state % n;
  };
}
const KEY = 4_294_967_299;
/** One byte stands for a block. */
function randomChange(random: (n: number) => number, stamp: number, since: number): Change {
  const start = random(BLOCKS);
  const end = start + 1 + random(Math.min(8, BLOCKS - start));
  const payload = random(4) === 0 ? null : Buffer.alloc(end - start, stamp);
  return { key: KEY, pg: PG, start, end, payload, since };
}
function apply(content: Buffer, change: Change, start = change.start, end = change.end): void {
  if (change.payload === null) content.fill(0, start, end);
  else change.payload.copy(content, start, start - change.start, end - change.start);
}

test('3,000 random histories with power cuts: laid over what is left, and written again, the acked changes are all there', (t) => {
  let replayed = 0;
  for (let seed = 1; seed <= 3_000; seed++) {
    const random = randomFrom(seed * 6007);
    const unflushed = new Unflushed();
    const acked = Buffer.alloc(BLOCKS); // what a reader must see
    let daemon = Buffer.alloc(BLOCKS); // what the daemon holds
    let flushed = Buffer.alloc(BLOCKS); // what survives a power cut
    let since = 1;
    for (let step = 1; step <= 30; step++) {
      const dice = random(10);
      if (dice < 6) {
        const change = randomChange(random, step, since);
        unflushed.add(change);
        apply(acked, change);
        apply(daemon, change);
        // Any part of it may reach the disk by itself.
        if (random(3) === 0) apply(flushed, change);
      } else if (dice < 8) {
        since += 1;
        if (random(2) === 0) daemon = Buffer.from(flushed);
      } else {
        const map = mapSince(since);
        const { stale, pieces } = unflushed.replayPieces(map);
        t.is(unflushed.anyStale(map, unflushed.size), stale.length > 0);
        for (const { change, start, end } of pieces) apply(daemon, change, start, end);
        replayed += pieces.length;
        for (const change of stale) change.since = since;
        t.deepEqual(daemon, acked, `seed ${seed}, step ${step}: after the replay`);
        t.false(unflushed.anyStale(map, unflushed.size));
        flushed = Buffer.from(daemon);
        unflushed.drop(unflushed.size);
        t.is(unflushed.bytes, 0);
      }
      const from = random(BLOCKS);
      const to = from + 1 + random(BLOCKS - from);
      const seen = Buffer.from(daemon);
      for (const { change, start, end } of unflushed.stalePieces(KEY, from, to, since)) {
        if (start < from || end > to) t.fail(`seed ${seed}: a piece outside of the range`);
        apply(seen, change, start, end);
      }
      if (!seen.subarray(from, to).equals(acked.subarray(from, to)))
        return t.fail(`seed ${seed}, step ${step}: a read of [${from}, ${to}) misses an acked change`);
    }
  }
  t.true(replayed > 5_000, `${replayed} pieces were replayed`);
});

test('a replay never writes what a newer change has covered, and is in the order of the changes', (t) => {
  const unflushed = new Unflushed();
  const change = (start: number, end: number, since: number): Change => {
    const made = { key: KEY, pg: PG, start, end, payload: Buffer.alloc(end - start, since), since };
    unflushed.add(made);
    return made;
  };
  const old = change(0, 12, 1);
  change(4, 8, 2); // current
  const newer = change(10, 16, 1);
  const covered = change(5, 6, 1);
  change(5, 6, 2); // current
  const { stale, pieces } = unflushed.replayPieces(mapSince(2));
  t.is(stale.length, 3);
  for (const one of [old, newer, covered]) t.true(stale.includes(one));
  t.deepEqual(
    pieces.map(({ change: of, start, end }) => [[old, newer, covered].indexOf(of), start, end]),
    [
      [0, 8, 10],
      [0, 0, 4],
      [1, 10, 16],
    ],
  );
});

test('8,192 stale changes of one object are worked out in well under a second, however they overlap', (t) => {
  const random = randomFrom(4);
  const unflushed = new Unflushed();
  for (let i = 0; i < 8_192; i++) {
    const start = random(256) * 4096;
    unflushed.add({ key: KEY, pg: PG, start, end: start + 4096, payload: null, since: 1 });
  }
  const begun = performance.now();
  const { pieces } = unflushed.replayPieces(mapSince(2));
  const took = performance.now() - begun;
  t.is(pieces.length, 256, 'each block once');
  t.true(took < 500, `${took} ms`);
});

test('what is kept is counted, zeroes too', (t) => {
  const unflushed = new Unflushed();
  for (let i = 0; i < 1_000; i++) unflushed.add({ key: KEY, pg: PG, start: 0, end: 4096, payload: null, since: 1 });
  t.true(unflushed.bytes >= 100_000);
  unflushed.add({ key: KEY, pg: PG + 1, start: 0, end: 4096, payload: Buffer.alloc(4096), since: 1 });
  t.deepEqual(unflushed.pgs(1_001), new Set([PG, PG + 1]));
  t.deepEqual(unflushed.pgs(1_000), new Set([PG]));
  const { bytes } = unflushed;
  unflushed.drop(1_000);
  t.is(unflushed.size, 1);
  t.is(unflushed.bytes, (bytes - 4096) / 1_001 + 4096);
});
