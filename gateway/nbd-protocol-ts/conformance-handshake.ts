// Conformance cases of the handshake: rules 1 to 10. See conformance.ts.

import { encodeClientFlags, encodeInfoRequest, encodeMetaRequest, encodeOption } from './client.ts';
import { type ConformanceCase, expect, expectAnswer, Skipped, type Stage } from './conformance-stage.ts';
import { BASE_ALLOCATION, ClientFlag, Command, HandshakeFlag, Info, Option, OptionReply } from './constants.ts';
import { type Conversation, exportOf, infoOf, StreamEnded } from './conversation.ts';

const UNKNOWN_OPTION = 0x7654321;
const UNKNOWN_NAME = 'no-such-export-8f31';
const FIXED = ClientFlag.FIXED_NEWSTYLE;
const { ACK, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP } = OptionReply;

/** The connection is still good for haggling: GO works. */
async function stillHaggles(peer: Conversation, name: string): Promise<void> {
  await peer.go(name);
  expect((await peer.ask({ command: Command.READ, lengthBytes: 1 })).error === 0, 'a READ after GO works');
}

/** Skips the case if the server takes any name for an export, as some do. */
async function needsUnknownName(stage: Stage): Promise<void> {
  const answers = await (await stage.haggling()).option(Option.INFO, encodeInfoRequest(UNKNOWN_NAME));
  if (answers.at(-1)!.type === ACK) throw new Skipped('the server takes any name for an export');
}

/** An option whose data is wrong is refused as invalid, and the next one is understood. */
const refusesData = (id: string, title: string, option: number, data: (name: string) => Buffer): ConformanceCase => ({
  id,
  level: 'MUST',
  title,
  async run(stage) {
    const peer = await stage.haggling();
    await peer.wantStructuredReplies();
    const answers = await peer.option(option, data(stage.exportName));
    if (answers.at(-1)!.type === ERR_UNSUP) throw new Skipped('the server does not know this option');
    expectAnswer(answers, ERR_INVALID);
    await stillHaggles(peer, stage.exportName);
  },
});

function withU32(bytes: Buffer, at: number, value: number): Buffer {
  bytes.writeUInt32BE(value, at);
  return bytes;
}

