// Requests against bytes written by hand, whole, cut at every place and byte by byte; and the whole error table.

import test, { type ExecutionContext } from 'ava';
import { hex } from './hex.ts';
import { WRITE_DRAIN_MAX } from './limits.ts';
import type { Refusal, RequestRules } from './refusal.ts';
import { RequestDecoder, type RequestHeader, type RequestSink } from './request-decoder.ts';

const ALL_FLAGS = 0x0ded; // all but READ_ONLY and ROTATIONAL
const rules = (change: Partial<RequestRules> = {}): RequestRules => ({
  sizeBytes: 1_000_000,
  flags: ALL_FLAGS,
  allocationContext: true,
  minimumBlockBytes: 1,
  maximumPayloadBytes: 65_536,
  ...change,
});

/** Writes down everything that arrives, as text. */
class Sink implements RequestSink {
  heard: string[] = [];
  payloads: Buffer[] = [];
  decoder: RequestDecoder;
  /** Called for each request, to hold() at. */
  onRequest: () => void = () => {};
  constructor(change: Partial<RequestRules> = {}) {
    this.decoder = new RequestDecoder(this, rules(change));
  }
  request(h: RequestHeader, payload: Buffer | null): void {
    this.heard.push(`${describe(h)} ${payload === null ? '-' : payload.toString('hex')}`);
    if (payload !== null) this.payloads.push(payload);
    this.onRequest();
  }
  refused(h: RequestHeader, refusal: Refusal): void {
    this.heard.push(`${describe(h)} error ${refusal.error}`);
  }
  broken(reason: string): void {
    this.heard.push(`broken: ${reason}`);
  }
}
const describe = (h: RequestHeader): string =>
  `${h.command}/${h.flags} ${h.cookieHigh.toString(16)}:${h.cookieLow.toString(16)} ${h.offset}+${h.lengthBytes}`;

function feed(sink: Sink, chunks: readonly Buffer[]): Sink {
  for (const chunk of chunks) sink.decoder.push(Buffer.from(chunk), 0);
  return sink;
}

function hears(t: ExecutionContext, input: Buffer, heard: string[], change: Partial<RequestRules> = {}): void {
  t.deepEqual(feed(new Sink(change), [input]).heard, heard);
  for (let at = 1; at < input.length; at++)
    t.deepEqual(feed(new Sink(change), [input.subarray(0, at), input.subarray(at)]).heard, heard, `cut at ${at}`);
  t.deepEqual(
    feed(
      new Sink(change),
      [...input].map((_, at) => input.subarray(at, at + 1)),
    ).heard,
    heard,
    'byte by byte',
  );
}

const request = (flags: string, command: string, offset: string, length: string, payload = ''): string =>
  `25609513 ${flags} ${command} 0123456789abcdef ${offset} ${length} ${payload}`;
const ID = '1234567:89abcdef';

test('one request of each kind is heard as it was sent, wherever the stream is cut', (t) => {
  const input = [
    request('0004', '0000', '0000000000000005', '00000100'),
    request('0001', '0001', '0000000000001000', '00000003', 'aabbcc'),
    request('0000', '0001', '0000000000001000', '00000000'),
    request('0001', '0003', '0000000000000000', '00000000'),
    request('0000', '0004', '0000000000000000', '000f4240'),
    request('0000', '0005', '0000000000000000', '000f4240'),
    request('0013', '0006', '0000000000000001', '000f423f'),
    request('0008', '0007', '0000000000000001', '00000001'),
    '25609513 0000 0000 ffffffffffffffff 0000000000000000 00000001',
    request('ffff', '0002', 'ffffffffffffffff', 'ffffffff'),
  ];
  hears(t, hex(input.join(' ')), [
    `0/4 ${ID} 5+256 -`,
    `1/1 ${ID} 4096+3 aabbcc`,
    `1/0 ${ID} 4096+0 `,
    `3/1 ${ID} 0+0 -`,
    `4/0 ${ID} 0+1000000 -`,
    `5/0 ${ID} 0+1000000 -`,
    `6/19 ${ID} 1+999999 -`,
    `7/8 ${ID} 1+1 -`,
    '0/0 ffffffff:ffffffff 0+1 -',
    `2/65535 ${ID} Infinity+4294967295 -`,
  ]);
});

