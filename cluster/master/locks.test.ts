// Sessions, image locks and fences: one writer, and nobody writes late.

import test from 'ava';
import { World } from './fixture.ts';
import { GRACE_MS } from './limits.ts';

const code = (error: unknown) => (error as { code?: string }).code;

async function withImage(daemons = 2) {
  const world = await World.start({ daemons });
  await world.createPool();
  return { world, image: await world.createImage() };
}

test('the first writer gets fence 1, published in the map; asked again, it gets the same', async (t) => {
  const { world, image } = await withImage();
  const client = await (await world.client()).subscribe();
  const lock = await client.lock(image);
  t.is(lock.fence, 1);
  t.is(world.map.images.get(image)!.fence, 1);
  t.true(lock.epoch <= world.map.epoch);
  t.deepEqual(await client.lock(image), lock);
  t.is(client.map!.images.get(image)!.fence, 1);
});

test('session numbers are never given twice, also after the master crashed', async (t) => {
  const { world } = await withImage();
  const first = await world.client();
  await world.crashMaster();
  t.true((await world.client()).session > first.session);
});

test('while the owner lives, another session is refused and told who owns it; takeOver takes it', async (t) => {
  const { world, image } = await withImage();
  const owner = await (await world.client('nbd on alpha')).subscribe();
  await owner.lock(image);
  const other = await (await world.client('nbd on beta')).subscribe();
  const refused = await t.throwsAsync(other.lock(image), { message: /"vol0" is in use by nbd on alpha/ });
  t.is(code(refused), 'BUSY');
  t.is((await other.lock(image, true)).fence, 2);
  await t.throwsAsync(owner.lock(image), { message: /nbd on beta/ });
});

test('a gateway that died is replaced at once, and its fence is outdated', async (t) => {
  const { world, image } = await withImage();
  const dead = await (await world.client()).subscribe();
  await dead.lock(image);
  await dead.die();
  const next = await (await world.client()).subscribe();
  t.is((await next.lock(image)).fence, 2);
});

test('an owner whose connection broke for a moment is still the owner if nobody came', async (t) => {
  const { world, image } = await withImage();
  const owner = await (await world.client()).subscribe();
  await owner.lock(image);
  await owner.die();
  await owner.subscribe();
  const other = await (await world.client()).subscribe();
  t.is(code(await t.throwsAsync(other.lock(image))), 'BUSY');
  t.is((await owner.lock(image)).fence, 1);
});

test('an unlocked image is free; a late unlock, of an earlier owner or of an earlier lock, changes nothing', async (t) => {
  const { world, image } = await withImage();
  const [one, two] = [await (await world.client()).subscribe(), await (await world.client()).subscribe()];
  await one.lock(image);
  const unlock = (session: number, fence: number) =>
    world.settled(world.master.handle('unlockImage', { session, image, fence }));
  await unlock(one.session, 1);
  t.is((await two.lock(image)).fence, 2);
  await unlock(one.session, 1);
  t.is(code(await t.throwsAsync(one.lock(image))), 'BUSY');
  await unlock(two.session, 2);
  t.is((await two.lock(image)).fence, 3);
  await unlock(two.session, 2);
  t.is(code(await t.throwsAsync(one.lock(image))), 'BUSY', 'the lock that two holds now is another one');
});

test('a session without a subscription cannot lock, and an unknown one cannot subscribe', async (t) => {
  const { world, image } = await withImage();
  const client = await world.client();
  t.is(code(await t.throwsAsync(client.lock(image))), 'UNAVAILABLE');
  t.throws(() => world.master.subscribe({ role: 'client', session: 99, epoch: 0 }, client.follow()), {
    message: /session 99 was not opened/,
  });
});

test('the lock is granted only when every up daemon obeys the fence', async (t) => {
  const { world, image } = await withImage(3);
  const client = await (await world.client()).subscribe();
  world.daemon(2).responsive = false;
  let granted = false;
  const lock = client.lock(image).then((reply) => {
    granted = true;
    return reply;
  });
  await world.clock.advance(1_000);
  t.is(world.map.images.get(image)!.fence, 1, 'published');
  t.false(granted, 'daemon 2 may still obey the old fence');
  await world.daemon(2).beat();
  await world.clock.settle();
  t.true(granted);
  t.is((await lock).fence, 1);
});

test('a daemon that stopped is marked down, and the lock is granted without it', async (t) => {
  const { world, image } = await withImage(3);
  const client = await (await world.client()).subscribe();
  world.daemon(2).responsive = false;
  const lock = client.lock(image);
  await world.clock.advance(5_000);
  t.false(world.daemon(2).entry.up);
  t.is((await lock).fence, 1);
});

test('a daemon that lives but does not follow the map holds the lock up, and is named', async (t) => {
  const { world, image } = await withImage(3);
  const client = await (await world.client()).subscribe();
  const mute = world.daemon(2);
  const old = mute.map!.epoch;
  mute.responsive = false;
  const refused = t.throwsAsync(client.lock(image), { message: /daemon 2: up, but does not obey map epoch/ });
  for (let second = 0; second < 8; second++) {
    const space = { usedBytes: 0, freeBytes: 1, full: false };
    await world.master.handle('heartbeat', {
      id: 2,
      bootId: mute.bootId,
      epoch: old,
      pgs: [],
      space,
      recoveredBytes: 0,
    });
    await world.clock.advance(1_000);
  }
  t.is(code(await refused), 'UNAVAILABLE');
  mute.responsive = true;
  await mute.beat();
  t.is((await client.lock(image)).fence, 1, 'asked again, it gets the fence that was made');
});

