// The calendar of scrubs, and orders that are given until they are reported done.

import test from 'ava';
import type { ScrubOrder, ScrubReport } from '../../proto/control.ts';
import { type DaemonId, type PgId, pgId } from '../../proto/ids.ts';
import type { PgRecord } from './intervals.ts';
import { SCRUB_DEEP_EVERY_MS, SCRUB_LIGHT_EVERY_MS } from './limits.ts';
import { pgsToScrub, Scrubs } from './scrubs.ts';
import { State } from './state.ts';

const HOUR_MS = 3_600_000;
const ALL = { image: 0, deep: true, repair: true };

function stateOf(pgs: number, primary: DaemonId = 1): State {
  const state = new State('cluster');
  for (let index = 0; index < pgs; index++)
    state.pgs.set(pgId(1, index), { pg: pgId(1, index), acting: [primary, 9], since: 5 } as unknown as PgRecord);
  return state;
}
/** The order is done at this moment. */
const reportOf = (order: ScrubOrder, report: Partial<ScrubReport> = {}): ScrubReport => ({
  lightAgoMs: order.image === 0 && report.done !== false ? 0 : -1,
  deepAgoMs: order.image === 0 && order.deep && report.done !== false ? 0 : -1,
  pg: order.pg,
  number: order.number,
  done: true,
  objectsDone: 3,
  objects: 3,
  repaired: 0,
  inconsistencies: [],
  more: 0,
  ...report,
});
const bad = (pg: PgId, object: number) => ({
  pg,
  image: 1,
  object,
  offset: 0,
  length: 4096,
  daemon: 2,
  why: 'checksum',
});

test('every PG is compared once a day and read once a week, each at its own moment', (t) => {
  const scrubs = new Scrubs(stateOf(128), 7);
  const light = new Map<PgId, number[]>();
  const deep = new Map<PgId, number[]>();
  let atOnceMost = 0;
  for (let now = 0; now < 3 * SCRUB_DEEP_EVERY_MS; now += HOUR_MS / 2) {
    scrubs.tick(now);
    const orders = scrubs.ordersFor(1);
    atOnceMost = Math.max(atOnceMost, orders.length);
    for (const order of orders) {
      const kind = order.deep ? deep : light;
      kind.set(order.pg, [...(kind.get(order.pg) ?? []), now]);
      t.is(order.repair, order.deep);
      scrubs.report(1, [reportOf(order)], now);
    }
  }
  t.is(light.size, 128);
  t.is(deep.size, 128);
  t.true(atOnceMost <= 16, `${atOnceMost} of 128 PGs are due within half an hour`);
  for (const [pg, times] of deep) {
    t.true(times.length === 3, `PG ${pg} was read ${times.length} times in three weeks`);
    const all = [...times, ...light.get(pg)!].sort((a, b) => a - b);
    for (let i = 1; i < all.length; i++) t.true(all[i]! - all[i - 1]! <= SCRUB_LIGHT_EVERY_MS + HOUR_MS);
  }
});

test('an order is given to whoever leads the PG until it is reported done, under its own number and by that daemon', (t) => {
  const state = stateOf(1);
  const pg = pgId(1, 0);
  const scrubs = new Scrubs(state, 7);
  scrubs.order(pg, ALL, 0);
  const [order] = scrubs.ordersFor(1);
  t.like(order, { pg, image: 0, deep: true, repair: true });
  t.deepEqual(scrubs.ordersFor(9), []);
  scrubs.report(9, [reportOf(order!)], 1);
  scrubs.report(1, [reportOf(order!, { number: order!.number - 1, lightAgoMs: -1, deepAgoMs: -1 })], 1);
  scrubs.report(1, [reportOf(order!, { done: false, objectsDone: 1 })], 1);
  t.deepEqual(scrubs.ordersFor(1), [order]);
  t.like(scrubs.status(1)[0], { ordered: true, objectsDone: 1, objects: 3, deepAgoMs: -1 });
  state.pgs.set(pg, { ...state.pgs.get(pg)!, acting: [9, 1] });
  t.deepEqual(scrubs.ordersFor(1), []);
  t.deepEqual(scrubs.ordersFor(9), [order]);
  scrubs.report(9, [reportOf(order!, { repaired: 2 })], 10);
  t.deepEqual(scrubs.ordersFor(9), []);
  t.like(scrubs.status(15)[0], { ordered: false, deepAgoMs: 5, lightAgoMs: 5, repaired: 2 });
});

