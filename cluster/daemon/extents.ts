// Byte ranges of an object, as recovery counts, joins and cuts them. Pure functions; all bounds are whole blocks.

import { BLOCK_BYTES } from '../../proto/limits.ts';

/** [start, end) */
export interface Extent {
  start: number;
  end: number;
}

/** Bytes of data in one push: large enough to keep a link busy, small enough not to hold up a client for long. */
const PIECE_BYTES_MAX = 1024 * 1024;

/** Ordered and disjoint; ranges that touch become one. Sorts `extents`. */
export function joinedExtents(extents: Extent[]): Extent[] {
  extents.sort((a, b) => a.start - b.start);
  const result: Extent[] = [];
  for (const extent of extents) {
    const last = result[result.length - 1];
    if (last !== undefined && extent.start <= last.end) last.end = Math.max(last.end, extent.end);
    else result.push({ ...extent });
  }
  return result;
}

export const extentBytes = (extents: readonly Extent[]): number =>
  extents.reduce((sum, { start, end }) => sum + end - start, 0);

/** The runs of blocks that hold data. @param bits as Store.allocation() gives them */
export function runsOf(bits: Buffer | null, objectBytes: number): Extent[] {
  const runs: Extent[] = [];
  if (bits === null) return runs;
  for (let block = 0; block < objectBytes / BLOCK_BYTES; block++) {
    if ((bits[block >> 3]! & (1 << (block & 7))) === 0) continue;
    const last = runs[runs.length - 1];
    if (last !== undefined && last.end === block * BLOCK_BYTES) last.end += BLOCK_BYTES;
    else runs.push({ start: block * BLOCK_BYTES, end: (block + 1) * BLOCK_BYTES });
  }
  return runs;
}

/** Cut into what one push carries; at least one, if need be empty: a push also says that the object is whole now. */
export function piecesOf(extents: readonly Extent[]): Extent[] {
  const pieces: Extent[] = [];
  for (const { start, end } of extents)
    for (let at = start; at < end; at += PIECE_BYTES_MAX)
      pieces.push({ start: at, end: Math.min(end, at + PIECE_BYTES_MAX) });
  return pieces.length > 0 ? pieces : [{ start: 0, end: 0 }];
}
