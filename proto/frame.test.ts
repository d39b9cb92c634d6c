import test from 'ava';
import { hashBytes } from './checksum.ts';
import {
  decodeFrame,
  encodeHeader,
  Flag,
  type Frame,
  HEADER_BYTES,
  invalidHeader,
  newFrame,
  Op,
  readU64,
  replyTo,
  writeU64,
} from './frame.ts';

// WRITE of object 7 of image 3 (1 MiB objects), [8192, 12288), by session 9 as its 2^32 + 5th, in PG 1.2a, epoch 77.
const WRITTEN_BY_HAND = [
  '4153484c', // magic "ASHL"
  '01', // version
  '03', // op WRITE
  '0600', // flags RETRY | FUA
  '0000', // status
  '14', // order 20
  '00',
  'ddccbbaa', // request 0xaabbccdd
  '09000000', // session
  '4d000000', // epoch
  '2a000100', // pg: pool 1, index 0x2a
  '03000000', // image
  '07000000', // object
  '02000000', // fence
  '00200000', // offset
  '00100000', // length
  '0500000001000000', // seq
  '4b000000', // since
  '04000000', // meta bytes
  '0605040302010000', // pgSeq
  '00100000', // payload bytes
].join('');

const frame = (): Frame =>
  Object.assign(newFrame(Op.WRITE), {
    flags: Flag.RETRY | Flag.FUA,
    order: 20,
    request: 0xaabbccdd,
    session: 9,
    epoch: 77,
    pg: 0x1002a,
    image: 3,
    object: 7,
    fence: 2,
    offset: 8192,
    length: 4096,
    seq: 2 ** 32 + 5,
    since: 75,
    pgSeq: 0x010203040506,
    meta: Buffer.from([1, 2, 3, 4]),
    payload: Buffer.alloc(4096, 5),
  });

test('a header is byte for byte what the layout says', (t) => {
  const header = Buffer.alloc(HEADER_BYTES + 8, 0xee);
  encodeHeader(header, 4, frame());
  const bytes = header.subarray(4, 4 + HEADER_BYTES);
  t.is(bytes.subarray(0, 76).toString('hex'), WRITTEN_BY_HAND);
  t.is(bytes.readUInt32LE(76), hashBytes(Buffer.from([1, 2, 3, 4])));
  t.is(bytes.subarray(80, 92).toString('hex'), '00'.repeat(12));
  t.is(bytes.readUInt32LE(92), hashBytes(bytes.subarray(0, 92)));
  t.is(header.readUInt32LE(0), 0xeeeeeeee);
  t.is(header.readUInt32LE(4 + HEADER_BYTES), 0xeeeeeeee);
});

test('what was encoded decodes to the same frame', (t) => {
  const header = Buffer.alloc(HEADER_BYTES);
  const sent = frame();
  encodeHeader(header, 0, sent);
  t.is(invalidHeader(header, 0), null);
  t.deepEqual(decodeFrame(header, 0, sent.meta, sent.payload), sent);
});

test('every operation has its own number, and all of them are known', (t) => {
  const numbers = Object.values(Op);
  t.is(new Set(numbers).size, numbers.length);
  for (const op of numbers) {
    const header = Buffer.alloc(HEADER_BYTES);
    encodeHeader(header, 0, newFrame(op));
    t.is(invalidHeader(header, 0), null);
  }
});

test('a reply has its request number, place and PG, and none of its data', (t) => {
  const request = frame();
  const reply = replyTo(request, 4, 80);
  t.like(reply, { op: Op.WRITE, flags: Flag.REPLY, status: 4, request: request.request, epoch: 80, pg: request.pg });
  t.like(reply, { image: 3, object: 7, offset: 8192, length: 4096, meta: null, payload: null });
  t.deepEqual(Object.keys(reply), Object.keys(request), 'one shape for all frames');
});

test('64-bit numbers: exact up to 2^53 - 1, NaN above', (t) => {
  const at = Buffer.alloc(8);
  for (const value of [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 52 + 1, Number.MAX_SAFE_INTEGER]) {
    writeU64(at, value, 0);
    t.is(at.readBigUInt64LE(0), BigInt(value));
    t.is(readU64(at, 0), value);
  }
  for (const value of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
    at.writeBigUInt64LE(value, 0);
    t.is(readU64(at, 0), Number.NaN);
  }
});
