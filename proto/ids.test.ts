import test from 'ava';
import {
  compareVersions,
  IMAGE_ID_MAX,
  imageOfKey,
  indexOfPg,
  numberOfKey,
  OBJECT_NUMBER_MAX,
  objectKey,
  PG_COUNT_MAX,
  POOL_ID_MAX,
  pgId,
  pgName,
  poolOfPg,
  sameVersion,
  VERSION_ZERO,
  versionName,
} from './ids.ts';

test('a PG number holds its pool and its index', (t) => {
  for (const pool of [1, 2, POOL_ID_MAX])
    for (const index of [0, 1, 42, PG_COUNT_MAX - 1]) {
      const pg = pgId(pool, index);
      t.is(poolOfPg(pg), pool);
      t.is(indexOfPg(pg), index);
      t.true(pg < 2 ** 32, 'fits in the header');
    }
  t.is(pgName(pgId(1, 42)), '1.2a');
  for (const [pool, index] of [
    [0, 0],
    [256, 0],
    [1, -1],
    [1, PG_COUNT_MAX],
  ] as const)
    t.throws(() => pgId(pool, index), { code: 'ERR_ASSERTION' });
});

test('an object key holds image and object, and the largest is still exact', (t) => {
  for (const image of [1, 2, IMAGE_ID_MAX])
    for (const object of [0, 1, OBJECT_NUMBER_MAX]) {
      const key = objectKey(image, object);
      t.true(Number.isSafeInteger(key));
      t.is(imageOfKey(key), image);
      t.is(numberOfKey(key), object);
    }
});

test('versions are ordered by interval, then by sequence number', (t) => {
  const versions = [VERSION_ZERO, { since: 1, seq: 1 }, { since: 1, seq: 9 }, { since: 2, seq: 3 }];
  for (let a = 0; a < versions.length; a++)
    for (let b = 0; b < versions.length; b++) {
      t.is(Math.sign(compareVersions(versions[a]!, versions[b]!)), Math.sign(a - b));
      t.is(sameVersion(versions[a]!, { ...versions[b]! }), a === b);
    }
  t.is(versionName({ since: 7, seq: 12 }), "7'12");
});
