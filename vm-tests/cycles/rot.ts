// What bad disks do to the files of a daemon that is down: bits flipped, pages zeroed, ends cut off, an older copy of it.
//
// Only the data of objects is hurt (data-*): of the daemon's own records (log, metadata, checkpoints) it must refuse to
// start when they are damaged, and a person replaces the disk.

import { execFileSync } from 'node:child_process';
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const PAGE = 4096;

/** Hurts one or more pages. Returns what was done, in words. */
export function corruptAtRest(directory: string, random: () => number): string {
  const files = readdirSync(directory).filter((name) => name.startsWith('data-'));
  const name = files[Math.floor(random() * files.length)];
  if (name === undefined) return 'there is no data yet';
  const fd = openSync(join(directory, name), 'r+');
  try {
    const pages = usedPages(fd, 1 + Math.floor(random() * 8), random);
    if (pages.length === 0) return `${name} holds nothing yet`;
    const dice = random();
    if (dice < 0.4) {
      for (const page of pages)
        change(fd, page, (bytes) => {
          bytes[Math.floor(random() * PAGE)]! ^= 1 << Math.floor(random() * 8);
        });
      return `flipped a bit in ${pages.length} pages of ${name}`;
    }
    if (dice < 0.65) {
      for (const page of pages) change(fd, page, (bytes) => void bytes.fill(0));
      return `zeroed ${pages.length} pages of ${name}`;
    }
    if (dice < 0.85) {
      // A misdirected write, which is what an older or another block's content is to its checksum.
      const other = Buffer.alloc(PAGE);
      readSync(fd, other, 0, PAGE, pages[0]! * PAGE);
      for (const page of pages.slice(1)) writeSync(fd, other, 0, PAGE, page * PAGE);
      return `wrote one page over ${pages.length - 1} others of ${name}`;
    }
    const end = pages.sort((a, b) => a - b).at(-1)! * PAGE;
    const { size } = fstatSync(fd);
    ftruncateSync(fd, end);
    ftruncateSync(fd, size);
    return `lost what ${name} had beyond byte ${end} of ${size}`;
  } finally {
    closeSync(fd);
  }
}

/** Copies files of a directory; putBack() makes them what they were. */
export function copyFiles(
  directory: string,
  chosen: (name: string) => boolean,
): { names: string[]; putBack: () => void } {
  const names = readdirSync(directory).filter((name) => chosen(name) && lstatSync(join(directory, name)).isFile());
  const copy = mkdtempSync(join(tmpdir(), 'ashlar-older-'));
  const copyAll = (from: string, to: string): void => {
    const paths = names.map((name) => join(from, name));
    execFileSync('cp', ['--sparse=always', '--', ...paths, to]);
  };
  copyAll(directory, copy);
  return {
    names,
    putBack() {
      for (const name of readdirSync(directory))
        if (chosen(name) && lstatSync(join(directory, name)).isFile()) rmSync(join(directory, name));
      copyAll(copy, directory);
      rmSync(copy, { recursive: true });
    },
  };
}

/** Some of the pages that hold something. */
function usedPages(fd: number, count: number, random: () => number): number[] {
  const content = Buffer.alloc(fstatSync(fd).size);
  readSync(fd, content, 0, content.length, 0);
  const used: number[] = [];
  for (let page = 0; (page + 1) * PAGE <= content.length; page++)
    if (content.readUInt32LE(page * PAGE) !== 0) used.push(page);
  const found: number[] = [];
  while (found.length < count && used.length > 0) found.push(...used.splice(Math.floor(random() * used.length), 1));
  return found;
}
function change(fd: number, page: number, how: (bytes: Buffer) => void): void {
  const bytes = Buffer.alloc(PAGE);
  readSync(fd, bytes, 0, PAGE, page * PAGE);
  how(bytes);
  writeSync(fd, bytes, 0, PAGE, page * PAGE);
}
