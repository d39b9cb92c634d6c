// A Disk in memory that fails on demand, for tests: every fault that a real one has, at a place chosen by number.
//
//   fault     the N-th write, sync, rename, ... fails with a code, or the process dies just before it
//   kill      nothing is done any more and nobody is called back; survivor('kill') has all that was written
//   power cut survivor('power') loses, keeps or tears at 512 bytes each page that was not synced, and may lose names
//             that were made or renamed since the last syncDirectory
//
// Pages are never changed in place, so disks are copied cheaply: one scenario is run from the same start many times.

import { type Clock, type Disk, DiskError, type DiskFile } from '../../proto/ports.ts';
import { PAGE_BYTES } from './limits.ts';

const SECTOR_BYTES = 512;
const ZEROS = Buffer.alloc(PAGE_BYTES);

/** What the owner of a killed disk gets: it would not be running. */
export class Killed extends Error {}

/** Reads are counted apart: they are many, and change nothing. */
export type Operation = 'write' | 'sync' | 'create' | 'rename' | 'syncDirectory' | 'truncate' | 'read';

export interface Fault {
  /** Counted from 1 over all operations that `of` names (all but reads, if left out). */
  at: number;
  of?: Operation;
  what: 'kill' | 'IO' | 'NO_SPACE';
  /** And every later one. */
  forEver?: boolean;
}

/** Files as they are on a disk: for making one. */
export interface FileImage {
  readonly pages: ReadonlyMap<number, Buffer>;
  readonly sizeBytes: number;
}
export type DiskImage = ReadonlyMap<string, FileImage>;

class Contents {
  pages = new Map<number, Buffer>();
  sizeBytes = 0;
  /** Pages changed since the last sync, as they are on stable storage; null: not there. */
  unsynced = new Map<number, Buffer | null>();
  /** The same for pages that a failed sync marked clean: no later sync makes them durable, only a new write. */
  forgotten = new Map<number, Buffer | null>();
  durableSizeBytes = 0;

  copy(): Contents {
    const copy = new Contents();
    copy.pages = new Map(this.pages);
    copy.sizeBytes = this.sizeBytes;
    copy.unsynced = new Map(this.unsynced);
    copy.forgotten = new Map(this.forgotten);
    copy.durableSizeBytes = this.durableSizeBytes;
    return copy;
  }

  /** What a power cut leaves. */
  cut(random: () => number, keeps: (page: number) => boolean | undefined): Contents {
    const left = this.copy();
    for (const [page, before] of [...this.unsynced, ...this.forgotten]) {
      const now = this.pages.get(page) ?? ZEROS;
      const kept = keeps(page);
      const fate = kept === undefined ? random() % 4 : kept ? 0 : 1;
      if (fate === 0) continue;
      if (fate === 1 || fate === 2) left.put(page, before);
      else {
        const torn = Buffer.from(before ?? ZEROS);
        for (let at = 0; at < PAGE_BYTES; at += SECTOR_BYTES)
          if (random() % 2 === 0) now.copy(torn, at, at, at + SECTOR_BYTES);
        left.put(page, torn);
      }
    }
    if (random() % 2 === 0) left.sizeBytes = this.durableSizeBytes;
    left.unsynced.clear();
    left.forgotten.clear();
    left.durableSizeBytes = left.sizeBytes;
    return left;
  }

  put(page: number, bytes: Buffer | null): void {
    if (bytes === null) this.pages.delete(page);
    else this.pages.set(page, bytes);
  }
}

export class FaultDisk implements Disk {
  private readonly clock: Clock;
  private names = new Map<string, Contents>();
  private durableNames = new Map<string, Contents>();
  private fault: Fault | null = null;
  private counts = new Map<Operation | 'all', number>();
  /** Pages there may be in all files together. */
  capacityPages = Number.POSITIVE_INFINITY;
  private usedPages = 0;
  /** Called at each blocking read: lets a test make time go by. */
  onRead: (() => void) | null = null;
  /** Pages that can't be read: EIO. */
  readonly unreadable = new Set<string>();
  /** Turns of the loop that a read off the loop takes. */
  laterTurns: () => number = () => 1;
  dead = false;

  constructor(clock: Clock) {
    this.clock = clock;
  }

  /** A disk that holds these files, all of it on stable storage. */
  static holding(image: DiskImage, clock: Clock): FaultDisk {
    const disk = new FaultDisk(clock);
    for (const [name, { pages, sizeBytes }] of image) {
      const contents = new Contents();
      contents.pages = new Map(pages);
      contents.sizeBytes = sizeBytes;
      contents.durableSizeBytes = sizeBytes;
      disk.names.set(name, contents);
      disk.usedPages += pages.size;
    }
    disk.durableNames = new Map(disk.names);
    return disk;
  }

