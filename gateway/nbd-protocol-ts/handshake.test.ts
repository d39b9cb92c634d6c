// The handshake against bytes written by hand from the protocol document: each conversation is fed whole, cut at every
// place, and byte by byte, and must always give the same answers.

import test, { type ExecutionContext } from 'ava';
import { type ExportTerms, Handshake, type HandshakeHost, type Negotiated } from './handshake.ts';
import { hex } from './hex.ts';
import { OPTION_BYTES_MAX, OPTION_DRAIN_MAX, OPTIONS_MAX } from './limits.ts';

const GREETING = '4e42444d41474943 49484156454f5054 0003';
const IHAVEOPT = '49484156454f5054';
const REPLY = '0003e889045565a9';
const FLAGS = '00000003';

const DISK: ExportTerms = {
  name: 'disk',
  description: 'a disk',
  sizeBytes: 0x123456789000,
  flags: 0x05ec, // FLUSH FUA TRIM ZEROES DF MULTI_CONN CACHE
  minimumBlockBytes: 1,
  preferredBlockBytes: 4096,
  maximumPayloadBytes: 32 * 1024 * 1024,
};

class Host implements HandshakeHost {
  said: Buffer[] = [];
  opened: string[] = [];
  negotiated: Negotiated | null = null;
  end: string | null | undefined;
  exportList: ExportTerms[] = [DISK];
  handshake = new Handshake(this);
  /** Answers open() at once; otherwise the test does. */
  opensAtOnce = true;

  send(bytes: Buffer): void {
    this.said.push(bytes);
  }
  exports(): Iterable<ExportTerms> {
    return this.exportList;
  }
  find(name: string): ExportTerms | null {
    return this.exportList.find((each) => each.name === name || name === '') ?? null;
  }
  open(name: string): void {
    this.opened.push(name);
    if (this.opensAtOnce) this.handshake.opened(this.find(name)!);
  }
  established(negotiated: Negotiated): void {
    this.negotiated = negotiated;
  }
  ended(reason: string | null): void {
    this.end = reason;
  }
}

/** Feeds the chunks; returns the host and what was not taken. */
function feed(chunks: readonly Buffer[], exportList: ExportTerms[] = [DISK]): { host: Host; rest: Buffer } {
  const host = new Host();
  host.exportList = exportList;
  host.handshake.start();
  const rest: Buffer[] = [];
  for (const chunk of chunks) rest.push(chunk.subarray(host.handshake.push(chunk)));
  return { host, rest: Buffer.concat(rest) };
}

/** The server says exactly this, whole, cut anywhere and byte by byte. Returns the host of the whole run. */
function says(t: ExecutionContext, input: Buffer, output: Buffer, exportList?: ExportTerms[]): Host {
  const whole = feed([input], exportList);
  t.is(Buffer.concat(whole.host.said).toString('hex'), output.toString('hex'));
  const cuts = [input.length > 3_000 ? [] : [...input].map((_, at) => input.subarray(at, at + 1))];
  const step = Math.ceil(input.length / 500);
  for (let at = 1; at < input.length; at += step) cuts.push([input.subarray(0, at), input.subarray(at)]);
  for (const chunks of cuts) {
    if (chunks.length === 0) continue;
    const { host, rest } = feed(chunks, exportList);
    const where = `cut into ${chunks.length} chunks, the first of ${chunks[0]!.length} bytes`;
    t.true(Buffer.concat(host.said).equals(output), where);
    t.deepEqual(
      [host.end, host.negotiated, host.opened],
      [whole.host.end, whole.host.negotiated, whole.host.opened],
      where,
    );
    t.true(rest.equals(whole.rest), where);
  }
  return whole.host;
}

const option = (number: string, data = ''): string => {
  const bytes = hex(data);
  return `${IHAVEOPT} ${number} ${bytes.length.toString(16).padStart(8, '0')} ${bytes.toString('hex')}`;
};
/** An answer whose text is for humans is compared up to its type. */
const types = (host: Host): string[] =>
  host.said.slice(1).map((bytes) => `${bytes.readUInt32BE(8).toString(16)}:${bytes.readUInt32BE(12).toString(16)}`);

const GO_DISK = option('00000007', "00000004 'disk' 0000");
const SIZE = '0000123456789000';

test('GO tells size and flags, without DF as long as replies are simple, and leaves the request behind it alone', (t) => {
  const host = says(
    t,
    hex(`${FLAGS} ${GO_DISK} 25609513`),
    hex(`${GREETING} ${REPLY} 00000007 00000003 0000000c 0000 ${SIZE} 056d ${REPLY} 00000007 00000001 00000000`),
  );
  t.deepEqual(host.negotiated, { terms: DISK, flags: 0x056d, structuredReplies: false, allocationContext: false });
  t.deepEqual(host.opened, ['disk']);
});

