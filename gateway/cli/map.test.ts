import test from 'ava';
import type { StorageMap } from '../../proto/map.ts';
import { pgOfObject } from '../../proto/map.ts';
import { placeOf } from './map.ts';

const pool = { id: 1, name: 'p', pgCount: 8, replicas: 2, minSize: 1, durability: 'flush' as const };
const image = {
  id: 7,
  name: 'disk',
  pool: 1,
  sizeBytes: 8 * 2 ** 20,
  order: 20,
  stripeUnit: 2 ** 16,
  stripeCount: 2,
  fence: 0,
  state: 'ready' as const,
};
const daemon = (id: number, up: boolean) => ({
  id,
  uuid: `u${id}`,
  bootId: 'b',
  address: `host:${id}`,
  unixAddress: '',
  host: 'h',
  domain: `d${id}`,
  weight: 1,
  up,
  in: true,
});
const map = (acting: number[]): StorageMap => ({
  clusterId: 'c',
  epoch: 9,
  daemons: new Map([1, 2].map((id) => [id, daemon(id, id === 1)])),
  pools: new Map([[1, pool]]),
  pgs: new Map(
    Array.from({ length: 8 }, (_, index) => [
      65_536 + index,
      { pg: 65_536 + index, acting, since: 3, waitFor: [], lastActive: 3 },
    ]),
  ),
  images: new Map([[7, image]]),
});

test('a byte is found through stripes, in its object, PG and acting set', (t) => {
  const place = placeOf(map([2, 1]), 'disk', 3 * 2 ** 16 + 5); // stripe units: 0 2 | 1 3
  t.is(place.object, 1);
  t.is(place.offsetInObject, 2 ** 16 + 5);
  t.is(place.pg, `1.${(pgOfObject(pool, 7, 1) - 65_536).toString(16)}`);
  t.is(place.primary, 2);
  t.deepEqual(place.acting, [
    { id: 2, address: 'host:2', up: false },
    { id: 1, address: 'host:1', up: true },
  ]);
});

test('an empty acting set has no primary; what does not exist is refused by name', (t) => {
  t.is(placeOf(map([]), 'disk', 0).primary, null);
  t.throws(() => placeOf(map([1]), 'disc', 0), { message: /no image "disc"/ });
  t.throws(() => placeOf(map([1]), 'disk', 8 * 2 ** 20), { message: /past the end of disk/ });
});
