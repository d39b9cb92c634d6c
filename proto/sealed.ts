// A JSON value in a file that must be whole to be believed: saved maps, backups of the master.
//
//   ashlar KIND FORMAT BYTES SHA256\n     the first line: what it is, how long the rest is, and its checksum
//   {json}
//
// The line can be read by people; a file that was cut short, altered, or belongs to something else is told from a good
// one before any of it is parsed. Writing the file atomically is its owner's business.

import { createHash } from 'node:crypto';
import { StorageError } from './errors.ts';

/** A longer first line is none of ours. */
const LINE_BYTES_MAX = 256;
const NEWLINE = 10;

export interface SealKind {
  /** One word. */
  readonly name: string;
  /** Changes when an older program would misread the value. */
  readonly format: number;
}

/** A backup of the master's store: ControlReply<'backup'>, written by the CLI, read by the master's restore. */
export const MASTER_BACKUP: SealKind = { name: 'master-backup', format: 1 };

export function seal(kind: SealKind, value: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(value));
  return Buffer.concat([Buffer.from(`ashlar ${kind.name} ${kind.format} ${body.length} ${digestOf(body)}\n`), body]);
}

/** The value of a sealed file. Throws StorageError UNSUPPORTED for another kind or format, CHECKSUM for a damaged one. */
export function unseal(kind: SealKind, bytes: Buffer): unknown {
  const end = bytes.subarray(0, LINE_BYTES_MAX).indexOf(NEWLINE);
  const words = bytes.toString('latin1', 0, Math.max(0, end)).split(' ');
  const [magic, name, format, length, digest] = words;
  if (words.length !== 5 || magic !== 'ashlar' || name !== kind.name)
    throw new StorageError('UNSUPPORTED', `it is no ${kind.name} of Ashlar`);
  if (format !== String(kind.format))
    throw new StorageError('UNSUPPORTED', `it has format ${format}; this version reads ${kind.format}`);
  const body = bytes.subarray(end + 1);
  if (length !== String(body.length))
    throw new StorageError('CHECKSUM', `it has ${body.length} bytes where its first line says ${length}`);
  if (digestOf(body) !== digest) throw new StorageError('CHECKSUM', 'its checksum is wrong: it is damaged');
  try {
    return JSON.parse(body.toString('utf8')) as unknown;
  } catch (error) {
    throw new StorageError('CHECKSUM', `it does not hold JSON: ${(error as Error).message}`, error);
  }
}

const digestOf = (body: Buffer): string => createHash('sha256').update(body).digest('hex');
