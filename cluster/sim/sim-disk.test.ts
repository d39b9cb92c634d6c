import test from 'ava';
import { DiskError } from '../../proto/ports.ts';
import { SimRandom } from './random.ts';
import { type Machine, Scheduler } from './scheduler.ts';
import { SimDisk } from './sim-disk.ts';

interface World {
  scheduler: Scheduler;
  machine: Machine;
  disk: SimDisk;
  run(): Promise<unknown>;
}
function build(seed = 1, capacityBytes?: number): World {
  const scheduler = new Scheduler(new SimRandom(seed));
  const machine = scheduler.machine('m');
  machine.boot();
  const disk = new SimDisk(machine, new SimRandom(seed).fork('disk'), capacityBytes);
  return { scheduler, machine, disk, run: () => scheduler.run(() => false, 1e6) };
}
const open = (w: World, name = 'f') => w.disk.port(w.machine.incarnation!).open(name, true);
const content = (w: World, length: number, name = 'f'): string => {
  const bytes = Buffer.alloc(length);
  const got = open(w, name).read(bytes, 0);
  return bytes.toString('latin1', 0, got);
};

test('writes of odd sizes and places read back as a flat array would have it', (t) => {
  const w = build();
  const random = new SimRandom(9);
  const file = open(w);
  const model = Buffer.alloc(40_000);
  let size = 0;
  for (let i = 0; i < 300; i++) {
    const at = random.below(30_000);
    const part = Buffer.alloc(random.below(9_000), i % 256);
    if (i % 20 === 19) {
      file.truncate(at);
      model.fill(0, at);
      size = at;
    } else {
      file.write([part.subarray(0, 100), part.subarray(100)], at);
      part.copy(model, at);
      size = Math.max(size, at + part.length);
    }
    const all = Buffer.alloc(40_000);
    t.is(file.size(), size);
    t.is(file.read(all, 0), size);
    t.true(all.equals(model), `after step ${i}`);
  }
});

test('a process crash loses nothing that was written, and the dead process writes nothing more', (t) => {
  const w = build();
  const file = open(w);
  file.write([Buffer.from('before')], 0);
  w.machine.end('crash');
  file.write([Buffer.from('zombie')], 0);
  w.machine.boot();
  t.is(content(w, 6), 'before');
});

test('what was synced survives every power cut; what was not is kept, lost or torn at 512 bytes', async (t) => {
  const outcomes = { kept: 0, lost: 0, torn: 0 };
  for (let seed = 1; seed <= 300; seed++) {
    const w = build(seed);
    const file = open(w);
    file.write([Buffer.alloc(8192, 'a')], 0);
    let synced = false;
    file.sync((error) => {
      synced = error === null;
    });
    w.disk.port(w.machine.incarnation!).syncDirectory();
    await w.run();
    t.true(synced);
    file.write([Buffer.alloc(4096, 'b')], 4096);
    w.machine.end('powerCut');
    w.machine.boot();
    const now = content(w, 8192);
    t.is(now.slice(0, 4096), 'a'.repeat(4096), 'the synced page that nobody touched');
    const sectors = Array.from({ length: 8 }, (_, i) => now.slice(4096 + i * 512, 4096 + (i + 1) * 512));
    for (const sector of sectors) t.true(/^(a+|b+)$/.test(sector), 'a sector is whole');
    const fresh = sectors.filter((sector) => sector[0] === 'b').length;
    outcomes[fresh === 8 ? 'kept' : fresh === 0 ? 'lost' : 'torn']++;
    // The choice is made once.
    w.machine.end('powerCut');
    w.machine.boot();
    t.is(content(w, 8192), now);
  }
  t.true(Math.min(outcomes.kept, outcomes.lost, outcomes.torn) > 10, JSON.stringify(outcomes));
});