test('GO with structured replies, a context and all information tells everything once', (t) => {
  const host = says(
    t,
    hex(
      `${FLAGS} ${option('00000008')}` +
        option('0000000a', "00000004 'disk' 00000001 0000000f 'base:allocation'") +
        option('00000007', "00000004 'disk' 0006 0003 0001 0002 4711 0000 0001"),
    ),
    hex(
      `${GREETING} ${REPLY} 00000008 00000001 00000000` +
        `${REPLY} 0000000a 00000004 00000013 00000001 'base:allocation' ${REPLY} 0000000a 00000001 00000000` +
        `${REPLY} 00000007 00000003 0000000c 0000 ${SIZE} 05ed` +
        `${REPLY} 00000007 00000003 00000006 0001 'disk'` +
        `${REPLY} 00000007 00000003 00000008 0002 'a disk'` +
        `${REPLY} 00000007 00000003 0000000e 0003 00000001 00001000 02000000` +
        `${REPLY} 00000007 00000001 00000000`,
    ),
  );
  t.deepEqual(host.negotiated, { terms: DISK, flags: 0x05ed, structuredReplies: true, allocationContext: true });
});

test('EXPORT_NAME is answered without a header, with 124 zeroes for who has not declined them', (t) => {
  const name = option('00000001', "'disk'");
  const fixed = says(t, hex(`00000001 ${name}`), hex(`${GREETING} ${SIZE} 056d ${'00'.repeat(124)}`));
  t.is(fixed.negotiated?.flags, 0x056d);
  says(t, hex(`00000003 ${name} ff`), hex(`${GREETING} ${SIZE} 056d`));
  says(t, hex(`00000000 ${name}`), hex(`${GREETING} ${SIZE} 056d ${'00'.repeat(124)}`));
  says(t, hex(`00000003 ${option('00000001')}`), hex(`${GREETING} ${SIZE} 056d`));
});

test('EXPORT_NAME that fails ends the connection: unknown, too long, no string', (t) => {
  for (const data of [
    "'nope'",
    "'a' 00 'b'",
    'c328',
    `'${'x'.repeat(4097)}'`,
    `'${'x'.repeat(OPTION_BYTES_MAX + 1)}'`,
  ]) {
    const host = says(t, hex(`${FLAGS} ${option('00000001', data)}`), hex(GREETING));
    t.is(typeof host.end, 'string');
    t.is(host.negotiated, null);
  }
});

test('LIST names every export; ABORT is acknowledged and ends without a complaint', (t) => {
  const host = says(
    t,
    hex(`${FLAGS} ${option('00000003')} ${option('00000002')} ffff`),
    hex(
      `${GREETING} ${REPLY} 00000003 00000002 0000000e 00000004 'disk' 'a disk'` +
        `${REPLY} 00000003 00000002 00000006 00000002 'tv'` +
        `${REPLY} 00000003 00000001 00000000 ${REPLY} 00000002 00000001 00000000`,
    ),
    [DISK, { ...DISK, name: 'tv', description: '' }],
  );
  t.is(host.end, null);
});

test('ABORT is acknowledged whatever data comes with it', (t) => {
  const host = says(
    t,
    hex(`${FLAGS} ${option('00000002', 'deadbeef')}`),
    hex(`${GREETING} ${REPLY} 00000002 00000001 00000000`),
  );
  t.is(host.end, null);
});

test('what is not known or not wanted is drained and refused, and the next option is understood', (t) => {
  const cases: [string, string, string][] = [
    ['07654321', "'IHAVEOPT'", '7654321:80000001'],
    ['00000004', '', '4:80000001'],
    ['0000000b', '', 'b:80000001'],
    ['00000003', '00', '3:80000003'],
    ['00000005', '', '5:80000002'],
    ['00000005', 'ff', '5:80000003'],
    ['00000008', '00000000', '8:80000003'],
  ];
  for (const [number, data, answer] of cases) {
    const { host } = feed([hex(`${FLAGS} ${option(number, data)} ${GO_DISK}`)]);
    t.deepEqual(types(host), [answer, '7:3', '7:1']);
    says(t, hex(`${FLAGS} ${option(number, data)} ${GO_DISK}`), Buffer.concat(host.said));
    t.false(host.negotiated?.structuredReplies);
  }
});

test('structured replies can be negotiated once', (t) => {
  const { host } = feed([hex(`${FLAGS} ${option('00000008')} ${option('00000008')}`)]);
  t.deepEqual(types(host), ['8:1', '8:80000003']);
});