  /** What all files hold now, whatever was synced. */
  image(): DiskImage {
    const image = new Map<string, FileImage>();
    for (const [name, { pages, sizeBytes }] of this.names) image.set(name, { pages: new Map(pages), sizeBytes });
    return image;
  }

  /** Arms a fault and counts operations from here. */
  arm(fault: Fault | null): void {
    this.fault = fault;
    this.counts.clear();
  }

  /** Operations since arm(). */
  counted(of?: Operation): number {
    return this.counts.get(of ?? 'all') ?? 0;
  }

  /**
   * The disk that the next process finds, on the given clock. This one stays as it is.
   * @param keeps for a power cut: is this unsynced page kept, lost, or (undefined) left to `random`?
   */
  survivor(
    how: 'kill' | 'power',
    clock: Clock,
    random: () => number = () => 1,
    keeps: (name: string, page: number) => boolean | undefined = () => undefined,
  ): FaultDisk {
    const next = new FaultDisk(clock);
    next.capacityPages = this.capacityPages;
    const copies = new Map<Contents, Contents>();
    const copyOf = (contents: Contents, name: string): Contents => {
      const cut = () => contents.cut(random, (page) => keeps(name, page));
      const copy = copies.get(contents) ?? (how === 'kill' ? contents.copy() : cut());
      copies.set(contents, copy);
      return copy;
    };
    const lost = how === 'power' && random() % 2 === 0;
    for (const [name, contents] of lost ? this.durableNames : this.names) next.names.set(name, copyOf(contents, name));
    for (const [name, contents] of how === 'power' ? next.names : this.durableNames)
      next.durableNames.set(name, how === 'power' ? contents : copyOf(contents, name));
    for (const contents of new Set(next.names.values())) next.usedPages += contents.pages.size;
    return next;
  }

  /** What a power cut leaves that takes all that was not synced, names included. */
  harshCut(clock: Clock): FaultDisk {
    return this.survivor(
      'power',
      clock,
      () => 0,
      () => false,
    );
  }

  /** Flips a bit where the bytes are, whatever was synced. */
  flipBit(name: string, position: number, bit: number): void {
    const contents = this.contents(name);
    const page = Math.floor(position / PAGE_BYTES);
    const bytes = Buffer.from(contents.pages.get(page) ?? ZEROS);
    bytes[position % PAGE_BYTES]! ^= 1 << bit;
    contents.pages.set(page, bytes);
  }

  private contents(name: string): Contents {
    const contents = this.names.get(name);
    if (contents === undefined) throw new DiskError('NOT_FOUND', `${name} does not exist`);
    return contents;
  }

  /** Counts an operation; throws if it is the one to fail. */
  operate(operation: Operation): void {
    if (this.dead) throw new Killed();
    this.counts.set(operation, this.counted(operation) + 1);
    if (operation !== 'read') this.counts.set('all', this.counted() + 1);
    const { fault } = this;
    if (fault === null || (fault.of ?? (operation === 'read' ? 'all' : operation)) !== operation) return;
    const count = this.counted(fault.of);
    if (count < fault.at || (count > fault.at && !fault.forEver)) return;
    if (fault.what === 'kill') {
      this.dead = true;
      throw new Killed();
    }
    throw new DiskError(fault.what, `${operation} ${count} was made to fail`);
  }

  open(name: string, create: boolean): DiskFile {
    if (this.dead) throw new Killed();
    let contents = this.names.get(name);
    if (contents === undefined) {
      if (!create) throw new DiskError('NOT_FOUND', `${name} does not exist`);
      this.operate('create');
      contents = new Contents();
      this.names.set(name, contents);
    }
    return new FaultFile(this, name, contents, this.clock);
  }

  exists(name: string): boolean {
    return this.names.has(name);
  }

  list(): string[] {
    return [...this.names.keys()];
  }

  rename(from: string, to: string): void {
    this.operate('rename');
    this.names.set(to, this.contents(from));
    this.names.delete(from);
  }

  remove(name: string): void {
    this.operate('rename');
    this.contents(name);
    this.names.delete(name);
  }

  syncDirectory(): void {
    this.operate('syncDirectory');
    this.durableNames = new Map(this.names);
  }

  freeBytes(): number {
    const free = Math.max(0, this.capacityPages - this.usedPages) * PAGE_BYTES;
    return Number.isFinite(free) ? free : 2 ** 40;
  }

  /** Takes space for a page that was not there. */
  takePage(): void {
    if (this.usedPages >= this.capacityPages) throw new DiskError('NO_SPACE', 'the disk is full');
    this.usedPages++;
  }
}

class FaultFile implements DiskFile {
  readonly name: string;
  private readonly disk: FaultDisk;
  private readonly contents: Contents;
  private readonly clock: Clock;

