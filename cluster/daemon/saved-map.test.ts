import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { applyUpdate, type StorageMap } from '../../proto/map.ts';
import { type Clock, type Disk, DiskError, type Log } from '../../proto/ports.ts';
import { openDirectory } from '../world/disk.ts';
import { MapSaver, readSavedMap, type SavedMap } from './saved-map.ts';

const mapAt = (epoch: number): StorageMap => ({
  clusterId: 'c',
  epoch,
  daemons: new Map(),
  pools: new Map(),
  pgs: new Map([[65_536, { pg: 65_536, acting: [1], since: epoch, waitFor: [], lastActive: 0 }]]),
  images: new Map(),
});

class Stage {
  readonly directory = mkdtempSync(join(tmpdir(), 'ashlar-saved-map-'));
  disk: Disk = openDirectory(this.directory);
  map: StorageMap | null = null;
  warnings: string[] = [];
  readonly log: Log = { debug() {}, info() {}, warn: (message) => this.warnings.push(message), error() {} };
  now = 0;
  timers: { at: number; fire: () => void }[] = [];
  readonly clock: Clock = {
    now: () => this.now,
    after: (ms, fire) => {
      this.timers.push({ at: this.now + ms, fire });
      return { cancel() {} };
    },
    soon: (run) => run(),
  };
  saver = new MapSaver(this.disk, this.clock, this.log, () =>
    this.map === null ? null : { map: this.map, activated: [{ pg: 65_536, since: 4 }] },
  );
  advance(ms: number): void {
    this.now += ms;
    for (const timer of this.timers.splice(0)) {
      if (timer.at <= this.now) timer.fire();
      else this.timers.push(timer);
    }
  }
  saved(): SavedMap | null {
    return readSavedMap(openDirectory(this.directory), this.log);
  }
  async untilSaved(epoch: number): Promise<void> {
    while (this.saved()?.map.to !== epoch) await new Promise((done) => setTimeout(done, 1));
  }
}
const stageTest = (title: string, run: (t: import('ava').ExecutionContext, stage: Stage) => Promise<void> | void) =>
  test(title, async (t) => {
    const stage = new Stage();
    t.teardown(() => rmSync(stage.directory, { recursive: true }));
    await run(t, stage);
  });

stageTest('a storm of maps is one write, of the newest, half a second after the first', async (t, stage) => {
  for (let epoch = 1; epoch <= 50; epoch++) {
    stage.map = mapAt(epoch);
    stage.saver.changed();
  }
  stage.advance(499);
  t.is(stage.saved(), null);
  stage.advance(1);
  await stage.untilSaved(50);
  const { map, activated } = stage.saved()!;
  t.deepEqual(applyUpdate(null, map), mapAt(50));
  t.deepEqual(activated, [{ pg: 65_536, since: 4 }]);
  t.deepEqual(readdirSync(stage.directory), ['newest-map'], 'nothing temporary is left');
});

stageTest('what comes while a copy is being synced is saved by the next one', async (t, stage) => {
  stage.map = mapAt(1);
  stage.saver.changed();
  stage.advance(500);
  stage.map = mapAt(2);
  stage.saver.changed();
  await stage.untilSaved(1);
  for (let turn = 0; turn < 1000 && stage.timers.length === 0; turn++) await new Promise((done) => setTimeout(done, 1));
  stage.advance(10_000);
  await stage.untilSaved(2);
  t.deepEqual(stage.warnings, []);
});

stageTest('a clean stop loses nothing that was still to be saved', (t, stage) => {
  stage.map = mapAt(7);
  stage.saver.changed();
  stage.saver.close();
  t.is(stage.saved()?.map.to, 7);
  stage.advance(10_000); // the timer that was under way does nothing any more
  t.is(stage.saved()?.map.to, 7);
});

stageTest('a full disk keeps the older copy, and the daemon goes on', async (t, stage) => {
  stage.map = mapAt(1);
  stage.saver.changed();
  stage.saver.close();
  const full = Object.create(stage.disk) as Disk;
  full.open = () => {
    throw new DiskError('NO_SPACE', 'the disk is full');
  };
  stage.map = mapAt(2);
  const saver = new MapSaver(full, stage.clock, stage.log, () => ({ map: stage.map!, activated: [] }));
  saver.changed();
  stage.advance(10_000);
  t.is(stage.saved()?.map.to, 1);
  t.regex(stage.warnings.join(), /could not save the map/);
});

stageTest('a damaged copy reads as none', (t, stage) => {
  stage.map = mapAt(1);
  stage.saver.changed();
  stage.saver.close();
  const path = join(stage.directory, 'newest-map');
  const bytes = readFileSync(path);
  bytes[bytes.length - 3]! ^= 1;
  writeFileSync(path, bytes);
  t.is(stage.saved(), null);
  t.is(stage.warnings.length, 1);
});
