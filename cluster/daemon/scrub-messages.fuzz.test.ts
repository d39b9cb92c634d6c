import test from 'ava';
import { FRAME_META_MAX } from '../../proto/limits.ts';
import { fuzz } from '../../scripts/fuzz/fuzz.ts';
import { decodeDigests, encodeDigests } from './scrub-messages.ts';

test('listings with digests', (t) => {
  const digest = { image: 3, object: 17, order: 20, version: { since: 9, seq: 2 ** 40 }, digest: 0xfeed };
  fuzz(t, {
    samples: [encodeDigests([]), encodeDigests([digest]), encodeDigests([digest, digest, digest])],
    capBytes: FRAME_META_MAX,
    decode: (input) => decodeDigests(input).every(({ version }) => Number.isSafeInteger(version.seq)),
  });
});
