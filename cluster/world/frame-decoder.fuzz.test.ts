// The data plane's byte stream, damaged: frames that are whole, or a reason why the stream ends.

import test from 'ava';
import { payloadPool } from '../../proto/buffer-pool.ts';
import { hashBytes } from '../../proto/checksum.ts';
import { encodeHeader, type Frame, HEADER_BYTES, newFrame, Op } from '../../proto/frame.ts';
import { FRAME_META_MAX, FRAME_PAYLOAD_MAX } from '../../proto/limits.ts';
import { fuzz } from '../../scripts/fuzz/fuzz.ts';
import { FrameDecoder } from './frame-decoder.ts';

function bytesOf(op: Op, metaBytes: number, payloadBytes: number): Buffer {
  const frame = newFrame(op);
  const meta = metaBytes === 0 ? null : Buffer.alloc(metaBytes, 0x11);
  const payload = payloadBytes === 0 ? null : Buffer.alloc(payloadBytes, 0x22);
  Object.assign(frame, { request: 7, seq: 2 ** 40, pgSeq: 9, length: payloadBytes, meta, payload });
  const header = Buffer.alloc(HEADER_BYTES);
  encodeHeader(header, 0, frame);
  return Buffer.concat([header, meta ?? Buffer.alloc(0), payload ?? Buffer.alloc(0)]);
}
/** Lengths of meta and payload in the header. */
const LENGTHS_AT = [60, 72];
const SAMPLES = [
  bytesOf(Op.PING, 0, 0),
  bytesOf(Op.WRITE, 4, 512),
  bytesOf(Op.PG_LOG, 88, 0),
  Buffer.concat([bytesOf(Op.READ, 0, 0), bytesOf(Op.REPLICATE, 8, 64), bytesOf(Op.SYNC, 0, 0)]),
];

/** Whole frames in `input` cut at `cut`; -1 if the stream was ended. */
function listen(input: Buffer, cut: number): number {
  let frames = 0;
  const decoder = new FrameDecoder((frame: Frame) => {
    frames++;
    payloadPool.give(frame.payload);
  });
  const why = decoder.push(input.subarray(0, cut)) ?? (cut < input.length ? decoder.push(input.subarray(cut)) : null);
  return why === null ? frames : -1;
}

test('a stream of frames, as it comes', (t) => {
  fuzz(t, {
    samples: SAMPLES,
    capBytes: FRAME_META_MAX + FRAME_PAYLOAD_MAX,
    decode: (input, random) => listen(input, random(input.length + 1)) > 0,
  });
});

test('a stream of frames whose header checksums are right whatever else is wrong', (t) => {
  fuzz(t, {
    samples: SAMPLES,
    capBytes: 2 * (FRAME_META_MAX + FRAME_PAYLOAD_MAX), // it is heard twice
    decode(input, random) {
      if (input.length >= HEADER_BYTES) {
        // Memory for a large payload costs more than all else: one claim in so many is left as it is.
        if (random(32) > 0)
          for (const at of LENGTHS_AT) if (input.readUInt32LE(at) > 4096) input.writeUInt16LE(0, at + 2);
        input.writeUInt32LE(hashBytes(input, 0, 92), 92);
      }
      const cut = random(input.length + 1);
      const whole = listen(input, input.length);
      const pieces = listen(input, cut);
      if (whole !== pieces) throw new Error(`${whole} frames in one piece, ${pieces} cut at ${cut}`);
      return whole > 0;
    },
  });
});
