// Bytes through a wire: on a socket that Node made, without blocks of ours, and on one with them.

import type { Socket } from 'node:net';
import { duplexPair } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { openClock } from '../../cluster/world/clock.ts';
import { SlabPool } from '../../proto/outbox.ts';
import { Command, Conversation } from '../nbd-protocol-ts/index.ts';
import { FailureLog } from './errno.ts';
import { ExportTable } from './export-table.ts';
import { MemoryImageClient } from './memory-image.ts';
import { Session } from './session.ts';
import { SocketDuplex } from './socket-duplex.ts';
import { SocketWire } from './socket-wire.ts';
import { RecordedLog, serve } from './testing.ts';

const MiB = 2 ** 20;
const { READ, WRITE, DISC } = Command;

test('a stream without a handle to adopt is served all the same', async (t) => {
  const log = new RecordedLog();
  const clock = openClock();
  const client = new MemoryImageClient();
  const volume = client.add('disk', 8 * MiB);
  const exports = new ExportTable(client, { readOnly: false, takeOver: false }, log);
  const slabs = new SlabPool();
  const [near, far] = duplexPair();
  const wire = new SocketWire(near as unknown as Socket, 'a stream', clock, log);
  const session = new Session(
    { exports, slabs, clock, log, failures: new FailureLog(log, clock), onEstablished: () => {} },
    wire,
  );
  const closed = new Promise<void>((resolve) => wire.start(session, resolve));
  session.start();
  const peer = new Conversation(new SocketDuplex(far as unknown as Socket));
  await peer.greet();
  await peer.go('disk');
  const payload = Buffer.alloc(3 * MiB, 5);
  t.is((await peer.ask({ command: WRITE, offset: 11, payload })).error, 0);
  t.true((await peer.ask({ command: READ, offset: 11, lengthBytes: payload.length })).data.equals(payload));
  peer.send({ command: DISC });
  await peer.ended();
  far.end();
  session.closed();
  near.destroy();
  await closed;
  await exports.drained();
  t.is(volume.image, null);
  t.is(slabs.outstanding, 0);
});

test('what is written in one piece, in crumbs, and in pieces of every size between, is stored as it was sent', async (t) => {
  const { connect, client } = await serve(t, { disk: 64 * MiB });
  const peer = new Conversation(await connect());
  await peer.greet();
  await peer.go('disk');
  const expected = Buffer.alloc(8 * MiB);
  let seed = 1;
  for (const bytes of [1, 27, 4_096, 32_767, 65_536, 100_001, 262_144, 1_000_003, 3 * MiB]) {
    // Two WRITEs and a READ in flight together: data, its rest and other requests share reads.
    for (const offset of [bytes, 4 * MiB + bytes]) {
      const payload = Buffer.alloc(bytes, seed++);
      payload.copy(expected, offset);
      peer.send({ command: WRITE, offset, payload });
    }
    peer.send({ command: READ, offset: 60 * MiB, lengthBytes: 512 });
    for (let replies = 0; replies < 3; replies++) t.is((await peer.reply()).error, 0);
  }
  const { data } = await peer.ask({ command: READ, lengthBytes: expected.length });
  t.true(data.equals(expected));
  t.true(client.volumes.get('disk')!.objects.size <= 9);
});

test('small WRITEs stay as they were while later reads fill the same block', async (t) => {
  const { connect, client } = await serve(t, { disk: 64 * MiB });
  const peer = new Conversation(await connect());
  await peer.greet();
  await peer.go('disk');
  const volume = client.volumes.get('disk')!;
  // As with a real image, the data is still needed when the next chunks arrive.
  volume.held = [];
  for (let index = 0; index < 500; index++) {
    peer.send({ command: WRITE, offset: index * 4096, payload: Buffer.alloc(4096, index) });
    if (index % 50 === 0) await sleep(1);
  }
  for (let tries = 0; volume.held!.length < 500 && tries < 500; tries++) await sleep(10);
  t.is(volume.held!.length, 500);
  volume.release();
  for (let index = 0; index < 500; index++) t.is((await peer.reply()).error, 0);
  const { data } = await peer.ask({ command: READ, lengthBytes: 500 * 4096 });
  for (let index = 0; index < 500; index++) t.is(data[index * 4096 + (index % 4096)], index % 256);
});

test('three connections and a model agree about 1500 random operations', async (t) => {
  const sizeBytes = 300_001;
  const { connect } = await serve(t, { disk: sizeBytes });
  const peers: Conversation[] = [];
  for (const structured of [false, true, true]) {
    const peer = new Conversation(await connect());
    await peer.greet();
    if (structured) await peer.wantStructuredReplies();
    await peer.go('disk');
    peers.push(peer);
  }
  const model = Buffer.alloc(sizeBytes);
  let state = 12_345;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
    return Math.floor((state / 2 ** 31) * below);
  };
  for (let step = 0; step < 1_500; step++) {
    const peer = peers[random(3)]!;
    const offset = random(sizeBytes);
    const lengthBytes = 1 + random(Math.min(sizeBytes - offset, random(10) === 0 ? 100_000 : 5_000));
    const command = [READ, READ, WRITE, WRITE, Command.TRIM, Command.WRITE_ZEROES][random(6)]!;
    const flags = random(2);
    if (command === WRITE) {
      const payload = Buffer.alloc(lengthBytes, 1 + random(255));
      t.is((await peer.ask({ command, flags, offset, payload })).error, 0);
      payload.copy(model, offset);
    } else {
      const reply = await peer.ask({ command, flags, offset, lengthBytes });
      t.is(reply.error, 0);
      if (command !== READ) model.fill(0, offset, offset + lengthBytes);
      else if (!reply.data.equals(model.subarray(offset, offset + lengthBytes))) return t.fail(`step ${step}`);
    }
  }
});
