// A million damaged inputs for each side of the codec: haggling, and requests. The package stands alone, and so does its
// small generator of damage.
//
//   ASHLAR_INPUTS=50000000 ASHLAR_SEED=7 npx ava …     more inputs, and others

import test from 'ava';
import { encodeClientFlags, encodeInfoRequest, encodeMetaRequest, encodeOption, encodeRequest } from './client.ts';
import { Command, Option } from './constants.ts';
import { type ExportTerms, Handshake } from './handshake.ts';
import { OPTION_BYTES_MAX } from './limits.ts';
import { rulesOf } from './refusal.ts';
import { RequestDecoder } from './request-decoder.ts';

const INPUTS = Number(process.env.ASHLAR_INPUTS ?? 1_000_000);
const SEED = Number(process.env.ASHLAR_SEED ?? 1);
/** One input that takes longer hangs, however loaded the machine is. */
const INPUT_MS_MAX = 2_000;
const PAYLOAD_BYTES_MAX = 64 * 1024;

const TERMS: ExportTerms = {
  name: 'disk',
  description: 'a disk',
  sizeBytes: 2 ** 40,
  flags: 0x0ded,
  minimumBlockBytes: 1,
  preferredBlockBytes: 4096,
  maximumPayloadBytes: PAYLOAD_BYTES_MAX,
};
const NEGOTIATED = { terms: TERMS, flags: TERMS.flags | 1, structuredReplies: true, allocationContext: true };

type Random = (below: number) => number;
function randomOf(seed: number): Random {
  let state = Math.imul(seed + 1, 0x9e3779b1) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
}
const NUMBERS = [0, 1, 2, 4, 255, 4095, 4096, 4097, 65_535, 65_536, 65_537, 2 ** 20, 2 ** 20 + 1, 2 ** 25, 2 ** 27 + 1];
NUMBERS.push(0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff);

const scratch = Buffer.alloc(8192);
/** Two samples one after the other, with up to four changes; now and then noise. Overwritten by the next call. */
function damaged(samples: readonly Buffer[], random: Random): Buffer {
  let length = random(16) === 0 ? random(200) : 0;
  if (length > 0) for (let at = 0; at < length; at++) scratch[at] = random(256);
  else
    for (let count = 1 + random(2); count > 0; count--)
      length += samples[random(samples.length)]!.copy(scratch, length);
  for (let changes = random(4); changes >= 0 && length > 4; changes--) {
    const at = random(length - 4);
    switch (random(6)) {
      case 0:
        scratch[at]! ^= 1 << random(8);
        break;
      case 1:
        scratch[at] = random(256);
        break;
      case 2:
        scratch.writeUInt32BE(NUMBERS[random(NUMBERS.length)]!, at);
        break;
      case 3:
        scratch.writeUInt16BE(NUMBERS[random(NUMBERS.length)]! & 0xffff, at);
        break;
      case 4:
        length = at;
        break;
      default: {
        const bytes = Math.min(1 + random(20), length - at);
        scratch.copyWithin(at, at + bytes, length);
        length -= bytes;
      }
    }
  }
  return scratch.subarray(0, length);
}

/** Runs all inputs; `listen` returns what the input came to. Every outcome named must have occurred. */
function million(
  t: import('ava').ExecutionContext,
  samples: readonly Buffer[],
  outcomes: readonly string[],
  listen: (input: Buffer, random: Random) => string,
): void {
  t.timeout(Math.max(1, INPUTS / 1_000_000) * 600_000);
  const random = randomOf(SEED);
  const found = new Map<string, number>();
  const started = performance.now();
  let before = started;
  for (let number = 1; number <= INPUTS; number++) {
    const input = damaged(samples, random);
    const where = () => `seed ${SEED}, input ${number}: ${input.toString('hex')}`;
    let outcome: string;
    try {
      outcome = listen(input, random);
    } catch (error) {
      return t.fail(`${where()}: ${(error as Error).stack}`);
    }
    found.set(outcome, (found.get(outcome) ?? 0) + 1);
    const now = performance.now();
    if (now - before > INPUT_MS_MAX) return t.fail(`${where()}: took ${now - before} ms`);
    before = now;
  }
  t.log(`${INPUTS} inputs in ${Math.round(performance.now() - started)} ms: ${JSON.stringify([...found])}`);
  for (const outcome of outcomes) t.true(found.has(outcome), `some input was ${outcome}`);
}

