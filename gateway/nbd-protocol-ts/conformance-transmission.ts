// Conformance cases of the transmission phase: rules 12 to 29, and the error table (E). See conformance.ts.

import { encodeInfoRequest, encodeRequest } from './client.ts';
import { type ConformanceCase, expect, type Ready, Skipped, type Stage } from './conformance-stage.ts';
import { Allocation, Chunk, Command, CommandFlag, Errno, Info, Option, TransmissionFlag } from './constants.ts';
import { infoOf, type Reply } from './conversation.ts';

const KiB = 1024;
const BAD_FLAG = 0x8000;

function pattern(bytes: number, seed: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let index = 0; index < bytes; index++) data[index] = (index * 7 + seed) & 0xff;
  return data;
}

async function writableExport(stage: Stage, options: { structured?: boolean; context?: boolean } = {}): Promise<Ready> {
  const ready = await stage.ready(options);
  ready.needsWriting();
  return ready;
}

async function write(ready: Ready, offset: number, payload: Buffer, flags = 0): Promise<void> {
  const reply = await ready.peer.ask({ command: Command.WRITE, offset, payload, flags });
  expect(reply.error === 0, `a WRITE to work, not error ${reply.error}`);
}

async function read(ready: Ready, offset: number, lengthBytes: number): Promise<Buffer> {
  const reply = await ready.peer.ask({ command: Command.READ, offset, lengthBytes });
  expect(reply.error === 0, `a READ to work, not error ${reply.error}`);
  return reply.data;
}

function expectError(reply: Reply, error: number): void {
  expect(reply.error === error, `error ${error}, not ${reply.error}`);
}

/** A row of the error table: the request gets this error, and the connection is still in step. */
const row = (
  id: string,
  title: string,
  error: number,
  request: (ready: Ready) => Parameters<Ready['peer']['ask']>[0],
  needs: (keyof typeof TransmissionFlag)[] = [],
  options: { structured?: boolean; context?: boolean } = {},
): ConformanceCase => ({
  id,
  level: 'MUST',
  title,
  async run(stage) {
    const ready = await stage.ready(options);
    for (const flag of needs) ready.needs(flag);
    const asked = request(ready);
    if (asked.command === Command.WRITE || asked.command === Command.WRITE_ZEROES || asked.command === Command.TRIM)
      ready.needsWriting();
    expectError(await ready.peer.ask(asked), error);
    await read(ready, 0, 512);
  },
});

