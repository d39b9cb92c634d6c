import test from 'ava';
import { extentsOf, invalidLayout, type Layout, objectCount } from './striping.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

/** Numbers 0 to below `n` from a seed (Park and Miller's minimal standard). */
function randomFrom(seed: number): (n: number) => number {
  let state = (seed % 2_147_483_646) + 1;
  return (n) => {
    state = (state * 48_271) % 2_147_483_647;
    return state % n;
  };
}
function randomLayout(random: (n: number) => number): Layout {
  const order = 16 + random(6);
  const stripeCount = 1 + random(6);
  const stripeUnit = stripeCount === 1 ? 2 ** order : 2 ** (12 + random(order - 11));
  return { order, stripeUnit, stripeCount };
}

/** Where one byte lives, straight from RBD's formula (Ceph documentation, "File striping"), in 64-bit integers. */
function placeOf(layout: Layout, byte: number): { object: number; offset: number } {
  const [unitBytes, count, objectBytes] = [
    BigInt(layout.stripeUnit),
    BigInt(layout.stripeCount),
    BigInt(2 ** layout.order),
  ];
  const block = BigInt(byte) / unitBytes;
  const stripe = block / count;
  const position = block % count;
  const unitsPerObject = objectBytes / unitBytes;
  const set = stripe / unitsPerObject;
  return {
    object: Number(set * count + position),
    offset: Number((stripe % unitsPerObject) * unitBytes + (BigInt(byte) % unitBytes)),
  };
}

test('without striping an extent per object', (t) => {
  const layout = { order: 20, stripeUnit: MiB, stripeCount: 1 };
  t.is(invalidLayout(layout), null);
  t.deepEqual(extentsOf(layout, 0, 4096), [{ object: 0, offset: 0, length: 4096, at: 0 }]);
  t.deepEqual(extentsOf(layout, 3 * MiB - 1, MiB + 2), [
    { object: 2, offset: MiB - 1, length: 1, at: 0 },
    { object: 3, offset: 0, length: MiB, at: 1 },
    { object: 4, offset: 0, length: 1, at: MiB + 1 },
  ]);
  t.deepEqual(extentsOf(layout, 5 * MiB, 0), []);
});

test('the picture in the file: units go round the objects of a set, then the next set follows', (t) => {
  const layout = { order: 17, stripeUnit: 64 * KiB, stripeCount: 2 };
  const units = extentsOf(layout, 0, 7 * 64 * KiB);
  t.deepEqual(
    units.map(({ object, offset }) => [object, offset / KiB]),
    [
      [0, 0],
      [1, 0],
      [0, 64],
      [1, 64],
      [2, 0],
      [3, 0],
      [2, 64],
    ],
  );
});

test('2,000 random ranges: every byte once, in order, where the formula says, and no two extents that could be one', (t) => {
  const random = randomFrom(7);
  for (let round = 0; round < 2_000; round++) {
    const layout = randomLayout(random);
    t.is(invalidLayout(layout), null);
    const offset = random(2 ** 30) + (round % 3 === 0 ? random(2 ** 20) * 2 ** 24 : 0);
    const length = 1 + random(4 * MiB);
    let at = 0;
    let before: { object: number; end: number } | null = null;
    for (const extent of extentsOf(layout, offset, length)) {
      const end = extent.offset + extent.length;
      const first = placeOf(layout, offset + at);
      const last = placeOf(layout, offset + at + extent.length - 1);
      const ok =
        extent.at === at &&
        extent.length > 0 &&
        end <= 2 ** layout.order &&
        first.object === extent.object &&
        first.offset === extent.offset &&
        last.object === extent.object &&
        last.offset === end - 1 &&
        !(before?.object === extent.object && before.end === extent.offset);
      if (!ok) return t.fail(`round ${round}: ${JSON.stringify({ layout, offset, length, extent })}`);
      before = { object: extent.object, end };
      at += extent.length;
    }
    if (at !== length) return t.fail(`round ${round}: ${at} of ${length} bytes`);
  }
  t.pass();
});

test('two bytes of an image never share a place, and an image fills its objects without a gap', (t) => {
  const random = randomFrom(3);
  for (let round = 0; round < 20; round++) {
    const layout = randomLayout(random);
    const setBytes = 2 ** layout.order * layout.stripeCount;
    const filled = new Map<number, number>();
    for (const { object, length } of extentsOf(layout, 0, 2 * setBytes))
      filled.set(object, (filled.get(object) ?? 0) + length);
    t.is(filled.size, 2 * layout.stripeCount);
    for (const bytes of filled.values()) t.is(bytes, 2 ** layout.order);
    t.is(objectCount(layout, 2 * setBytes), 2 * layout.stripeCount);
  }
});

test('an image of any size touches only objects that it counts', (t) => {
  const random = randomFrom(11);
  for (let round = 0; round < 300; round++) {
    const layout = randomLayout(random);
    const size = 1 + random(40 * MiB);
    const highest = Math.max(...extentsOf(layout, 0, size).map(({ object }) => object));
    t.true(highest < objectCount(layout, size));
  }
  t.is(objectCount({ order: 20, stripeUnit: MiB, stripeCount: 1 }, 1), 1);
  t.is(objectCount({ order: 20, stripeUnit: MiB, stripeCount: 1 }, 10 * MiB + 1), 11);
});

test('a layout that can not be is refused with the reason', (t) => {
  const good = { order: 20, stripeUnit: 64 * KiB, stripeCount: 4 };
  t.is(invalidLayout(good), null);
  for (const [bad, why] of [
    [{ order: 15 }, /object size/],
    [{ order: 26 }, /object size/],
    [{ order: 20.5 }, /object size/],
    [{ order: Number.NaN }, /object size/],
    [{ stripeUnit: 2048 }, /stripe unit/],
    [{ stripeUnit: 2 * MiB }, /stripe unit/],
    [{ stripeUnit: 96 * KiB }, /stripe unit/],
    [{ stripeCount: 0 }, /stripe count/],
    [{ stripeCount: 65 }, /stripe count/],
    [{ stripeCount: 1 }, /needs a stripe count above 1/],
  ] as const)
    t.regex(invalidLayout({ ...good, ...bad }) ?? 'accepted', why);
});
