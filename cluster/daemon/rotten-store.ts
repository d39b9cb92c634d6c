// A store for tests whose disk goes bad: chosen blocks come back with a bit flipped, or not at all, until they are
// written again. As on a real disk, checksums, versions and everything else in the index stay right.

import { NO_DATA } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { Store } from '../store/store.ts';

export type Damage = 'flipped' | 'unreadable';

export class RottenStore {
  readonly store: Store;
  readonly #bad = new Map<string, Damage>();

  constructor(sound: Store) {
    const replaced: Partial<Store> = {
      read: (image, object, order, offset, length, done) =>
        sound.read(image, object, order, offset, length, (error, checks, payload) => {
          for (let at = 0; error === null && payload !== null && at < length; at += BLOCK_BYTES) {
            // A hole is nowhere on the disk.
            if (checks!.readUInt32LE((at / BLOCK_BYTES) * 4) === NO_DATA) continue;
            const damage = this.#bad.get(nameOf(image, object, offset + at));
            if (damage === 'unreadable') return done(new StorageError('IO', 'sector not found'), null, null);
            if (damage === 'flipped') payload[at + 100]! ^= 4;
          }
          done(error, checks, payload);
        }),
      append: (entry, payload, checks, reserve, done) => {
        sound.append(entry, payload, checks, reserve, done);
        this.#heal(entry.image, entry.object, entry.offset, entry.length);
      },
      recover: (piece, payload, checks, done) => {
        sound.recover(piece, payload, checks, done);
        this.#heal(piece.image, piece.object, piece.offset, piece.length);
      },
    };
    this.store = new Proxy(sound, {
      get: (target, name) => {
        const own = replaced[name as keyof Store];
        if (own !== undefined) return own;
        const value = Reflect.get(target, name) as unknown;
        return typeof value === 'function' ? (value as (...a: unknown[]) => unknown).bind(target) : value;
      },
    });
  }

  spoil(image: number, object: number, offset: number, damage: Damage = 'flipped'): void {
    this.#bad.set(nameOf(image, object, offset), damage);
  }

  /** Whatever it was, it is over. */
  wellAgain(): void {
    this.#bad.clear();
  }

  /** Blocks that are still bad. */
  get badBlocks(): number {
    return this.#bad.size;
  }

  #heal(image: number, object: number, offset: number, length: number): void {
    for (let at = offset; at < offset + length; at += BLOCK_BYTES) this.#bad.delete(nameOf(image, object, at));
  }
}

const nameOf = (image: number, object: number, offset: number): string =>
  `${image}/${object}/${Math.floor(offset / BLOCK_BYTES)}`;
