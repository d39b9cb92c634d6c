// Damage at rest: a bit flipped, a sector zeroed or filled with garbage, a file cut, removed, or an older copy of it put
// back, in each file of a store that does not run. The store must refuse to open and say why, or serve: then all PGs and
// objects are the newest, and each block is right, fails its checksum or can't be read. Never anything else.
//
// Two disks are damaged: one of a store that was closed, and one of a store that was killed after a sync and one more
// batch that knows of the sync. What was known as durable must not be lost by the killed one either: damage in the middle
// of the log is not a torn tail.

import test, { type ExecutionContext } from 'ava';
import { StorageError } from '../../proto/errors.ts';
import { pgId } from '../../proto/ids.ts';
import { type DiskImage, FaultDisk } from './fault-disk.ts';
import { Lab } from './lab.ts';
import { PAGE_BYTES } from './limits.ts';
import { randomFrom } from './model.ts';
import { Redo } from './redo.ts';
import { openOn, Prefixes, Run, TestClock } from './scenario.ts';
import { Teller } from './stories.ts';

const SECTOR_BYTES = 512;
/** A damage of each kind to so many places of each page or file. More of them: ASHLAR_ROT=10. */
const ROUNDS = Number(process.env.ASHLAR_ROT ?? 1);

interface Rest {
  image: DiskImage;
  /** The same disk at two earlier moments: a store that was closed, and one that was killed. */
  older: readonly DiskImage[];
  prefixes: Prefixes;
  /** Steps that were known as durable, and steps that there may be. */
  known: number;
  last: number;
}

/** A store with everything: objects of three sizes, in slots and in the log, holes, deleted ones, all kinds of records. */
async function atRest(closed: boolean): Promise<Rest> {
  const clock = new TestClock();
  const disk = new FaultDisk(clock);
  const run = new Run(disk, clock);
  const teller = new Teller(run);
  await run.open();
  const act = (): void => {
    for (let i = 0; i < 10; i++) teller.write(i, i % 5, 1 + (i % 3));
    teller.turn();
    teller.write(2, 0, 64);
    teller.write(6, 0, 16);
    teller.zero(2, 8, 20);
    teller.settle();
    teller.erase(3);
    teller.recover(5, 0, 30, true);
    teller.merge(1);
    teller.setPg(0, true);
    teller.flush();
  };
  const older: DiskImage[] = [];
  act();
  teller.checkpoint();
  act();
  older.push(disk.image());
  await run.close();
  older.push(disk.image());
  await run.open();
  act();
  teller.checkpoint();
  act();
  if (closed) await run.close();
  let known = run.outcome.synced;
  if (!closed) {
    // This batch says that all before it is durable.
    teller.write(4, 1, 2);
    teller.settle();
    known = run.outcome.steps.length - 1;
  }
  const { steps } = run.outcome;
  return { image: disk.image(), older, prefixes: new Prefixes(steps, 0), known, last: steps.length };
}

/** Starts on the damaged disk: 'refused', 'served', or what is wrong. */
async function judge(rest: Rest, image: DiskImage): Promise<string> {
  const clock = new TestClock();
  const disk = FaultDisk.holding(image, clock);
  let fatal: Error | null = null;
  try {
    const store = await openOn(disk, clock, (error) => {
      fatal = error;
    });
    let why = 'no prefix of the steps has these PG states';
    for (let length = rest.last; length >= rest.known; length--) {
      const model = rest.prefixes.at(length);
      const differs = model.pgs.map((pg) => model.pgDifference(store, pg)).find((found) => found !== null);
      if (differs !== undefined) {
        why = `${length} steps: ${differs}`;
        continue;
      }
      const wrong = await model.unprovenDifference(store);
      if (wrong === null) return fatal === null ? 'served' : `served, then ${fatal}`;
      why = wrong;
    }
    return why;
  } catch (error) {
    if (error instanceof StorageError && error.code === 'IO') return 'refused';
    return `threw ${error instanceof Error ? error.stack : error}`;
  }
}