test('a WRITE that is refused is heard of once its data is over, and the next request is understood', (t) => {
  const decoy = request('0000', '0002', '0000000000000000', '00000000');
  const input = `${request('0000', '0001', '00000000000f4240', '0000001c', decoy)} ${request('0000', '0000', '0000000000000000', '00000001')}`;
  hears(t, hex(input), [`1/0 ${ID} 1000000+28 error 28`, `0/0 ${ID} 0+1 -`]);
});

/** [what, flags, command, offset, length, error]. Sizes: export 1,000,000 bytes, payload 65,536. */
const past = '00000000000f4240';
const table: [string, string, string, string, string, number][] = [
  ['READ past the end', '0000', '0000', past, '00000001', 22],
  ['WRITE past the end', '0000', '0001', past, '00000001', 28],
  ['TRIM past the end', '0000', '0004', past, '00000001', 22],
  ['CACHE past the end', '0000', '0005', past, '00000001', 22],
  ['WRITE_ZEROES past the end', '0000', '0006', past, '00000001', 28],
  ['BLOCK_STATUS past the end', '0000', '0007', past, '00000001', 22],
  ['READ across the end', '0000', '0000', '00000000000f4239', '00000008', 22],
  ['WRITE across the end', '0000', '0001', '00000000000f4239', '00000008', 28],
  ['WRITE_ZEROES that would overflow 2^64', '0000', '0006', 'fffffffffffffff0', '00000011', 28],
  ['READ that would overflow 2^64', '0000', '0000', 'ffffffffffffffff', '00000001', 22],
  ['READ at 2^53', '0000', '0000', '0020000000000000', '00000001', 22],
  ['READ of nothing past the end', '0000', '0000', '00000000000f4241', '00000000', 22],
  ['TRIM of 4 GiB', '0000', '0004', '0000000000000000', 'ffffffff', 22],
  ['READ too long', '0000', '0000', '0000000000000000', '00010001', 22],
  ['WRITE too long', '0000', '0001', '0000000000000000', '00010001', 22],
  ['unknown command', '0000', '0008', '0000000000000000', '00000000', 22],
  ['unknown command', '0000', 'ffff', '0000000000000000', '00000000', 22],
  ['BLOCK_STATUS of nothing', '0000', '0007', '0000000000000000', '00000000', 22],
  ['FLUSH with an offset', '0000', '0003', '0000000000000001', '00000000', 22],
  ['FLUSH with a length', '0000', '0003', '0000000000000000', '00000001', 22],
  ...['0002', '0008', '0010', '0020', '8000'].map(
    (flags) => [`READ with flag ${flags}`, flags, '0000', past.replace(/./g, '0'), '00000001', 22] as const,
  ),
  ...['0002', '0004', '0008', '0010', '0020', '4000'].map(
    (flags) => [`WRITE with flag ${flags}`, flags, '0001', past.replace(/./g, '0'), '00000001', 22] as const,
  ),
  ...['0004', '0008', '0020'].map(
    (flags) => [`WRITE_ZEROES with flag ${flags}`, flags, '0006', past.replace(/./g, '0'), '00000001', 22] as const,
  ),
  ...['0002', '0004', '0010', '0020'].map(
    (flags) => [`BLOCK_STATUS with flag ${flags}`, flags, '0007', past.replace(/./g, '0'), '00000001', 22] as const,
  ),
  ...['0003', '0004', '0005'].map(
    (command) =>
      [`command ${command} with flag 0002`, '0002', command, past.replace(/./g, '0'), '00000000', 22] as const,
  ),
].map((row) => [...row] as [string, string, string, string, string, number]);

