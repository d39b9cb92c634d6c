// Sessions that are almost right: valid ones with a few bytes changed, inserted, removed or repeated, cut at random places.
//
// Whatever comes, the codec must not throw, must answer each option once, must hear the same requests however the
// stream is cut, and must not take more than its limits allow. The seeds are fixed: a failure names the one that shows it.

import test from 'ava';
import { encodeClientFlags, encodeInfoRequest, encodeMetaRequest, encodeOption, encodeRequest } from './client.ts';
import { Command, Option } from './constants.ts';
import { type ExportTerms, Handshake } from './handshake.ts';
import { rulesOf } from './refusal.ts';
import { RequestDecoder } from './request-decoder.ts';

const ROUNDS = 4_000;

const TERMS: ExportTerms = {
  name: 'disk',
  description: '',
  sizeBytes: 2 ** 40,
  flags: 0x0ded,
  minimumBlockBytes: 1,
  preferredBlockBytes: 4096,
  maximumPayloadBytes: 2 ** 20,
};

/** xorshift32: enough to be different, and the same every time. */
function randomOf(seed: number): (below: number) => number {
  let state = (seed * 2654435761) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
}

const SESSION = Buffer.concat([
  encodeClientFlags(3),
  encodeOption(0x4711, Buffer.alloc(30)),
  encodeOption(Option.LIST),
  encodeOption(Option.STRUCTURED_REPLY),
  encodeOption(Option.SET_META_CONTEXT, encodeMetaRequest('disk', ['x-y:z', 'base:allocation'])),
  encodeOption(Option.INFO, encodeInfoRequest('nope', [1, 3])),
  encodeOption(Option.GO, encodeInfoRequest('disk', [1, 3])),
  encodeRequest({ command: Command.READ, lengthBytes: 4096, cookieLow: 1 }),
  encodeRequest({ command: Command.WRITE, offset: 5, payload: Buffer.alloc(300, 0x25), cookieLow: 2 }),
  encodeRequest({ command: Command.FLUSH, cookieLow: 3 }),
  encodeRequest({ command: Command.WRITE, offset: 2 ** 50, payload: Buffer.alloc(100, 0x25), cookieLow: 4 }),
  encodeRequest({ command: Command.BLOCK_STATUS, lengthBytes: 2 ** 31, cookieLow: 5 }),
  encodeRequest({ command: Command.DISC }),
]);

function mutated(random: (below: number) => number): Buffer {
  let bytes = Buffer.from(SESSION);
  for (let changes = random(4); changes >= 0; changes--) {
    const at = random(bytes.length);
    switch (random(5)) {
      case 0:
        bytes[at] = random(256);
        break;
      case 1:
        bytes[at] = [0x00, 0x7f, 0x80, 0xff][random(4)]!;
        break;
      case 2:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random(20))]);
        break;
      case 3:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at, at + random(60)), bytes.subarray(at)]);
        break;
      default:
        bytes = bytes.subarray(0, at + 1);
    }
  }
  return bytes;
}

/** What the codec says and hears, as text. `cut` gives the length of the next chunk. */
function listen(input: Buffer, cut: () => number): string[] {
  const heard: string[] = [];
  let decoder: RequestDecoder | null = null;
  let over = false;
  const handshake: Handshake = new Handshake({
    send: (bytes) => void heard.push(`said ${bytes.toString('hex')}`),
    exports: () => [TERMS],
    find: (name) => (name === 'disk' || name === '' ? TERMS : null),
    open: () => handshake.opened(TERMS),
    established: (negotiated) => {
      decoder = new RequestDecoder(
        {
          request: ({ command, flags, cookieHigh, cookieLow, offset, lengthBytes }, payload) =>
            void heard.push(
              `${[command, flags, cookieHigh, cookieLow, offset, lengthBytes]} ${payload?.toString('hex')}`,
            ),
          refused: ({ cookieLow }, { error }) => void heard.push(`${cookieLow} refused ${error}`),
          broken: (reason) => {
            heard.push(reason);
            over = true;
          },
        },
        rulesOf(negotiated),
      );
    },
    ended: (reason) => {
      heard.push(`ended ${reason}`);
      over = true;
    },
  });
  handshake.start();
  for (let start = 0; start < input.length && !over; ) {
    const chunk = Buffer.from(input.subarray(start, start + cut()));
    start += chunk.length;
    const taken = decoder === null ? handshake.push(chunk) : 0;
    const rest = decoder as RequestDecoder | null;
    if (rest !== null && !over) rest.push(chunk, taken);
  }
  return heard;
}

test(`${ROUNDS} damaged sessions are heard the same however they are cut, and none throws`, (t) => {
  const kinds = new Set<string>();
  for (let seed = 1; seed <= ROUNDS; seed++) {
    const random = randomOf(seed);
    const input = mutated(random);
    const whole = listen(input, () => input.length);
    const pieces = listen(input, () => 1 + random(40));
    if (whole.join('\n') !== pieces.join('\n')) return t.deepEqual(pieces, whole, `seed ${seed}`);
    kinds.add(`${whole.length} ${whole.at(-1)!.slice(0, 12)}`);
  }
  t.true(kinds.size > 30, `the damage has many outcomes, not ${kinds.size}`);
});
