// A daemon's copy of the newest map that it has seen, on its disk: what a lost master is rebuilt from
// (cluster/master/recover.ts), together with what the store knows of every PG.
//
//   a new map, or an interval allowed to take writes ──► changed() ──► within SAVE_MS, or REST times what the last
//   saving cost ──► newest-map.new written, synced off the event loop ──► renamed
//
// The file is a copy in case of need and nothing that the daemon obeys: it is written behind everything else, may be a
// second old, and a broken one reads as none. A disk that is full just keeps the older one.

import type { PgInterval } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { fullUpdate, type MapUpdate, type StorageMap } from '../../proto/map.ts';
import { type Clock, type Disk, DiskError, type DiskFile, type Log } from '../../proto/ports.ts';
import { seal, unseal } from '../../proto/sealed.ts';

const NAME = 'newest-map';
const TEMPORARY = '.newest-map.new';
const KIND = { name: 'daemon-map', format: 1 };
/** A change is on its way to the disk this long after it came, so that a storm of maps is one write. */
const SAVE_MS = 500;
/** A map of many thousand PGs takes long to write as text: the event loop rests so many times as long between two. */
const REST = 50;

export interface SavedMap {
  /** The whole map. */
  readonly map: MapUpdate;
  /** Intervals that this daemon led and that the master allowed to take writes. */
  readonly activated: readonly PgInterval[];
}

/** The newest map of the directory, or null if it has none that can be read. */
export function readSavedMap(disk: Disk, log: Log): SavedMap | null {
  if (!disk.exists(NAME)) return null;
  const file = disk.open(NAME, false);
  try {
    const bytes = Buffer.alloc(file.size());
    file.read(bytes, 0);
    return unseal(KIND, bytes) as SavedMap;
  } catch (error) {
    if (!(error instanceof StorageError || error instanceof DiskError)) throw error;
    log.warn(`the saved map can't be used, the master will send another`, { why: error.message });
    return null;
  } finally {
    file.close();
  }
}

export class MapSaver {
  readonly #disk: Disk;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #current: () => { map: StorageMap; activated: PgInterval[] } | null;
  #scheduled = false;
  #saving = false;
  #changedMeanwhile = false;
  #restMs = SAVE_MS;
  #stopped = false;

  /** @param current what to save, asked for at the moment of saving */
  constructor(disk: Disk, clock: Clock, log: Log, current: () => { map: StorageMap; activated: PgInterval[] } | null) {
    this.#disk = disk;
    this.#clock = clock;
    this.#log = log;
    this.#current = current;
  }

  /** There is something newer than what was saved. */
  changed(): void {
    if (this.#saving) this.#changedMeanwhile = true;
    if (this.#scheduled || this.#saving || this.#stopped) return;
    this.#scheduled = true;
    this.#clock.after(this.#restMs, () => {
      this.#scheduled = false;
      if (!this.#stopped) this.#save();
    });
  }

  /** Nothing follows; what is still to be saved is saved before it returns. */
  close(): void {
    this.#stopped = true;
    if (!this.#scheduled && !this.#changedMeanwhile) return;
    const current = this.#current();
    if (current === null) return;
    let file: DiskFile | null = null;
    let failure: unknown = null;
    try {
      file = this.#write(current);
      file.syncNow();
    } catch (error) {
      failure = error;
    }
    this.#replace(file, failure);
  }

  #save(): void {
    const current = this.#current();
    if (current === null) return;
    const start = this.#clock.now();
    try {
      const file = this.#write(current);
      this.#saving = true;
      file.sync((error) => {
        this.#saving = false;
        this.#replace(file, error);
        if (!this.#changedMeanwhile) return;
        this.#changedMeanwhile = false;
        this.changed();
      });
    } catch (error) {
      this.#replace(null, error);
    }
    this.#restMs = Math.max(SAVE_MS, REST * (this.#clock.now() - start));
  }

  #write({ map, activated }: { map: StorageMap; activated: PgInterval[] }): DiskFile {
    const saved: SavedMap = { map: fullUpdate(map), activated };
    const file = this.#disk.open(TEMPORARY, true);
    try {
      file.truncate(0);
      file.write([seal(KIND, saved)], 0);
      return file;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** Puts what was written and synced in the place of the older copy. */
  #replace(file: DiskFile | null, failure: unknown): void {
    try {
      file?.close();
      if (failure !== null) throw failure;
      // The directory is not synced: after a power cut the older one may be there, whole.
      this.#disk.rename(TEMPORARY, NAME);
    } catch (error) {
      if (!(error instanceof DiskError)) throw error;
      this.#log.warn('could not save the map, the older copy stays', { why: error.message });
    }
  }
}