export const transmissionCases: readonly ConformanceCase[] = [
  {
    id: '12a',
    level: 'MUST',
    title: 'the data of a WRITE that is refused is read over, whatever it looks like',
    async run(stage) {
      const ready = await writableExport(stage);
      const decoy = Buffer.alloc(64 * KiB);
      for (let at = 0; at + 28 <= decoy.length; at += 28) encodeRequest({ command: Command.DISC }).copy(decoy, at);
      const reply = await ready.peer.ask({ command: Command.WRITE, offset: ready.export.sizeBytes, payload: decoy });
      expect(reply.error !== 0, 'an error past the end');
      await read(ready, 0, 512);
    },
  },
  {
    id: '12b',
    level: 'MUST',
    title: 'the data of a WRITE with an unknown flag is read over',
    async run(stage) {
      const ready = await writableExport(stage);
      expectError(
        await ready.peer.ask({ command: Command.WRITE, payload: Buffer.alloc(9_999), flags: BAD_FLAG }),
        Errno.EINVAL,
      );
      await read(ready, 0, 512);
    },
  },
  row('13a', 'a READ at 2^64 - 1 does not wrap round', Errno.EINVAL, () => ({
    command: Command.READ,
    offset: 2 ** 63,
    lengthBytes: 512,
  })),
  row('13b', 'a READ that only just crosses the end is refused', Errno.EINVAL, (ready) => ({
    command: Command.READ,
    offset: ready.export.sizeBytes - 511,
    lengthBytes: 512,
  })),
  {
    id: '13c',
    level: 'MUST',
    title: 'the last byte of the export can be read',
    async run(stage) {
      const ready = await stage.ready();
      await read(ready, ready.export.sizeBytes - 1, 1);
    },
  },
  {
    id: '14a',
    level: 'MUST',
    title: 'FUA is accepted with every command once it is offered',
    async run(stage) {
      const ready = await stage.ready({ structured: true, context: true });
      ready.needs('SEND_FUA');
      const flags = CommandFlag.FUA;
      const commands: number[] = [Command.READ, Command.BLOCK_STATUS];
      if (ready.has(TransmissionFlag.SEND_CACHE)) commands.push(Command.CACHE);
      if (!ready.has(TransmissionFlag.READ_ONLY)) {
        if (ready.has(TransmissionFlag.SEND_TRIM)) commands.push(Command.TRIM);
        if (ready.has(TransmissionFlag.SEND_WRITE_ZEROES)) commands.push(Command.WRITE_ZEROES);
        await write(ready, 0, pattern(4096, 1), flags);
      }
      for (const command of commands) {
        const reply = await ready.peer.ask({ command, flags, offset: 8192, lengthBytes: 4096 });
        expect(reply.error === 0, `no error from command ${command} with FUA, not ${reply.error}`);
      }
      if (ready.has(TransmissionFlag.SEND_FLUSH))
        expectError(await ready.peer.ask({ command: Command.FLUSH, flags }), 0);
    },
  },
  {
    id: '15a',
    level: 'SHOULD',
    title: 'FLUSH with a range is refused',
    async run(stage) {
      const ready = await stage.ready();
      ready.needs('SEND_FLUSH');
      expectError(await ready.peer.ask({ command: Command.FLUSH, offset: 4096, lengthBytes: 512 }), Errno.EINVAL);
      expectError(await ready.peer.ask({ command: Command.FLUSH }), 0);
    },
  },
  {
    id: '16a',
    level: 'MUST',
    title: 'with multi-conn, what one connection wrote and flushed the others read',
    async run(stage) {
      const one = await writableExport(stage);
      one.needs('CAN_MULTI_CONN');
      const other = await stage.ready();
      const data = pattern(4096, 16);
      await read(other, 4096, 4096);
      await write(one, 4096, data);
      expectError(await other.peer.ask({ command: Command.FLUSH }), 0);
      expect((await read(other, 4096, 4096)).equals(data), 'the data that was written');
    },
  },
  {
    id: '18a',
    level: 'MUST',
    title: 'a READ that fails gets a structured error once structured replies are negotiated',
    async run(stage) {
      const ready = await stage.ready({ structured: true });
      const reply = await ready.peer.ask({
        command: Command.READ,
        offset: ready.export.sizeBytes,
        lengthBytes: 512,
      });
      expectError(reply, Errno.EINVAL);
      expect(reply.structured, 'a structured reply');
    },
  },
  {
    id: '19a',
    level: 'MUST',
    title: 'a READ with DF gets one chunk of content for 64 KiB',
    async run(stage) {
      const ready = await stage.ready({ structured: true });
      ready.needs('SEND_DF');
      const lengthBytes = 64 * KiB;
      const reply = await ready.peer.ask({ command: Command.READ, lengthBytes, flags: CommandFlag.DF });
      expectError(reply, 0);
      const content = reply.chunks.filter(({ type }) => type === Chunk.OFFSET_DATA || type === Chunk.OFFSET_HOLE);
      expect(content.length === 1, `one chunk of content, not ${content.length}`);
    },
  },
  {
    id: '19b',
    level: 'MUST',
    title: 'what was written at odd places is read back through structured replies',
    async run(stage) {
      const ready = await writableExport(stage, { structured: true });
      const data = pattern(100_003, 19);
      await write(ready, 4_095, data);
      expect((await read(ready, 4_095, data.length)).equals(data), 'the data that was written');
      expect((await read(ready, 5_000, 7)).equals(data.subarray(905, 912)), 'a piece of it');
    },
  },
  {
    id: '20a',
    level: 'SHOULD',
    title: 'requests of no length do not cost the connection',
    async run(stage) {
      const ready = await stage.ready({ structured: true, context: true });
      await ready.peer.ask({ command: Command.READ });
      const blank = await ready.peer.ask({ command: Command.BLOCK_STATUS });
      expectError(blank, Errno.EINVAL);
      if (!ready.has(TransmissionFlag.READ_ONLY)) {
        await ready.peer.ask({ command: Command.WRITE, payload: Buffer.alloc(0) });
        if (ready.has(TransmissionFlag.SEND_TRIM)) await ready.peer.ask({ command: Command.TRIM });
        if (ready.has(TransmissionFlag.SEND_WRITE_ZEROES)) await ready.peer.ask({ command: Command.WRITE_ZEROES });
      }
      await read(ready, 0, 512);
    },
  },
  {
    id: '21a',
    level: 'MUST',
    title: 'BLOCK_STATUS covers from the start, with lengths that are not zero and no neighbours alike',
    async run(stage) {
      const ready = await stage.ready({ context: true });
      const { sizeBytes } = ready.export;
      for (const [offset, lengthBytes] of [
        [0, 1024 * KiB],
        [1, 4097],
        [sizeBytes - 513, 513],
      ] as const) {
        const reply = await ready.peer.ask({ command: Command.BLOCK_STATUS, offset, lengthBytes });
        expectError(reply, 0);
        const status = reply.chunks.filter(({ type }) => type === Chunk.BLOCK_STATUS);
        expect(status.length === 1, `one chunk for one context, not ${status.length}`);
        expect(reply.descriptors.length >= 1, 'at least one descriptor');
        expect(
          reply.descriptors.every((each) => each.lengthBytes > 0),
          'lengths above zero',
        );
        const before = reply.descriptors.slice(0, -1).reduce((sum, each) => sum + each.lengthBytes, 0);
        expect(before < lengthBytes, 'only the last descriptor to reach past the request');
        expect(offset + before + reply.descriptors.at(-1)!.lengthBytes <= sizeBytes, 'nothing past the end');
        const alike = reply.descriptors.some((each, index) => reply.descriptors[index + 1]?.flags === each.flags);
        expect(!alike, 'neighbours that differ');
      }
    },
  },
  {
    id: '21b',
    level: 'MUST',
    title: 'BLOCK_STATUS with REQ_ONE returns one descriptor that is not longer than the request',
    async run(stage) {
      const ready = await stage.ready({ context: true });
      for (const lengthBytes of [1, 513, 1024 * KiB]) {
        const reply = await ready.peer.ask({ command: Command.BLOCK_STATUS, lengthBytes, flags: CommandFlag.REQ_ONE });
        expectError(reply, 0);
        expect(reply.descriptors.length === 1, `one descriptor, not ${reply.descriptors.length}`);
        expect(reply.descriptors[0]!.lengthBytes <= lengthBytes, 'not more than was asked for');
      }
    },
  },
  {
    id: '21c',
    level: 'MUST',
    title: 'a range said to be ZERO reads as zeroes, and written data is not said to be',
    async run(stage) {
      const ready = await writableExport(stage, { context: true });
      ready.needs('SEND_WRITE_ZEROES');
      expectError(await ready.peer.ask({ command: Command.WRITE_ZEROES, lengthBytes: 512 * KiB }), 0);
      await write(ready, 128 * KiB, pattern(64 * KiB, 21));
      const reply = await ready.peer.ask({ command: Command.BLOCK_STATUS, lengthBytes: 512 * KiB });
      const content = await read(ready, 0, 512 * KiB);
      let at = 0;
      for (const { lengthBytes, flags } of reply.descriptors) {
        const zero = content.subarray(at, at + lengthBytes).every((byte) => byte === 0);
        expect((flags & Allocation.ZERO) === 0 || zero, `zeroes in [${at}, +${lengthBytes})`);
        at += lengthBytes;
      }
    },
  },
  {
    id: '22a',
    level: 'MUST',
    title: 'WRITE_ZEROES makes zeroes, with and without NO_HOLE, and NO_HOLE leaves no hole',
    async run(stage) {
      const ready = await writableExport(stage, { context: true });
      ready.needs('SEND_WRITE_ZEROES');
      for (const flags of [0, CommandFlag.NO_HOLE]) {
        await write(ready, 0, pattern(128 * KiB, 22));
        expectError(await ready.peer.ask({ command: Command.WRITE_ZEROES, offset: 3, lengthBytes: 100_000, flags }), 0);
        const content = await read(ready, 0, 128 * KiB);
        const expected = pattern(128 * KiB, 22).fill(0, 3, 100_003);
        expect(content.equals(expected), 'zeroes in the range and nothing else changed');
      }
      const reply = await ready.peer.ask({ command: Command.BLOCK_STATUS, lengthBytes: 128 * KiB });
      expect(
        reply.descriptors.every(({ flags }) => (flags & Allocation.HOLE) === 0),
        'no hole',
      );
    },
  },
  {
    id: '23a',
    level: 'MUST',
    title: 'FAST_ZERO either works or fails with ENOTSUP and changes nothing; not offered, it is invalid',
    async run(stage) {
      const ready = await writableExport(stage);
      ready.needs('SEND_WRITE_ZEROES');
      for (const flags of [CommandFlag.FAST_ZERO, CommandFlag.FAST_ZERO | CommandFlag.NO_HOLE]) {
        const data = pattern(64 * KiB, 23);
        await write(ready, 0, data);
        const reply = await ready.peer.ask({ command: Command.WRITE_ZEROES, lengthBytes: data.length, flags });
        const content = await read(ready, 0, data.length);
        if (!ready.has(TransmissionFlag.SEND_FAST_ZERO)) expectError(reply, Errno.EINVAL);
        else if (reply.error !== 0) expectError(reply, Errno.ENOTSUP);
        expect(content.equals(reply.error === 0 ? Buffer.alloc(data.length) : data), 'content that fits the reply');
      }
    },
  },
  {
    id: '24a',
    level: 'MUST',
    title: 'a TRIM of all that the suite may use, again and again, leaves the connection alive',
    async run(stage) {
      const ready = await writableExport(stage);
      ready.needs('SEND_TRIM');
      for (let index = 0; index < 200; index++) ready.peer.send({ command: Command.TRIM, lengthBytes: 1024 * KiB });
      for (let index = 0; index < 200; index++) expectError(await ready.peer.reply(), 0);
      await read(ready, 0, 512);
    },
  },
  {
    id: '25a',
    level: 'MUST',
    title: 'cookies come back as they went, and every request gets one reply',
    async run(stage) {
      const ready = await stage.ready();
      const cookies = [
        [0, 0],
        [0xffffffff, 0xffffffff],
        [0x80000000, 1],
        [1, 0x80000000],
      ] as const;
      const sent = cookies.map(([cookieHigh, cookieLow], index) =>
        ready.peer.send({ command: Command.READ, cookieHigh, cookieLow, offset: index, lengthBytes: 1 }),
      );
      // A reply to a cookie that is not in flight fails inside.
      for (const _ of sent) expectError(await ready.peer.reply(), 0);
    },
  },
  {
    id: '26a',
    level: 'MUST',
    title: 'DISC, whatever its fields hold, gets no reply, and what came before it is answered first',
    async run(stage) {
      const ready = await stage.ready();
      ready.peer.send({ command: Command.READ, lengthBytes: 256 * KiB });
      ready.peer.duplex.write(
        encodeRequest({ command: Command.DISC, flags: 0xffff, offset: 2 ** 40, lengthBytes: 0xffffffff }),
      );
      expectError(await ready.peer.reply(), 0);
      await ready.peer.ended();
    },
  },
  {
    id: '26b',
    level: 'MUST',
    title: 'a client that leaves in the middle of a WRITE harms nobody',
    async run(stage) {
      const ready = await writableExport(stage);
      const cut = encodeRequest({ command: Command.WRITE, payload: Buffer.alloc(512 * KiB) }).subarray(0, 100_000);
      ready.peer.duplex.write(cut);
      ready.peer.duplex.close();
      await stage.stillServes();
    },
  },
  {
    id: '28a',
    level: 'MUST',
    title: 'the export is smaller than 2^63 bytes',
    async run(stage) {
      const peer = await stage.haggling();
      const info = infoOf(await peer.option(Option.INFO, encodeInfoRequest(stage.exportName)), Info.EXPORT);
      expect(info !== null && info.readUInt8(2) < 0x80, 'a size whose highest bit is 0');
    },
  },
  {
    id: '29a',
    level: 'MUST',
    title: 'a request with the wrong magic ends the connection',
    async run(stage) {
      const ready = await stage.ready();
      const bad = encodeRequest({ command: Command.READ, lengthBytes: 512 });
      bad[3] = 0;
      ready.peer.duplex.write(bad);
      await ready.peer.ended();
      await stage.stillServes();
    },
  },
  row('E1', 'an unknown command is invalid', Errno.EINVAL, () => ({ command: 0x4711, lengthBytes: 512 })),
  row('E2', 'READ with an unknown flag is invalid', Errno.EINVAL, () => ({
    command: Command.READ,
    flags: BAD_FLAG,
    lengthBytes: 512,
  })),
  row('E3', 'READ with DF and without structured replies is invalid', Errno.EINVAL, () => ({
    command: Command.READ,
    flags: CommandFlag.DF,
    lengthBytes: 512,
  })),
  row('E4', 'BLOCK_STATUS without a context is invalid', Errno.EINVAL, () => ({
    command: Command.BLOCK_STATUS,
    lengthBytes: 512,
  })),
  row('E5', 'a WRITE past the end has no space', Errno.ENOSPC, (ready) => ({
    command: Command.WRITE,
    offset: ready.export.sizeBytes - 100,
    payload: Buffer.alloc(101),
  })),
  row(
    'E6',
    'WRITE_ZEROES past the end has no space',
    Errno.ENOSPC,
    (ready) => ({ command: Command.WRITE_ZEROES, offset: ready.export.sizeBytes, lengthBytes: 1 }),
    ['SEND_WRITE_ZEROES'],
  ),
  row(
    'E7',
    'TRIM past the end is invalid',
    Errno.EINVAL,
    (ready) => ({ command: Command.TRIM, offset: ready.export.sizeBytes, lengthBytes: 1 }),
    ['SEND_TRIM'],
  ),
  row(
    'E8',
    'CACHE past the end is invalid',
    Errno.EINVAL,
    (ready) => ({ command: Command.CACHE, offset: ready.export.sizeBytes, lengthBytes: 1 }),
    ['SEND_CACHE'],
  ),
  row(
    'E9',
    'BLOCK_STATUS past the end is invalid',
    Errno.EINVAL,
    (ready) => ({ command: Command.BLOCK_STATUS, offset: ready.export.sizeBytes, lengthBytes: 1 }),
    [],
    { context: true },
  ),
  {
    id: 'E10',
    level: 'MUST',
    title: 'a read-only export refuses what would change it with EPERM, and stays in step',
    async run(stage) {
      const ready = await stage.ready();
      if (!ready.has(TransmissionFlag.READ_ONLY)) throw new Skipped('the export is not read-only');
      expectError(await ready.peer.ask({ command: Command.WRITE, payload: Buffer.alloc(5_000) }), Errno.EPERM);
      for (const command of [Command.TRIM, Command.WRITE_ZEROES])
        expectError(await ready.peer.ask({ command, lengthBytes: 4096 }), Errno.EPERM);
      await read(ready, 0, 512);
    },
  },
  row(
    'E11',
    'flags of other commands are invalid',
    Errno.EINVAL,
    () => ({ command: Command.TRIM, flags: CommandFlag.NO_HOLE, lengthBytes: 4096 }),
    ['SEND_TRIM'],
  ),
];
