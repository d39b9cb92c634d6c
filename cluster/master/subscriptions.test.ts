// Who follows the map: what each gets, in which order, and never before it is durable.

import test from 'ava';
import type { KeyValueBatch, KeyValueStore } from '../../proto/kv.ts';
import { applyUpdate, fullUpdate, type MapUpdate, type StorageMap } from '../../proto/map.ts';
import { joinUpdates } from '../../proto/map-updates.ts';
import { SimRandom } from '../sim/random.ts';
import { World } from './fixture.ts';
import { MemoryKv } from './memory-kv.ts';

const sorted = (map: StorageMap) => ({
  ...map,
  daemons: [...map.daemons].sort(([a], [b]) => a - b),
  pools: [...map.pools].sort(([a], [b]) => a - b),
  pgs: [...map.pgs].sort(([a], [b]) => a - b),
  images: [...map.images].sort(([a], [b]) => a - b),
});

/** A day in the life of a small cluster, one step after the other. */
function* busyDay(world: World): Generator<() => Promise<unknown>> {
  yield () => world.createPool({ pgCount: 16 });
  for (const n of [1, 2, 3]) yield () => world.daemon(n).start();
  yield () => world.activateAll(true);
  yield () => world.createImage('a');
  yield () => world.createImage('b');
  yield async () => (await (await world.client()).subscribe()).lock(1);
  yield () => world.daemon(2).die();
  yield () => world.activateAll();
  yield () => world.daemon(2).start();
  yield () => world.activateAll(true);
  yield () => world.activateAll(true);
  yield () => world.daemon(4).start();
  yield () => world.settled(world.master.handle('setDaemon', { id: 1, weight: 0 }));
  yield () => world.activateAll(true);
  yield () => world.settled(world.master.handle('removeImage', { image: 2, done: false }));
  yield () => world.settled(world.master.handle('removeImage', { image: 2, done: true }));
  yield () => world.settled(world.master.handle('resizeImage', { image: 1, sizeBytes: 2 ** 31 }));
  yield () => world.daemon(3).restart();
  yield () => world.activateAll(true);
}

test('incrementals lead to the same map as a full update, from wherever a subscriber starts', async (t) => {
  const world = await World.start();
  const early = await (await world.client()).subscribe();
  const starts: StorageMap[] = [];
  for (const step of busyDay(world)) {
    await step();
    starts.push(world.map);
  }
  t.deepEqual(sorted(early.map!), sorted(world.map));
  t.is(early.updates[0]!.from, 0);
  t.true(early.updates.slice(1).every((update, at) => update.from === early.updates[at]!.to));
  for (const start of starts) {
    const late = await world.client();
    late.map = start;
    await late.subscribe();
    t.true(late.updates.length <= 1, 'what was missed comes as one update');
    t.true(late.updates.every((update) => update.from === start.epoch));
    t.deepEqual(sorted(late.map), sorted(world.map));
  }
});

test('a subscriber too far behind gets everything anew, without what is gone', async (t) => {
  const world = await World.start({ daemons: 1 });
  await world.createPool();
  const doomed = await world.createImage('doomed');
  const late = await (await world.client()).subscribe();
  await late.die();
  t.true(late.map!.images.has(doomed));
  await world.settled(world.master.handle('removeImage', { image: doomed, done: false }));
  await world.settled(world.master.handle('removeImage', { image: doomed, done: true }));
  for (let i = 1; i <= 600; i++) await world.settled(world.master.handle('setDaemon', { id: 1, weight: i }));
  await late.subscribe();
  t.is(late.updates.at(-1)!.from, 0);
  t.deepEqual(sorted(late.map!), sorted(world.map));
});

test('a subscriber that has seen a newer epoch than the master is refused', async (t) => {
  const world = await World.start({ daemons: 1 });
  const client = await world.client();
  const subscriber = { role: 'client' as const, session: client.session, epoch: world.map.epoch + 1 };
  const error = t.throws(() => world.master.subscribe(subscriber, client.follow()));
  t.is((error as { code?: string }).code, 'IDENTITY');
});

test('a second subscription of the same session replaces the first, whose end then means nothing', async (t) => {
  const world = await World.start({ daemons: 1 });
  await world.createPool();
  const image = await world.createImage();
  const client = await (await world.client()).subscribe();
  const first = client.subscription!;
  await client.subscribe();
  t.regex(client.closed!, /replaced/);
  first.close();
  t.is((await client.lock(image)).fence, 1, 'the session is alive');
  const daemon = world.daemon(1);
  const old = daemon.subscription!;
  await daemon.subscribe();
  old.close();
  await world.clock.settle();
  t.true(daemon.entry.up);
});

/** A store whose disk is slow: batches wait until they are let through. */
class SlowStore implements KeyValueStore {
  readonly #inner = new MemoryKv();
  waiting: (() => void)[] = [];
  slow = false;

  get = (key: string) => this.#inner.get(key);
  range = (prefix: string) => this.#inner.range(prefix);
  close = () => this.#inner.close();
  async batch(batch: KeyValueBatch): Promise<boolean> {
    if (this.slow) await new Promise<void>((resolve) => this.waiting.push(resolve));
    return this.#inner.batch(batch);
  }
  release(): void {
    for (const go of this.waiting.splice(0)) go();
  }
}

