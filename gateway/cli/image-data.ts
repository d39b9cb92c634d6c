// What happens to an image's data when it is removed or cut: objects go first, the directory entry follows.
//
//   rm      master: removing, fence up ──► delete all objects ──► nothing found, nothing missing ──► master: forget it
//   shrink  lock ──► zero the rest of what is kept in part ──► flush ──► delete what lies beyond ──► master: new size
//
// Each may be interrupted anywhere and repeated.

import type { PoolClient } from '../../cluster/client/client.ts';
import { deleteObjectsFrom } from '../../cluster/client/deletion.ts';
import type { PoolImage } from '../../cluster/client/pool-image.ts';
import type { ControlLink } from '../../proto/control.ts';
import type { StorageError } from '../../proto/errors.ts';
import type { ImageEntry } from '../../proto/map.ts';
import { objectCount } from '../../proto/striping.ts';
import { Progress } from './text.ts';

/** Objects of a PG that recovers may turn up late: looked for again after this. */
const AGAIN_MS = 500;
/** One request to zero; many follow each other. */
const ZERO_BYTES = 64 * 2 ** 20;

export async function removeImage(master: ControlLink, client: PoolClient, image: ImageEntry): Promise<void> {
  await master.call('removeImage', { image: image.id, done: false });
  const map = await client.mapWhere((newer) => newer.images.get(image.id)?.state !== 'ready');
  const entry = map.images.get(image.id);
  if (entry !== undefined) await deleteAll(master, client, entry, 0, entry.fence);
  await master.call('removeImage', { image: image.id, done: true });
}

/** Rejects with BUSY while a writer has the image. */
export async function shrinkImage(
  master: ControlLink,
  client: PoolClient,
  entry: ImageEntry,
  sizeBytes: number,
): Promise<void> {
  const image = await client.openImage(entry, { readOnly: false, takeOver: false });
  try {
    const first = objectCount(entry, sizeBytes);
    const keptBytes = first * 2 ** entry.order; // whole sets: objects of one share its stripes
    await zero(image, sizeBytes, Math.min(keptBytes, entry.sizeBytes));
    await settled((done) => image.flush(done));
    await deleteAll(master, client, entry, first, image.fence);
    await master.call('resizeImage', { image: entry.id, sizeBytes });
  } finally {
    await settled((done) => image.close(done));
  }
}

async function zero(image: PoolImage, from: number, to: number): Promise<void> {
  for (let at = from; at < to; at += ZERO_BYTES) {
    const length = Math.min(ZERO_BYTES, to - at);
    await settled((done) => image.zero(at, length, false, done));
  }
}

/** Until a look at every PG finds nothing and no object is missing anywhere. */
async function deleteAll(
  master: ControlLink,
  client: PoolClient,
  image: ImageEntry,
  first: number,
  fence: number,
): Promise<void> {
  const progress = new Progress(`${image.name}: deleting objects`);
  for (;;) {
    const before = await master.call('status', {});
    const deleted = await deleteObjectsFrom(client.router, image, first, fence, (done, found) => {
      if (found > 0) progress.show(done, found);
    });
    if (deleted === 0 && before.missing === 0 && before.health !== 'blocked') return;
    if (deleted === 0) await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

function settled(call: (done: (error: StorageError | null) => void) => void): Promise<void> {
  return new Promise((resolve, reject) => call((error) => (error === null ? resolve() : reject(error))));
}
