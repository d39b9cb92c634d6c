// The real Disk: one directory of flat files, through node:fs. The only file of the storage engine that touches an fd.
//
// Writes are synchronous calls into the page cache (a writev of a batch takes microseconds, a trip through the thread
// pool ten times that); syncs and cold reads go to the thread pool. Errors become DiskError; what they mean is for the
// owner to decide. It does not lock the directory against a second process.

import fs from 'node:fs';
import path from 'node:path';
import { type Disk, DiskError, type DiskFile } from '../../proto/ports.ts';

/** Linux takes at most this many parts in one writev (UIO_MAXIOV). */
const PARTS_MAX = 1024;

/** Opens `directory`, making it (not its parents) if it is missing. */
export function openDirectory(directory: string): Disk {
  attempt(`make ${directory}`, () => {
    if (!fs.existsSync(directory)) {
      fs.mkdirSync(directory);
      syncPath(path.dirname(directory));
    }
  });
  return new Directory(directory);
}

class Directory implements Disk {
  private readonly directory: string;

  constructor(directory: string) {
    this.directory = directory;
  }

  open(name: string, create: boolean): DiskFile {
    const flags = fs.constants.O_RDWR | (create ? fs.constants.O_CREAT : 0);
    return attempt(`open ${name}`, () => new OpenFile(name, fs.openSync(this.at(name), flags, 0o600)));
  }

  exists(name: string): boolean {
    return fs.existsSync(this.at(name));
  }

  list(): string[] {
    return attempt('list', () => fs.readdirSync(this.directory));
  }

  rename(from: string, to: string): void {
    attempt(`rename ${from} to ${to}`, () => fs.renameSync(this.at(from), this.at(to)));
  }

  remove(name: string): void {
    attempt(`remove ${name}`, () => fs.unlinkSync(this.at(name)));
  }

  syncDirectory(): void {
    attempt('sync directory', () => syncPath(this.directory));
  }

  freeBytes(): number {
    return attempt('statfs', () => {
      const { bavail, bsize } = fs.statfsSync(this.directory);
      return bavail * bsize;
    });
  }

  private at(name: string): string {
    return path.join(this.directory, name);
  }
}

class OpenFile implements DiskFile {
  readonly name: string;
  private readonly fd: number;

  constructor(name: string, fd: number) {
    this.name = name;
    this.fd = fd;
  }

  size(): number {
    return attempt(`stat ${this.name}`, () => fs.fstatSync(this.fd).size);
  }

  read(target: Uint8Array, position: number): number {
    let done = 0;
    try {
      while (done < target.length) {
        const bytes = fs.readSync(this.fd, target, done, target.length - done, position + done);
        if (bytes === 0) break;
        done += bytes;
      }
    } catch (error) {
      throw diskError(`read ${target.length} bytes at ${position} of ${this.name}`, error);
    }
    return done;
  }

  readLater(target: Uint8Array, position: number, done: (error: DiskError | null, bytes: number) => void): void {
    const more = (filled: number): void => {
      fs.read(this.fd, target, filled, target.length - filled, position + filled, (error, bytes) => {
        if (error !== null) done(diskError(`read ${target.length} bytes at ${position} of ${this.name}`, error), 0);
        else if (bytes === 0 || filled + bytes === target.length) done(null, filled + bytes);
        else more(filled + bytes);
      });
    };
    more(0);
  }

  write(parts: readonly Uint8Array[], position: number): void {
    try {
      if (parts.length === 1) this.writeAll(parts[0]!, position);
      else this.writeParts(parts, position);
    } catch (error) {
      throw diskError(`write at ${position} of ${this.name}`, error);
    }
  }

  private writeAll(part: Uint8Array, position: number): void {
    let done = 0;
    while (done < part.length) done += fs.writeSync(this.fd, part, done, part.length - done, position + done);
  }

  private writeParts(parts: readonly Uint8Array[], position: number): void {
    for (let first = 0; first < parts.length; first += PARTS_MAX) {
      const group = parts.length <= PARTS_MAX ? parts : parts.slice(first, first + PARTS_MAX);
      let written = fs.writevSync(this.fd, group, position);
      // A short write (a signal, a nearly full disk) is finished part by part, so that its error is seen.
      for (const part of group) {
        if (written < part.length) this.writeAll(part.subarray(written), position + written);
        written = Math.max(0, written - part.length);
        position += part.length;
      }
    }
  }

  sync(done: (error: DiskError | null) => void): void {
    fs.fdatasync(this.fd, (error) => done(error === null ? null : diskError(`sync ${this.name}`, error)));
  }

  syncNow(): void {
    attempt(`sync ${this.name}`, () => fs.fdatasyncSync(this.fd));
  }

  truncate(sizeBytes: number): void {
    attempt(`truncate ${this.name} to ${sizeBytes}`, () => fs.ftruncateSync(this.fd, sizeBytes));
  }

  close(): void {
    attempt(`close ${this.name}`, () => fs.closeSync(this.fd));
  }
}

function syncPath(directory: string): void {
  const fd = fs.openSync(directory, fs.constants.O_RDONLY);
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

function attempt<T>(what: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw diskError(what, error);
  }
}

function diskError(what: string, cause: unknown): DiskError {
  const errno = cause instanceof Error && 'code' in cause ? cause.code : undefined;
  const full = errno === 'ENOSPC' || errno === 'EDQUOT';
  const code = full ? 'NO_SPACE' : errno === 'ENOENT' ? 'NOT_FOUND' : 'IO';
  return new DiskError(code, `${what}: ${cause instanceof Error ? cause.message : String(cause)}`, cause);
}
