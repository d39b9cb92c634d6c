// Read leases, told as stories in virtual time: who may still answer, and until when nobody else does.

import test from 'ava';
import { Flag, type Frame, Op } from '../../proto/frame.ts';
import { LEASE_MS } from '../../proto/limits.ts';
import type { Connection, Network } from '../../proto/ports.ts';
import type { Image } from '../client/image.ts';
import type { Machine } from '../sim/scheduler.ts';
import { read, Story, write } from '../sim/story.ts';
import { GRANT_MS } from './lease.ts';

/** `network`, with every frame that is sent shown to `see`. */
function watched(network: Network, see: (frame: Frame) => void): Network {
  const watch = (connection: Connection): Connection => {
    const send = connection.send.bind(connection);
    connection.send = (frame) => {
      see(frame);
      send(frame);
    };
    return connection;
  };
  return {
    listen: (address, accept) => network.listen(address, (connection) => accept(watch(connection))),
    connect: (address, events) => watch(network.connect(address, events)),
  };
}

interface Seen {
  readonly begun: number;
  readonly ended: number;
  readonly byte: number;
}
/** Reads block 0 again and again, one read after the other, until the story's time is up. */
function readOn(story: Story, image: Image): Seen[] {
  const seen: Seen[] = [];
  const next = (): void => {
    const begun = story.now;
    read(image, 0).then((byte) => {
      seen.push({ begun, ended: story.now, byte });
      story.cluster.scheduler.after(5, 'the next read', next);
    });
  };
  next();
  return seen;
}
/** What was read although something newer had been acked before the read began. */
const stale = (seen: readonly Seen[], ackedAt: number): Seen[] =>
  seen.filter(({ begun, byte }) => byte === 1 && begun > ackedAt);

const othersThan = (story: Story, machine: Machine): Machine[] =>
  story.cluster.daemons.map((other) => other.machine).filter((other) => other !== machine);

/** A reader and the primary know each other and no newer map; the writer and everybody else go on without them. */
async function cutOff(story: Story): Promise<{ writer: Image; seen: Seen[]; primary: number }> {
  const { cluster } = story;
  const writer = await story.open('writer', false);
  const reader = await story.open('reader', true);
  await story.settled(write(writer.image, 0, 1), 'the first write');
  const primary = story.pg.acting[0]!;
  const seen = readOn(story, reader.image);
  await story.until(() => seen.length > 20, 'reads go on');
  const { machine } = story.primary;
  story.cut(reader.machine, cluster.masterMachine);
  story.cut(machine, cluster.masterMachine);
  return { writer: writer.image, seen, primary };
}

for (const [reach, isCut] of [
  ['and that reaches nobody but a reader', true],
  ['and that its former members still answer', false],
] as const)
  test(`a primary that only lost the master, ${reach}, is replaced at once, and nothing new is acked while it may read`, async (t) => {
    const story = await Story.begin();
    const { writer, seen, primary } = await cutOff(story);
    const { machine } = story.primary;
    const cutAt = story.now;
    story.cluster.control.breakStreams(machine);
    await story.until(() => story.pg.acting[0] !== primary, 'another is the primary');
    if (isCut) story.cut(machine, ...othersThan(story, machine));
    const changedAt = story.now;
    await story.idle(20); // the writer has heard of it: it does not even try the old primary
    await story.settled(write(writer, 0, 2), 'a write of the new interval');
    const ackedAt = story.now;
    await story.idle(3_000);
    t.deepEqual(stale(seen, ackedAt), []);
    const late = seen.filter(({ begun, ended, byte }) => byte === 1 && begun > changedAt && ended < ackedAt);
    t.true(late.length > 10, `the old primary still answered ${late.length} reads: it could have been too many`);
    t.true(ackedAt - cutAt < 2_000, `I/O was away for ${ackedAt - cutAt} ms`);
    story.heal();
    await story.until(() => seen.at(-1)!.byte === 2, 'the reader sees it in the end');
    await story.untilClean();
  });

test('a primary cut off from everybody but a reader stops answering before the master even misses it', async (t) => {
  const story = await Story.begin();
  const { writer, seen } = await cutOff(story);
  const { machine } = story.primary;
  story.cut(machine, ...othersThan(story, machine));
  const cutAt = story.now;
  await story.settled(write(writer, 0, 2), 'a write of the new interval');
  const ackedAt = story.now;
  await story.idle(3_000);
  t.deepEqual(stale(seen, ackedAt), []);
  const last = seen.filter(({ byte }) => byte === 1).at(-1)!.ended;
  t.true(last - cutAt < LEASE_MS + 50, `it answered for ${last - cutAt} ms`);
  t.true(ackedAt - cutAt > 2_000, 'the master took its time');
});

