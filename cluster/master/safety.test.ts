// A master that is older than what others have seen, one that is being rebuilt, and the backup's form.

import test from 'ava';
import type { Testimony } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { fullUpdate } from '../../proto/map.ts';
import { MASTER_BACKUP, seal } from '../../proto/sealed.ts';
import { decodeBackup, fillStore } from './backup.ts';
import { World } from './fixture.ts';
import { MemoryKv } from './memory-kv.ts';
import { loadState } from './state.ts';
import { Testimonies } from './testimonies.ts';

const EVENTS = { onUpdate() {}, onClose() {} };
const code = (error: unknown): string => (error as StorageError).code;

test('a client of this cluster that has seen a newer map stops the master, which names both epochs', async (t) => {
  const world = await World.start({ daemons: 1 });
  const { session } = await world.client();
  const { clusterId, epoch } = world.map;
  const subscriber = { role: 'client' as const, session, epoch: epoch + 5, clusterId };
  const error = t.throws(() => world.master.subscribe(subscriber, EVENTS));
  t.is(code(error), 'UNAVAILABLE', 'the client is right: it waits for the right master');
  t.regex(world.fatal!.message, new RegExp(`epoch ${epoch + 5}, this master's store ends at ${epoch}.*master recover`));
});

test('a client of another cluster is refused, and the master goes on', async (t) => {
  const world = await World.start({ daemons: 1 });
  const { session } = await world.client();
  const stranger = { role: 'client' as const, session, epoch: 999_999, clusterId: 'another' };
  t.is(code(t.throws(() => world.master.subscribe(stranger, EVENTS))), 'IDENTITY');
  t.is(world.fatal, null);
  await world.createPool();
});

test('a backup holds what the store holds, and is refused when it is damaged or contradicts itself', async (t) => {
  const world = await World.start({ daemons: 3 });
  await world.createPool({ pgCount: 8 });
  await world.createImage();
  await world.activateAll(true);
  const backup = await world.settled(world.master.handle('backup', {}));
  t.is(backup.epoch, world.map.epoch);
  const byKey = (pairs: readonly { key: string; value: string }[]) =>
    [...pairs].sort((a, b) => (a.key < b.key ? -1 : 1)).map(({ key, value }) => [key, value]);
  t.deepEqual(byKey(backup.pairs), byKey(await world.kv.range('/')));

  const bytes = seal(MASTER_BACKUP, backup);
  const kv = new MemoryKv();
  await fillStore(kv, (await decodeBackup(bytes)).pairs);
  t.deepEqual((await loadState(kv, '')).map(), world.map);
  await t.throwsAsync(decodeBackup(bytes.subarray(0, -1)), { code: 'CHECKSUM' });
  await t.throwsAsync(decodeBackup(Buffer.from('a holiday photograph')), { code: 'UNSUPPORTED' });
  const lying = seal(MASTER_BACKUP, { ...backup, epoch: backup.epoch + 1 });
  await t.throwsAsync(decodeBackup(lying), { code: 'CHECKSUM', message: /contradicts itself/ });
});

test('a master that serves wants no testimony; one that is rebuilt takes nothing else', async (t) => {
  const world = await World.start({ daemons: 1 });
  const testimony: Testimony = {
    clusterId: world.map.clusterId,
    uuid: world.daemon(1).entry.uuid,
    id: 1,
    bootId: 'b',
    newestEpoch: world.map.epoch,
    map: fullUpdate(world.map),
    activated: [],
    pgs: [],
    sessionMost: 0,
    imageMost: 0,
  };
  t.is(code(await t.throwsAsync(world.settled(world.master.handle('testify', testimony)))), 'INVALID');

  const heard: string[] = [];
  const rebuilt = new Testimonies([], ({ uuid }) => heard.push(uuid));
  t.is(rebuilt.awaited(), null);
  const registered = await rebuilt.handle('register', world.daemon(1).registration({ clusterId: 'c' }));
  t.true(registered.recovering);
  await rebuilt.handle('testify', { ...testimony, uuid: 'another', id: 2, map: null });
  t.is(rebuilt.awaited(), null, 'nobody has brought a map yet');
  await rebuilt.handle('testify', testimony);
  await rebuilt.handle('testify', testimony);
  t.deepEqual(rebuilt.awaited(), []);
  t.deepEqual(heard, ['another', testimony.uuid, testimony.uuid]);
  t.is(rebuilt.all().length, 2, 'the newest testimony of each directory');

  const update = fullUpdate(world.map);
  for (const [wrong, refusal] of [
    [{ ...testimony, uuid: '' }, 'INVALID'],
    [{ ...testimony, map: { ...update, from: 3 } }, 'INVALID'],
    [{ ...testimony, map: { ...update, clusterId: 'other' } }, 'INVALID'],
    [{ ...testimony, uuid: 'x', clusterId: 'other', map: { ...update, clusterId: 'other' } }, 'IDENTITY'],
  ] as const)
    t.is(code(await t.throwsAsync(rebuilt.handle('testify', wrong))), refusal);
  t.is(code(await t.throwsAsync(rebuilt.handle('status', {}))), 'UNAVAILABLE');
  t.throws(() => rebuilt.subscribe(), { instanceOf: StorageError });
  t.is(rebuilt.all().length, 2);
});
