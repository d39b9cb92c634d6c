// Images in memory, for the gateway's own tests and for measuring it: the ImageClient contract without a cluster.
//
// An image is a map of 1 MiB objects; an absent one is a hole. Completions come after the present callback, in the order
// of the calls, as from a real client. Tests can make requests fail or wait. Nothing survives the process.

import assert from 'node:assert/strict';
import type { Done, Image, ImageClient, ReadDone, StatusDone } from '../../cluster/client/image.ts';
import { StorageError } from '../../proto/errors.ts';
import { BLOCK_BYTES, OBJECT_ORDER_DEFAULT } from '../../proto/limits.ts';
import type { ImageEntry } from '../../proto/map.ts';

const OBJECT_BYTES = 2 ** OBJECT_ORDER_DEFAULT;
const BLOCKS = OBJECT_BYTES / BLOCK_BYTES;
const ZEROES = Buffer.alloc(OBJECT_BYTES);

interface MemoryObject {
  readonly bytes: Buffer;
  /** One byte per 4 KiB block: 1 holds data. */
  readonly allocated: Uint8Array;
}

/** What an image remembers while nobody has it open. */
export class MemoryVolume {
  readonly objects = new Map<number, MemoryObject>();
  sizeBytes: number;
  /** Number of its present owner; 0: nobody. */
  owner = 0;
  opens = 0;
  flushes = 0;
  fuaWrites = 0;
  /** Every call is put here instead of being completed, while it is an array. */
  held: (() => void)[] | null = null;
  /** The next calls fail with these. */
  failures: StorageError[] = [];
  image: MemoryImage | null = null;

  constructor(sizeBytes: number) {
    this.sizeBytes = sizeBytes;
  }

  release(): void {
    const held = this.held ?? [];
    this.held = null;
    for (const complete of held) complete();
  }
  resize(sizeBytes: number): void {
    this.sizeBytes = sizeBytes;
    this.image?.onChange?.(false);
  }
  /** Another gateway takes the image over. */
  fence(): void {
    this.owner++;
    this.image?.onChange?.(true);
  }
}

export class MemoryImageClient implements ImageClient {
  readonly volumes = new Map<string, MemoryVolume>();

  add(name: string, sizeBytes: number): MemoryVolume {
    const volume = new MemoryVolume(sizeBytes);
    this.volumes.set(name, volume);
    return volume;
  }

  images(): ImageEntry[] {
    const names = [...this.volumes.keys()].sort();
    return names.map((name, index) => ({
      id: index + 1,
      name,
      pool: 1,
      sizeBytes: this.volumes.get(name)!.sizeBytes,
      fence: 0,
      state: 'ready',
      order: OBJECT_ORDER_DEFAULT,
      stripeUnit: OBJECT_BYTES,
      stripeCount: 1,
    }));
  }

  async open(name: string, options: { readOnly: boolean; takeOver: boolean }): Promise<Image> {
    const volume = this.volumes.get(name);
    if (volume === undefined) throw new StorageError('NOT_FOUND', `no image named "${name}"`);
    if (volume.image !== null && !options.takeOver) throw new StorageError('BUSY', `"${name}" is in use`);
    volume.opens++;
    volume.owner++;
    volume.image = new MemoryImage(name, volume, options.readOnly);
    return volume.image;
  }

  async close(): Promise<void> {}
}

class MemoryImage implements Image {
  readonly name: string;
  readonly readOnly: boolean;
  onChange: ((lost: boolean) => void) | null = null;
  readonly #volume: MemoryVolume;
  readonly #owner: number;
  #reads: { done: ReadDone; parts: Buffer[] }[] = [];
  #finished: Done[] = [];
  #scheduled = false;
  readonly #complete = (): void => this.#onComplete();

  constructor(name: string, volume: MemoryVolume, readOnly: boolean) {
    this.name = name;
    this.readOnly = readOnly;
    this.#volume = volume;
    this.#owner = volume.owner;
  }
  get sizeBytes(): number {
    return this.#volume.sizeBytes;
  }

  read(offset: number, length: number, done: ReadDone): void {
    this.#check(offset, length);
    if (this.#special())
      return this.#later((error) => done(error, error === null ? this.#parts(offset, length) : null));
    this.#reads.push({ done, parts: this.#parts(offset, length) });
    this.#schedule();
  }

  write(offset: number, data: Buffer, fua: boolean, done: Done): void {
    this.#check(offset, data.length);
    if (fua) this.#volume.fuaWrites++;
    if (this.#special())
      return this.#later((error) => {
        if (error === null) this.#store(offset, data);
        done(error);
      });
    this.#store(offset, data);
    this.#finished.push(done);
    this.#schedule();
  }

