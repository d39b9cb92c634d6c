// Each reply against its bytes, written by hand; and numbers at their limits.

import test from 'ava';
import { hex } from './hex.ts';
import { MESSAGE_BYTES_MAX } from './limits.ts';
import { readU64, shown, writeU64 } from './numbers.ts';
import { messageBytes } from './option-replies.ts';
import {
  blockStatusBytes,
  errorChunkBytes,
  OFFSET_DATA_BYTES,
  writeBlockStatus,
  writeErrorChunk,
  writeNone,
  writeOffsetData,
  writeSimpleReply,
} from './replies.ts';

/** Writes into the middle of a buffer, and checks that nothing else was touched. */
function written(bytes: number, write: (target: Buffer, at: number) => number): string {
  const target = Buffer.alloc(bytes + 8, 0xee);
  const end = write(target, 4);
  if (end !== bytes + 4) throw new Error(`wrote up to ${end} instead of ${bytes + 4}`);
  if (target.toString('hex', 0, 4) + target.toString('hex', end) !== 'eeeeeeeeeeeeeeee')
    throw new Error('wrote outside');
  return target.toString('hex', 4, end);
}
const is = (text: string): string => hex(text).toString('hex');

test('simple replies carry error and cookie', (t) => {
  t.is(
    written(16, (b, at) => writeSimpleReply(b, at, 28, 0xfedcba98, 0x80000001)),
    is('67446698 0000001c fedcba98 80000001'),
  );
});

test('a READ is one last chunk of data with its offset', (t) => {
  t.is(
    written(OFFSET_DATA_BYTES, (b, at) => writeOffsetData(b, at, 1, 2, 0x123456789000, 4096)),
    is('668e33ef 0001 0001 00000001 00000002 00001008 0000123456789000'),
  );
});

test('success without content is a last chunk of nothing', (t) => {
  t.is(
    written(20, (b, at) => writeNone(b, at, 1, 2)),
    is('668e33ef 0001 0000 00000001 00000002 00000000'),
  );
});

test('an error chunk carries number and text', (t) => {
  const text = Buffer.from('past the end');
  t.is(
    written(errorChunkBytes(text), (b, at) => writeErrorChunk(b, at, 22, 1, 2, text)),
    is("668e33ef 0001 8001 00000001 00000002 00000012 00000016 000c 'past the end'"),
  );
});

test('block status lists its descriptors behind the context', (t) => {
  const descriptors = [
    { lengthBytes: 65_536, flags: 0 },
    { lengthBytes: 4_294_967_295, flags: 3 },
  ];
  t.is(
    written(blockStatusBytes(2), (b, at) => writeBlockStatus(b, at, 1, 2, 1, descriptors)),
    is('668e33ef 0001 0005 00000001 00000002 00000014 00000001 00010000 00000000 ffffffff 00000003'),
  );
});

test('64-bit numbers are exact below 2^53 and endless from there', (t) => {
  const bytes = Buffer.alloc(8);
  for (const value of [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1]) {
    writeU64(bytes, value, 0);
    t.is(readU64(bytes, 0), value);
  }
  t.is(readU64(hex('0020000000000000'), 0), Number.POSITIVE_INFINITY);
  t.is(readU64(hex('ffffffffffffffff'), 0), Number.POSITIVE_INFINITY);
});

test('messages are cut between characters', (t) => {
  t.is(messageBytes('short').toString(), 'short');
  const cut = messageBytes(`x${'ä'.repeat(MESSAGE_BYTES_MAX)}`);
  t.is(cut.length, MESSAGE_BYTES_MAX - 1);
  t.false(cut.toString().includes('\ufffd'));
});

test('strings of clients are shown escaped and cut', (t) => {
  t.is(shown('a"\n\u001b[31m'), '"a\\"\\n\\u001b[31m"');
  t.is(shown('\u202egnp\u0085'), '"?gnp?"');
  t.is(shown('x'.repeat(500)).length, 85);
});
