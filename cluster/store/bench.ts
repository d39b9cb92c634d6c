// What the disk store costs, in CPU time of the process (both threads' and the kernel's share) and in wall time.
//
//   node cluster/store/bench.ts [--dir D] [--data-gib 1] [--random 100000]

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { payloadChecksums } from '../../proto/checksum.ts';
import { pgId } from '../../proto/ids.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { Clock, Log } from '../../proto/ports.ts';
import { openDirectory } from '../world/disk.ts';
import { openDiskStore } from './disk-store.ts';
import type { DiskStore } from './engine.ts';
import { randomFrom } from './model.ts';
import { EntryOp } from './store.ts';

const MiB = 2 ** 20;
const BATCH = 8;
const PGS = 64;

const { values } = parseArgs({
  options: {
    dir: { type: 'string' },
    'data-gib': { type: 'string', default: '1' },
    random: { type: 'string', default: '100000' },
  },
});

const clock: Clock = {
  now: () => performance.now(),
  after: (ms, fire) => {
    const timer = setTimeout(fire, ms);
    return { cancel: () => clearTimeout(timer) };
  },
  soon: (run) => void setImmediate(run),
};
const log: Log = { debug: () => {}, info: () => {}, warn: console.warn, error: console.error };
const directory = fs.mkdtempSync(path.join(values.dir ?? os.tmpdir(), 'ashlar-bench-'));
const objects = Number(values['data-gib']) * 1024;
const random = randomFrom(7);
const seqs = new Array<number>(PGS).fill(0);

const open = (): Promise<DiskStore> =>
  openDiskStore({
    disk: openDirectory(directory),
    clock,
    log,
    onFatal: (error) => {
      throw error;
    },
  });

function append(
  store: DiskStore,
  object: number,
  offset: number,
  payload: Buffer,
  checks: Buffer,
  done: () => void,
): void {
  const index = object % PGS;
  const seq = ++seqs[index]!;
  store.append(
    {
      pg: pgId(1, index),
      version: { since: 1, seq },
      op: EntryOp.WRITE,
      image: 1,
      object,
      order: 20,
      offset,
      length: payload.length,
      session: 1,
      sessionSeq: seq,
    },
    payload,
    checks,
    false,
    done,
  );
}

const rssMiB = (): string => (process.memoryUsage().rss / MiB).toFixed(0).padStart(3);

/** Runs `count` operations, `depth` in flight, and prints what one cost. */
async function measure(title: string, count: number, depth: number, run: (done: () => void) => void): Promise<void> {
  const cpu = process.cpuUsage();
  const start = performance.now();
  let longest = 0;
  let left = count;
  await new Promise<void>((resolve) => {
    let running = 0;
    let begun = 0;
    let turn = performance.now();
    const more = (): void => {
      longest = Math.max(longest, performance.now() - turn);
      turn = performance.now();
      while (running < depth && begun < count) {
        running++;
        begun++;
        run(() => {
          running--;
          if (--left === 0) resolve();
        });
      }
      if (left > 0) setImmediate(more);
    };
    more();
  });
  const wallUs = (performance.now() - start) * 1000;
  const { user, system } = process.cpuUsage(cpu);
  console.log(
    `${title.padEnd(44)} cpu ${((user + system) / count).toFixed(1).padStart(7)} us  wall ` +
      `${(wallUs / count).toFixed(1).padStart(7)} us  longest turn ${longest.toFixed(1).padStart(5)} ms  rss ${rssMiB()} MiB`,
  );
}

const synced = (store: DiskStore): Promise<void> => new Promise((resolve) => store.sync(() => resolve()));

const store = await open();
const large = Buffer.alloc(MiB, 7);
const largeChecks = payloadChecksums(large, 1, 0, 0);
const small = Buffer.alloc(BLOCK_BYTES, 9);
const smallChecks = payloadChecksums(small, 1, 0, 0);
let next = 0;
await measure('append 1 MiB, new objects', objects, 1, (done) => append(store, next++, 0, large, largeChecks, done));
await synced(store);
next = 0;
await measure('append 1 MiB, over old data', objects / 2, 1, (done) =>
  append(store, next++, 0, large, largeChecks, done),
);
await synced(store);
const anywhere = (): number => (random() % 256) * BLOCK_BYTES;
const count = Number(values.random);
const before = store.checkpoints;
await measure(`append 4 KiB at random, ${BATCH} a turn`, count, BATCH, (done) =>
  append(store, random() % objects, anywhere(), small, smallChecks, done),
);
console.log(`  with ${store.checkpoints - before} checkpoints`);
await measure('append 4 KiB at random, 1 a turn', count / 10, 1, (done) =>
  append(store, random() % objects, anywhere(), small, smallChecks, done),
);
await synced(store);
await measure('append 4 KiB and sync, 32 a turn', 3200, 32, (done) =>
  append(store, random() % objects, anywhere(), small, smallChecks, () => store.sync(done)),
);
await measure('read 4 KiB at random, 8 a turn', 100_000, BATCH, (done) =>
  store.read(1, random() % objects, 20, anywhere(), BLOCK_BYTES, done),
);
await measure('read 1 MiB', 500, 1, (done) => store.read(1, random() % objects, 20, 0, MiB, done));
const closing = performance.now();
await new Promise<void>((resolve) => store.close(() => resolve()));
const opening = performance.now();
await open();
console.log(`close ${(opening - closing).toFixed(0)} ms, open ${(performance.now() - opening).toFixed(0)} ms`);
fs.rmSync(directory, { recursive: true });
process.exit(0);
