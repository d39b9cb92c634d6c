import test from 'ava';
import { StorageError } from './errors.ts';
import { pgId } from './ids.ts';
import {
  decodeActivation,
  decodeEntries,
  decodeHello,
  decodeListing,
  decodePgInfo,
  encodeActivation,
  encodeEntries,
  encodeHello,
  encodeListing,
  encodePgInfo,
  type Hello,
  type WireEntry,
} from './peer-messages.ts';

const PG = pgId(1, 0x2a);
const entry = (seq: number, more: Partial<WireEntry> = {}): WireEntry => ({
  pg: PG,
  version: { since: 7, seq },
  op: 1,
  image: 3,
  object: 9,
  order: 20,
  offset: 8192,
  length: 4096,
  session: 11,
  sessionSeq: 2 ** 33 + seq,
  ...more,
});
const HELLO: Hello = {
  protocol: 1,
  clusterId: 'c',
  role: 'daemon',
  id: 3,
  uuid: 'u',
  bootId: 'b',
  toBootId: 't',
  connection: 3,
};

test('a log entry is byte for byte what the layout says', (t) => {
  t.is(
    encodeEntries([entry(0x0102030405)]).toString('hex'),
    [
      '07000000', // since
      '0504030201000000', // seq
      '01', // op
      '14', // order
      '0000',
      '03000000', // image
      '09000000', // object
      '00200000', // offset
      '00100000', // length
      '0b000000', // session
      '0504030203000000', // session seq: 2^33 + 0x0102030405 has 3 in its fifth byte
    ].join(''),
  );
});

test('entries, PG infos, listings and activations decode to what was encoded', (t) => {
  const entries = [entry(1), entry(2, { op: 3, offset: 0, length: 2 ** 20, object: 2 ** 32 - 1 }), entry(2 ** 52)];
  t.deepEqual(decodeEntries(PG, encodeEntries(entries)), entries);
  t.deepEqual(decodeEntries(PG, null), []);
  const info = { les: 9, complete: true, last: { since: 9, seq: 2 ** 40 }, tail: { since: 2, seq: 17 } };
  t.deepEqual(decodePgInfo(encodePgInfo(info)), info);
  t.deepEqual(decodePgInfo(encodePgInfo({ ...info, complete: false })), { ...info, complete: false });
  const objects = [
    { image: 1, object: 0, order: 20, version: { since: 3, seq: 4 } },
    { image: 2 ** 21 - 1, object: 2 ** 32 - 1, order: 25, version: { since: 0, seq: 0 } },
  ];
  t.deepEqual(decodeListing(encodeListing(objects)), objects);
  t.deepEqual(decodeListing(null), []);
  for (const mode of ['keep', 'truncate', 'reset'] as const)
    for (const complete of [true, false]) {
      const activation = { mode, version: { since: 5, seq: 6 }, complete, entries };
      t.deepEqual(decodeActivation(PG, encodeActivation(activation)), activation);
    }
});

test('a hello decodes to what was encoded; each missing or odd field is refused by name', (t) => {
  t.deepEqual(decodeHello(encodeHello(HELLO)), HELLO);
  const odd: [unknown, RegExp][] = [
    [null, /not an object/],
    ['text', /not an object/],
    [{ ...HELLO, clusterId: 5 }, /clusterId/],
    [{ ...HELLO, uuid: undefined }, /uuid/],
    [{ ...HELLO, bootId: 'x'.repeat(257) }, /bootId of 257/],
    [{ ...HELLO, toBootId: null }, /toBootId/],
    [{ ...HELLO, role: 'master' }, /role/],
    [{ ...HELLO, id: '3' }, /without id/],
    [{ ...HELLO, id: 1e300 }, /without id/],
    [{ ...HELLO, protocol: undefined }, /without protocol/],
    [{ ...HELLO, connection: 1.5 }, /without connection/],
  ];
  for (const [hello, why] of odd)
    t.throws(() => decodeHello(Buffer.from(JSON.stringify(hello))), { code: 'INVALID', message: why });
  for (const text of ['', '{', '\0\0'])
    t.throws(() => decodeHello(Buffer.from(text)), { code: 'INVALID', message: /JSON/ });
  t.throws(() => decodeHello(null), { code: 'INVALID' });
});

test('a sequence number above 2^53 is refused wherever it stands', (t) => {
  const spoil = (bytes: Buffer, at: number): Buffer => {
    bytes.writeUInt32LE(0xffffffff, at);
    return bytes;
  };
  const info = { les: 1, complete: true, last: { since: 1, seq: 1 }, tail: { since: 0, seq: 0 } };
  const activation = { mode: 'reset', version: { since: 1, seq: 1 }, complete: true, entries: [] } as const;
  for (const decode of [
    () => decodeEntries(PG, spoil(encodeEntries([entry(1)]), 8)),
    () => decodeEntries(PG, spoil(encodeEntries([entry(1)]), 40)),
    () => decodePgInfo(spoil(encodePgInfo(info), 16)),
    () => decodePgInfo(spoil(encodePgInfo(info), 28)),
    () => decodeActivation(PG, spoil(encodeActivation({ ...activation, entries: [] }), 12)),
    () => decodeListing(spoil(encodeListing([{ image: 1, object: 1, order: 20, version: info.last }]), 20)),
  ])
    t.throws(decode, { code: 'INVALID', message: /2\^53/ });
});

/** Lengths that some message can have. */
const LENGTHS = [0, 16, 24, 32, 44, 48, 60, 88, 104];

test('cut anywhere or made of noise, a message is decoded or refused with INVALID, never anything else', (t) => {
  let state = 1;
  const random = (n: number): number => {
    state = (state * 48_271) % 2_147_483_647;
    return state % n;
  };
  const decoders: ((bytes: Buffer) => unknown)[] = [
    (bytes) => decodeEntries(PG, bytes),
    decodePgInfo,
    decodeListing,
    (bytes) => decodeActivation(PG, bytes),
    decodeHello,
  ];
  const whole = encodeActivation({
    mode: 'keep',
    version: { since: 1, seq: 1 },
    complete: false,
    entries: [entry(2), entry(3)],
  });
  const inputs: Buffer[] = [];
  for (let cut = 0; cut <= whole.length; cut++) inputs.push(whole.subarray(0, cut));
  for (let round = 0; round < 3_000; round++) {
    const noise = Buffer.alloc(round % 2 === 0 ? random(200) : LENGTHS[random(LENGTHS.length)]!);
    for (let at = 0; at < noise.length; at++) if (random(20) === 0) noise[at] = random(256);
    inputs.push(noise);
  }
  let decoded = 0;
  let refused = 0;
  for (const input of inputs)
    for (const decode of decoders)
      try {
        decode(input);
        decoded += 1;
      } catch (error) {
        if (!(error instanceof StorageError) || error.code !== 'INVALID') throw error;
        refused += 1;
      }
  t.true(decoded > 100 && refused > 1_000, `${decoded} decoded, ${refused} refused`);
});
