// Replies of the transmission phase, written in place: the caller owns the buffer and knows the sizes.
//
// Each function writes at `at` of `target` and returns the position behind what it wrote. The data of a READ is not
// copied here: it follows its header, in the same buffer or in others.

import { Chunk, ChunkFlag, Magic, Size } from './constants.ts';
import { writeU64 } from './numbers.ts';

/** Bytes in front of the data of a READ's structured reply. */
export const OFFSET_DATA_BYTES = Size.CHUNK_HEADER + 8;

/** magic u32 | error u32 | cookie u64 */
export function writeSimpleReply(
  target: Buffer,
  at: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): number {
  target.writeUInt32BE(Magic.SIMPLE_REPLY, at);
  target.writeUInt32BE(error, at + 4);
  target.writeUInt32BE(cookieHigh, at + 8);
  target.writeUInt32BE(cookieLow, at + 12);
  return at + Size.SIMPLE_REPLY;
}

/** magic u32 | flags u16 | type u16 | cookie u64 | length u32 */
export function writeChunkHeader(
  target: Buffer,
  at: number,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  lengthBytes: number,
): number {
  target.writeUInt32BE(Magic.STRUCTURED_REPLY, at);
  target.writeUInt16BE(flags, at + 4);
  target.writeUInt16BE(type, at + 6);
  target.writeUInt32BE(cookieHigh, at + 8);
  target.writeUInt32BE(cookieLow, at + 12);
  target.writeUInt32BE(lengthBytes, at + 16);
  return at + Size.CHUNK_HEADER;
}

/** The only and last chunk of a READ: chunk header | offset u64, then `lengthBytes` (at least 1) of data by the caller */
export function writeOffsetData(
  target: Buffer,
  at: number,
  cookieHigh: number,
  cookieLow: number,
  offset: number,
  lengthBytes: number,
): number {
  at = writeChunkHeader(target, at, ChunkFlag.DONE, Chunk.OFFSET_DATA, cookieHigh, cookieLow, 8 + lengthBytes);
  writeU64(target, offset, at);
  return at + 8;
}

/** A last chunk without content: the success of a command that returns nothing. */
export function writeNone(target: Buffer, at: number, cookieHigh: number, cookieLow: number): number {
  return writeChunkHeader(target, at, ChunkFlag.DONE, Chunk.NONE, cookieHigh, cookieLow, 0);
}

export const errorChunkBytes = (message: Buffer): number => Size.CHUNK_HEADER + 6 + message.length;

/** Last chunk of a request that failed: chunk header | error u32 | message length u16 | message */
export function writeErrorChunk(
  target: Buffer,
  at: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
  message: Buffer,
): number {
  at = writeChunkHeader(target, at, ChunkFlag.DONE, Chunk.ERROR, cookieHigh, cookieLow, 6 + message.length);
  target.writeUInt32BE(error, at);
  target.writeUInt16BE(message.length, at + 4);
  message.copy(target, at + 6);
  return at + 6 + message.length;
}

/** A run of bytes with the same Allocation flags. */
export interface Descriptor {
  lengthBytes: number;
  flags: number;
}

export const blockStatusBytes = (descriptors: number): number => Size.CHUNK_HEADER + 4 + 8 * descriptors;

/** The only chunk of a BLOCK_STATUS with one context: chunk header | context u32 | n * (length u32 | flags u32) */
export function writeBlockStatus(
  target: Buffer,
  at: number,
  cookieHigh: number,
  cookieLow: number,
  context: number,
  descriptors: readonly Descriptor[],
): number {
  const lengthBytes = 4 + 8 * descriptors.length;
  at = writeChunkHeader(target, at, ChunkFlag.DONE, Chunk.BLOCK_STATUS, cookieHigh, cookieLow, lengthBytes);
  target.writeUInt32BE(context, at);
  at += 4;
  for (const { lengthBytes, flags } of descriptors) {
    target.writeUInt32BE(lengthBytes, at);
    target.writeUInt32BE(flags, at + 4);
    at += 8;
  }
  return at;
}
