// What the oracle writes: blocks of 4 KiB, each of which says who it is, eight times.
//
//   sector (512 bytes): magic u32 | volume u32 | block u32 | stamp u32 | sector u32 | filler | crc32 of all before u32
//
// The volume is a number of this export in this run, so that data of another export, or of an earlier run, is known as
// such. A stamp is given once, to one change of one run of blocks. Every sector speaks for itself: a block of which some
// sectors are older is torn, one that names another block is misdirected. Shares nothing with the product.

import { crc32 } from 'node:zlib';

export const BLOCK = 4096;
const SECTOR = 512;
const SECTORS = BLOCK / SECTOR;
const MAGIC = 0x4c43524f; // "ORCL"
const HEADER = 20;
const CRC_AT = SECTOR - 4;

/** What a block read from the disk turned out to be. */
export type Verdict = { is: 'zeros' } | { is: 'stamp'; stamp: number } | { is: 'damage'; why: string };

/** Fills `target` (one block) for the place `block` of `volume`. */
export function stampInto(target: Buffer, volume: number, block: number, stamp: number): void {
  let state = (Math.imul(block + 1, 0x9e3779b1) ^ Math.imul(stamp, 0x85ebca6b) ^ volume) >>> 0 || 1;
  for (let sector = 0; sector < SECTORS; sector++) {
    const at = sector * SECTOR;
    target.writeUInt32LE(MAGIC, at);
    target.writeUInt32LE(volume, at + 4);
    target.writeUInt32LE(block, at + 8);
    target.writeUInt32LE(stamp, at + 12);
    target.writeUInt32LE(sector, at + 16);
    for (let byte = at + HEADER; byte < at + CRC_AT; byte += 4) {
      state ^= state << 13;
      state ^= state >>> 17;
      state = (state ^ (state << 5)) >>> 0;
      target.writeUInt32LE(state, byte);
    }
    target.writeUInt32LE(crc32(target.subarray(at, at + CRC_AT)), at + CRC_AT);
  }
}

/** Looks at one block read from place `block` of `volume`. */
export function verdictOf(content: Buffer, volume: number, block: number): Verdict {
  const sectors: string[] = [];
  let stamp = -1;
  let zeros = 0;
  for (let sector = 0; sector < SECTORS; sector++) {
    const bytes = content.subarray(sector * SECTOR, (sector + 1) * SECTOR);
    const found = sectorOf(bytes, volume, block, sector);
    if (found === 0) zeros++;
    else if (typeof found === 'number' && (stamp === -1 || stamp === found)) stamp = found;
    sectors.push(typeof found === 'number' ? `stamp ${found}` : found);
  }
  if (zeros === SECTORS) return { is: 'zeros' };
  if (zeros === 0 && sectors.every((text) => text === sectors[0]) && stamp > 0) return { is: 'stamp', stamp };
  const strange = sectors.find((text) => !text.startsWith('stamp'));
  const why = strange ?? 'torn';
  return { is: 'damage', why: `${why}; sectors: ${runsOf(sectors)}` };
}

/** The sector's stamp, 0 for zeros, or what is wrong with it. */
function sectorOf(bytes: Buffer, volume: number, block: number, sector: number): number | string {
  if (bytes.readUInt32LE(0) !== MAGIC)
    return bytes.every((byte) => byte === 0) ? 0 : `not ours (${bytes.toString('hex', 0, 16)})`;
  if (bytes.readUInt32LE(CRC_AT) !== crc32(bytes.subarray(0, CRC_AT))) return 'damaged bytes (wrong checksum)';
  if (bytes.readUInt32LE(4) !== volume) return 'data of another volume';
  const stamp = bytes.readUInt32LE(12);
  if (bytes.readUInt32LE(8) !== block) return `data of block ${bytes.readUInt32LE(8)} (stamp ${stamp})`;
  if (bytes.readUInt32LE(16) !== sector) return `sector ${bytes.readUInt32LE(16)} in the wrong place`;
  return stamp;
}

/** "stamp 5 x3, stamp 6 x5" */
function runsOf(texts: readonly string[]): string {
  const runs: { text: string; count: number }[] = [];
  for (const text of texts) {
    const last = runs.at(-1);
    if (last !== undefined && last.text === text) last.count++;
    else runs.push({ text, count: 1 });
  }
  return runs.map(({ text, count }) => `${text} x${count}`).join(', ');
}
