// Opening a store: making the files of a new one, or bringing an old one to the state that its log ends in.
//
//   checkpoint file -> metadata of all slots -> redo of the log -> everything synced -> a checkpoint of the same
//   generation that says "durable up to here" and counts the start, so that what a crash left behind is never taken
//   for something newer -> serve
//
// It blocks the event loop: a daemon does nothing else before its store is open.

import { hashBytes } from '../../proto/checksum.ts';
import { StorageError } from '../../proto/errors.ts';
import { type Clock, type Disk, DiskError, type DiskFile, type Log, type Random } from '../../proto/ports.ts';
import { Checkpointer } from './checkpoint.ts';
import {
  CHECKPOINT_FILE_BYTES,
  CHECKPOINT_NAMES,
  type Checkpoint,
  CheckpointFiles,
  encodeCheckpoint,
} from './checkpoint-file.ts';
import { Content } from './content.ts';
import { DiskStore } from './engine.ts';
import { LOG_BYTES_DEFAULT, LOG_BYTES_MIN, LOG_SEGMENT_BYTES_MAX, LOG_SEGMENTS } from './limits.ts';
import { loadSlots } from './load-slots.ts';
import { type Geometry, StoreLog, segmentName } from './log.ts';
import { BATCH_MAGIC } from './record.ts';
import { openSegments, Redo, type RedoResult } from './redo.ts';
import { SlotFiles } from './slots.ts';
import { Space } from './space.ts';

const MiB = 1024 * 1024;
const NEW_CHECKPOINT_NAME = 'checkpoint.new';

export interface DiskStoreOptions {
  disk: Disk;
  clock: Clock;
  log: Log;
  /** Called once if the disk fails: nothing is acknowledged from then on, and the process should end. */
  onFatal: (error: Error) => void;
  /** A store made for one cluster does not open for another. */
  clusterId?: string;
  /** Size of the log of a new store, at least 2 MiB; the default is 128 MiB, less on a small disk. */
  logBytes?: number;
  /** Makes a new store's log impossible to imitate by what clients write; without it only the clock does. */
  random?: Random;
}

/** Opens the store in a directory, or makes one in an empty directory. Rejects with IO if it is corrupt, NO_SPACE, IDENTITY. */
export async function openDiskStore(options: DiskStoreOptions): Promise<DiskStore> {
  try {
    return open(options);
  } catch (error) {
    if (!(error instanceof DiskError)) throw error;
    throw new StorageError(
      error.code === 'NO_SPACE' ? 'NO_SPACE' : 'IO',
      `cannot open the store: ${error.message}`,
      error,
    );
  }
}

function open(options: DiskStoreOptions): DiskStore {
  const { disk, clock, log: messages } = options;
  const start = clock.now();
  if (!CHECKPOINT_NAMES.some((name) => disk.exists(name))) format(options);
  const files = new CheckpointFiles(disk);
  let checkpoint = files.read();
  refuseStranger(checkpoint, options.clusterId);

  const slots = new SlotFiles(disk);
  const space = new Space(disk);
  const content = new Content(slots, space);
  content.redoPosition = checkpoint.redoPosition;
  const segments = openSegments(disk, checkpoint.geometry.segments);
  // The slots' metadata names PGs, so these come first: the log's history and the checkpoint's table.
  const redo = new Redo(segments, checkpoint, content, messages);
  redo.prepare();
  loadSlots(slots, checkpoint, content);
  const end = redo.run();
  for (const file of slots.all()) file.listFree();
  space.open();

  syncRest(end, segments, checkpoint.geometry, slots);
  checkpoint = {
    ...checkpoint,
    sequence: checkpoint.sequence + 1,
    incarnation: checkpoint.incarnation + 1,
    durablePosition: end.position,
  };
  const bytes = encodeCheckpoint(checkpoint);
  files.affirm();
  files.writeFirst(bytes);
  files.first.syncNow();
  files.writeSecond(bytes);
  files.second.syncNow();
  files.swap();

  const log = new StoreLog(
    segments,
    checkpoint.geometry,
    clock,
    options.onFatal,
    end.position,
    end.chain,
    checkpoint.incarnation,
  );
  const checkpointer = new Checkpointer(content, log, files, clock, messages, checkpoint);
  messages.info('store open', {
    objects: content.index.size,
    pgs: content.pgs.size,
    redoneBatches: end.batches,
    redoneBytes: end.position - checkpoint.redoPosition,
    tookMs: Math.round(clock.now() - start),
  });
  return new DiskStore(content, log, checkpointer, clock, () => {
    files.close();
    for (const file of segments) file.close();
    for (const file of slots.all()) file.close();
  });
}