test('nobody hears of a change before it is durable, and what arrives meanwhile shares the next batch', async (t) => {
  const kv = new SlowStore();
  const world = await World.start({ kv, daemons: 2 });
  const client = await (await world.client()).subscribe();
  const before = client.map!.epoch;
  kv.slow = true;
  let answered = 0;
  const request = { pgCount: 1, replicas: 1, minSize: 0, durability: 'flush' as const };
  for (const name of ['a', 'b', 'c']) {
    void world.master.handle('createPool', { ...request, name }).then(() => answered++);
    await world.clock.settle();
  }
  await world.clock.advance(200);
  t.is(kv.waiting.length, 1);
  t.is(answered, 0);
  t.is(client.map!.epoch, before);
  t.is(world.map.pools.size, 0);
  kv.release();
  await world.clock.settle();
  t.is(answered, 1);
  t.is(client.map!.pools.size, 1);
  kv.release();
  await world.clock.settle();
  t.is(answered, 3);
  t.is(client.map!.epoch, before + 2, 'b and c came together');
});

test('activation is answered only when it is durable', async (t) => {
  const kv = new SlowStore();
  const world = await World.start({ kv, daemons: 1 });
  await world.createPool({ replicas: 1 });
  kv.slow = true;
  const { pg, since } = world.pg;
  let accepted: number[] | null = null;
  const request = { id: 1, bootId: 'boot-1-1', pgs: [{ pg, since }] };
  void world.master.handle('activate', request).then((reply) => {
    accepted = reply.accepted;
  });
  await world.clock.advance(500);
  t.is(accepted, null);
  kv.release();
  await world.clock.settle();
  t.deepEqual(accepted, [pg]);
});

test('a crash of the master after any batch loses nothing that was told: the store alone makes the same map', async (t) => {
  const kv = new MemoryKv();
  const copies = new Map<number, MemoryKv>();
  let batches = 0;
  kv.onBatch = (batch) => {
    batches++;
    const epoch = batch.puts.find(({ key }) => key === '/epoch')?.value;
    if (epoch !== undefined) copies.set(Number(epoch), kv.copy());
  };
  const world = await World.start({ kv });
  const witness = await (await world.client()).subscribe();
  const seen = new Map<number, StorageMap>();
  witness.onMap = () => {
    if (witness.map !== null) seen.set(witness.map.epoch, witness.map);
  };
  for (const step of busyDay(world)) {
    await step();
    const reborn = await World.start({ kv: kv.copy() });
    t.deepEqual(sorted(reborn.map), sorted(world.map));
    await reborn.master.close();
  }
  t.true(batches > 25 && seen.size > 15, `${batches} batches, ${seen.size} maps seen`);
  for (const [epoch, map] of seen) {
    const reborn = await World.start({ kv: copies.get(epoch)! });
    t.deepEqual(sorted(reborn.map), sorted(map), `epoch ${epoch}`);
    await reborn.master.close();
  }
});

test('a master that crashed in the middle of a day goes on as the other would have', async (t) => {
  const steps = [...busyDay(await World.start())].length;
  for (let crashAt = 0; crashAt < steps; crashAt += 2) {
    const world = await World.start();
    let at = 0;
    for (const step of busyDay(world)) {
      await step();
      if (at++ !== crashAt) continue;
      await world.crashMaster();
      for (const puppet of world.daemons.values()) if (puppet.entry.up) await puppet.subscribe();
    }
    const acting = [...world.map.pgs.values()].map((entry) => entry.acting.length);
    t.true(
      acting.every((count) => count === 2),
      `crash at ${crashAt}: ${acting}`,
    );
    t.deepEqual([...world.map.images.keys()], [1]);
    t.is(world.fatal, null);
  }
});

test('joined updates do what they do one after the other', (t) => {
  const random = new SimRandom(5);
  const image = (id: number, name: string) => ({
    ...{ id, name, pool: 1, sizeBytes: 1, order: 20, stripeUnit: 1, stripeCount: 1, fence: 0 },
    state: 'ready' as const,
  });
  for (let run = 0; run < 300; run++) {
    const start: StorageMap = {
      ...{ clusterId: 'c', epoch: 5, daemons: new Map(), pools: new Map(), pgs: new Map() },
      images: new Map([1, 2, 3].map((id) => [id, image(id, 'old')])),
    };
    let map = start;
    let joined: MapUpdate | null = random.chance(0.3) ? fullUpdate(start) : null;
    for (let epoch = 5; epoch < 9; epoch++) {
      const ids = [1, 2, 3, 4].filter(() => random.chance(0.5));
      const removed = ids.filter((id) => random.chance(0.4) && map.images.has(id));
      const update: MapUpdate = {
        ...fullUpdate({ ...start, epoch: epoch + 1, images: new Map() }),
        from: epoch,
        images: ids.filter((id) => !removed.includes(id)).map((id) => image(id, `by ${epoch}`)),
        removedImages: removed,
      };
      map = applyUpdate(map, update);
      joined = joined === null ? update : joinUpdates(joined, update);
    }
    t.deepEqual(sorted(applyUpdate(joined!.from === 0 ? null : start, joined!)), sorted(map));
  }
});
