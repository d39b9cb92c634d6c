// The simulated disk of one machine: what the page cache holds, and what a power cut leaves of it.
//
//   write -> page cache (dirty)  -> sync, after a while -> stable
//   process crash: the page cache stays, and so does everything
//   power cut:     each dirty 4 KiB page is kept, lost or torn at 512 B, by chance; a file's size ends anywhere
//                  between the stable and the cached one; names made, moved or removed since the last
//                  syncDirectory() survive up to a random point in their order
//
// Pages are sparse and copied on write, so that preallocated files of zeros cost nothing and a sync can remember what
// it saw. The disk outlives the processes that use it: port(life) is one process's view.

import type { Disk, DiskFile } from '../../proto/ports.ts';
import { DiskError } from '../../proto/ports.ts';
import type { SimRandom } from './random.ts';
import type { Incarnation, Machine } from './scheduler.ts';

const PAGE_BYTES = 4096;
const SECTOR_BYTES = 512;
const UNLIMITED_BYTES = 2 ** 40;
const ZERO_PAGE = new Uint8Array(PAGE_BYTES);

export interface DiskFaults {
  readDelayMs: number;
  syncDelayMs: number;
  /** Now and then a sync or a read takes up to this long: a disk that limps. */
  stallChance: number;
  stallMaxMs: number;
  /** A blocking read takes long by its process's clock (see lagMs), as one does that comes from the medium. */
  coldChance: number;
}
export const CALM_DISK: Readonly<DiskFaults> = Object.freeze({
  readDelayMs: 0.1,
  syncDelayMs: 1,
  stallChance: 0,
  stallMaxMs: 0,
  coldChance: 0,
});
/** How long a cold read takes. */
const COLD_READ_MS = 5;

type Operation = 'write' | 'sync' | 'read';

interface Inode {
  /** What a process sees. A page that is absent is a hole. */
  cached: Map<number, Uint8Array>;
  size: number;
  /** What a power cut can't take away. */
  stable: Map<number, Uint8Array>;
  stableSize: number;
  dirty: Set<number>;
  /** Pages that somebody else refers to as well: copied before they change. */
  frozen: Set<Uint8Array>;
  syncsBegun: number;
  syncsEnded: number;
}

export class SimDisk {
  readonly machine: Machine;
  readonly random: SimRandom;
  faults: DiskFaults = { ...CALM_DISK };
  /** What cold reads took so far: to be added to the clock of whoever reads, as an event takes no virtual time. */
  lagMs = 0;
  #capacityBytes: number;
  readonly #wholeBytes: number;
  #names = new Map<string, Inode>();
  /** The directory as of the last syncDirectory(), and what happened to it since. */
  #stableNames = new Map<string, Inode>();
  #nameChanges: ((names: Map<string, Inode>) => void)[] = [];
  #failure: { operation: Operation; left: number; code: 'IO' | 'NO_SPACE'; sticky: boolean } | null = null;
  /** Operations of each kind so far, for tests that fail the N-th. */
  readonly count = { write: 0, sync: 0, read: 0 };

  constructor(machine: Machine, random: SimRandom, capacityBytes = UNLIMITED_BYTES) {
    this.machine = machine;
    this.random = random;
    this.#capacityBytes = capacityBytes;
    this.#wholeBytes = capacityBytes;
    machine.onEnd((_life, how) => {
      if (how === 'powerCut') this.#losePower();
    });
  }

  /** The `nth` operation of this kind from now fails (1 is the next), and with `sticky` all after it. */
  failNth(operation: Operation, nth: number, code: 'IO' | 'NO_SPACE', sticky = false): void {
    this.#failure = { operation, left: nth, code, sticky };
  }

  heal(): void {
    this.#failure = null;
    this.limit(null);
    this.faults = { ...CALM_DISK };
  }

