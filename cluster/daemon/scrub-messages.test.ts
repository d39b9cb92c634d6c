import test from 'ava';
import { DIGESTS_MAX, decodeDigests, encodeDigests } from './scrub-messages.ts';

// image 3 | object 0x01020304 | order 20 | since 5, seq 2^32 + 6 | digest 0xa0b0c0d0
const HEX = '03000000 04030201 14000000 05000000 0600000001000000 d0c0b0a0'.replaceAll(' ', '');
const OBJECT = {
  image: 3,
  object: 0x01020304,
  order: 20,
  version: { since: 5, seq: 2 ** 32 + 6 },
  digest: 0xa0b0c0d0,
};

test('a listing of digests is 28 bytes per object, as written by hand', (t) => {
  t.is(encodeDigests([OBJECT]).toString('hex'), HEX);
  t.deepEqual(decodeDigests(Buffer.from(HEX + HEX, 'hex')), [OBJECT, OBJECT]);
  t.deepEqual(decodeDigests(null), []);
  t.is(encodeDigests([]).length, 0);
  t.true(DIGESTS_MAX * 28 <= 2 ** 20);
});

test('a listing that is cut anywhere, or counts beyond 2^53, is refused', (t) => {
  const bytes = Buffer.from(HEX, 'hex');
  for (let end = 1; end < bytes.length; end++)
    t.throws(() => decodeDigests(bytes.subarray(0, end)), { code: 'INVALID' }, `${end} bytes`);
  bytes.writeUInt32LE(2 ** 21, 20);
  t.throws(() => decodeDigests(bytes), { code: 'INVALID', message: /2\^53/ });
});
