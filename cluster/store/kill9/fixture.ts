// The process that kill9.test.ts kills: it writes to a store as fast as it can and says what was done.
//
//   node fixture.ts DIRECTORY      prints one number per line: the newest entry done, a few hundred times a second
//
// What entry n does follows from n alone, so the judge needs no more than the number of the last one.

import { writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { payloadChecksums } from '../../../proto/checksum.ts';
import { pgId } from '../../../proto/ids.ts';
import { BLOCK_BYTES } from '../../../proto/limits.ts';
import type { Clock, Log } from '../../../proto/ports.ts';
import { openDirectory } from '../../world/disk.ts';
import { openDiskStore } from '../disk-store.ts';
import type { DiskStore } from '../engine.ts';
import { randomFrom, stamped } from '../model.ts';
import { EntryOp, type LogEntry } from '../store.ts';

export const PG = pgId(1, 0);
export const IMAGE = 2;
export const OBJECTS = 24;
export const ORDER = 20;
const IN_FLIGHT = 16;

export const clock: Clock = {
  now: () => performance.now(),
  after: (ms, fire) => {
    const timer = setTimeout(fire, ms);
    return { cancel: () => clearTimeout(timer) };
  },
  soon: (run) => void setImmediate(run),
};

const quiet: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

export function open(directory: string): Promise<DiskStore> {
  const onFatal = (error: Error): void => {
    throw error;
  };
  return openDiskStore({ disk: openDirectory(directory), clock, log: quiet, logBytes: 8 * 2 ** 20, onFatal });
}

export function entryOf(seq: number): LogEntry {
  const random = randomFrom(seq);
  const blocks = 2 ** ORDER / BLOCK_BYTES;
  const dice = random() % 100;
  const count = dice < 80 ? 1 + (random() % 4) : dice < 90 ? 16 + (random() % 100) : blocks;
  const op = dice % 10 === 7 ? EntryOp.ZERO : EntryOp.WRITE;
  const offset = (random() % (blocks - count + 1)) * BLOCK_BYTES;
  return {
    pg: PG,
    version: { since: 1, seq },
    op,
    image: IMAGE,
    object: random() % OBJECTS,
    order: ORDER,
    offset,
    length: count * BLOCK_BYTES,
    session: 1,
    sessionSeq: seq,
  };
}

async function main(directory: string): Promise<void> {
  const store = await open(directory);
  let seq = store.pgInfo(PG).last.seq;
  let done = seq;
  let said = 0;
  const more = (): void => {
    while (seq - done < IN_FLIGHT) {
      const entry = entryOf(++seq);
      const mine = seq;
      const payload = entry.op === EntryOp.WRITE ? stamped(entry.length, mine, entry.offset) : null;
      const checks = payload && payloadChecksums(payload, IMAGE, entry.object, entry.offset);
      store.append(entry, payload, checks, false, () => {
        done = mine;
      });
    }
    if (seq % 50 < IN_FLIGHT) store.sync(() => {});
    if (done !== said) writeSync(1, `${done}\n`);
    said = done;
    setImmediate(more);
  };
  more();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv[2]!);
