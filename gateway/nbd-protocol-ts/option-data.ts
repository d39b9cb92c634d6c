// What stands in the data of the options that have any: INFO, GO, LIST_META_CONTEXT and SET_META_CONTEXT.
//
// Lengths inside the data are claims of a stranger: each is checked against what is left before it is used, by
// subtraction, so that nothing can overflow. A parser returns the parsed option, or the reason why it is not one.

import { STRING_BYTES_MAX } from './limits.ts';
import { readString } from './numbers.ts';

export interface InfoRequest {
  readonly name: string;
  /** Info types asked for, as they came: unknown ones and repetitions included. */
  readonly infos: readonly number[];
}

/** INFO and GO: name length u32 | name | count u16 | count * info type u16 */
export function parseInfoRequest(data: Buffer): InfoRequest | string {
  if (data.length < 6) return `${data.length} bytes, at least 6 are needed`;
  const nameBytes = data.readUInt32BE(0);
  if (nameBytes > data.length - 6) return `a name of ${nameBytes} bytes does not fit the option`;
  const name = readString(data, 4, 4 + nameBytes);
  if (name === null) return 'the name is no UTF-8 string of at most 4096 bytes without NUL';
  const count = data.readUInt16BE(4 + nameBytes);
  let at = 6 + nameBytes;
  if (count * 2 !== data.length - at) return `${count} information requests in ${data.length - at} bytes`;
  const infos: number[] = [];
  for (; at < data.length; at += 2) infos.push(data.readUInt16BE(at));
  return { name, infos };
}

export interface MetaRequest {
  readonly name: string;
  /** Queries, each byte one character: they are compared, never shown. */
  readonly queries: readonly string[];
}

/** LIST_META_CONTEXT and SET_META_CONTEXT: name length u32 | name | count u32 | count * (length u32 | query) */
export function parseMetaRequest(data: Buffer): MetaRequest | string {
  if (data.length < 8) return `${data.length} bytes, at least 8 are needed`;
  const nameBytes = data.readUInt32BE(0);
  if (nameBytes > data.length - 8) return `a name of ${nameBytes} bytes does not fit the option`;
  const name = readString(data, 4, 4 + nameBytes);
  if (name === null) return 'the name is no UTF-8 string of at most 4096 bytes without NUL';
  const count = data.readUInt32BE(4 + nameBytes);
  let at = 8 + nameBytes;
  const queries: string[] = [];
  for (let index = 0; index < count; index++) {
    if (data.length - at < 4) return `${count} queries, but the option ends after ${index}`;
    const queryBytes = data.readUInt32BE(at);
    at += 4;
    if (queryBytes > data.length - at) return `a query of ${queryBytes} bytes does not fit the option`;
    if (queryBytes > STRING_BYTES_MAX) return `a query of ${queryBytes} bytes`;
    queries.push(data.toString('latin1', at, at + queryBytes));
    at += queryBytes;
  }
  if (at !== data.length) return `${data.length - at} bytes behind the last query`;
  return { name, queries };
}
