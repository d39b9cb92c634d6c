import { Buffer } from 'node:buffer';
import test from 'ava';
import { hashBytes } from '../../proto/checksum.ts';
import { encodeHeader, type Frame, HEADER_BYTES, newFrame, Op } from '../../proto/frame.ts';
import { BLOCK_BYTES, FRAME_META_MAX, FRAME_PAYLOAD_MAX } from '../../proto/limits.ts';
import { FrameDecoder } from './frame-decoder.ts';

function frameOf(request: number, meta: Buffer | null, payload: Buffer | null): Frame {
  const frame = newFrame(Op.WRITE);
  return Object.assign(frame, { request, seq: 2 ** 40 + request, pgSeq: request, meta, payload });
}
function bytesOf(frame: Frame): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  encodeHeader(header, 0, frame);
  return Buffer.concat([header, frame.meta ?? Buffer.alloc(0), frame.payload ?? Buffer.alloc(0)]);
}
/** The header with one field changed and its checksum made right again. */
function forged(frame: Frame, change: (header: Buffer) => void): Buffer {
  const bytes = bytesOf(frame);
  change(bytes);
  bytes.writeUInt32LE(hashBytes(bytes.subarray(0, 92)), 92);
  return bytes;
}
function collect(): { decoder: FrameDecoder; frames: Frame[] } {
  const frames: Frame[] = [];
  return { decoder: new FrameDecoder((frame) => frames.push(frame)), frames };
}
const FRAMES = [
  frameOf(1, null, null),
  frameOf(2, Buffer.from('checksums'), Buffer.alloc(40, 7)),
  frameOf(3, Buffer.from('only meta'), null),
  frameOf(4, null, Buffer.alloc(33, 9)),
  frameOf(5, null, null),
];
const STREAM = Buffer.concat(FRAMES.map(bytesOf));

test('five frames come out whole wherever the stream is cut in two', (t) => {
  for (let cut = 0; cut <= STREAM.length; cut++) {
    const { decoder, frames } = collect();
    t.is(decoder.push(Buffer.from(STREAM.subarray(0, cut))), null);
    t.is(decoder.push(Buffer.from(STREAM.subarray(cut))), null);
    t.deepEqual(frames, FRAMES, `cut at ${cut}`);
  }
});

test('and when it comes in pieces of any one size', (t) => {
  for (let size = 1; size <= HEADER_BYTES + 60; size++) {
    const { decoder, frames } = collect();
    for (let at = 0; at < STREAM.length; at += size)
      t.is(decoder.push(Buffer.from(STREAM.subarray(at, at + size))), null);
    t.deepEqual(frames, FRAMES, `pieces of ${size}`);
  }
});

test('a frame that lies whole in a chunk is not copied', (t) => {
  const { decoder, frames } = collect();
  const chunk = bytesOf(frameOf(1, Buffer.from('meta'), Buffer.alloc(64)));
  decoder.push(chunk);
  t.is(frames[0]!.payload!.buffer, chunk.buffer);
});

test('every flipped bit of a header ends the stream', (t) => {
  const bytes = bytesOf(FRAMES[1]!);
  for (let bit = 0; bit < HEADER_BYTES * 8; bit++) {
    const bad = Buffer.from(bytes);
    bad[bit >> 3]! ^= 1 << (bit & 7);
    const { decoder, frames } = collect();
    t.not(decoder.push(bad), null, `bit ${bit}`);
    t.is(frames.length, 0);
  }
});

test('a header with a right checksum and a wrong field is refused with the reason, before anything is allocated', (t) => {
  const frame = newFrame(Op.READ);
  const cases: [string, (header: Buffer) => void, RegExp][] = [
    ['magic', (h) => h.writeUInt32LE(0x47, 0), /not an Ashlar frame/],
    ['version', (h) => h.writeUInt8(2, 4), /frame version 2/],
    ['operation', (h) => h.writeUInt8(99, 5), /unknown operation 99/],
    ['meta size', (h) => h.writeUInt32LE(FRAME_META_MAX + 1, 60), /meta of/],
    ['payload size', (h) => h.writeUInt32LE(FRAME_PAYLOAD_MAX + 1, 72), /payload of/],
    ['payload size of 4 GiB', (h) => h.writeUInt32LE(0xffffffff, 72), /payload of/],
    ['session sequence', (h) => h.writeUInt32LE(2 ** 21, 52), /above 2\^53/],
    ['PG sequence', (h) => h.writeUInt32LE(0xffffffff, 68), /above 2\^53/],
  ];
  for (const [name, change, why] of cases)
    for (const pieces of [1, HEADER_BYTES]) {
      const { decoder, frames } = collect();
      const bytes = forged(frame, change);
      let said: string | null = null;
      for (let at = 0; at < bytes.length && said === null; at += bytes.length / pieces)
        said = decoder.push(Buffer.from(bytes.subarray(at, at + bytes.length / pieces)));
      t.regex(said ?? 'nothing', why, name);
      t.is(frames.length, 0);
    }
});

