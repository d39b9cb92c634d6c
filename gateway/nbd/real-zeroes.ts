// WRITE_ZEROES with NO_HOLE: the range must take space, so zeroes are written as data.
//
// A bounded piece at a time, one after the other, so that a request of 4 GiB takes no more memory than one of 4 MiB. With
// FUA a single piece carries it; several are followed by a flush, which costs less than FUA on each.

import type { Image } from '../../cluster/client/image.ts';
import { Command, CommandFlag } from '../nbd-protocol-ts/index.ts';
import { ZERO_PIECE_BYTES } from './limits.ts';
import type { NbdRequest } from './request.ts';

const ZEROES = Buffer.alloc(ZERO_PIECE_BYTES);

export const wantsRealZeroes = (request: NbdRequest): boolean =>
  request.command === Command.WRITE_ZEROES && (request.flags & CommandFlag.NO_HOLE) !== 0;

/** Takes the next step, of which request.onDone hears the end. Returns false if there is none: all is done. */
export function stepRealZeroes(image: Image, request: NbdRequest): boolean {
  const { lengthBytes, writtenBytes } = request;
  const durable = (request.flags & CommandFlag.FUA) !== 0;
  if (writtenBytes < lengthBytes) {
    const restBytes = lengthBytes - writtenBytes;
    const piece = restBytes < ZERO_PIECE_BYTES ? ZEROES.subarray(0, restBytes) : ZEROES;
    request.writtenBytes += piece.length;
    image.write(request.offset + writtenBytes, piece, durable && piece.length === lengthBytes, request.onDone);
    return true;
  }
  if (!durable || lengthBytes <= ZERO_PIECE_BYTES || request.flushing) return false;
  request.flushing = true;
  image.flush(request.onDone);
  return true;
}