test('haggling comes to requests, to an end with a reason, or waits for more; what is said stays small', (t) => {
  const samples = [
    encodeOption(Option.LIST),
    encodeOption(Option.ABORT),
    encodeOption(Option.STRUCTURED_REPLY),
    encodeOption(Option.STARTTLS),
    encodeOption(0x4711, Buffer.alloc(30)),
    encodeOption(Option.SET_META_CONTEXT, encodeMetaRequest('disk', ['x-y:z', 'base:allocation'])),
    encodeOption(Option.LIST_META_CONTEXT, encodeMetaRequest('disk', [])),
    encodeOption(Option.INFO, encodeInfoRequest('nope', [1, 3])),
    encodeOption(Option.GO, encodeInfoRequest('disk', [0, 1, 2, 3, 9])),
    encodeOption(Option.EXPORT_NAME, Buffer.from('disk')),
  ];
  million(t, samples, ['established', 'ended', 'waits'], (input, random) => {
    let outcome = 'waits';
    let saidBytes = 0;
    const handshake: Handshake = new Handshake({
      send: (bytes) => {
        saidBytes += bytes.length;
      },
      exports: () => [TERMS],
      find: (name) => (name === 'disk' || name === '' ? TERMS : null),
      open: () => (random(2) === 0 ? handshake.opened(TERMS) : handshake.refused(2 ** 31 + 6, 'not now')),
      established: () => {
        outcome = 'established';
      },
      ended: () => {
        outcome = 'ended';
      },
    });
    handshake.push(encodeClientFlags(random(8) === 0 ? random(8) : 3));
    if (outcome === 'waits') {
      const cut = random(input.length + 1);
      const taken = handshake.push(input.subarray(0, cut));
      if (taken > cut || (outcome === 'waits' && taken !== cut)) throw new Error(`took ${taken} of ${cut}`);
      if (outcome === 'waits') handshake.push(input.subarray(cut));
    }
    if (saidBytes > 64 * OPTION_BYTES_MAX) throw new Error(`said ${saidBytes} bytes`);
    return outcome;
  });
});

test('requests: each is carried out within the rules, refused, or ends the connection; memory only for what may be', (t) => {
  const samples = [
    encodeRequest({ command: Command.READ, lengthBytes: 4096, cookieLow: 1 }),
    encodeRequest({ command: Command.WRITE, offset: 5, payload: Buffer.alloc(300, 0x25), cookieLow: 2 }),
    encodeRequest({ command: Command.WRITE, flags: 1, offset: 2 ** 40 - 64, payload: Buffer.alloc(64), cookieLow: 3 }),
    encodeRequest({ command: Command.FLUSH, cookieLow: 4 }),
    encodeRequest({ command: Command.TRIM, offset: 4096, lengthBytes: 2 ** 31, cookieLow: 5 }),
    encodeRequest({ command: Command.WRITE_ZEROES, offset: 4096, lengthBytes: 2 ** 20, cookieLow: 6 }),
    encodeRequest({ command: Command.BLOCK_STATUS, lengthBytes: 2 ** 31, cookieLow: 7 }),
    encodeRequest({ command: Command.CACHE, lengthBytes: 4096, cookieLow: 8 }),
    encodeRequest({ command: Command.DISC }),
  ];
  const rules = rulesOf(NEGOTIATED);
  million(t, samples, ['request', 'refused', 'broken', 'waits'], (input, random) => {
    let outcome = 'waits';
    let allocatedBytes = 0;
    const decoder = new RequestDecoder(
      {
        request: ({ command, offset, lengthBytes }, payload) => {
          outcome = 'request';
          if (command === Command.WRITE && payload?.length !== lengthBytes)
            throw new Error('a payload of another length');
          if (command !== Command.FLUSH && command !== Command.DISC && !(offset + lengthBytes <= TERMS.sizeBytes))
            throw new Error(`${command} at ${offset}, ${lengthBytes} bytes`);
        },
        refused: () => {
          outcome = 'refused';
        },
        broken: () => {
          outcome = 'broken';
        },
      },
      rules,
      (bytes) => {
        allocatedBytes += bytes;
        if (bytes > PAYLOAD_BYTES_MAX) throw new Error(`memory for ${bytes} bytes`);
        return Buffer.allocUnsafe(bytes);
      },
    );
    const cut = random(input.length + 1);
    decoder.push(input.subarray(0, cut), 0);
    if (outcome !== 'broken') decoder.push(input, cut);
    if (allocatedBytes > input.length + PAYLOAD_BYTES_MAX) throw new Error(`memory for ${allocatedBytes} bytes`);
    return outcome;
  });
});
