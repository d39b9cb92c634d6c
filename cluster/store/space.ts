// The budget: how much may still be written, so that a full disk is met at append (NO_SPACE, nothing changed) and never
// by the checkpoint, which has promised to find a place for what it copies out of the log.
//
//   free as the file system says - spent since it was asked - promised (blocks in the log whose slot has no
//   ground yet, metadata of new slots)
//   ordinary writes stop at `reserve`, writes that must not fail at `floor`; overwriting existing ground needs nothing
//
// Others may use the same file system: the numbers can be wrong, then a checkpoint meets the end of the disk after all,
// is given up and tried again, and until one succeeds ordinary writes are refused (`blocked`).

import { StorageError } from '../../proto/errors.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import { type Disk, DiskError } from '../../proto/ports.ts';
import {
  FULL_BELOW_BYTES,
  RESERVE_BYTES_MAX,
  RESERVE_FLOOR_SHARE,
  RESERVE_SHARE,
  SPACE_REFRESH_BYTES,
} from './limits.ts';

export class Space {
  private readonly disk: Disk;
  private freeBytes = 0;
  private spentBytes = 0;
  private reserveBytes = 0;
  /** Blocks that objects hold. */
  liveBlocks = 0;
  /** Blocks in the log that will take new space when a checkpoint copies them. */
  promisedBlocks = 0;
  /** Bytes that metadata of slots without any will take at the next checkpoint. */
  promisedMetaBytes = 0;
  /** Blocks with ground in free and retired slots: space that is ours but not on the file system's list. */
  reusableBlocks = 0;
  /** The last checkpoint met a full disk. */
  blocked = false;

  constructor(disk: Disk) {
    this.disk = disk;
  }

  /** Call when liveBlocks and reusableBlocks are known: the reserve is a share of what the store can have in all. */
  open(): void {
    this.refresh();
    const capacity = this.freeBytes + (this.liveBlocks + this.reusableBlocks) * BLOCK_BYTES;
    this.reserveBytes = Math.min(RESERVE_BYTES_MAX, Math.floor(capacity / RESERVE_SHARE));
  }

  /** Asks the file system. Without an answer the old number, less what was spent since, has to do. */
  refresh(): void {
    try {
      this.freeBytes = this.disk.freeBytes();
      this.spentBytes = 0;
    } catch (error) {
      if (!(error instanceof DiskError)) throw error;
    }
  }

  /** New space on the disk was used. */
  spend(bytes: number): void {
    this.spentBytes += bytes;
    if (this.spentBytes >= SPACE_REFRESH_BYTES) this.refresh();
  }

  /** Is there room for `bytes` on new ground? */
  allows(bytes: number, reserve: boolean): boolean {
    if (bytes === 0) return true;
    if (this.blocked && !reserve) return false;
    const keep = reserve ? Math.floor(this.reserveBytes / RESERVE_FLOOR_SHARE) : this.reserveBytes;
    if (this.availableBytes() - bytes >= keep) return true;
    this.refresh();
    return this.availableBytes() - bytes >= keep;
  }

  fullError(bytes: number): StorageError {
    const left = Math.max(0, this.availableBytes());
    return new StorageError(
      'NO_SPACE',
      `the disk is full: ${bytes} bytes asked, ${left} left, ${this.reserveBytes} kept`,
    );
  }

  report(): { usedBytes: number; freeBytes: number; full: boolean } {
    const own = this.availableBytes() - this.reserveBytes;
    const freeBytes = this.blocked ? 0 : Math.max(0, own) + this.reusableBlocks * BLOCK_BYTES;
    return { usedBytes: this.liveBlocks * BLOCK_BYTES, freeBytes, full: freeBytes < FULL_BELOW_BYTES };
  }

  /** What is left on the disk after all that was promised, the reserve included. */
  availableBytes(): number {
    return this.freeBytes - this.spentBytes - this.promisedMetaBytes - this.promisedBlocks * BLOCK_BYTES;
  }
}