  /** Flips one bit of what is stored, in the cache and on the medium: bit rot. False if the file has nothing there. */
  rot(name: string, position: number, bit: number): boolean {
    const inode = this.#names.get(name);
    const page = inode?.cached.get(Math.floor(position / PAGE_BYTES));
    if (inode === undefined || page === undefined) return false;
    const rotten = Uint8Array.from(page);
    rotten[position % PAGE_BYTES]! ^= 1 << bit;
    inode.cached.set(Math.floor(position / PAGE_BYTES), rotten);
    inode.stable.set(Math.floor(position / PAGE_BYTES), rotten);
    inode.frozen.add(rotten);
    return true;
  }

  /** Leaves so much space free, until the next call; with `null` as much as there was at first. */
  limit(freeBytes: number | null): void {
    this.#capacityBytes = freeBytes === null ? this.#wholeBytes : this.usedBytes() + freeBytes;
  }

  /** Pages of a file that hold anything. */
  pagesOf(name: string): number[] {
    return [...(this.#names.get(name)?.cached.keys() ?? [])];
  }

  /** Names of the files, in order. */
  names(): string[] {
    return [...this.#names.keys()].sort();
  }

  get unlimited(): boolean {
    return this.#capacityBytes >= UNLIMITED_BYTES;
  }

  usedBytes(): number {
    let pages = 0;
    for (const inode of this.#names.values()) pages += inode.cached.size;
    return pages * PAGE_BYTES;
  }

  /** The disk as the process `life` sees it. What a dead process does has no effect. */
  port(life: Incarnation): Disk {
    return {
      open: (name, create) => {
        let inode = this.#names.get(name);
        if (inode === undefined) {
          if (!create) throw new DiskError('NOT_FOUND', `${name}: no such file`);
          inode = newInode();
          const made = inode;
          this.#changeNames(life, (names) => names.set(name, made));
        }
        return new SimFile(this, life, name, inode);
      },
      exists: (name) => this.#names.has(name),
      list: () => [...this.#names.keys()].sort(),
      rename: (from, to) => {
        const moved = this.#names.get(from);
        if (moved === undefined) throw new DiskError('NOT_FOUND', `${from}: no such file`);
        this.#changeNames(life, (names) => {
          names.delete(from);
          names.set(to, moved);
        });
      },
      remove: (name) => {
        if (!this.#names.has(name)) throw new DiskError('NOT_FOUND', `${name}: no such file`);
        this.#changeNames(life, (names) => names.delete(name));
      },
      syncDirectory: () => {
        this.mayFail('sync');
        if (!life.alive) return;
        this.#stableNames = new Map(this.#names);
        this.#nameChanges = [];
      },
      freeBytes: () => Math.max(0, this.#capacityBytes - this.usedBytes()),
    };
  }

  mayFail(operation: Operation): void {
    this.count[operation]++;
    const failure = this.#failure;
    if (failure?.operation !== operation || --failure.left > 0) return;
    if (!failure.sticky) this.#failure = null;
    this.machine.scheduler.probe(`disk ${operation} fails`);
    throw new DiskError(failure.code, `${operation} failed: injected`);
  }

  mayBeCold(): void {
    if (this.faults.coldChance > 0 && this.random.chance(this.faults.coldChance)) this.lagMs += COLD_READ_MS;
  }

  /** Throws NO_SPACE if a write there needs more new pages than are free. */
  needSpace(inode: Inode, position: number, length: number): void {
    if (length === 0 || this.unlimited) return;
    const last = Math.floor((position + length - 1) / PAGE_BYTES);
    let added = 0;
    for (let page = Math.floor(position / PAGE_BYTES); page <= last; page++) if (!inode.cached.has(page)) added++;
    if (added > 0 && this.usedBytes() + added * PAGE_BYTES > this.#capacityBytes)
      throw new DiskError('NO_SPACE', 'no space left on the simulated disk');
  }

  delay(meanMs: number): number {
    const { faults, random } = this;
    if (faults.stallChance > 0 && random.chance(faults.stallChance)) {
      this.machine.scheduler.probe('disk stall');
      return random.unit() * faults.stallMaxMs;
    }
    return 0.01 + random.exponential(meanMs);
  }

  #changeNames(life: Incarnation, change: (names: Map<string, Inode>) => void): void {
    if (!life.alive) return;
    change(this.#names);
    this.#nameChanges.push(change);
  }

  #losePower(): void {
    const { random } = this;
    const survivors = new Map(this.#stableNames);
    const kept = random.below(this.#nameChanges.length + 1);
    for (const change of this.#nameChanges.slice(0, kept)) change(survivors);
    this.#names = survivors;
    this.#stableNames = new Map(survivors);
    this.#nameChanges = [];
    for (const inode of new Set(survivors.values())) this.#loseUnsynced(inode);
  }

  #loseUnsynced(inode: Inode): void {
    const { random } = this;
    // In most cuts nearly all or nearly nothing was written back; in some, a mixture.
    const lossChance = random.pick([0.02, 0.5, 0.98]);
    for (const page of inode.dirty) {
      if (!random.chance(lossChance)) continue;
      const old = inode.stable.get(page);
      const fresh = inode.cached.get(page);
      if (random.chance(0.2)) inode.cached.set(page, torn(random, old ?? ZERO_PAGE, fresh ?? ZERO_PAGE));
      else if (old === undefined) inode.cached.delete(page);
      else inode.cached.set(page, old);
    }
    if (inode.size !== inode.stableSize && random.chance(0.5)) {
      const low = Math.min(inode.size, inode.stableSize);
      const high = Math.max(inode.size, inode.stableSize);
      resize(inode, low + random.below(Math.floor((high - low) / SECTOR_BYTES) + 1) * SECTOR_BYTES);
    }
    inode.stable = new Map(inode.cached);
    inode.stableSize = inode.size;
    inode.dirty = new Set();
    inode.frozen = new Set(inode.stable.values());
  }
}

class SimFile implements DiskFile {
  readonly name: string;
  readonly #disk: SimDisk;
  readonly #life: Incarnation;
  readonly #inode: Inode;
  #open = true;

  constructor(disk: SimDisk, life: Incarnation, name: string, inode: Inode) {
    this.#disk = disk;
    this.#life = life;
    this.name = name;
    this.#inode = inode;
  }

  size(): number {
    return this.#inode.size;
  }

  read(target: Uint8Array, position: number): number {
    this.#use();
    this.#disk.mayFail('read');
    this.#disk.mayBeCold();
    return readPages(this.#inode, target, position);
  }

  readLater(target: Uint8Array, position: number, done: (error: DiskError | null, bytes: number) => void): void {
    this.#use();
    const { scheduler } = this.#disk.machine;
    // A real pread runs somewhere between the call and the callback: sees writes that came in between, or does not.
    const early = this.#disk.random.chance(0.5) ? readPages(this.#inode, target, position) : -1;
    scheduler.schedule(
      scheduler.now + this.#disk.delay(this.#disk.faults.readDelayMs),
      this.#life,
      'disk read',
      0,
      () => {
        try {
          this.#disk.mayFail('read');
        } catch (error) {
          done(error as DiskError, 0);
          return;
        }
        done(null, early >= 0 ? early : readPages(this.#inode, target, position));
      },
    );
  }

  write(parts: readonly Uint8Array[], position: number): void {
    this.#use();
    if (!this.#life.alive) return;
    this.#disk.mayFail('write');
    this.#disk.needSpace(this.#inode, position, totalLength(parts));
    let at = position;
    for (const part of parts) {
      writePages(this.#inode, part, at, this.#disk.unlimited);
      at += part.length;
    }
  }

  sync(done: (error: DiskError | null) => void): void {
    this.#use();
    const { scheduler } = this.#disk.machine;
    if (!this.#life.alive) return;
    const finish = this.#beginSync();
    const time = scheduler.now + this.#disk.delay(this.#disk.faults.syncDelayMs);
    scheduler.schedule(time, this.#life, 'disk sync', 0, () => {
      try {
        this.#disk.mayFail('sync');
      } catch (error) {
        done(error as DiskError);
        return;
      }
      finish();
      done(null);
    });
  }

  syncNow(): void {
    this.#use();
    if (!this.#life.alive) return;
    this.#disk.mayFail('sync');
    this.#beginSync()();
  }

  truncate(sizeBytes: number): void {
    this.#use();
    if (!this.#life.alive) return;
    this.#disk.mayFail('write');
    resize(this.#inode, sizeBytes);
  }

  close(): void {
    this.#open = false;
  }

  #use(): void {
    if (!this.#open) throw new Error(`${this.name} is used after close()`);
  }

  /** Remembers what is dirty now; the returned function makes that much stable. */
  #beginSync(): () => void {
    const inode = this.#inode;
    const pages = new Map<number, Uint8Array | undefined>();
    for (const page of inode.dirty) {
      const bytes = inode.cached.get(page);
      pages.set(page, bytes);
      if (bytes !== undefined) inode.frozen.add(bytes);
    }
    const size = inode.size;
    const number = ++inode.syncsBegun;
    return (): void => {
      // A later sync that ended first has made all of this stable already, and newer content with it.
      if (number < inode.syncsEnded) return;
      inode.syncsEnded = number;
      for (const [page, bytes] of pages) {
        if (bytes === undefined) inode.stable.delete(page);
        else inode.stable.set(page, bytes);
        if (inode.cached.get(page) === bytes) inode.dirty.delete(page);
      }
      inode.stableSize = size;
    };
  }
}

const totalLength = (parts: readonly Uint8Array[]): number => parts.reduce((sum, part) => sum + part.length, 0);

const newInode = (): Inode => ({
  cached: new Map(),
  size: 0,
  stable: new Map(),
  stableSize: 0,
  dirty: new Set(),
  frozen: new Set(),
  syncsBegun: 0,
  syncsEnded: 0,
});

function readPages(inode: Inode, target: Uint8Array, position: number): number {
  const length = Math.max(0, Math.min(target.length, inode.size - position));
  for (let done = 0; done < length; ) {
    const inPage = (position + done) % PAGE_BYTES;
    const take = Math.min(PAGE_BYTES - inPage, length - done);
    const page = inode.cached.get(Math.floor((position + done) / PAGE_BYTES));
    if (page === undefined) target.fill(0, done, done + take);
    else target.set(page.subarray(inPage, inPage + take), done);
    done += take;
  }
  return length;
}

function writePages(inode: Inode, part: Uint8Array, position: number, sparse: boolean): void {
  for (let done = 0; done < part.length; ) {
    const number = Math.floor((position + done) / PAGE_BYTES);
    const inPage = (position + done) % PAGE_BYTES;
    const take = Math.min(PAGE_BYTES - inPage, part.length - done);
    const slice = part.subarray(done, done + take);
    done += take;
    // Preallocation by zeros costs no memory; a hole reads the same.
    if (sparse && !inode.cached.has(number) && Buffer.compare(slice, ZERO_PAGE.subarray(0, take)) === 0) continue;
    writablePage(inode, number).set(slice, inPage);
  }
  inode.size = Math.max(inode.size, position + part.length);
}

function writablePage(inode: Inode, number: number): Uint8Array {
  let page = inode.cached.get(number);
  if (page === undefined || inode.frozen.has(page)) {
    if (page !== undefined) inode.frozen.delete(page);
    page = page === undefined ? new Uint8Array(PAGE_BYTES) : Uint8Array.from(page);
    inode.cached.set(number, page);
  }
  inode.dirty.add(number);
  return page;
}

function resize(inode: Inode, sizeBytes: number): void {
  if (sizeBytes < inode.size) {
    const last = Math.ceil(sizeBytes / PAGE_BYTES);
    for (const number of [...inode.cached.keys()]) {
      if (number < last) continue;
      inode.cached.delete(number);
      inode.dirty.add(number);
    }
    if (sizeBytes % PAGE_BYTES !== 0 && inode.cached.has(last - 1))
      writablePage(inode, last - 1).fill(0, sizeBytes % PAGE_BYTES);
  }
  inode.size = sizeBytes;
}

function torn(random: SimRandom, old: Uint8Array, fresh: Uint8Array): Uint8Array {
  const page = Uint8Array.from(old);
  for (let at = 0; at < PAGE_BYTES; at += SECTOR_BYTES)
    if (random.chance(0.5)) page.set(fresh.subarray(at, at + SECTOR_BYTES), at);
  return page;
}
