// Sizes, counts and times of the storage engine, with a sentence for each number and the relations asserted.

import assert from 'node:assert/strict';
import { BLOCK_BYTES } from '../../proto/limits.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

/** Unit of every write to the log and the data files: the page of the kernel's cache, so no page is read to be changed. */
export const PAGE_BYTES = BLOCK_BYTES;

/** The whole log unless the daemon is told otherwise, cut into segments. */
export const LOG_BYTES_DEFAULT = 128 * MiB;
export const LOG_SEGMENT_BYTES_MAX = 16 * MiB;
/** Two segments of 1 MiB: small enough for a 16 MiB file system in a test, large enough for any batch that goes in the log. */
export const LOG_BYTES_MIN = 2 * MiB;
/** Segments to aim at: one eighth of the log is the unit of reuse. */
export const LOG_SEGMENTS = 8;

/** A batch is written before the end of the turn when its payload reaches this. */
export const BATCH_PAYLOAD_MAX = 1 * MiB;
/** Writes from here on go straight to the data file where that is safe; below, one log write beats two random ones. */
export const DIRECT_BYTES_MIN = 64 * KiB;
/** Largest payload that goes through the log, as a share of a segment: what is larger moves to a fresh slot. */
export const IN_LOG_SEGMENT_SHARE = 4;
/** A checkpoint begins when this share (1/n) of the log is in use since the last one. */
export const CHECKPOINT_LOG_SHARE = 4;
/** A checkpoint begins when retired slots hold so much, or this share (1/n) of what is left on the disk. */
export const RETIRED_BYTES_MAX = 128 * MiB;
export const RETIRED_FREE_SHARE = 8;
/** Changes are checkpointed after this long even when little is written, so that a restart has little to redo. */
export const CHECKPOINT_AFTER_MS = 30_000;
/** A checkpoint that found the disk full is tried again after this. */
export const CHECKPOINT_RETRY_MS = 1_000;
/** Work of the checkpoint in one turn of the event loop, so that it never holds up I/O: time, bytes. */
export const CHECKPOINT_TURN_MS = 1;
export const CHECKPOINT_TURN_BYTES = 256 * KiB;

/** Entries kept per PG, and in all PGs together (48 bytes each in memory). */
export const PG_LOG_ENTRIES_MAX = 4096;
export const PG_LOG_ENTRIES_TOTAL = 512 * KiB;
/** However many PGs there are, each keeps this many. */
export const PG_LOG_ENTRIES_MIN = 64;

/** A blocking read that takes longer came from the disk, not from the cache. */
export const COLD_READ_MS = 0.5;
/** After a cold read, reads leave the event loop for so long; then one is tried on it again: first time, and at most. */
export const COLD_SPELL_FIRST_MS = 6;
export const COLD_SPELL_MS = 100;
/** Reads off the event loop that found their object changed under them are tried this often before a blocking one. */
export const READ_RETRIES_MAX = 2;

/** Kept for members' copies, zeroes, deletes and the engine itself: this share (1/n) of the disk, at most so much. */
export const RESERVE_SHARE = 20;
export const RESERVE_BYTES_MAX = 1024 * MiB;
/** The part (1/n) of the reserve that only the engine's own metadata may use. */
export const RESERVE_FLOOR_SHARE = 4;
/** With less than this free a store calls itself full: the smallest write to a new object may not fit any more. */
export const FULL_BELOW_BYTES = 64 * KiB;
/** Free space is asked of the file system again after so many bytes were written to new places. */
export const SPACE_REFRESH_BYTES = 8 * MiB;

assert(LOG_BYTES_MIN / 2 / IN_LOG_SEGMENT_SHARE >= DIRECT_BYTES_MIN);
assert(BATCH_PAYLOAD_MAX <= LOG_BYTES_MIN / 2);
assert(PG_LOG_ENTRIES_MIN <= PG_LOG_ENTRIES_MAX);
