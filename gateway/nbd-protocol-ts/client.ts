// The client's frames, as bytes: what a client sends. Used by this package's conformance suite and by tests.
//
// Each function makes one fresh buffer and checks nothing: a test must be able to send what is wrong.

import { Command, Magic, Size } from './constants.ts';
import { writeU64 } from './numbers.ts';

export function encodeClientFlags(flags: number): Buffer {
  const bytes = Buffer.alloc(Size.CLIENT_FLAGS);
  bytes.writeUInt32BE(flags, 0);
  return bytes;
}

/** "IHAVEOPT" u64 | option u32 | length u32 | data. @param lengthBytes what the header claims */
export function encodeOption(option: number, data: Buffer | null = null, lengthBytes = data?.length ?? 0): Buffer {
  const header = Buffer.alloc(Size.OPTION_HEADER);
  header.writeUInt32BE(Magic.OPTION_HIGH, 0);
  header.writeUInt32BE(Magic.OPTION_LOW, 4);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(lengthBytes, 12);
  return data === null ? header : Buffer.concat([header, data]);
}

/** Data of INFO and GO: name length u32 | name | count u16 | count * info u16 */
export function encodeInfoRequest(name: string, infos: readonly number[] = []): Buffer {
  const nameBytes = Buffer.from(name, 'utf8');
  const bytes = Buffer.alloc(6 + nameBytes.length + 2 * infos.length);
  bytes.writeUInt32BE(nameBytes.length, 0);
  nameBytes.copy(bytes, 4);
  bytes.writeUInt16BE(infos.length, 4 + nameBytes.length);
  infos.forEach((info, index) => {
    bytes.writeUInt16BE(info, 6 + nameBytes.length + 2 * index);
  });
  return bytes;
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT: name length u32 | name | count u32 | count * (length u32 | query) */
export function encodeMetaRequest(name: string, queries: readonly string[] = []): Buffer {
  const parts = [prefixed(name)];
  const count = Buffer.alloc(4);
  count.writeUInt32BE(queries.length, 0);
  parts.push(count);
  for (const query of queries) parts.push(prefixed(query));
  return Buffer.concat(parts);
}

/** length u32 | text */
function prefixed(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8');
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length, 0);
  return Buffer.concat([length, bytes]);
}

export interface ClientRequest {
  readonly command: number;
  readonly flags?: number;
  readonly cookieHigh?: number;
  readonly cookieLow?: number;
  readonly offset?: number;
  readonly lengthBytes?: number;
  readonly payload?: Buffer;
}

/** magic u32 | flags u16 | command u16 | cookie u64 | offset u64 | length u32 | payload of a WRITE */
export function encodeRequest(request: ClientRequest): Buffer {
  const payload = request.command === Command.WRITE ? request.payload : undefined;
  const bytes = Buffer.alloc(Size.REQUEST + (payload?.length ?? 0));
  bytes.writeUInt32BE(Magic.REQUEST, 0);
  bytes.writeUInt16BE(request.flags ?? 0, 4);
  bytes.writeUInt16BE(request.command, 6);
  bytes.writeUInt32BE(request.cookieHigh ?? 0, 8);
  bytes.writeUInt32BE(request.cookieLow ?? 0, 12);
  writeU64(bytes, request.offset ?? 0, 16);
  bytes.writeUInt32BE(request.lengthBytes ?? payload?.length ?? 0, 24);
  payload?.copy(bytes, Size.REQUEST);
  return bytes;
}
