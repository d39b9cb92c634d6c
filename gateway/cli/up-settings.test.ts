import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { UsageError } from '../../cluster/world/options.ts';
import { saveSettings, settingsFor, type UpOptions, wantedImages } from './up-settings.ts';

function directory(t: ExecutionContext): string {
  const path = mkdtempSync(join(tmpdir(), 'ashlar-settings-'));
  t.teardown(() => rmSync(path, { recursive: true }));
  return path;
}
const options = (given: Partial<UpOptions> = {}): UpOptions => ({
  dir: '.',
  daemons: undefined,
  replicas: undefined,
  minSize: undefined,
  pgCount: undefined,
  durability: undefined,
  image: [],
  nbd: undefined,
  nbdUnix: undefined,
  restart: false,
  stopWithParent: false,
  logLevel: 'info',
  ...given,
});

test('a new directory gets three daemons, two replicas, ports of its own, and nothing is written yet', async (t) => {
  const path = directory(t);
  const { settings, isNew } = await settingsFor(path, options());
  t.true(isNew);
  t.is(settings.daemons, 3);
  t.is(settings.replicas, 2);
  t.is(settings.nbdAddress, '127.0.0.1:10809');
  const addresses = [settings.masterAddress, ...settings.daemonAddresses];
  t.is(new Set(addresses).size, 4);
  for (const address of addresses) t.regex(address, /^127\.0\.0\.1:(2\d|3[01])\d{3}$/);
  t.deepEqual(readdirSync(path), []);
});

test('the next start has the same settings, may add daemons and move the NBD address', async (t) => {
  const path = directory(t);
  const first = (await settingsFor(path, options({ nbd: '127.0.0.1:0' }))).settings;
  saveSettings(path, first);
  const same = await settingsFor(path, options({ nbd: '127.0.0.1:0' }));
  t.false(same.isNew);
  t.deepEqual(same.settings, first);
  t.not(first.nbdAddress, '127.0.0.1:0');
  const more = (await settingsFor(path, options({ daemons: 5, nbd: '127.0.0.1:5000' }))).settings;
  t.deepEqual(more.daemonAddresses.slice(0, 3), first.daemonAddresses);
  t.is(new Set(more.daemonAddresses).size, 5);
  t.is(more.nbdAddress, '127.0.0.1:5000');
});

test('what contradicts the directory is refused with what it was made with', async (t) => {
  const path = directory(t);
  saveSettings(path, (await settingsFor(path, options({ daemons: 4, durability: 'sync' }))).settings);
  const cases: [Partial<UpOptions>, RegExp][] = [
    [{ daemons: 3 }, /has 4, and fewer would leave data out/],
    [{ replicas: 3 }, /--replicas 3: .* was made with 2/],
    [{ pgCount: 128 }, /--pg-count 128: .* was made with 64/],
    [{ durability: 'flush' }, /was made with sync/],
  ];
  for (const [given, message] of cases)
    await t.throwsAsync(settingsFor(path, options(given)), { instanceOf: UsageError, message });
  writeFileSync(join(path, 'cluster.json'), '{"daemons":');
  await t.throwsAsync(settingsFor(path, options()), { instanceOf: UsageError, message: /cluster\.json is damaged/ });
});

test('images are asked for by name and size; only a new directory gets vol0 unasked', (t) => {
  t.deepEqual(wantedImages(options(), true), [{ name: 'vol0', sizeBytes: 10 * 2 ** 30 }]);
  t.deepEqual(wantedImages(options(), false), []);
  t.deepEqual(wantedImages(options({ image: ['a:b:1M', 'c:4096'] }), false), [
    { name: 'a:b', sizeBytes: 2 ** 20 },
    { name: 'c', sizeBytes: 4096 },
  ]);
  for (const bad of ['vol0', ':1G', 'vol0:', 'vol0:big'])
    t.throws(() => wantedImages(options({ image: [bad] }), true), { instanceOf: UsageError }, bad);
});
