import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { DiskError } from '../../proto/ports.ts';
import { openDirectory } from '../world/disk.ts';
import { openIdentity, readNewestEpoch, writeIdentity, writeNewestEpoch } from './identity.ts';

const fresh = (): string => mkdtempSync(join(tmpdir(), 'ashlar-identity-'));

test('an empty directory gets an identity and keeps it; what it joins is remembered', (t) => {
  const directory = fresh();
  const disk = openDirectory(directory);
  t.deepEqual(openIdentity(disk, 'first'), { uuid: 'first', clusterId: '', id: 0 });
  t.deepEqual(openIdentity(disk, 'second'), { uuid: 'first', clusterId: '', id: 0 }, 'made once');
  writeIdentity(disk, { uuid: 'first', clusterId: 'c', id: 7 });
  t.deepEqual(openIdentity(openDirectory(directory), 'third'), { uuid: 'first', clusterId: 'c', id: 7 });
  t.deepEqual(readdirSync(directory), ['identity.json'], 'nothing temporary is left');
  rmSync(directory, { recursive: true });
});

test("a directory that holds something else is nobody's, and an identity that can't be read is not made up", (t) => {
  const directory = fresh();
  const disk = openDirectory(directory);
  writeFileSync(join(directory, 'lock'), ''); // what the process itself put there
  writeFileSync(join(directory, 'holiday.jpg'), '');
  t.throws(() => openIdentity(disk, 'u'), { code: 'IDENTITY', message: /holiday.jpg/ });
  rmSync(join(directory, 'holiday.jpg'));
  for (const [text, why] of [
    ['', /JSON/],
    ['{"format":1,"uuid":', /JSON/],
    ['{"format":2,"uuid":"u","clusterId":"c","id":1}', /format 2/],
    ['{"format":1,"clusterId":"c","id":1}', /fields are missing/],
  ] as const) {
    writeFileSync(join(directory, 'identity.json'), text);
    t.throws(() => openIdentity(disk, 'u'), { code: 'IDENTITY', message: why });
  }
  rmSync(directory, { recursive: true });
});

test('the newest epoch comes back; broken or missing it is 0, and a full disk only leaves it older', (t) => {
  const directory = fresh();
  const disk = openDirectory(directory);
  t.is(readNewestEpoch(disk), 0);
  writeNewestEpoch(disk, 41);
  writeNewestEpoch(disk, 42);
  t.is(readNewestEpoch(disk), 42);
  const failing = (code: 'NO_SPACE' | 'IO') => ({
    ...disk,
    open: () => {
      throw new DiskError(code, 'as told');
    },
  });
  writeNewestEpoch({ ...disk, ...failing('NO_SPACE') }, 43);
  t.is(readNewestEpoch(disk), 42);
  t.throws(() => writeNewestEpoch({ ...disk, ...failing('IO') }, 43), { message: 'as told' });
  writeFileSync(join(directory, 'newest-epoch'), 'forty');
  t.is(readNewestEpoch(disk), 0);
  rmSync(directory, { recursive: true });
});
