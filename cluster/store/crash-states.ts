// The states that a power cut could have left of a recorded run, and the judgement of each.
//
// At every moment some writes are on stable storage (a sync that began after them has ended) and others are pending:
// of these, any subset may have arrived, each whole or torn at 512 bytes. The same goes for names that were made or
// changed since the directory was synced. The states of all moments between the ends of two syncs (a gap) are among
// those of its last one, so only the ends are looked at:
//
//   gap    few pending: every subset; many: none, all, one file's only, all but one file's, all but the last ones,
//          all but one, random ones, random pages; and the last writes torn. At most `perGap` of them
//
// A state is judged by starting a store on it: see judge().

import { hashBytes } from '../../proto/checksum.ts';
import { FaultDisk, type FileImage } from './fault-disk.ts';
import { PAGE_BYTES } from './limits.ts';
import { type Model, randomFrom } from './model.ts';
import type { Happening, Recording } from './recording-disk.ts';
import { differenceOf, openOn, type Prefixes, TestClock } from './scenario.ts';
import { EntryOp } from './store.ts';

const SECTOR_BYTES = 512;
const PAGE_SECTORS = PAGE_BYTES / SECTOR_BYTES;
const ZEROS = Buffer.alloc(PAGE_BYTES);
/** With so many pending writes and names, every subset is a state. */
const EVERY_SUBSET_MAX = 5;
/** Of the last writes of a gap, so many are torn. */
const TORN_WRITES = 3;

export interface CrashState {
  readonly files: ReadonlyMap<string, FileImage>;
  /** Steps that must be there. */
  readonly owed: number;
  /** The same for the same disk; it may be there again when more is owed. */
  readonly digest: string;
  /** Which moment and which choice, for the message of a failure. */
  readonly label: string;
}

type Write = Extract<Happening, { what: 'write' } | { what: 'truncate' }> & { readonly index: number };
type NameChange = Extract<Happening, { what: 'create' } | { what: 'rename' } | { what: 'remove' }>;
/** Is this sector of the write on the disk? Sectors count from the beginning of the write. */
type Keeps = (sector: number) => boolean;

interface Choice {
  readonly label: string;
  keeps(write: number): boolean | Keeps;
  keepsName(change: number): boolean;
}

/** Pages of one file, and a digest of them that follows every change. */
class Pages implements FileImage {
  readonly pages: Map<number, Buffer>;
  sizeBytes: number;
  digest = 0;

  constructor(image: FileImage) {
    this.pages = new Map(image.pages);
    this.sizeBytes = image.sizeBytes;
    if (image instanceof Pages) this.digest = image.digest;
    else for (const [page, bytes] of this.pages) this.digest ^= mix(page, bytes);
  }

  apply(change: Write, keeps: Keeps | true): void {
    if (change.what === 'truncate') {
      for (const page of this.pages.keys()) if (page * PAGE_BYTES >= change.sizeBytes) this.put(page, null);
      this.sizeBytes = change.sizeBytes;
      return;
    }
    const { at, bytes } = change;
    for (let done = 0; done < bytes.length; ) {
      const inPage = (at + done) % PAGE_BYTES;
      const part = Math.min(PAGE_BYTES - inPage, bytes.length - done);
      this.applyPart((at + done - inPage) / PAGE_BYTES, inPage, bytes.subarray(done, done + part), keeps, done);
      done += part;
    }
  }

  private applyPart(page: number, inPage: number, bytes: Buffer, keeps: Keeps | true, before: number): void {
    const changed = Buffer.from(this.pages.get(page) ?? ZEROS);
    let end = 0;
    for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
      if (keeps !== true && !keeps(Math.floor((before + at) / SECTOR_BYTES))) continue;
      end = Math.min(bytes.length, at + SECTOR_BYTES);
      bytes.copy(changed, inPage + at, at, end);
    }
    if (end === 0) return;
    this.put(page, changed);
    this.sizeBytes = Math.max(this.sizeBytes, page * PAGE_BYTES + inPage + end);
  }

  private put(page: number, bytes: Buffer | null): void {
    const old = this.pages.get(page);
    if (old !== undefined) this.digest ^= mix(page, old);
    if (bytes === null) this.pages.delete(page);
    else {
      this.digest ^= mix(page, bytes);
      this.pages.set(page, bytes);
    }
  }
}

const hashes = new WeakMap<Buffer, number>();
const ZERO_HASH = hashBytes(ZEROS);

/** A page's share of its file's digest; pages of zeros have none, as if they were not there. */
function mix(page: number, bytes: Buffer): number {
  let hash = hashes.get(bytes);
  if (hash === undefined) {
    hash = hashBytes(bytes);
    hashes.set(bytes, hash);
  }
  if (hash === ZERO_HASH) return 0;
  hash = Math.imul(hash ^ Math.imul(page + 1, 0x9e3779b1), 0x85ebca6b);
  return hash ^ (hash >>> 15);
}