test('a sync covers what was written before it, not what was written while it ran', async (t) => {
  let older = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const w = build(seed);
    const file = open(w);
    w.disk.port(w.machine.incarnation!).syncDirectory();
    file.write([Buffer.alloc(4096, '1')], 0);
    file.sync(() => {});
    file.write([Buffer.alloc(4096, '2')], 0);
    await w.run();
    w.machine.end('powerCut');
    w.machine.boot();
    const now = content(w, 4096);
    t.regex(now, /^[12]{4096}$/);
    if (now[0] === '1') older++;
  }
  t.true(older > 5 && older < 55);
});

test('two syncs that end in the wrong order leave the newer content stable', async (t) => {
  for (let seed = 1; seed <= 60; seed++) {
    const w = build(seed);
    const file = open(w);
    w.disk.port(w.machine.incarnation!).syncDirectory();
    file.write([Buffer.alloc(4096, '1')], 0);
    file.sync(() => {});
    file.write([Buffer.alloc(4096, '2')], 0);
    let ended = false;
    file.sync(() => {
      ended = true;
    });
    await w.run();
    t.true(ended);
    w.machine.end('powerCut');
    w.machine.boot();
    t.is(content(w, 4096), '2'.repeat(4096));
  }
});

test('a name is durable after syncDirectory; before, a power cut may take the file or undo the rename', (t) => {
  const seen = new Set<string>();
  for (let seed = 1; seed <= 80; seed++) {
    const w = build(seed);
    const port = w.disk.port(w.machine.incarnation!);
    const file = port.open('old', true);
    file.write([Buffer.from('x')], 0);
    file.syncNow();
    port.syncDirectory();
    port.rename('old', 'new');
    port.open('other', true);
    w.machine.end('powerCut');
    w.machine.boot();
    seen.add(w.disk.port(w.machine.incarnation!).list().join());
  }
  t.deepEqual([...seen].sort(), ['new', 'new,other', 'old']);
});

test('the size of a file that grew unsynced ends anywhere between the stable and the new one', (t) => {
  const sizes = new Set<number>();
  for (let seed = 1; seed <= 200; seed++) {
    const w = build(seed);
    const file = open(w);
    file.write([Buffer.alloc(1024, 'a')], 0);
    file.syncNow();
    w.disk.port(w.machine.incarnation!).syncDirectory();
    file.write([Buffer.alloc(2048, 'b')], 1024);
    w.machine.end('powerCut');
    w.machine.boot();
    sizes.add(open(w).size());
    t.is(content(w, 1024), 'a'.repeat(1024));
  }
  t.deepEqual(
    [...sizes].sort((a, b) => a - b),
    [1024, 1536, 2048, 2560, 3072],
  );
});

test('the N-th write or sync fails once, or from then on; NO_SPACE when the capacity is reached', async (t) => {
  const w = build(1, 3 * 4096);
  const file = open(w);
  w.disk.failNth('write', 2, 'IO');
  file.write([Buffer.from('a')], 0);
  t.throws(() => file.write([Buffer.from('b')], 0), { instanceOf: DiskError, code: 'IO' });
  file.write([Buffer.from('c')], 0);
  w.disk.failNth('sync', 1, 'IO', true);
  const errors: unknown[] = [];
  file.sync((error) => errors.push(error?.code));
  file.sync((error) => errors.push(error?.code));
  await w.run();
  t.deepEqual(errors, ['IO', 'IO']);
  w.disk.heal();
  file.write([Buffer.alloc(2 * 4096, 'x')], 4096);
  t.is(w.disk.port(w.machine.incarnation!).freeBytes(), 0);
  t.throws(() => file.write([Buffer.from('y')], 5 * 4096), { instanceOf: DiskError, code: 'NO_SPACE' });
  file.write([Buffer.from('overwriting needs no space')], 4096);
  t.is(content(w, 1), 'c');
});

test('rot flips one stored bit for good', (t) => {
  const w = build();
  open(w).write([Buffer.from('A')], 0);
  t.true(w.disk.rot('f', 0, 1));
  t.is(content(w, 1), 'C');
  t.false(w.disk.rot('f', 8192, 0));
});