test('a member that restarts has forgotten what it promised, and lets the longest promise pass', async (t) => {
  const story = await Story.begin();
  const { writer, seen, primary } = await cutOff(story);
  const { machine } = story.primary;
  const member = story.daemon(story.pg.acting[1]!);
  story.cut(machine, ...othersThan(story, machine));
  story.cluster.control.breakStreams(machine);
  story.cluster.endDaemon(member, 'crash', 5);
  await story.until(() => ![0, primary].includes(story.pg.acting[0] ?? 0), 'another is the primary');
  await story.idle(20);
  await story.settled(write(writer, 0, 2), 'a write of the new interval');
  const ackedAt = story.now;
  t.not(story.pg.acting[0], primary);
  await story.idle(3_000);
  t.deepEqual(stale(seen, ackedAt), []);
});

test('on one machine the kernel tells that a primary has died: nobody waits for what it was granted', async (t) => {
  const story = await Story.begin({ oneHost: true });
  const { image } = await story.open('writer', false);
  await story.settled(write(image, 0, 1), 'a write');
  const seen = readOn(story, image);
  await story.until(() => seen.length > 20, 'reads go on');
  const killedAt = story.now;
  story.cluster.endDaemon(story.primary, 'crash', 5_000);
  await story.settled(write(image, 0, 2), 'a write of the new interval');
  t.true(story.now - killedAt < LEASE_MS / 2, `I/O was away for ${story.now - killedAt} ms`);
  await story.idle(200);
  t.is(seen.at(-1)!.byte, 2);
});

test('on one machine as well, a connection that broke for another reason proves nothing', async (t) => {
  const story = await Story.begin({ oneHost: true });
  const { writer, seen, primary } = await cutOff(story);
  const { machine } = story.primary;
  // Connections are reset at both ends; the old primary sleeps before it hears of that, and wakes up at once.
  machine.pause(30);
  for (const other of othersThan(story, machine)) story.cluster.network.resetBetween(machine, other);
  story.cluster.control.breakStreams(machine);
  await story.until(() => story.pg.acting[0] !== primary, 'another is the primary');
  const changedAt = story.now;
  await story.idle(20);
  await story.settled(write(writer, 0, 2), 'a write of the new interval');
  t.true(story.now - changedAt > LEASE_MS / 2, `it waited for ${story.now - changedAt} ms`);
  const ackedAt = story.now;
  await story.idle(1_000);
  t.deepEqual(stale(seen, ackedAt), []);
});

test('a primary that lives and hears of the newer map is asked, not waited for', async (t) => {
  const story = await Story.begin();
  const { image } = await story.open('writer', false);
  await story.settled(write(image, 0, 1), 'a write');
  const seen = readOn(story, image);
  let slowestMs = 0;
  let lastAt = 0;
  let old = 0;
  for (let move = 0; move < 4; move++) {
    const { id } = story.primary.daemon!;
    story.cluster.setDaemon(story.primary, { in: false, weight: 1 });
    await story.until(() => story.pg.acting[0] !== id, 'it has moved');
    await story.idle(1_000);
    for (const { begun, ended } of seen.slice(old)) slowestMs = Math.max(slowestMs, ended - begun);
    lastAt = seen.at(-1)!.ended;
    old = seen.length;
    for (const sim of story.cluster.daemons) story.cluster.setDaemon(sim, { in: true, weight: 1 });
    await story.idle(1_000);
  }
  t.true(story.now - lastAt < 2_000, 'reads go on');
  t.true(slowestMs < GRANT_MS / 2, `a read took ${slowestMs} ms`);
});

test('without a master reads and writes go on for as long as one likes', async (t) => {
  const story = await Story.begin();
  const { image } = await story.open('writer', false);
  await story.settled(write(image, 0, 1), 'a write');
  const seen = readOn(story, image);
  story.cluster.masterMachine.end('crash');
  await story.idle(20 * LEASE_MS);
  await story.settled(write(image, 4096, 3), 'a write without a master');
  const slowestMs = Math.max(...seen.map(({ begun, ended }) => ended - begun));
  t.true(slowestMs < 100, `a read took ${slowestMs} ms`);
  t.true(seen.length > (15 * LEASE_MS) / 10);
});

test('an idle cluster sends nothing for leases; reads that go on renew them twice in their time', async (t) => {
  let asked = 0;
  const isAsking = ({ op, flags }: Frame): boolean => op === Op.LEASE && (flags & Flag.REPLY) === 0;
  const wrapNetwork = (network: Network): Network =>
    watched(network, (frame) => {
      if (isAsking(frame)) asked += 1;
    });
  const story = await Story.begin({ pgCount: 8 }, { wrapNetwork });
  const { image } = await story.open('writer', false);
  await story.settled(write(image, 0, 1), 'a write');
  await story.idle(5_000);
  t.is(asked, 0, 'writes need no lease');
  const seen = readOn(story, image);
  await story.idle(10 * LEASE_MS);
  t.true(seen.length > 500);
  t.true(asked >= 18 && asked <= 22, `asked ${asked} times in 10 leases`);
});
