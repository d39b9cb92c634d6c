// A real process on real files, killed with SIGKILL in the middle of its work, again and again.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { payloadChecksums } from '../../proto/checksum.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { closed, read } from './conformance.ts';
import { entryOf, IMAGE, OBJECTS, ORDER, open, PG } from './kill9/fixture.ts';
import { randomFrom, stamped } from './model.ts';
import { EntryOp } from './store.ts';

const ROUNDS = 20;
const TOTAL_MS = 20_000;

/** Starts a writer, kills it after a while; what it last said was done. */
async function writeUntilKilled(directory: string, afterMs: number): Promise<number> {
  const program = fileURLToPath(new URL('./kill9/fixture.ts', import.meta.url));
  const child = spawn(process.execPath, [program, directory], { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  const first = once(child.stdout, 'data');
  child.stdout.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  await Promise.race([first, once(child, 'exit')]);
  await new Promise((resolve) => setTimeout(resolve, afterMs));
  child.kill('SIGKILL');
  await once(child, 'close');
  const lines = said.split('\n');
  return Number(lines[lines.length - 2] ?? 0);
}

test('a writer killed twenty times loses nothing that was done, and nothing is torn or out of place', async (t) => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'ashlar-kill9-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true }));
  const blocks = 2 ** ORDER / BLOCK_BYTES;
  const stamps = Array.from({ length: OBJECTS }, () => new Uint32Array(blocks));
  const random = randomFrom(5);
  const end = performance.now() + TOTAL_MS;
  let applied = 0;
  let rounds = 0;
  while (rounds < ROUNDS && performance.now() < end) {
    rounds++;
    const done = await writeUntilKilled(directory, random() % 300);
    const store = await open(directory);
    const { seq } = store.pgInfo(PG).last;
    t.true(seq >= done, `round ${rounds}: ${done} was done, ${seq} is there`);
    for (; applied < seq; applied++) {
      const { op, object, offset, length } = entryOf(applied + 1);
      const stamp = op === EntryOp.WRITE ? applied + 1 : 0;
      stamps[object]!.fill(stamp, offset / BLOCK_BYTES, (offset + length) / BLOCK_BYTES);
    }
    for (let object = 0; object < OBJECTS; object++) {
      const { checks, payload } = await read(store, IMAGE, object, ORDER, 0, 2 ** ORDER);
      const expected = Buffer.concat(
        Array.from(stamps[object]!, (stamp, block) => stamped(BLOCK_BYTES, stamp, block * BLOCK_BYTES)),
      );
      const sums = payloadChecksums(expected, IMAGE, object, 0);
      stamps[object]!.forEach((stamp, block) => {
        if (stamp === 0) sums.writeUInt32LE(0, block * 4);
      });
      const found = payload ?? Buffer.alloc(2 ** ORDER);
      if (!found.equals(expected) || !checks.equals(sums)) return t.fail(`round ${rounds}: object ${object} differs`);
    }
    if (rounds % 4 === 0) await closed(store);
  }
  t.log(`${rounds} kills, ${applied} entries`);
  t.true(rounds > 5 && applied > 1000);
});
