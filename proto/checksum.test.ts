import test from 'ava';
import xxhash from 'xxhash-wasm';
import { blockChecksum, blockSeed, firstMismatch, hashBytes, NO_DATA, payloadChecksums } from './checksum.ts';
import { BLOCK_BYTES } from './limits.ts';

test('the hash is xxHash32 with seed 0, as its specification has it', (t) => {
  t.is(hashBytes(Buffer.alloc(0)), 0x02cc5d05);
  t.is(hashBytes(Buffer.from('a')), 0x550d7456);
  t.is(hashBytes(Buffer.from('abc')), 0x32d153ff);
  t.is(hashBytes(Buffer.from('Nobody inspects the spammish repetition')), 0xe2293b2f);
});

test('short inputs, hashed without the library, have the hash the library gives them, wherever they lie', async (t) => {
  const { h32Raw } = await xxhash();
  const bytes = Buffer.from(Array.from({ length: 1_000 }, (_, i) => (i * i * 31) >> 3));
  for (let length = 0; length <= 400; length++)
    for (const start of [0, 1, 93, 600 - length]) {
      const expected = h32Raw(bytes.subarray(start, start + length), 0);
      if (hashBytes(bytes, start, start + length) !== expected) return t.fail(`${length} bytes at ${start}`);
    }
  return t.pass();
});

test('the checksum of a block tells its place: image, object and block number', (t) => {
  const block = Buffer.alloc(BLOCK_BYTES, 7);
  const sums = new Set<number>();
  for (const image of [1, 2, 2 ** 21 - 1])
    for (const object of [0, 1, 2 ** 32 - 1])
      for (const number of [0, 1, 8191]) sums.add(blockChecksum(block, image, object, number));
  t.is(sums.size, 27);
});

test('seeds of near places differ: none is given twice among 60,000', (t) => {
  const seeds = new Set<number>();
  for (let image = 1; image <= 3; image++)
    for (let object = 0; object < 100; object++)
      for (let block = 0; block < 200; block++) seeds.add(blockSeed(image, object, block));
  t.true(seeds.size >= 59_999, 'one accident in 2^32 would be bad luck, two are a bad hash');
});

test('checksums of a payload are those of its blocks; one changed bit anywhere is found in its block', (t) => {
  const payload = Buffer.alloc(3 * BLOCK_BYTES, 1);
  const sums = payloadChecksums(payload, 4, 5, 2 * BLOCK_BYTES);
  t.is(sums.readUInt32LE(4), blockChecksum(payload.subarray(BLOCK_BYTES, 2 * BLOCK_BYTES), 4, 5, 3));
  t.is(firstMismatch(payload, sums, 4, 5, 2 * BLOCK_BYTES), -1);
  for (const byte of [0, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES - 1]) {
    payload[byte]! ^= 128;
    t.is(firstMismatch(payload, sums, 4, 5, 2 * BLOCK_BYTES), Math.floor(byte / BLOCK_BYTES));
    payload[byte]! ^= 128;
  }
  t.is(firstMismatch(payload, sums, 4, 5, 0), 0, 'the same bytes at another place are wrong');
  t.is(firstMismatch(payload, sums, 4, 6, 2 * BLOCK_BYTES), 0, 'or in another object');
});

test('a block marked as a hole matches whatever came in its place, and no real block has that mark', (t) => {
  const payload = Buffer.alloc(2 * BLOCK_BYTES, 9);
  const sums = payloadChecksums(payload, 1, 1, 0);
  sums.writeUInt32LE(NO_DATA, 0);
  payload[5] = 0;
  t.is(firstMismatch(payload, sums, 1, 1, 0), -1);
  for (let object = 0; object < 2_000; object++)
    t.not(blockChecksum(payload.subarray(0, BLOCK_BYTES), 1, object, 0), NO_DATA);
});
