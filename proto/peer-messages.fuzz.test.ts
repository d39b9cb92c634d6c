// Everything that daemons say to each other in a frame's meta, damaged: a typed error or a decoded value, each time.

import test from 'ava';
import { fuzz } from '../scripts/fuzz/fuzz.ts';
import { FRAME_META_MAX } from './limits.ts';
import {
  decodeActivation,
  decodeEntries,
  decodeHello,
  decodeListing,
  decodeOldLeases,
  decodePgInfo,
  encodeActivation,
  encodeEntries,
  encodeHello,
  encodeListing,
  encodePgInfo,
  type Hello,
  type WireEntry,
} from './peer-messages.ts';

const HELLO: Hello = {
  protocol: 1,
  clusterId: '3f0a2b3c-1111-4222-8333-944455556666',
  role: 'client',
  id: 42,
  uuid: 'uuid',
  bootId: 'boot',
  toBootId: 'other',
  connection: 7,
};
const VERSION = { since: 9, seq: 1000 };
const ENTRY: WireEntry = {
  pg: 65_536,
  version: VERSION,
  op: 1,
  image: 3,
  object: 17,
  order: 20,
  offset: 4096,
  length: 8192,
  session: 5,
  sessionSeq: 2 ** 40,
};

test('hello', (t) => {
  fuzz(t, {
    samples: [encodeHello(HELLO), encodeHello({ ...HELLO, role: 'daemon', uuid: 'x'.repeat(256) })],
    capBytes: 0,
    decode(input) {
      const hello = decodeHello(input);
      return hello.role === 'client' || hello.role === 'daemon';
    },
  });
});

test('log entries', (t) => {
  fuzz(t, {
    samples: [encodeEntries([]), encodeEntries([ENTRY]), encodeEntries([ENTRY, ENTRY, ENTRY])],
    capBytes: FRAME_META_MAX,
    decode(input) {
      const entries = decodeEntries(65_536, input);
      return entries.every(({ version, sessionSeq }) => Number.isSafeInteger(version.seq) && sessionSeq >= 0);
    },
  });
});

test('PG info, listings and activations', (t) => {
  const listed = { image: 3, object: 17, order: 20, version: VERSION };
  const activation = { mode: 'truncate', version: VERSION, complete: true, entries: [ENTRY] } as const;
  const decoders = [
    (input: Buffer) => [decodePgInfo(input), decodeOldLeases(input)],
    decodeListing,
    (input: Buffer) => decodeActivation(65_536, input),
  ];
  fuzz(t, {
    samples: [
      encodePgInfo({ les: 9, complete: true, last: VERSION, tail: VERSION }, [{ since: 9, holder: 2, restMs: 50 }]),
      encodeListing([listed, listed]),
      encodeActivation({ ...activation, entries: [ENTRY] }),
    ],
    capBytes: FRAME_META_MAX,
    decode(input, random) {
      let taken = false;
      let refusal: unknown = null;
      const first = random(decoders.length);
      for (let turn = 0; turn < decoders.length; turn++)
        try {
          decoders[(first + turn) % decoders.length]!(input);
          taken = true;
        } catch (error) {
          refusal = error;
        }
      if (!taken) throw refusal;
      return true;
    },
  });
});
