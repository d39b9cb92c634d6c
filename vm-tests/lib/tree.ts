// A directory tree to copy: some thousand files of all sizes, the same for the same seed, with a list of checksums in
// the format of sha256sum -c.

import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Tree {
  root: string;
  /** sha256sum -c reads it, in the directory of the copy. */
  manifest: string;
  files: number;
  bytes: number;
}

/** Makes `files` files in DIRECTORY/tree: most are small, every 100th has 1 to 3 MiB, every 50th is empty. */
export function makeTree(directory: string, files: number, seed: number): Tree {
  const root = join(directory, 'tree');
  const manifest = join(directory, 'manifest');
  const next = generator(seed);
  const lines: string[] = [];
  let bytes = 0;
  for (let i = 0; i < files; i++) {
    const folder = join(`d${i % 17}`, `e${i % 5}`);
    const length = i % 50 === 1 ? 0 : i % 100 === 0 ? 2 ** 20 + (next() % 2 ** 21) : next() % 12_000;
    const content = Buffer.alloc(length);
    for (let at = 0; at + 4 <= length; at += 4) content.writeUInt32LE(next(), at);
    const path = join(folder, `file-${i}`);
    mkdirSync(join(root, folder), { recursive: true });
    writeFileSync(join(root, path), content);
    lines.push(`${createHash('sha256').update(content).digest('hex')}  ./${path}`);
    bytes += length;
  }
  writeFileSync(manifest, `${lines.join('\n')}\n`);
  return { root, manifest, files, bytes };
}

/** xorshift32: u32 numbers from a seed. */
export function generator(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state;
  };
}