test('meta that does not match its checksum ends the stream; payload is passed on unseen', (t) => {
  const meta = bytesOf(FRAMES[1]!);
  meta[HEADER_BYTES]! ^= 1;
  t.is(collect().decoder.push(meta), 'meta checksum is wrong');
  const payload = bytesOf(FRAMES[1]!);
  payload[payload.length - 1]! ^= 1;
  const { decoder, frames } = collect();
  t.is(decoder.push(payload), null);
  t.is(frames.length, 1);
});

test('after stop() nothing more comes out, not even of the same chunk', (t) => {
  const frames: Frame[] = [];
  const decoder = new FrameDecoder((frame) => {
    frames.push(frame);
    if (frames.length === 2) decoder.stop();
  });
  t.is(decoder.push(Buffer.from(STREAM)), null);
  t.is(frames.length, 2);
});

test('paused in the middle of a chunk, it goes on at the next frame', (t) => {
  const frames: Frame[] = [];
  const decoder = new FrameDecoder((frame) => {
    frames.push(frame);
    decoder.pause();
  });
  t.is(decoder.push(Buffer.from(STREAM)), null);
  for (let seen = 1; seen < FRAMES.length; seen++) {
    t.is(frames.length, seen);
    t.is(decoder.resume(), null);
  }
  t.deepEqual(frames, FRAMES);
});

test('a payload of the largest size crosses many chunks and arrives as it was', (t) => {
  const payload = Buffer.alloc(FRAME_PAYLOAD_MAX, 3);
  payload.writeUInt32LE(12345, FRAME_PAYLOAD_MAX - BLOCK_BYTES);
  const bytes = bytesOf(frameOf(1, null, payload));
  const { decoder, frames } = collect();
  for (let at = 0; at < bytes.length; at += 65_536) decoder.push(bytes.subarray(at, at + 65_536));
  t.true(frames[0]!.payload!.equals(payload));
});

test('the rest of a large payload is read straight into its place; the frames around it stay whole', (t) => {
  const large = frameOf(2, Buffer.from('checksums'), Buffer.alloc(100_000, 5));
  const frames = [frameOf(1, null, null), large, frameOf(3, null, Buffer.alloc(40, 6))];
  const stream = Buffer.concat(frames.map(bytesOf));
  const readsMax = 24_000;
  const slab = Buffer.alloc(readsMax);
  const { decoder, frames: got } = collect();
  let direct = 0;
  for (let at = 0; at < stream.length; ) {
    const target = decoder.target() ?? slab;
    const bytes = stream.copy(target, 0, at, Math.min(stream.length, at + Math.min(readsMax, target.length)));
    at += bytes;
    if (target === slab) t.is(decoder.push(Buffer.from(slab.subarray(0, bytes))), null);
    else {
      direct += bytes;
      t.is(decoder.filled(bytes), null);
    }
  }
  t.deepEqual(got, frames);
  t.true(direct >= 48_000, `${direct} bytes needed no copy`);
});

test('a chunk may be overwritten as soon as push() has returned, also while the decoder is paused', (t) => {
  const frames: Frame[] = [];
  const decoder = new FrameDecoder((frame) => {
    frames.push(frame);
    if (frames.length === 2) decoder.pause();
  });
  const slab = Buffer.alloc(STREAM.length);
  for (let at = 0; at < STREAM.length; ) {
    const bytes = STREAM.copy(slab, 0, at, Math.min(STREAM.length, at + 1_000));
    t.is(decoder.push(slab.subarray(0, bytes)), null);
    slab.fill(0xee);
    if (frames.length === 2) t.is(decoder.resume(), null);
    at += bytes;
  }
  t.deepEqual(frames, FRAMES);
});