export const handshakeCases: readonly ConformanceCase[] = [
  {
    id: '1a',
    level: 'MUST',
    title: 'an unknown option with data is drained and answered with ERR_UNSUP',
    async run(stage) {
      const peer = await stage.haggling();
      expectAnswer(await peer.option(UNKNOWN_OPTION, Buffer.alloc(1_000, 0x49)), ERR_UNSUP);
      await stillHaggles(peer, stage.exportName);
    },
  },
  refusesData('1b', 'LIST with data is invalid, and its data is drained', Option.LIST, () => Buffer.alloc(40, 0x49)),
  {
    id: '1c',
    level: 'MUST',
    title: 'STRUCTURED_REPLY with data is invalid, and negotiates nothing',
    async run(stage) {
      const peer = await stage.haggling();
      const answers = await peer.option(Option.STRUCTURED_REPLY, Buffer.alloc(4));
      if (answers.at(-1)!.type === ERR_UNSUP) throw new Skipped('the server has no structured replies');
      expectAnswer(answers, ERR_INVALID);
      await stillHaggles(peer, stage.exportName);
    },
  },
  {
    id: '1d',
    level: 'MUST',
    title: 'a handshake offers fixed newstyle',
    async run(stage) {
      const peer = await stage.connect();
      expect(((await peer.greet()) & HandshakeFlag.FIXED_NEWSTYLE) !== 0, 'the flag FIXED_NEWSTYLE');
    },
  },
  {
    id: '2a',
    level: 'MUST',
    title: 'a client with unknown flags is dropped',
    async run(stage) {
      const peer = await stage.connect();
      await peer.greet(0x80000003);
      await peer.ended();
      await stage.stillServes();
    },
  },
  {
    id: '2b',
    level: 'MUST',
    title: 'a client without fixed newstyle may use EXPORT_NAME',
    async run(stage) {
      const peer = await stage.haggling(0);
      peer.duplex.write(encodeOption(Option.EXPORT_NAME, Buffer.from(stage.exportName)));
      expect(
        (await peer.duplex.read(134)).subarray(10).every((byte) => byte === 0),
        '124 zeroes',
      );
    },
  },
  {
    id: '3a',
    level: 'MUST',
    title: 'EXPORT_NAME of an unknown export closes the connection without a word',
    async run(stage) {
      await needsUnknownName(stage);
      const peer = await stage.haggling();
      peer.duplex.write(encodeOption(Option.EXPORT_NAME, Buffer.from(UNKNOWN_NAME)));
      await peer.ended();
    },
  },
  {
    id: '3b',
    level: 'MUST',
    title: 'GO sends no zeroes though the client has not asked to be spared them',
    async run(stage) {
      const peer = await stage.haggling(FIXED);
      await stillHaggles(peer, stage.exportName);
    },
  },
  {
    id: '3c',
    level: 'MUST',
    title: 'EXPORT_NAME sends 124 zeroes',
    async run(stage) {
      const peer = await stage.haggling(FIXED);
      peer.duplex.write(encodeOption(Option.EXPORT_NAME, Buffer.from(stage.exportName)));
      expect(
        (await peer.duplex.read(134)).subarray(10).every((byte) => byte === 0),
        '124 zeroes',
      );
      expect((await peer.ask({ command: Command.READ, lengthBytes: 1 })).error === 0, 'a READ works');
    },
  },
  {
    id: '3d',
    level: 'MUST',
    title: 'EXPORT_NAME sends no zeroes to a client that has asked to be spared them',
    async run(stage) {
      const peer = await stage.connect();
      if (((await peer.greet()) & HandshakeFlag.NO_ZEROES) === 0) throw new Skipped('the server has no NO_ZEROES');
      peer.duplex.write(encodeOption(Option.EXPORT_NAME, Buffer.from(stage.exportName)));
      await peer.duplex.read(10);
      expect((await peer.ask({ command: Command.READ, lengthBytes: 1 })).error === 0, 'a READ works');
    },
  },
  {
    id: '4a',
    level: 'MUST',
    title: 'ABORT is acknowledged, then the connection is closed',
    async run(stage) {
      const peer = await stage.haggling();
      expectAnswer(await peer.option(Option.ABORT), ACK);
      await peer.ended();
    },
  },
  {
    id: '4b',
    level: 'MUST',
    title: 'clients that connect and leave, or ABORT and leave, harm nobody',
    async run(stage) {
      (await stage.connect()).duplex.close();
      const peer = await stage.haggling();
      peer.duplex.write(encodeOption(Option.ABORT));
      peer.duplex.close();
      await stage.stillServes();
    },
  },
  ...[0, 1, 5].map((bytes, index) =>
    refusesData(`5${'abc'[index]}`, `GO with ${bytes} bytes of data is invalid`, Option.GO, () => Buffer.alloc(bytes)),
  ),
  refusesData('5d', 'GO with a name length of 2^32 - 1 is invalid', Option.GO, (name) =>
    withU32(encodeInfoRequest(name), 0, 0xffffffff),
  ),
  refusesData('5e', 'GO with more information requests announced than present is invalid', Option.GO, (name) =>
    encodeInfoRequest(name, [Info.NAME]).subarray(0, -1),
  ),
  refusesData('5f', 'INFO with bytes behind its last information request is invalid', Option.INFO, (name) =>
    Buffer.concat([encodeInfoRequest(name), Buffer.alloc(2)]),
  ),
  {
    id: '5g',
    level: 'MUST',
    title: 'INFO and GO send EXPORT unasked, each information in its own answer, unknown and repeated ones ignored',
    async run(stage) {
      const peer = await stage.haggling();
      const asked = [Info.NAME, 0x4711, Info.NAME, Info.BLOCK_SIZE, Info.EXPORT, Info.BLOCK_SIZE];
      const answers = await peer.option(Option.INFO, encodeInfoRequest(stage.exportName, asked));
      expectAnswer(answers, ACK);
      exportOf(answers);
      const types = answers.slice(0, -1).map(({ data }) => data.readUInt16BE(0));
      expect(new Set(types).size === types.length, `each information once, not ${types.join(' ')}`);
      expect(!types.includes(0x4711), 'no answer to an unknown information');
      const name = infoOf(answers, Info.NAME);
      if (name !== null) expect(name.toString('utf8', 2) === stage.exportName, 'the canonical name');
    },
  },
  {
    id: '5h',
    level: 'MUST',
    title: 'GO and INFO of an unknown export are refused with ERR_UNKNOWN only, and haggling goes on',
    async run(stage) {
      await needsUnknownName(stage);
      const peer = await stage.haggling();
      for (const option of [Option.INFO, Option.GO]) {
        const answers = await peer.option(option, encodeInfoRequest(UNKNOWN_NAME));
        expectAnswer(answers, ERR_UNKNOWN);
        expect(answers.length === 1, 'no information about what is refused');
      }
      await stillHaggles(peer, stage.exportName);
    },
  },
  {
    id: '5i',
    level: 'MUST',
    title: 'INFO, then GO, are answered identically',
    async run(stage) {
      const peer = await stage.haggling();
      await peer.wantStructuredReplies();
      const data = encodeInfoRequest(stage.exportName, [Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE]);
      const info = await peer.option(Option.INFO, data);
      const go = await peer.option(Option.GO, data);
      const bytesOf = (answers: typeof info): string => answers.map((each) => each.data.toString('hex')).join(' ');
      expect(bytesOf(info) === bytesOf(go), `${bytesOf(info)} from GO too, not ${bytesOf(go)}`);
    },
  },
  {
    id: '6a',
    level: 'MUST',
    title: 'block sizes, if told, are powers of two in their bounds',
    async run(stage) {
      const peer = await stage.haggling();
      const info = infoOf(await peer.option(Option.INFO, encodeInfoRequest(stage.exportName, [Info.BLOCK_SIZE])), 3);
      if (info === null) throw new Skipped('the server tells no block sizes');
      const [minimum, preferred, maximum] = [info.readUInt32BE(2), info.readUInt32BE(6), info.readUInt32BE(10)];
      const power = (value: number): boolean => Number.isInteger(Math.log2(value));
      expect(info.length === 14, '14 bytes');
      expect(power(minimum) && minimum <= 65_536, `a power of two up to 65536 as minimum, not ${minimum}`);
      expect(power(preferred) && preferred >= Math.max(512, minimum), `a preferred size, not ${preferred}`);
      expect(maximum >= preferred, `a maximum of at least ${preferred}, not ${maximum}`);
    },
  },
  {
    id: '7a',
    level: 'MUST',
    title: 'SET_META_CONTEXT before structured replies is refused',
    async run(stage) {
      const peer = await stage.haggling();
      const answers = await peer.option(
        Option.SET_META_CONTEXT,
        encodeMetaRequest(stage.exportName, [BASE_ALLOCATION]),
      );
      expect(answers.at(-1)!.type >= ERR_UNSUP, 'an error');
      await stillHaggles(peer, stage.exportName);
    },
  },
  {
    id: '7b',
    level: 'MUST',
    title: 'a SET_META_CONTEXT that fails forgets what an earlier one selected',
    run: (stage) => contextIsLost(stage, (peer) => peer.option(Option.SET_META_CONTEXT, Buffer.alloc(3))),
  },
  {
    id: '7c',
    level: 'MUST',
    title: 'a SET_META_CONTEXT without queries selects nothing',
    run: (stage) =>
      contextIsLost(stage, async (peer) => {
        const answers = await peer.option(Option.SET_META_CONTEXT, encodeMetaRequest(stage.exportName));
        expect(answers.length === 1, 'no context in the answer');
        expectAnswer(answers, ACK);
      }),
  },
  {
    id: '7d',
    level: 'MUST',
    title: 'contexts selected for another name, even an alias, are not those of the export',
    async run(stage) {
      if (stage.exportName === '') throw new Skipped('the export is asked for by its alias');
      const peer = await stage.haggling();
      if (!(await peer.wantStructuredReplies())) throw new Skipped('the server has no structured replies');
      const alias = await peer.option(Option.SET_META_CONTEXT, encodeMetaRequest('', [BASE_ALLOCATION]));
      if (alias.length !== 2) throw new Skipped('the server has no default export, or no base:allocation');
      await peer.go(stage.exportName);
      const reply = await peer.ask({ command: Command.BLOCK_STATUS, lengthBytes: 4096 });
      expect(reply.error === 22, `EINVAL to BLOCK_STATUS, not ${reply.error}`);
    },
  },
  {
    id: '7e',
    level: 'MUST',
    title: 'LIST_META_CONTEXT without queries, or with a wildcard, shows base:allocation and selects nothing',
    async run(stage) {
      const peer = await stage.haggling();
      if (!(await peer.wantStructuredReplies())) throw new Skipped('the server has no structured replies');
      for (const queries of [[], ['base:'], [BASE_ALLOCATION]]) {
        const answers = await peer.option(Option.LIST_META_CONTEXT, encodeMetaRequest(stage.exportName, queries));
        if (answers.at(-1)!.type === ERR_UNSUP) throw new Skipped('the server has no metadata contexts');
        expectAnswer(answers, ACK);
        const names = answers.slice(0, -1).map(({ data }) => data.toString('utf8', 4));
        expect(names.includes(BASE_ALLOCATION), `base:allocation for [${queries}], not [${names}]`);
      }
      await peer.go(stage.exportName);
      const reply = await peer.ask({ command: Command.BLOCK_STATUS, lengthBytes: 4096 });
      expect(reply.error === 22, `EINVAL to BLOCK_STATUS, not ${reply.error}`);
    },
  },
  {
    id: '7f',
    level: 'MUST',
    title: 'unknown namespaces, unknown leaves and wildcards in SET_META_CONTEXT are passed over with an ACK',
    async run(stage) {
      const peer = await stage.haggling();
      if (!(await peer.wantStructuredReplies())) throw new Skipped('the server has no structured replies');
      const queries = ['x-nobody:knows', 'base:nothing', 'base:', ''];
      const answers = await peer.option(Option.SET_META_CONTEXT, encodeMetaRequest(stage.exportName, queries));
      if (answers.at(-1)!.type === ERR_UNSUP) throw new Skipped('the server has no metadata contexts');
      expectAnswer(answers, ACK);
      expect(answers.length === 1, 'no context in the answer');
    },
  },
  refusesData('7g', 'a metadata query longer than the option is invalid', Option.SET_META_CONTEXT, (name) => {
    const data = encodeMetaRequest(name, ['base:']);
    return withU32(data, data.length - 9, 0xfffffff0);
  }),
  refusesData('7h', 'more metadata queries announced than present are invalid', Option.LIST_META_CONTEXT, (name) => {
    const data = encodeMetaRequest(name);
    return withU32(data, data.length - 4, 0xffffffff);
  }),
  {
    id: '8a',
    level: 'MUST',
    title: 'STARTTLS is answered, and one that is refused leaves the handshake as it was',
    async run(stage) {
      const peer = await stage.haggling();
      const answers = await peer.option(Option.STARTTLS);
      if (answers.at(-1)!.type === ACK) throw new Skipped('the server has TLS');
      await stillHaggles(peer, stage.exportName);
    },
  },
  {
    id: '9a',
    level: 'SHOULD',
    title: 'names with a NUL, of no UTF-8, or of more than 4096 bytes are refused, and haggling goes on',
    async run(stage) {
      const peer = await stage.haggling();
      const utf8 = encodeInfoRequest('xx');
      utf8.writeUInt16BE(0xc328, 4);
      for (const data of [encodeInfoRequest('a\0b'), utf8, encodeInfoRequest('x'.repeat(4097))]) {
        const answers = await peer.option(Option.INFO, data);
        const { type } = answers.at(-1)!;
        expect(
          [ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG].includes(type as never),
          `a refusal, not 0x${type.toString(16)}`,
        );
      }
      await stillHaggles(peer, stage.exportName);
    },
  },
  {
    id: '10a',
    level: 'MUST',
    title: 'an option of 4 GiB does not hurt the server',
    async run(stage) {
      const peer = await stage.haggling();
      peer.duplex.write(encodeOption(Option.GO, Buffer.alloc(64 * 1024), 0xffffffff));
      await stage.stillServes();
    },
  },
  {
    id: '10b',
    level: 'SHOULD',
    title: 'a flood of options is ended by the server',
    async run(stage) {
      const peer = await stage.haggling();
      for (let index = 0; index < 5_000; index++)
        try {
          await peer.option(UNKNOWN_OPTION);
        } catch (error) {
          // A reset of the connection, seen while writing, is an end like any other.
          if (error instanceof StreamEnded || (error as NodeJS.ErrnoException).code === 'ECONNRESET') return;
          throw error;
        }
      throw new Error('5000 options were answered');
    },
  },
  {
    id: '10c',
    level: 'MUST',
    title: 'a client that is no NBD client is dropped or waits alone',
    async run(stage) {
      const peer = await stage.connect();
      peer.duplex.write(encodeClientFlags(3));
      peer.duplex.write(Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'));
      await stage.stillServes();
    },
  },
];

/** base:allocation is selected, then `undo` is done: BLOCK_STATUS must be refused. */
async function contextIsLost(stage: Stage, undo: (peer: Conversation) => Promise<unknown>): Promise<void> {
  const peer = await stage.haggling();
  if (!(await peer.wantStructuredReplies())) throw new Skipped('the server has no structured replies');
  const selected = await peer.option(Option.SET_META_CONTEXT, encodeMetaRequest(stage.exportName, [BASE_ALLOCATION]));
  if (selected.length !== 2) throw new Skipped('the server has no base:allocation');
  await undo(peer);
  await peer.go(stage.exportName);
  const reply = await peer.ask({ command: Command.BLOCK_STATUS, lengthBytes: 4096 });
  expect(reply.error === 22, `EINVAL to BLOCK_STATUS, not ${reply.error}`);
}