function refuseStranger(checkpoint: Checkpoint, clusterId: string | undefined): void {
  if (clusterId !== undefined && checkpoint.clusterId !== '' && checkpoint.clusterId !== clusterId)
    throw new StorageError('IDENTITY', `this store belongs to cluster ${checkpoint.clusterId}, not to ${clusterId}`);
}

/**
 * Makes the end of the log durable that a crash left in the page cache only (redo has written it again). What it survived
 * this far, a power cut might still take, and nobody would know that it had been there.
 */
function syncRest(end: RedoResult, segments: readonly DiskFile[], geometry: Geometry, slots: SlotFiles): void {
  if (end.position <= end.known) return;
  const first = Math.floor(end.known / geometry.segmentBytes);
  const last = Math.floor(end.position / geometry.segmentBytes);
  for (let number = first; number <= last; number++) segments[number % segments.length]!.syncNow();
  for (const file of slots.all()) file.data.syncNow();
}

/** Cuts a log of about so many bytes into equal segments of whole MiB, two at least. */
export function geometryOf(logBytes: number): { segmentBytes: number; segments: number } {
  const aim = Math.floor(logBytes / LOG_SEGMENTS / MiB) * MiB;
  const segmentBytes = Math.max(1 * MiB, Math.min(LOG_SEGMENT_BYTES_MAX, aim));
  return { segmentBytes, segments: Math.max(2, Math.floor(logBytes / segmentBytes)) };
}

/**
 * Makes an empty store. The checkpoint file is renamed into place last: until then there is no store, and a crash
 * leaves files that the next try overwrites.
 */
function format(options: DiskStoreOptions): void {
  const { disk } = options;
  const used = disk.list().filter((name) => /^(meta|data)-\d+$/.test(name) || holdsBatch(disk, name));
  if (used.length > 0)
    throw new StorageError('IO', `${used.join(', ')} but no checkpoint file: this is a store that lost its beginning`);
  const logBytes = Math.max(
    LOG_BYTES_MIN,
    options.logBytes ?? Math.min(LOG_BYTES_DEFAULT, Math.floor(disk.freeBytes() / LOG_SEGMENTS)),
  );
  const geometry: Geometry = { ...geometryOf(logBytes), ...saltsOf(options) };
  const zeros = Buffer.alloc(1 * MiB);
  for (let index = 0; index < geometry.segments; index++) {
    const file = disk.open(segmentName(index), true);
    for (let at = 0; at < geometry.segmentBytes; at += zeros.length) file.write([zeros], at);
    file.syncNow();
    file.close();
  }
  const first = encodeCheckpoint({
    sequence: 1,
    generation: 1,
    redoPosition: 0,
    chain: { position: -1, checksum: 0 },
    incarnation: 1,
    durablePosition: 0,
    geometry,
    census: 0,
    slotsSaved: 0,
    clusterId: options.clusterId ?? '',
    pgTable: Buffer.alloc(0),
  });
  const file = disk.open(NEW_CHECKPOINT_NAME, true);
  file.write([first, Buffer.alloc(CHECKPOINT_FILE_BYTES - first.length)], 0);
  file.syncNow();
  file.close();
  disk.syncDirectory();
  disk.rename(NEW_CHECKPOINT_NAME, CHECKPOINT_NAMES[0]);
  disk.syncDirectory();
}

/** Is this a segment that was written to? All of them begin with a batch; one that is being made holds zeros. */
function holdsBatch(disk: Disk, name: string): boolean {
  if (!/^log-\d+$/.test(name)) return false;
  const file = disk.open(name, false);
  const head = Buffer.alloc(4);
  file.read(head, 0);
  file.close();
  return head.readUInt32LE(0) === BATCH_MAGIC;
}

function saltsOf(options: DiskStoreOptions): { saltA: number; saltB: number } {
  if (options.random !== undefined) return { saltA: options.random.u32(), saltB: options.random.u32() };
  const moment = Buffer.alloc(8);
  moment.writeDoubleLE(options.clock.now());
  return { saltA: hashBytes(moment), saltB: hashBytes(Buffer.concat([moment, moment])) };
}
