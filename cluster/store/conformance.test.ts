// Both backends pass the one conformance suite; the disk store on real files, with a log small enough to go round often.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test from 'ava';
import type { Clock, Log } from '../../proto/ports.ts';
import { openDirectory } from '../world/disk.ts';
import { type Bench, closed, conformance } from './conformance.ts';
import { openDiskStore } from './disk-store.ts';
import { createMemoryStore } from './memory-store.ts';

const clock: Clock = {
  now: () => performance.now(),
  after: (ms, fire) => {
    const timer = setTimeout(fire, ms);
    return { cancel: () => clearTimeout(timer) };
  },
  soon: (run) => void setImmediate(run),
};

const silent: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

conformance('memory store', async () => {
  const bench: Bench = { store: createMemoryStore(clock), reopen: async () => {} };
  return bench;
});

// A file system in memory where there is one: what is tested here is not how long a disk takes to sync.
const memory = '/dev/shm';
const root = fs.mkdtempSync(path.join(fs.existsSync(memory) ? memory : os.tmpdir(), 'ashlar-store-'));
test.after.always(() => fs.rmSync(root, { recursive: true }));
let stores = 0;

function diskBench(logBytes: number): () => Promise<Bench> {
  return async () => {
    const disk = openDirectory(path.join(root, String(++stores)));
    const onFatal = (error: Error) => {
      throw error;
    };
    const open = () => openDiskStore({ disk, clock, log: silent, logBytes, onFatal });
    const bench: Bench = {
      store: await open(),
      reopen: async () => {
        await closed(bench.store);
        bench.store = await open();
      },
    };
    return bench;
  };
}

conformance('disk store', diskBench(16 * 2 ** 20));
conformance('disk store with the smallest log', diskBench(2 * 2 ** 20));
