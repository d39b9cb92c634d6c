// What a server says during the handshake, as bytes. Nothing here is on a hot path: each reply is a fresh buffer.

import { HandshakeFlag, Info, Magic, OptionReply, Size } from './constants.ts';
import { MESSAGE_BYTES_MAX } from './limits.ts';
import { writeU64 } from './numbers.ts';

/** "NBDMAGIC" u64 | "IHAVEOPT" u64 | handshake flags u16 */
export function greeting(): Buffer {
  const bytes = Buffer.alloc(Size.GREETING);
  bytes.writeUInt32BE(Magic.GREETING_HIGH, 0);
  bytes.writeUInt32BE(Magic.GREETING_LOW, 4);
  bytes.writeUInt32BE(Magic.OPTION_HIGH, 8);
  bytes.writeUInt32BE(Magic.OPTION_LOW, 12);
  bytes.writeUInt16BE(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES, 16);
  return bytes;
}

/** magic u64 | option u32 | reply type u32 | length u32 | data */
export function optionReply(option: number, type: number, data: Buffer | null): Buffer {
  const dataBytes = data === null ? 0 : data.length;
  const bytes = Buffer.alloc(Size.OPTION_REPLY_HEADER + dataBytes);
  bytes.writeUInt32BE(Magic.OPTION_REPLY_HIGH, 0);
  bytes.writeUInt32BE(Magic.OPTION_REPLY_LOW, 4);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(type, 12);
  bytes.writeUInt32BE(dataBytes, 16);
  if (data !== null) data.copy(bytes, Size.OPTION_REPLY_HEADER);
  return bytes;
}

/** An error reply with a text for a human, cut to MESSAGE_BYTES_MAX. */
export function optionError(option: number, type: number, message: string): Buffer {
  return optionReply(option, type, messageBytes(message));
}

/** The message as UTF-8, cut between characters. */
export function messageBytes(message: string): Buffer {
  const bytes = Buffer.from(message, 'utf8');
  if (bytes.length <= MESSAGE_BYTES_MAX) return bytes;
  let end = MESSAGE_BYTES_MAX;
  while ((bytes[end]! & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}

/** LIST: name length u32 | name | description */
export function serverReply(option: number, name: string, description: string): Buffer {
  const nameBytes = Buffer.from(name, 'utf8');
  const length = Buffer.alloc(4);
  length.writeUInt32BE(nameBytes.length, 0);
  return optionReply(option, OptionReply.SERVER, Buffer.concat([length, nameBytes, Buffer.from(description, 'utf8')]));
}

/** EXPORT: type u16 | size u64 | transmission flags u16 */
export function exportInfoReply(option: number, sizeBytes: number, flags: number): Buffer {
  const data = Buffer.alloc(12);
  data.writeUInt16BE(Info.EXPORT, 0);
  writeU64(data, sizeBytes, 2);
  data.writeUInt16BE(flags, 10);
  return optionReply(option, OptionReply.INFO, data);
}

/** NAME and DESCRIPTION: type u16 | text */
export function textInfoReply(option: number, info: number, text: string): Buffer {
  const type = Buffer.alloc(2);
  type.writeUInt16BE(info, 0);
  return optionReply(option, OptionReply.INFO, Buffer.concat([type, Buffer.from(text, 'utf8')]));
}

/** BLOCK_SIZE: type u16 | minimum u32 | preferred u32 | maximum payload u32 */
export function blockSizeInfoReply(option: number, minimum: number, preferred: number, maximum: number): Buffer {
  const data = Buffer.alloc(14);
  data.writeUInt16BE(Info.BLOCK_SIZE, 0);
  data.writeUInt32BE(minimum, 2);
  data.writeUInt32BE(preferred, 6);
  data.writeUInt32BE(maximum, 10);
  return optionReply(option, OptionReply.INFO, data);
}

/** META_CONTEXT: id u32 | name */
export function metaContextReply(option: number, id: number, name: string): Buffer {
  const number = Buffer.alloc(4);
  number.writeUInt32BE(id, 0);
  return optionReply(option, OptionReply.META_CONTEXT, Buffer.concat([number, Buffer.from(name, 'utf8')]));
}

/** Reply to EXPORT_NAME, which has no header: size u64 | transmission flags u16 | 124 zeroes unless they are unwanted */
export function exportNameReply(sizeBytes: number, flags: number, zeroes: boolean): Buffer {
  const bytes = Buffer.alloc(10 + (zeroes ? Size.EXPORT_NAME_ZEROES : 0));
  writeU64(bytes, sizeBytes, 0);
  bytes.writeUInt16BE(flags, 8);
  return bytes;
}