interface Damage {
  kind: string;
  image: DiskImage;
}

function* damages(rest: Rest, name: string, random: () => number): Generator<Damage> {
  const file = rest.image.get(name)!;
  const withFile = (changed: { pages: ReadonlyMap<number, Buffer>; sizeBytes: number } | null): DiskImage => {
    const image = new Map(rest.image);
    if (changed === null) image.delete(name);
    else image.set(name, changed);
    return image;
  };
  const withPage = (page: number, change: (bytes: Buffer) => void): DiskImage => {
    const bytes = Buffer.from(file.pages.get(page)!);
    change(bytes);
    return withFile({ pages: new Map(file.pages).set(page, bytes), sizeBytes: file.sizeBytes });
  };
  for (const [page, bytes] of file.pages) {
    // Of data there is much, and all pages are alike.
    if (name.startsWith('data-') && random() % 6 >= ROUNDS) continue;
    if (bytes.every((byte) => byte === 0) && random() % 40 !== 0) continue;
    for (let round = 0; round < ROUNDS; round++) {
      const at = random() % PAGE_BYTES;
      // Headers are at the beginning of a page.
      for (const place of [at, random() % 200])
        yield {
          kind: `bit flipped at ${place} of page ${page}`,
          image: withPage(page, (changed) => {
            changed[place]! ^= 1 << (random() % 8);
          }),
        };
      const sector = Math.floor(at / SECTOR_BYTES) * SECTOR_BYTES;
      for (const from of [0, sector])
        yield {
          kind: `sector ${from / SECTOR_BYTES} of page ${page} zeroed`,
          image: withPage(page, (changed) => changed.fill(0, from, from + SECTOR_BYTES)),
        };
      yield { kind: `page ${page} zeroed`, image: withPage(page, (changed) => changed.fill(0)) };
      yield {
        kind: `garbage in sector ${sector / SECTOR_BYTES} of page ${page}`,
        image: withPage(page, (changed) => {
          for (let i = sector; i < sector + SECTOR_BYTES; i++) changed[i] = random() & 255;
        }),
      };
    }
  }
  const cuts = [0, 1, 512, PAGE_BYTES, file.sizeBytes - 1, file.sizeBytes - PAGE_BYTES];
  for (let round = 0; round < 4 * ROUNDS; round++) cuts.push(random() % file.sizeBytes);
  for (const sizeBytes of cuts) {
    if (sizeBytes < 0 || sizeBytes >= file.sizeBytes) continue;
    const pages = new Map([...file.pages].filter(([page]) => page * PAGE_BYTES < sizeBytes));
    const inPage = sizeBytes % PAGE_BYTES;
    const end = pages.get((sizeBytes - inPage) / PAGE_BYTES);
    if (end !== undefined) pages.set((sizeBytes - inPage) / PAGE_BYTES, Buffer.from(end).fill(0, inPage));
    yield { kind: `cut to ${sizeBytes} bytes`, image: withFile({ pages, sizeBytes }) };
  }
  yield { kind: 'removed', image: withFile(null) };
  for (const [i, before] of rest.older.entries()) {
    const copy = before.get(name);
    if (copy !== undefined) yield { kind: `older copy ${i} put back`, image: withFile(copy) };
  }
}

async function damageFile(t: ExecutionContext, rest: Rest, name: string): Promise<{ refused: number; served: number }> {
  const ends = { refused: 0, served: 0 };
  for (const { kind, image } of damages(rest, name, randomFrom(7))) {
    const end = await judge(rest, image);
    if (end === 'refused' || end === 'served') ends[end]++;
    else t.fail(`${name}: ${kind}: ${end}`);
  }
  return ends;
}

const KINDS = [
  ['the log', /^log-/],
  ['checkpoint files', /^checkpoint\./],
  ['metadata', /^meta-/],
  ['data', /^data-/],
] as const;

