// A finished request's reply, into the outbox.
//
// Simple replies unless structured ones are negotiated. With these, READ and BLOCK_STATUS must be answered by chunks, and
// every error is one, for the sake of its text; the success of all other commands stays a simple reply, which is shorter.

import type { Outbox } from '../../proto/outbox.ts';
import {
  BASE_ALLOCATION_ID,
  blockStatusBytes,
  Command,
  errorChunkBytes,
  messageBytes,
  OFFSET_DATA_BYTES,
  Size,
  writeBlockStatus,
  writeErrorChunk,
  writeNone,
  writeOffsetData,
  writeSimpleReply,
} from '../nbd-protocol-ts/index.ts';
import type { NbdRequest } from './request.ts';

export function writeReply(outbox: Outbox, request: NbdRequest, structured: boolean): void {
  const { cookieHigh, cookieLow } = request;
  if (request.error !== 0) return writeError(outbox, request, structured);
  if (request.parts !== null) return writeData(outbox, request, request.parts, structured);
  if (request.descriptors !== null) {
    const bytes = Buffer.allocUnsafe(blockStatusBytes(request.descriptors.length));
    writeBlockStatus(bytes, 0, cookieHigh, cookieLow, BASE_ALLOCATION_ID, request.descriptors);
    return outbox.append(bytes, false);
  }
  const slab = outbox.room(Size.CHUNK_HEADER);
  const at = outbox.position;
  // A READ of nothing: an empty OFFSET_DATA chunk is illegal.
  const none = structured && request.command === Command.READ;
  outbox.advance(
    none ? writeNone(slab, at, cookieHigh, cookieLow) : writeSimpleReply(slab, at, 0, cookieHigh, cookieLow),
  );
}

function writeData(outbox: Outbox, request: NbdRequest, parts: readonly Buffer[], structured: boolean): void {
  const { cookieHigh, cookieLow, offset, lengthBytes } = request;
  const slab = outbox.room(OFFSET_DATA_BYTES);
  const at = outbox.position;
  outbox.advance(
    structured
      ? writeOffsetData(slab, at, cookieHigh, cookieLow, offset, lengthBytes)
      : writeSimpleReply(slab, at, 0, cookieHigh, cookieLow),
  );
  for (let index = 0; index < parts.length; index++) outbox.append(parts[index]!, true);
}

function writeError(outbox: Outbox, request: NbdRequest, structured: boolean): void {
  const { error, cookieHigh, cookieLow } = request;
  if (structured) {
    const message = messageBytes(request.message);
    const slab = outbox.room(errorChunkBytes(message));
    outbox.advance(writeErrorChunk(slab, outbox.position, error, cookieHigh, cookieLow, message));
  } else {
    const slab = outbox.room(Size.SIMPLE_REPLY);
    outbox.advance(writeSimpleReply(slab, outbox.position, error, cookieHigh, cookieLow));
  }
}