/** Distinct states of a recorded run, from its beginning to its end. */
export function* crashStates(recording: Recording, perGap: number, seed: number): Generator<CrashState> {
  const random = randomFrom(seed);
  const files = new Map([...recording.files].map(([number, image]) => [number, new Pages(image)]));
  let names = new Map(recording.names);
  let pending: Write[] = [];
  let changes: NameChange[] = [];
  const begun = new Map<number, number>();
  /** What each disk owed when it was judged. */
  const seen = new Map<string, number>();

  function* gap(owed: number, moment: string): Generator<CrashState> {
    for (const choice of choices(pending, changes.length, perGap, random)) {
      const state = new Map<number, Pages>();
      pending.forEach((write, i) => {
        const kept = choice.keeps(i);
        if (kept === false) return;
        const pages = state.get(write.file) ?? new Pages(files.get(write.file)!);
        state.set(write.file, pages);
        pages.apply(write, kept);
      });
      const named = namesAfter(
        names,
        changes.filter((_, i) => choice.keepsName(i)),
      );
      const image = new Map([...named].map(([name, file]) => [name, state.get(file) ?? files.get(file)!]));
      const key = [...image].map(([name, { digest, sizeBytes }]) => `${name} ${digest} ${sizeBytes}`).sort();
      const digest = key.join();
      const before = seen.get(digest);
      if (before !== undefined && before >= owed) continue;
      seen.set(digest, owed);
      yield { files: image, owed, digest, label: `${moment}, ${choice.label}` };
    }
  }

  for (const [index, event] of recording.journal.entries()) {
    if (event.what === 'syncBegins') begun.set(event.sync, index);
    else if (event.what === 'write' || event.what === 'truncate') pending.push({ ...event, index });
    else if (event.what === 'syncEnds') {
      yield* gap(event.owed, `before sync ${event.sync} ended`);
      const from = begun.get(event.sync)!;
      const arrived = (write: Write): boolean => write.file === event.file && write.index < from;
      for (const write of pending) if (arrived(write)) files.get(write.file)!.apply(write, true);
      pending = pending.filter((write) => !arrived(write));
    } else if (event.what === 'syncDirectory') {
      yield* gap(event.owed, `before the directory was synced at ${index}`);
      names = namesAfter(names, changes);
      changes = [];
    } else {
      if (event.what === 'create') files.set(event.file, new Pages({ pages: new Map(), sizeBytes: 0 }));
      changes.push(event);
    }
  }
  yield* gap(recording.journal.at(-1)?.owed ?? 0, 'at the end');
}

function namesAfter(before: ReadonlyMap<string, number>, changes: readonly NameChange[]): Map<string, number> {
  const names = new Map(before);
  for (const change of changes) {
    if (change.what === 'create') names.set(change.name, change.file);
    else if (change.what === 'remove') names.delete(change.name);
    else {
      const file = names.get(change.from);
      if (file === undefined) continue;
      names.set(change.to, file);
      names.delete(change.from);
    }
  }
  return names;
}

const always = (): boolean => true;
const never = (): boolean => false;

function* choices(pending: readonly Write[], changes: number, perGap: number, random: () => number): Generator<Choice> {
  const count = pending.length;
  const few = count + changes <= EVERY_SUBSET_MAX;
  const tears = count === 0 ? 0 : Math.max(2, Math.floor(perGap / 3));
  const most = perGap - tears;
  let given = 0;
  if (few) {
    for (let set = 0; set < 2 ** (count + changes); set++) {
      const has = (bit: number): boolean => ((set >> bit) & 1) === 1;
      yield { label: `subset ${set} of ${count}+${changes}`, keeps: has, keepsName: (i) => has(count + i) };
    }
  } else {
    for (const choice of notable(pending, changes)) {
      if (given++ >= most) break;
      yield choice;
    }
    for (; given < most; given++) yield randomChoice(pending, random);
  }
  for (let i = 0; i < tears; i++) yield torn(pending, random);
}

/** Those that a wrong order of syncs shows in first. */
function* notable(pending: readonly Write[], changes: number): Generator<Choice> {
  const count = pending.length;
  yield { label: 'nothing pending kept', keeps: never, keepsName: never };
  yield { label: 'all pending kept', keeps: always, keepsName: always };
  if (changes > 0) yield { label: 'all writes kept, no names', keeps: always, keepsName: never };
  for (const file of new Set(pending.map((write) => write.file))) {
    yield { label: `file ${file} only`, keeps: (i) => pending[i]!.file === file, keepsName: always };
    yield { label: `all but file ${file}`, keeps: (i) => pending[i]!.file !== file, keepsName: always };
  }
  for (let name = 0; name < changes; name++)
    yield { label: `all but name ${name}`, keeps: always, keepsName: (i) => i !== name };
  for (let last = 1; last <= Math.min(4, count); last++) {
    yield { label: `all but write ${count - last}`, keeps: (i) => i !== count - last, keepsName: always };
    yield { label: `all but the last ${last}`, keeps: (i) => i < count - last, keepsName: always };
  }
}