  zero(offset: number, length: number, fua: boolean, done: Done): void {
    this.#check(offset, length);
    if (fua) this.#volume.fuaWrites++;
    this.#later((error) => {
      if (error === null) this.#clear(offset, length);
      done(error);
    });
  }

  flush(done: Done): void {
    this.#volume.flushes++;
    this.#later(done);
  }

  status(offset: number, length: number, done: StatusDone): void {
    this.#check(offset, length);
    this.#later((error) => done(error, error === null ? this.#runs(offset, length) : null));
  }

  close(done: Done): void {
    this.#later(() => {
      if (this.#volume.image === this) this.#volume.image = null;
      done(null);
    });
  }

  #check(offset: number, length: number): void {
    assert(length > 0 && offset >= 0 && offset + length <= this.sizeBytes, `[${offset}, +${length}) is outside`);
  }

  #special(): boolean {
    return this.#volume.held !== null || this.#volume.failures.length > 0 || this.#volume.owner !== this.#owner;
  }

  #later(complete: Done): void {
    const fenced = this.#volume.owner !== this.#owner;
    const error = fenced ? new StorageError('FENCED', 'another writer has the image') : this.#volume.failures.shift();
    const call = (): void => complete(error ?? null);
    if (this.#volume.held !== null) this.#volume.held.push(call);
    else setImmediate(call);
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    process.nextTick(this.#complete);
  }

  #onComplete(): void {
    this.#scheduled = false;
    const reads = this.#reads;
    const finished = this.#finished;
    this.#reads = [];
    this.#finished = [];
    for (const { done, parts } of reads) done(null, parts);
    for (const done of finished) done(null);
  }

  #parts(offset: number, length: number): Buffer[] {
    const parts: Buffer[] = [];
    this.#eachPiece(offset, length, (number, from, to) => {
      parts.push((this.#volume.objects.get(number)?.bytes ?? ZEROES).subarray(from, to));
    });
    return parts;
  }

  #store(offset: number, data: Buffer): void {
    let at = 0;
    this.#eachPiece(offset, data.length, (number, from, to) => {
      const object = this.#objectForWriting(number);
      data.copy(object.bytes, from, at, at + to - from);
      object.allocated.fill(1, Math.floor(from / BLOCK_BYTES), Math.ceil(to / BLOCK_BYTES));
      at += to - from;
    });
  }

  #clear(offset: number, length: number): void {
    this.#eachPiece(offset, length, (number, from, to) => {
      const object = this.#volume.objects.get(number);
      if (object === undefined) return;
      if (from === 0 && to === OBJECT_BYTES) {
        this.#volume.objects.delete(number);
        return;
      }
      object.bytes.fill(0, from, to);
      const first = Math.ceil(from / BLOCK_BYTES);
      object.allocated.fill(0, first, Math.max(first, Math.floor(to / BLOCK_BYTES)));
    });
  }

  #runs(offset: number, length: number): { length: number; data: boolean }[] {
    const runs: { length: number; data: boolean }[] = [];
    const add = (bytes: number, data: boolean): void => {
      const last = runs.at(-1);
      if (last !== undefined && last.data === data) last.length += bytes;
      else runs.push({ length: bytes, data });
    };
    this.#eachPiece(offset, length, (number, from, to) => {
      const object = this.#volume.objects.get(number);
      if (object === undefined) return add(to - from, false);
      for (let at = from; at < to; ) {
        const block = Math.floor(at / BLOCK_BYTES);
        const end = Math.min(to, (block + 1) * BLOCK_BYTES);
        add(end - at, object.allocated[block] === 1);
        at = end;
      }
    });
    return runs;
  }

  #objectForWriting(number: number): MemoryObject {
    let object = this.#volume.objects.get(number);
    if (object === undefined) {
      object = { bytes: Buffer.alloc(OBJECT_BYTES), allocated: new Uint8Array(BLOCKS) };
      this.#volume.objects.set(number, object);
    }
    return object;
  }

  #eachPiece(offset: number, length: number, visit: (number: number, from: number, to: number) => void): void {
    for (let at = offset; at < offset + length; ) {
      const from = at % OBJECT_BYTES;
      const to = Math.min(OBJECT_BYTES, from + offset + length - at);
      visit((at - from) / OBJECT_BYTES, from, to);
      at += to - from;
    }
  }
}
