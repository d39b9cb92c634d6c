// A Disk that passes everything on and keeps a journal of what was asked of it: what crash-states.ts makes the states
// from that a power cut could have left.
//
//   journal   create 3 log-0000 | write 3 at 0 | sync begins 3 | write 4 at 4096 | sync ends 3 | rename | ...
//
// Files have numbers, so that one keeps its identity when it is renamed. A sync covers what was written before it began,
// and is over when its owner is told. Every event says how many steps the store owed at that moment even after a
// power cut; whoever drives the store knows that number.

import type { Disk, DiskFile } from '../../proto/ports.ts';
import type { DiskImage, FileImage } from './fault-disk.ts';

export type Happening =
  | { what: 'write'; file: number; at: number; bytes: Buffer }
  | { what: 'truncate'; file: number; sizeBytes: number }
  | { what: 'syncBegins'; file: number; sync: number }
  | { what: 'syncEnds'; file: number; sync: number }
  | { what: 'create'; file: number; name: string }
  | { what: 'rename'; from: string; to: string }
  | { what: 'remove'; name: string }
  | { what: 'syncDirectory' };

export type JournalEvent = Happening & {
  /** Steps that must be there if the power goes just before this event. */
  readonly owed: number;
};

export interface Recording {
  /** Files before the first event, all on stable storage, and their numbers by name. */
  readonly files: ReadonlyMap<number, FileImage>;
  readonly names: ReadonlyMap<string, number>;
  readonly journal: readonly JournalEvent[];
}

export class RecordingDisk implements Disk, Recording {
  readonly dead = false;
  readonly files = new Map<number, FileImage>();
  readonly names = new Map<string, number>();
  readonly journal: JournalEvent[] = [];
  private readonly inner: Disk;
  private readonly owed: () => number;
  /** Names as they are now. */
  private readonly current = new Map<string, number>();
  private lastFile = 0;
  private lastSync = 0;

  /**
   * @param inner holds what `before` says
   * @param owed steps that a power cut must not take now
   */
  constructor(inner: Disk, before: DiskImage, owed: () => number) {
    this.inner = inner;
    this.owed = owed;
    for (const [name, image] of before) {
      this.files.set(++this.lastFile, image);
      this.names.set(name, this.lastFile);
      this.current.set(name, this.lastFile);
    }
  }

  record(happening: Happening): void {
    this.journal.push({ ...happening, owed: this.owed() });
  }

  beginSync(file: number): number {
    const sync = ++this.lastSync;
    this.record({ what: 'syncBegins', file, sync });
    return sync;
  }

  open(name: string, create: boolean): DiskFile {
    const file = this.inner.open(name, create);
    let number = this.current.get(name);
    if (number === undefined) {
      number = ++this.lastFile;
      this.current.set(name, number);
      this.record({ what: 'create', file: number, name });
    }
    return new RecordingFile(this, file, number);
  }

  rename(from: string, to: string): void {
    this.inner.rename(from, to);
    this.current.set(to, this.current.get(from)!);
    this.current.delete(from);
    this.record({ what: 'rename', from, to });
  }

  remove(name: string): void {
    this.inner.remove(name);
    this.current.delete(name);
    this.record({ what: 'remove', name });
  }

  syncDirectory(): void {
    this.inner.syncDirectory();
    this.record({ what: 'syncDirectory' });
  }

  exists(name: string): boolean {
    return this.inner.exists(name);
  }

  list(): string[] {
    return this.inner.list();
  }

  freeBytes(): number {
    return this.inner.freeBytes();
  }
}

class RecordingFile implements DiskFile {
  readonly name: string;
  private readonly disk: RecordingDisk;
  private readonly inner: DiskFile;
  private readonly number: number;

  constructor(disk: RecordingDisk, inner: DiskFile, number: number) {
    this.disk = disk;
    this.inner = inner;
    this.number = number;
    this.name = inner.name;
  }

  write(parts: readonly Uint8Array[], position: number): void {
    this.inner.write(parts, position);
    this.disk.record({ what: 'write', file: this.number, at: position, bytes: Buffer.concat(parts) });
  }

  sync(done: Parameters<DiskFile['sync']>[0]): void {
    const sync = this.disk.beginSync(this.number);
    this.inner.sync((error) => {
      if (error === null) this.disk.record({ what: 'syncEnds', file: this.number, sync });
      done(error);
    });
  }

  syncNow(): void {
    const sync = this.disk.beginSync(this.number);
    this.inner.syncNow();
    this.disk.record({ what: 'syncEnds', file: this.number, sync });
  }

  truncate(sizeBytes: number): void {
    this.inner.truncate(sizeBytes);
    this.disk.record({ what: 'truncate', file: this.number, sizeBytes });
  }

  size(): number {
    return this.inner.size();
  }

  read(target: Uint8Array, position: number): number {
    return this.inner.read(target, position);
  }

  readLater(...asked: Parameters<DiskFile['readLater']>): void {
    this.inner.readLater(...asked);
  }

  close(): void {
    this.inner.close();
  }
}