test('every malformed GO and INFO is invalid, and haggling goes on', (t) => {
  const wrong = [
    '',
    '00',
    '0000000000', // shorter than any name
    'ffffffff 0000',
    "00000005 'disk' 0000",
    "fffffffa 'disk' 0000", // names that do not fit
    "00000004 'disk' 0001",
    "00000004 'disk' 0001 00",
    "00000004 'disk' 0000 0001",
    "00000004 'disk' ffff 0001",
    "00000003 'a' 00 'b' 0000",
    '00000002 c328 0000',
    `00001001 '${'x'.repeat(4097)}' 0000`,
  ];
  for (const number of ['00000006', '00000007'])
    for (const data of wrong) {
      const { host } = feed([hex(`${FLAGS} ${option(number, data)} ${GO_DISK}`)]);
      t.deepEqual(types(host), [`${Number(number)}:80000003`, '7:3', '7:1'], data.slice(0, 60));
    }
});

test('a name of 4096 bytes is a name', (t) => {
  const name = 'x'.repeat(4096);
  const host = says(
    t,
    hex(`${FLAGS} ${option('00000006', `00001000 '${name}' 0000`)}`),
    hex(`${GREETING} ${REPLY} 00000006 00000003 0000000c 0000 ${SIZE} 056d ${REPLY} 00000006 00000001 00000000`),
    [{ ...DISK, name }],
  );
  t.deepEqual(host.opened, [], 'INFO opens nothing');
});

test('an unknown export is refused without information, its name shown harmlessly', (t) => {
  const { host } = feed([hex(`${FLAGS} ${option('00000007', "00000005 'a' 0a 'b' 1b 22 0000")} ${GO_DISK}`)]);
  t.deepEqual(types(host), ['7:80000006', '7:3', '7:1']);
  t.is(host.said[1]!.toString('utf8', 20), 'no export named "a\\nb\\u001b\\""');
  const long = feed([hex(`${FLAGS} ${option('00000007', `00000fff '${'y'.repeat(4095)}' 0000`)}`)]).host;
  t.is(long.said[1]!.toString('utf8', 20), `no export named "${'y'.repeat(80)}..."`);
});

test('metadata contexts: every malformed request is invalid', (t) => {
  const wrong = [
    '',
    '00000000000000',
    'ffffffff 00000000',
    "00000005 'disk' 00000000",
    "00000004 'disk' 00000001",
    "00000004 'disk' 00000001 0000",
    "00000004 'disk' ffffffff 00000000",
    "00000004 'disk' 00000001 00000002 'b'",
    "00000004 'disk' 00000001 fffffffc 'b'",
    "00000004 'disk' 00000000 00",
    "00000004 'disk' 00000001 00000001 'b' 00",
    '00000002 c328 00000000',
    `00000004 'disk' 00000001 00001001 '${'q'.repeat(4097)}'`,
  ];
  for (const number of ['00000009', '0000000a'])
    for (const data of wrong) {
      const { host } = feed([hex(`${FLAGS} ${option('00000008')} ${option(number, data)} ${GO_DISK}`)]);
      const name = Number.parseInt(number, 16).toString(16);
      t.deepEqual(types(host), ['8:1', `${name}:80000003`, '7:3', '7:1'], data.slice(0, 60));
    }
});

const META = "00000001 0000000f 'base:allocation'";
const SET_DISK = option('0000000a', `00000004 'disk' ${META}`);

test('LIST_META_CONTEXT knows all, wildcard and name; SET_META_CONTEXT only the name', (t) => {
  const asked: [string, boolean, boolean][] = [
    ['00000000', true, false],
    ["00000001 00000005 'base:'", true, false],
    [META, true, true],
    ["00000002 00000001 'x' 0000000f 'base:allocation'", true, true],
    ["00000001 00000004 'base'", false, false],
    ["00000001 00000010 'base:allocations'", false, false],
    ['00000001 00000000', false, false],
    ['00000001 00000002 c328', false, false],
  ];
  for (const [queries, listed, set] of asked)
    for (const [number, shown, id] of [
      ['00000009', listed, 0],
      ['0000000a', set, 1],
    ] as const) {
      const { host } = feed([
        hex(`${FLAGS} ${option('00000008')} ${option(number, `00000004 'disk' ${queries}`)} ${GO_DISK}`),
      ]);
      const context = host.said.find((bytes) => bytes.length > 18 && bytes.readUInt32BE(12) === 4);
      t.is(context?.toString('utf8', 24), shown ? 'base:allocation' : undefined, queries);
      if (shown) t.is(context?.readUInt32BE(20), id);
      t.is(host.negotiated?.allocationContext, number === '0000000a' && set, queries);
    }
});