  constructor(disk: FaultDisk, name: string, contents: Contents, clock: Clock) {
    this.disk = disk;
    this.name = name;
    this.contents = contents;
    this.clock = clock;
  }

  size(): number {
    return this.contents.sizeBytes;
  }

  read(target: Uint8Array, position: number): number {
    this.disk.onRead?.();
    return this.readBytes(target, position);
  }

  private readBytes(target: Uint8Array, position: number): number {
    this.disk.operate('read');
    const bytes = Math.max(0, Math.min(target.length, this.contents.sizeBytes - position));
    for (let done = 0; done < bytes; ) {
      const inPage = (position + done) % PAGE_BYTES;
      const part = Math.min(PAGE_BYTES - inPage, bytes - done);
      const number = Math.floor((position + done) / PAGE_BYTES);
      if (this.disk.unreadable.size > 0 && this.disk.unreadable.has(`${this.name}:${number}`))
        throw new DiskError('IO', `page ${number} of ${this.name}`);
      const page = this.contents.pages.get(number) ?? ZEROS;
      target.set(page.subarray(inPage, inPage + part), done);
      done += part;
    }
    return bytes;
  }

  readLater(target: Uint8Array, position: number, done: (error: DiskError | null, bytes: number) => void): void {
    let turns = this.disk.laterTurns();
    const turn = (): void => {
      if (this.disk.dead) return;
      if (--turns > 0) this.clock.soon(turn);
      else this.finishRead(target, position, done);
    };
    this.clock.soon(turn);
  }

  private finishRead(
    target: Uint8Array,
    position: number,
    done: (error: DiskError | null, bytes: number) => void,
  ): void {
    let bytes = 0;
    try {
      bytes = this.readBytes(target, position);
    } catch (error) {
      if (error instanceof DiskError) return done(error, 0);
      throw error;
    }
    done(null, bytes);
  }

  /** Page by page: a disk that gets full in the middle has taken what came before. */
  write(parts: readonly Uint8Array[], position: number): void {
    this.disk.operate('write');
    const all = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
    const { contents } = this;
    for (let done = 0; done < all.length; ) {
      const number = Math.floor((position + done) / PAGE_BYTES);
      const inPage = (position + done) % PAGE_BYTES;
      const part = Math.min(PAGE_BYTES - inPage, all.length - done);
      const before = contents.pages.get(number) ?? null;
      if (before === null) this.disk.takePage();
      const page = Buffer.from(before ?? ZEROS);
      page.set(all.subarray(done, done + part), inPage);
      const forgotten = contents.forgotten.get(number);
      if (!contents.unsynced.has(number)) contents.unsynced.set(number, forgotten === undefined ? before : forgotten);
      contents.forgotten.delete(number);
      contents.pages.set(number, page);
      done += part;
      contents.sizeBytes = Math.max(contents.sizeBytes, position + done);
    }
  }

  sync(done: (error: DiskError | null) => void): void {
    let failure: DiskError | null = null;
    try {
      this.disk.operate('sync');
    } catch (error) {
      if (!(error instanceof DiskError)) return; // killed: nobody is called back
      failure = error;
    }
    const finish = this.beginSync();
    this.clock.soon(() => {
      if (this.disk.dead) return;
      if (failure === null) finish();
      else this.forget();
      done(failure);
    });
  }

  syncNow(): void {
    try {
      this.disk.operate('sync');
    } catch (error) {
      if (error instanceof DiskError) this.forget();
      throw error;
    }
    this.beginSync()();
  }

  /** Notes what is to become durable; what is written before it does may or may not. */
  private beginSync(): () => void {
    const { contents } = this;
    const written = new Map([...contents.unsynced.keys()].map((page) => [page, contents.pages.get(page) ?? null]));
    const { sizeBytes } = contents;
    return () => {
      contents.durableSizeBytes = Math.max(contents.durableSizeBytes, sizeBytes);
      for (const [page, bytes] of written)
        if ((contents.pages.get(page) ?? null) === bytes) contents.unsynced.delete(page);
        else contents.unsynced.set(page, bytes);
    };
  }

  private forget(): void {
    for (const [page, before] of this.contents.unsynced) this.contents.forgotten.set(page, before);
    this.contents.unsynced.clear();
  }

  truncate(sizeBytes: number): void {
    this.disk.operate('truncate');
    this.contents.sizeBytes = sizeBytes;
    this.contents.durableSizeBytes = Math.min(this.contents.durableSizeBytes, sizeBytes);
    for (const page of this.contents.pages.keys()) if (page * PAGE_BYTES >= sizeBytes) this.contents.pages.delete(page);
  }

  close(): void {}
}