for (const [what, flags, command, offset, length, error] of table)
  test(`error table: ${what} (${flags} ${command} ${offset} ${length}) is error ${error}, and the stream stays in step`, (t) => {
    const isWrite = command === '0001';
    const bytes = Number.parseInt(length, 16);
    const sink = new Sink();
    const next = hex(request('0000', '0000', '0000000000000000', '00000001'));
    feed(sink, [
      hex(request(flags, command, offset, length)),
      isWrite ? Buffer.alloc(bytes, 0x25) : Buffer.alloc(0),
      next,
    ]);
    t.is(sink.heard.length, 2);
    t.regex(sink.heard[0]!, new RegExp(`error ${error}$`));
    t.is(sink.heard[1], `0/0 ${ID} 0+1 -`);
  });

test('at the end exactly, everything is allowed', (t) => {
  const last = '00000000000f423f';
  for (const command of ['0000', '0004', '0005', '0006', '0007']) {
    const { heard } = feed(new Sink(), [hex(request('0000', command, last, '00000001'))]);
    t.deepEqual(heard, [`${Number(command)}/0 ${ID} 999999+1 -`]);
  }
  for (const command of ['0000', '0004', '0005', '0006'])
    t.is(
      feed(new Sink(), [hex(request('0000', command, past, '00000000'))]).heard[0],
      `${Number(command)}/0 ${ID} 1000000+0 -`,
    );
});

test('a read-only export refuses what changes it with EPERM, even past the end, and FUA stays legal', (t) => {
  const flags = 0x058f; // READ_ONLY FLUSH FUA DF MULTI_CONN CACHE
  for (const command of ['0001', '0004', '0006'])
    for (const offset of ['0000000000000000', past]) {
      const sink = feed(new Sink({ flags }), [
        hex(request('0000', command, offset, '00000001', command === '0001' ? 'ff' : '')),
      ]);
      t.is(sink.heard.length, 1);
      t.regex(sink.heard[0]!, /error 1$/);
      t.true(sink.decoder.atBoundary);
    }
  for (const command of ['0000', '0003', '0005', '0007']) {
    const length = command === '0003' ? '00000000' : '00000001';
    const { heard } = feed(new Sink({ flags }), [hex(request('0001', command, '0000000000000000', length))]);
    t.notRegex(heard[0]!, /error/);
  }
});

test('what was not offered is refused: FUA, DF, FAST_ZERO, FLUSH, TRIM, WRITE_ZEROES, CACHE, contexts', (t) => {
  const cases: [number, string, string, string][] = [
    [ALL_FLAGS & ~0x008, '0001', '0000', '00000001'],
    [ALL_FLAGS & ~0x080, '0004', '0000', '00000001'],
    [ALL_FLAGS & ~0x800, '0010', '0006', '00000001'],
    [ALL_FLAGS & ~0x004, '0000', '0003', '00000000'],
    [ALL_FLAGS & ~0x020, '0000', '0004', '00000001'],
    [ALL_FLAGS & ~0x040, '0000', '0006', '00000001'],
    [ALL_FLAGS & ~0x400, '0000', '0005', '00000001'],
  ];
  for (const [flags, commandFlags, command, length] of cases) {
    const input = hex(request(commandFlags, command, '0000000000000000', length));
    t.notRegex(feed(new Sink(), [input]).heard[0]!, /error/, 'offered, it is legal');
    t.regex(feed(new Sink({ flags }), [input]).heard[0]!, /error 22$/);
  }
  const status = hex(request('0000', '0007', '0000000000000000', '00000001'));
  t.regex(feed(new Sink({ allocationContext: false }), [status]).heard[0]!, /error 22$/);
});

test('a minimum block size is enforced on offset and length', (t) => {
  for (const [offset, length, ok] of [
    ['0200', '00000400', true],
    ['0001', '00000200', false],
    ['0200', '000001ff', false],
  ] as const) {
    const { heard } = feed(new Sink({ minimumBlockBytes: 512 }), [
      hex(request('0000', '0000', `00000000 0000 ${offset}`, length)),
    ]);
    t.is(/error 22$/.test(heard[0]!), !ok);
  }
});

test('the export grows: what was past the end is allowed at once', (t) => {
  const sink = new Sink();
  const input = hex(request('0000', '0000', past, '00000001'));
  feed(sink, [input]);
  sink.decoder.rules.sizeBytes += 1;
  feed(sink, [input]);
  t.deepEqual(sink.heard, [`0/0 ${ID} 1000000+1 error 22`, `0/0 ${ID} 1000000+1 -`]);
});