test('after a restart of the master the owner keeps its lock through the grace, and loses it if it does not return', async (t) => {
  const { world, image } = await withImage();
  const owner = await (await world.client('nbd on alpha')).subscribe();
  await owner.lock(image);
  const restart = async () => {
    await world.crashMaster();
    for (const n of [1, 2]) await world.daemon(n).subscribe();
  };
  await restart();
  const other = await (await world.client()).subscribe();
  await t.throwsAsync(other.lock(image), { message: /nbd on alpha/ });
  await owner.subscribe();
  await world.clock.advance(6_000);
  t.is(code(await t.throwsAsync(other.lock(image))), 'BUSY');
  t.is((await owner.lock(image)).fence, 1);
  await restart();
  await world.clock.advance(6_000);
  const third = await (await world.client()).subscribe();
  t.is((await third.lock(image)).fence, 2);
});

test('a lock asked for just before the session has found the new master waits for it; one that never comes is refused', async (t) => {
  const { world, image } = await withImage();
  const [quick, gone] = [await world.client(), await world.client()];
  await world.crashMaster();
  for (const n of [1, 2]) await world.daemon(n).subscribe();
  const lock = world.master.handle('lockImage', { session: quick.session, image, takeOver: false });
  await world.clock.advance(1_000);
  await quick.subscribe();
  await world.clock.advance(2_000);
  t.is((await world.settled(lock)).fence, 1);
  const refused = t.throwsAsync(world.master.handle('lockImage', { session: gone.session, image, takeOver: true }));
  await world.clock.advance(GRACE_MS);
  t.is(code(await refused), 'UNAVAILABLE');
});

test('removal: refused while in use; then the fence goes up, the name stays taken until the objects are gone', async (t) => {
  const { world, image } = await withImage();
  const owner = await (await world.client()).subscribe();
  await owner.lock(image);
  const remove = (done: boolean) => world.settled(world.master.handle('removeImage', { image, done }));
  t.is(code(await t.throwsAsync(remove(false))), 'BUSY');
  t.is(code(await t.throwsAsync(remove(true))), 'INVALID');
  await owner.die();
  await remove(false);
  await remove(false);
  t.like(world.map.images.get(image)!, { state: 'removing', fence: 2 });
  t.is(code(await t.throwsAsync(world.createImage())), 'EXISTS');
  const remover = await (await world.client()).subscribe();
  t.is((await remover.lock(image)).fence, 3, 'who deletes the objects may lock it');
  await remove(true);
  await remove(true);
  t.is(world.map.images.size, 0);
  t.true((await world.createImage()) > image, 'the number is never used again');
});

test('pools and images that make no sense are refused, and leave nothing behind', async (t) => {
  const { world } = await withImage();
  const before = world.map;
  const pool = { name: 'q', pgCount: 8, replicas: 2, minSize: 0, durability: 'flush' as const };
  for (const [wrong, expected] of [
    [{ name: 'p' }, 'EXISTS'],
    [{ name: '' }, 'INVALID'],
    [{ name: 'a\nb' }, 'INVALID'],
    [{ name: ' q' }, 'INVALID'],
    [{ name: 'x'.repeat(300) }, 'INVALID'],
    [{ pgCount: 12 }, 'INVALID'],
    [{ pgCount: 0 }, 'INVALID'],
    [{ pgCount: 2 ** 20 }, 'INVALID'],
    [{ replicas: 0 }, 'INVALID'],
    [{ minSize: 3 }, 'INVALID'],
  ] as const)
    t.is(code(await t.throwsAsync(world.settled(world.master.handle('createPool', { ...pool, ...wrong })))), expected);
  const image = { name: 'v', pool: 'p', sizeBytes: 4096, order: 20, stripeUnit: 2 ** 20, stripeCount: 1 };
  for (const [wrong, expected] of [
    [{ name: 'vol0' }, 'EXISTS'],
    [{ name: '/v' }, 'INVALID'],
    [{ pool: 'none' }, 'NOT_FOUND'],
    [{ sizeBytes: 0 }, 'INVALID'],
    [{ sizeBytes: 0.5 }, 'INVALID'],
    [{ sizeBytes: 2 ** 52 }, 'INVALID'],
    [{ order: 30 }, 'INVALID'],
    [{ stripeUnit: 5000 }, 'INVALID'],
  ] as const)
    t.is(
      code(await t.throwsAsync(world.settled(world.master.handle('createImage', { ...image, ...wrong })))),
      expected,
    );
  const resize = world.master.handle('resizeImage', { image: 77, sizeBytes: 4096 });
  t.is(code(await t.throwsAsync(world.settled(resize))), 'NOT_FOUND');
  t.is(world.map, before, 'no epoch was spent');
});
