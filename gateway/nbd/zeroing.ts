// TRIM and WRITE_ZEROES, which may span 4 GiB: a bounded piece at a time, one after the other.
//
//   offset ──┬── piece ──┬── piece ──┬─ rest       pieces end at multiples of their size, so that no object is cut
//            └ multiple  └ multiple  └ multiple    in two that need not be
//
// A discard of a whole disk thus leaves room for the reads of others, and zeroes that must take space (NO_HOLE: they are
// written as data) take no more memory for 4 GiB than for 4 MiB. With FUA a single piece carries it; several are
// followed by a flush, which costs less than FUA on each.

import type { Image } from '../../cluster/client/image.ts';
import { Command, CommandFlag } from '../nbd-protocol-ts/index.ts';
import { HOLE_PIECE_BYTES, ZERO_PIECE_BYTES } from './limits.ts';
import type { NbdRequest } from './request.ts';

const ZEROES = Buffer.alloc(ZERO_PIECE_BYTES);

export const isZeroing = (request: NbdRequest): boolean =>
  request.command === Command.TRIM || request.command === Command.WRITE_ZEROES;

/** Takes the next step, of which request.onDone hears the end. Returns false if there is none: all is done. */
export function stepZeroing(image: Image, request: NbdRequest): boolean {
  const { offset, lengthBytes, zeroedBytes } = request;
  const asData = request.command === Command.WRITE_ZEROES && (request.flags & CommandFlag.NO_HOLE) !== 0;
  const durable = (request.flags & CommandFlag.FUA) !== 0;
  const pieceMax = asData ? ZERO_PIECE_BYTES : HOLE_PIECE_BYTES;
  if (zeroedBytes < lengthBytes) {
    const from = offset + zeroedBytes;
    const bytes = Math.min(lengthBytes - zeroedBytes, pieceMax - (from % pieceMax));
    const fua = durable && bytes === lengthBytes;
    request.zeroedBytes += bytes;
    if (asData) image.write(from, ZEROES.subarray(0, bytes), fua, request.onDone);
    else image.zero(from, bytes, fua, request.onDone);
    return true;
  }
  const onePiece = lengthBytes <= pieceMax - (offset % pieceMax);
  if (!durable || onePiece || request.flushing) return false;
  request.flushing = true;
  image.flush(request.onDone);
  return true;
}
