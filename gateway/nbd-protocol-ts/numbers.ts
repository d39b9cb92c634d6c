// 64-bit integers as Numbers, strings off the wire, and strings fit to be shown.

import { isUtf8 } from 'node:buffer';
import { SHOWN_CHARACTERS_MAX, STRING_BYTES_MAX } from './limits.ts';

/** u64 big endian. What a Number can't hold exactly (2^53 and up) reads as Infinity, which fails every range check. */
export function readU64(from: Buffer, at: number): number {
  const high = from.readUInt32BE(at);
  return high < 2 ** 21 ? high * 2 ** 32 + from.readUInt32BE(at + 4) : Number.POSITIVE_INFINITY;
}

/** @param value an integer from 0 to 2^53 - 1 */
export function writeU64(target: Buffer, value: number, at: number): void {
  target.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  target.writeUInt32BE(value % 2 ** 32, at + 4);
}

/** The string in bytes [start, end), or null if the protocol does not allow it: not UTF-8, a NUL in it, too long. */
export function readString(from: Buffer, start: number, end: number): string | null {
  const bytes = from.subarray(start, end);
  if (bytes.length > STRING_BYTES_MAX || bytes.includes(0) || !isUtf8(bytes)) return null;
  return bytes.toString('utf8');
}

/** A client's string, quoted, escaped and cut, so that it can't forge a log line or fill one. */
export function shown(text: string): string {
  const cut = text.length > SHOWN_CHARACTERS_MAX ? `${text.slice(0, SHOWN_CHARACTERS_MAX)}...` : text;
  return JSON.stringify(cut).replace(/[\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g, '?');
}