function randomChoice(pending: readonly Write[], random: () => number): Choice {
  const count = pending.length;
  const kind = random() % 4;
  const salt = random();
  if (kind === 0) {
    const left = random() % Math.max(1, count);
    return { label: `all but write ${left} of ${count}`, keeps: (i) => i !== left, keepsName: always };
  }
  const odds = 1 + (random() % 7);
  const kept = (i: number, page: number): boolean => hash3(salt, i, page) % 8 < odds;
  const keepsName = (i: number): boolean => kept(-i, 1);
  if (kind === 1)
    return {
      label: `pages of ${count} writes at random (${salt}, ${odds})`,
      keeps: (i) => (sector) => kept(i, Math.floor(sector / PAGE_SECTORS)),
      keepsName,
    };
  return { label: `writes of ${count} at random (${salt}, ${odds})`, keeps: (i) => kept(i, -1), keepsName };
}

/** One of the last writes is torn; what follows it is there or not. */
function torn(pending: readonly Write[], random: () => number): Choice {
  const count = pending.length;
  const victim = count - 1 - (random() % Math.min(TORN_WRITES, count));
  const write = pending[victim]!;
  const sectors = write.what === 'write' ? Math.ceil(write.bytes.length / SECTOR_BYTES) : 1;
  const at = random() % Math.max(1, sectors);
  const salt = random();
  const ways: [string, Keeps][] = [
    [`up to sector ${at}`, (sector) => sector <= at],
    [`from sector ${at} on`, (sector) => sector >= at],
    [`without sector ${at}`, (sector) => sector !== at],
    ['at random', (sector) => hash3(salt, sector, 0) % 2 === 0],
  ];
  const [way, keeps] = ways[random() % ways.length]!;
  const rest = random() % 2 === 0;
  return {
    label: `write ${victim} of ${count} torn ${way} (${salt}), what follows is ${rest ? 'kept' : 'lost'}`,
    keeps: (i) => (i === victim ? keeps : i < victim || rest),
    keepsName: always,
  };
}

function hash3(a: number, b: number, c: number): number {
  let hash = Math.imul(a ^ Math.imul(b, 0x9e3779b1) ^ Math.imul(c, 0x85ebca6b), 0xc2b2ae35);
  hash = Math.imul(hash ^ (hash >>> 15), 0x27d4eb2f);
  return (hash ^ (hash >>> 13)) >>> 0;
}

export interface Judgement {
  /** Digests of the distinct disks that were started. */
  states: Set<string>;
  /** Which state fails and how; null: none does. */
  failure: string | null;
}

/** Judges every state of a recorded run until one fails. */
export async function judgeAll(
  recording: Recording,
  prefixes: Prefixes,
  perGap: number,
  seed: number,
): Promise<Judgement> {
  const held = new Map<string, number>();
  for (const state of crashStates(recording, perGap, seed)) {
    const found = held.get(state.digest) ?? (await judge(state, prefixes));
    if (typeof found === 'number') held.set(state.digest, found);
    if (typeof found === 'number' && found >= state.owed) continue;
    const failure = typeof found === 'number' ? `only ${found} of them are there` : found;
    return {
      states: new Set([...held.keys(), state.digest]),
      failure: `${state.label}, ${state.owed} steps owed: ${failure}`,
    };
  }
  return { states: new Set(held.keys()), failure: null };
}

/**
 * Starts a store on the state. It must hold a prefix of the steps with all that is owed; the same after a power cut right
 * after the start, which takes everything that the start did not make durable; and then a write and a sync must survive
 * another. Returns how many steps it holds, or what is wrong.
 */
export async function judge(state: CrashState, prefixes: Prefixes): Promise<number | string> {
  try {
    const fail = (error: Error): never => {
      throw error;
    };
    let clock = new TestClock();
    let disk = FaultDisk.holding(state.files, clock);
    let store = await openOn(disk, clock, fail);
    const found = await prefixes.find(store, clock, state.owed);
    if (typeof found !== 'number') return found;

    clock = new TestClock();
    disk = disk.harshCut(clock);
    store = await openOn(disk, clock, fail);
    const before = prefixes.at(found);
    const again = await differenceOf(before, store, clock);
    if (again !== null) return `a second start found other content: ${again}`;

    const after: Model = before.copy();
    const step = after.make('append', EntryOp.WRITE, found % 3, found % 4, 2);
    let synced = false;
    after.perform(store, step, () => {});
    after.apply(step);
    store.sync(() => {
      synced = true;
    });
    clock.settle();
    if (!synced) return 'a sync after the second start was never done';
    clock = new TestClock();
    disk = disk.harshCut(clock);
    store = await openOn(disk, clock, fail);
    const last = await differenceOf(after, store, clock);
    return last === null ? found : `after another write: ${last}`;
  } catch (error) {
    return `threw ${error instanceof Error ? error.message : String(error)}`;
  }
}