test('a selected context is lost by another SET that fails, selects nothing, or by GO under another name', (t) => {
  const structured = option('00000008');
  const losing = [
    option('0000000a', '00'),
    option('0000000a', "00000004 'nope' 00000000"),
    option('0000000a', "00000004 'disk' 00000000"),
    option('0000000a', `'${'z'.repeat(OPTION_BYTES_MAX + 1)}'`),
    option('0000000a', `00000000 ${META}`),
  ];
  const allocation = (middle: string): boolean | undefined =>
    feed([hex(`${FLAGS} ${structured} ${SET_DISK} ${middle} ${GO_DISK}`)]).host.negotiated?.allocationContext;
  t.true(allocation(''));
  t.true(allocation(option('00000009', "00000004 'disk' 00000000")), 'LIST changes nothing');
  t.true(allocation(option('00000006', '00000000 0000')), 'INFO changes nothing');
  for (const middle of losing) t.false(allocation(middle), middle.slice(16, 80));
});

test('contexts before structured replies are refused', (t) => {
  const { host } = feed([hex(`${FLAGS} ${SET_DISK} ${option('00000009', "00000004 'disk' 00000000")}`)]);
  t.deepEqual(types(host), ['a:80000003', '9:80000003']);
});

test('contexts of an unknown export are refused', (t) => {
  const { host } = feed([hex(`${FLAGS} ${option('00000008')} ${option('0000000a', `00000002 'no' ${META}`)}`)]);
  t.deepEqual(types(host), ['8:1', 'a:80000006']);
});

test('an option too long to look at is drained and refused as too big', (t) => {
  const data = `'${'x'.repeat(OPTION_BYTES_MAX + 1)}'`;
  const { host } = feed([hex(`${FLAGS} ${option('00000007', data)} ${option('00000099', data)} ${GO_DISK}`)]);
  t.deepEqual(types(host), ['7:80000009', '99:80000001', '7:3', '7:1']);
});

test('what no client says ends the connection: unknown flags, wrong magic, huge options, too many of them', (t) => {
  const inputs = [
    '00000004',
    '80000003',
    'ffffffff',
    `${FLAGS} 49484156454f5055 00000007 00000000`,
    `${FLAGS} ${IHAVEOPT} 00000007 ${(OPTION_DRAIN_MAX + 1).toString(16).padStart(8, '0')}`,
    `${FLAGS} ${IHAVEOPT} 00000099 ffffffff`,
    `00000002 ${GO_DISK}`,
  ];
  for (const input of inputs) {
    const host = says(t, hex(`${input} 4848`), hex(GREETING));
    t.is(typeof host.end, 'string', input);
  }
  const { host } = feed([hex(FLAGS), ...Array.from({ length: OPTIONS_MAX + 1 }, () => hex(option('00000099')))]);
  t.is(host.said.length, 1 + OPTIONS_MAX);
  t.is(host.end, `more than ${OPTIONS_MAX} options`);
});

test('while an export is being opened nothing is taken; refused, haggling goes on with what came meanwhile', (t) => {
  const host = new Host();
  host.opensAtOnce = false;
  host.handshake.start();
  const input = hex(`${FLAGS} ${GO_DISK} ${option('00000003')}`);
  const taken = host.handshake.push(input);
  t.is(taken, 4 + hex(GO_DISK).length);
  t.is(host.handshake.push(input.subarray(taken)), 0);
  host.handshake.refused(0x80000002, 'in use');
  t.deepEqual(types(host), ['7:80000002']);
  t.is(host.handshake.push(input.subarray(taken)), input.length - taken);
  t.deepEqual(types(host), ['7:80000002', '3:2', '3:1']);
  host.handshake.opened(DISK);
  t.is(host.negotiated, null, 'too late');
});

test('EXPORT_NAME that can not be opened ends the connection', (t) => {
  const host = new Host();
  host.opensAtOnce = false;
  host.handshake.start();
  host.handshake.push(hex(`${FLAGS} ${option('00000001', "'disk'")}`));
  host.handshake.refused(0x80000002, 'in use');
  t.is(host.end, 'EXPORT_NAME "disk": in use');
});

test('shutting down, every option is refused as such, but ABORT is still acknowledged', (t) => {
  const host = new Host();
  host.handshake.start();
  host.handshake.push(hex(FLAGS));
  host.handshake.shutDown();
  const options = [GO_DISK, option('00000003'), option('00000008'), SET_DISK, option('00000099'), option('00000002')];
  host.handshake.push(hex(options.join(' ')));
  t.deepEqual(types(host), ['7:80000007', '3:80000007', '8:80000007', 'a:80000007', '99:80000007', '2:1']);
});