// Serial tests come before all others: what is planted is there for everyone.
test.serial('a store that takes damage in the middle of the log for a torn tail is found', async (t) => {
  const original: unknown = Reflect.get(Redo.prototype, 'refuseIfDurableBeyond');
  Reflect.set(Redo.prototype, 'refuseIfDurableBeyond', () => {});
  try {
    const rest = await atRest(false);
    let damaged = 0;
    let wrong = '';
    for (const { kind, image } of damages(rest, 'log-0000', randomFrom(7))) {
      damaged++;
      const end = await judge(rest, image);
      if (end === 'refused' || end === 'served') continue;
      wrong = `damage ${damaged}, ${kind}: ${end}`;
      break;
    }
    t.regex(wrong, /steps/);
    t.log(wrong);
  } finally {
    Reflect.set(Redo.prototype, 'refuseIfDurableBeyond', original);
  }
});

for (const closed of [true, false])
  for (const [kind, names] of KINDS)
    test(`damage in ${kind} of a ${closed ? 'closed' : 'killed'} store is refused or shown, and costs nothing durable`, async (t) => {
      const rest = await atRest(closed);
      const ends = { refused: 0, served: 0 };
      for (const name of rest.image.keys()) {
        if (!names.test(name)) continue;
        const { refused, served } = await damageFile(t, rest, name);
        ends.refused += refused;
        ends.served += served;
      }
      t.log(`${ends.refused} refused, ${ends.served} served`);
      t.true(ends.refused + ends.served > 20);
    });

test('older copies of several files put back are never served as the newest state, unless they are a whole past', async (t) => {
  const ends = { refused: 0, served: 0 };
  for (const closed of [true, false]) {
    const rest = await atRest(closed);
    for (const [i, before] of rest.older.entries())
      for (let set = 1; set < 2 ** KINDS.length; set++) {
        const older = KINDS.filter((_, kind) => ((set >> kind) & 1) === 1);
        // Log and checkpoint of one moment, with metadata not much newer, are the store of that moment: only other
        // members can tell.
        if ((set & 3) === 3) continue;
        const image = new Map(rest.image);
        for (const [name, file] of before) if (older.some(([, names]) => names.test(name))) image.set(name, file);
        const end = await judge(rest, image);
        if (end === 'refused' || end === 'served') ends[end]++;
        else t.fail(`closed ${closed}, older ${older.map(([kind]) => kind).join(', ')} of moment ${i}: ${end}`);
      }
  }
  t.log(`${ends.refused} refused, ${ends.served} served`);
  t.true(ends.refused > 20);
});

test('log and checkpoint files of one moment, put back when two more checkpoints are in force, are refused', async (t) => {
  const lab = await Lab.open();
  lab.write(1);
  lab.checkpoint();
  const before = lab.disk.image();
  for (let seq = 2; seq <= 3; seq++) {
    lab.write(seq, { object: seq });
    lab.checkpoint();
  }
  const image = new Map(lab.disk.image());
  for (const [name, file] of before) if (/^(log|checkpoint)/.test(name)) image.set(name, file);
  await t.throwsAsync(
    openOn(FaultDisk.holding(image, lab.clock), lab.clock, () => {}),
    { message: /newer than the checkpoint files/ },
  );
});

test('checkpoint files of the first hour, put back when the log has gone round, are refused', async (t) => {
  const lab = await Lab.open();
  const files = ['checkpoint.a', 'checkpoint.b'];
  const before = lab.disk.image();
  let seq = 0;
  while (lab.store.checkpoints < 6) {
    lab.store.setPg(pgId(1, 1), ++seq, true);
    lab.clock.settle();
  }
  const image = new Map(lab.disk.image());
  for (const name of files) image.set(name, before.get(name)!);
  const error = await t.throwsAsync(openOn(FaultDisk.holding(image, lab.clock), lab.clock, () => {}));
  t.regex(error!.message, /corrupt at byte 0 of log-0000/);
  for (const name of files) image.delete(name);
  await t.throwsAsync(
    openOn(FaultDisk.holding(image, lab.clock), lab.clock, () => {}),
    { message: /log-0000, log-0001 but no checkpoint file/ },
  );
});