test('a wrong magic breaks the stream for good, wherever it is cut', (t) => {
  const good = request('0000', '0000', '0000000000000000', '00000001');
  hears(t, hex(`${good} 25609514 0000 0000 0123456789abcdef 0000000000000000 00000001 ${good}`), [
    `0/0 ${ID} 0+1 -`,
    'broken: no request where one must begin',
  ]);
});

test('a refused WRITE of 128 MiB is drained, a larger one breaks the stream', (t) => {
  const sink = new Sink();
  const length = (bytes: number): string => bytes.toString(16).padStart(8, '0');
  feed(sink, [hex(request('0000', '0001', '0000000000000000', length(WRITE_DRAIN_MAX)))]);
  const mebibyte = Buffer.alloc(2 ** 20);
  for (let sent = 0; sent < WRITE_DRAIN_MAX; sent += mebibyte.length) sink.decoder.push(mebibyte, 0);
  t.deepEqual(sink.heard, [`1/0 ${ID} 0+${WRITE_DRAIN_MAX} error 22`]);
  t.true(sink.decoder.atBoundary);
  feed(sink, [hex(request('0000', '0001', '0000000000000000', length(WRITE_DRAIN_MAX + 1)))]);
  t.is(sink.heard.at(-1), `broken: WRITE of ${WRITE_DRAIN_MAX + 1} bytes`);
});

test('data that lies whole in a chunk gets memory of its own: the chunk may be overwritten', (t) => {
  const sink = new Sink();
  const chunk = hex(request('0000', '0001', '0000000000000000', '00000004', 'aabbccdd'));
  sink.decoder.push(chunk, 0);
  chunk.fill(0x11);
  t.is(sink.payloads[0]!.toString('hex'), 'aabbccdd');
});

test('data in several chunks is put together in one buffer of its own', (t) => {
  const sink = new Sink();
  const [head, tail] = [hex(`${request('0000', '0001', '0000000000000000', '00000006', 'aabb')}`), hex('ccddeeff')];
  sink.decoder.push(head, 0);
  t.false(sink.decoder.atBoundary);
  t.is(sink.decoder.target?.length, 4);
  sink.decoder.push(tail, 0);
  head.fill(0);
  tail.fill(0);
  t.deepEqual(
    sink.payloads.map((payload) => payload.toString('hex')),
    ['aabbccddeeff'],
  );
  t.true(sink.decoder.atBoundary);
});

test('data may be read straight to where it belongs, in pieces, and the stream goes on behind it', (t) => {
  const sink = new Sink();
  t.is(sink.decoder.target, null);
  sink.decoder.push(hex(`${request('0000', '0001', '0000000000000000', '00000006', 'aa')}`), 0);
  sink.decoder.target!.set(hex('bbccdd'));
  sink.decoder.filled(3);
  sink.decoder.target!.set(hex('eeff'));
  sink.decoder.filled(2);
  t.is(sink.decoder.target, null);
  sink.decoder.push(hex(request('0000', '0000', '0000000000000000', '00000001')), 0);
  t.deepEqual(sink.heard, [`1/0 ${ID} 0+6 aabbccddeeff`, `0/0 ${ID} 0+1 -`]);
  t.throws(() => sink.decoder.filled(1), undefined, 'nothing is awaited now');
});

test('hold() stops behind the present request, and the next push goes on from there', (t) => {
  const sink = new Sink();
  const one = hex(request('0000', '0001', '0000000000000000', '00000002', 'aabb'));
  const chunk = Buffer.concat([one, one, one.subarray(0, 29)]);
  sink.onRequest = () => sink.decoder.hold();
  let at = sink.decoder.push(chunk, 0);
  t.is(at, 30);
  at = sink.decoder.push(chunk, at);
  t.is(at, 60);
  t.is(sink.decoder.push(chunk, at), chunk.length);
  sink.decoder.push(one.subarray(29), 0);
  t.is(sink.heard.length, 3);
});