test('what is ordered on top of an order that is not done yet becomes part of it', (t) => {
  const scrubs = new Scrubs(stateOf(1), 7);
  const pg = pgId(1, 0);
  scrubs.order(pg, { image: 3, deep: true, repair: false }, 0);
  scrubs.order(pg, { image: 3, deep: false, repair: true }, 0);
  t.like(scrubs.ordersFor(1)[0], { image: 3, deep: true, repair: true });
  scrubs.order(pg, { image: 4, deep: false, repair: false }, 0);
  const [order] = scrubs.ordersFor(1);
  t.like(order, { image: 0, deep: true, repair: true });
  scrubs.report(1, [reportOf(order!)], 5);
  t.is(scrubs.status(5)[0]!.deepAgoMs, 0);
});

test('a new master learns from the daemons when PGs were scrubbed last, and does not begin anew', (t) => {
  const scrubs = new Scrubs(stateOf(1), 7);
  const order = { pg: pgId(1, 0), number: 1, image: 0, deep: true, repair: true };
  const hour = (hours: number): number => hours * HOUR_MS;
  scrubs.report(1, [reportOf(order, { lightAgoMs: hour(5), deepAgoMs: hour(150) })], hour(1));
  t.like(scrubs.status(hour(1))[0], { lightAgoMs: hour(5), deepAgoMs: hour(150), ordered: false });
  scrubs.tick(hour(18.9));
  t.deepEqual(scrubs.ordersFor(1), []);
  scrubs.tick(hour(19.5));
  t.like(scrubs.ordersFor(1)[0], { deep: true }, 'both are due: 24 and 168 hours are over');
});

test('a scrub of one image is no scrub of the PG; objects are counted once, however many of their copies are bad', (t) => {
  const scrubs = new Scrubs(stateOf(2), 7);
  const [one, two] = [pgId(1, 0), pgId(1, 1)];
  scrubs.order(one, { ...ALL, image: 3 }, 0);
  const [order] = scrubs.ordersFor(1);
  scrubs.report(1, [reportOf(order!, { inconsistencies: [bad(one, 1), bad(one, 1), bad(one, 2)] })], 5);
  t.like(scrubs.status(5)[0], { ordered: false, deepAgoMs: -1 });
  scrubs.report(1, [reportOf({ ...order!, pg: two, number: 0 }, { inconsistencies: [bad(two, 1)] })], 6);
  t.is(scrubs.inconsistent, 3);
});

test('PGs are chosen by name, by image, or all; one that is not there is refused', (t) => {
  const state = stateOf(2);
  state.pgs.set(pgId(2, 0), { pg: pgId(2, 0), acting: [1], since: 5 } as unknown as PgRecord);
  state.images.set(4, { entry: { id: 4, pool: 2 } } as never);
  t.deepEqual(pgsToScrub(state, { pg: 0, image: 0 }), [pgId(1, 0), pgId(1, 1), pgId(2, 0)]);
  t.deepEqual(pgsToScrub(state, { pg: 0, image: 4 }), [pgId(2, 0)]);
  t.deepEqual(pgsToScrub(state, { pg: pgId(1, 1), image: 0 }), [pgId(1, 1)]);
  t.throws(() => pgsToScrub(state, { pg: pgId(3, 1), image: 0 }), { message: /no PG 3\.1/ });
  t.throws(() => pgsToScrub(state, { pg: 0, image: 5 }), { message: /no image 5/ });
});
