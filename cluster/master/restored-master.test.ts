import test, { type ExecutionContext } from 'ava';
import { MASTER_BACKUP, seal } from '../../proto/sealed.ts';
import { decodeBackup, fillStore, RESTORED_KEY, restoredPairs } from './backup.ts';
import { QUIET, World } from './fixture.ts';
import type { Master } from './master.ts';
import { MemoryKv } from './memory-kv.ts';
import { openMaster, type RestoredMaster } from './restored-master.ts';

interface Stage {
  world: World;
  kv: MemoryKv;
  restored: Master | RestoredMaster;
  fatal: Error[];
}

/** Two daemons and a session; a backup; and a master on what was restored from it. */
async function stage(
  t: ExecutionContext,
  afterBackup: (world: World) => Promise<unknown> = async () => {},
): Promise<Stage> {
  const world = await World.start({ daemons: 2 });
  await world.createPool();
  await world.client();
  const backup = await decodeBackup(seal(MASTER_BACKUP, await world.settled(world.master.handle('backup', {}))));
  await afterBackup(world);
  const kv = new MemoryKv();
  await fillStore(kv, await restoredPairs(backup));
  const fatal: Error[] = [];
  const onFatal = (error: Error): void => void fatal.push(error);
  const options = { clock: world.clock, kv, log: QUIET, random: { u32: () => 7 }, onFatal };
  const restored = await openMaster(options);
  t.teardown(() => restored.close());
  return { world, kv, restored, fatal };
}
const registration = ({ world }: Stage, n: number) => {
  const puppet = world.daemon(n);
  return puppet.registration({ clusterId: world.map.clusterId, newestEpoch: puppet.map?.epoch ?? 0 });
};

test('it serves only when every daemon has come, and then forgets that it was restored', async (t) => {
  const place = await stage(t);
  const { world, restored, kv, fatal } = place;
  const waits = { code: 'UNAVAILABLE', message: /restored from a backup.*waits for daemon 2 / };
  await t.throwsAsync(world.settled(restored.handle('register', registration(place, 1))), { code: 'UNAVAILABLE' });
  await t.throwsAsync(world.settled(restored.handle('status', {})), waits);
  const events = { onUpdate() {}, onClose() {} };
  t.throws(() => restored.subscribe({ role: 'client', session: 1, epoch: 0 }, events), waits);
  const before = await kv.get('/epoch');
  await world.clock.advance(60_000);
  t.is(await kv.get('/epoch'), before, 'nothing happens while it waits');

  const { id } = await world.settled(restored.handle('register', registration(place, 2)));
  t.is(id, 2);
  t.is((await world.settled(restored.handle('register', registration(place, 1)))).id, 1);
  t.is(await kv.get(RESTORED_KEY), null);
  const { session } = await world.settled(restored.handle('openSession', { name: 'c' }));
  t.true(session > 2 ** 24, 'sessions that were opened since the backup are not opened again');
  t.deepEqual(fatal, []);
});

test('a daemon that knows better stops it for good, though all others would have believed it', async (t) => {
  const place = await stage(t, (world) => world.createImage());
  const { world, restored, kv, fatal } = place;
  const old = { ...registration(place, 1), newestEpoch: 2 };
  await t.throwsAsync(world.settled(restored.handle('register', old)), { message: /waits for daemon 2/ });
  const refused = { code: 'UNAVAILABLE', message: /old copy.*ashlar master recover/ } as const;
  await t.throwsAsync(world.settled(restored.handle('register', registration(place, 2))), refused);
  t.regex(fatal[0]!.message, new RegExp(`has seen map epoch ${world.map.epoch}`));
  await t.throwsAsync(world.settled(restored.handle('register', old)), refused);
  t.not(await kv.get(RESTORED_KEY), null, 'and so does the next master of this store');
});

test('a client that knows better stops it too; a new daemon and a stranger prove nothing', async (t) => {
  const { world, restored, fatal } = await stage(t);
  const stranger = world.daemon(9).registration({ clusterId: '', newestEpoch: 0 });
  await t.throwsAsync(world.settled(restored.handle('register', stranger)), {
    message: /waits for daemon 1, daemon 2/,
  });
  const events = { onUpdate() {}, onClose() {} };
  const client = { role: 'client' as const, session: 1, epoch: world.map.epoch + 1 };
  t.throws(() => restored.subscribe({ ...client, clusterId: 'another' }, events), { message: /waits for/ });
  t.deepEqual(fatal, []);
  t.throws(() => restored.subscribe({ ...client, clusterId: world.map.clusterId }, events), { message: /old copy/ });
  t.is(fatal.length, 1);
});

test('deposed while it waits or after, it serves nothing more', async (t) => {
  const waiting = await stage(t);
  waiting.restored.depose('another may lead');
  const why = { message: 'another may lead' };
  await t.throwsAsync(waiting.world.settled(waiting.restored.handle('register', registration(waiting, 1))), why);
  t.not(await waiting.kv.get(RESTORED_KEY), null);

  const proven = await stage(t);
  for (const n of [1, 2])
    await proven.world.settled(proven.restored.handle('register', registration(proven, n))).catch(() => {});
  t.is((await proven.world.settled(proven.restored.handle('status', {}))).daemons.length, 2);
  proven.restored.depose('another may lead');
  await t.throwsAsync(proven.world.settled(proven.restored.handle('status', {})), why);
});
