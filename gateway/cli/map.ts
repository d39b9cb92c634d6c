// `ashlar map IMAGE`: where a byte of an image lives.

import type { Command } from 'commander';
import { UsageError } from '../../cluster/world/options.ts';
import { StorageError } from '../../proto/errors.ts';
import { type DaemonId, pgName } from '../../proto/ids.ts';
import { applyUpdate, pgOfObject, type StorageMap } from '../../proto/map.ts';
import { extentsOf } from '../../proto/striping.ts';
import { declareWithMaster, JSON_OPTION, type Master, print } from './command.ts';

export function addMapCommand(program: Command): void {
  declareWithMaster(
    program,
    'map <image>',
    'the object, placement group and storage daemons that hold a byte of an image',
    [{ name: 'offset', kind: 'size', default: 0, help: 'bytes into the image' }, JSON_OPTION],
    async (master, { offset, json }, [name]) => {
      const place = placeOf(await fetchMap(master), name!, offset);
      print(json, place, placeText(place));
    },
  );
}

export interface Place {
  image: string;
  offset: number;
  object: number;
  offsetInObject: number;
  pg: string;
  epoch: number;
  primary: DaemonId | null;
  acting: { id: DaemonId; address: string; up: boolean }[];
}

/** Throws StorageError NOT_FOUND, UsageError. */
export function placeOf(map: StorageMap, name: string, offset: number): Place {
  const image = [...map.images.values()].find((candidate) => candidate.name === name);
  if (image === undefined) throw new StorageError('NOT_FOUND', `there is no image "${name}": see ashlar image ls`);
  const extent = offset < image.sizeBytes ? extentsOf(image, offset, 1)[0] : undefined;
  if (extent === undefined)
    throw new UsageError(`--offset ${offset} is past the end of ${name}, which has ${image.sizeBytes} bytes`);
  const pg = pgOfObject(map.pools.get(image.pool)!, image.id, extent.object);
  const acting = map.pgs.get(pg)!.acting;
  return {
    image: name,
    offset,
    object: extent.object,
    offsetInObject: extent.offset,
    pg: pgName(pg),
    epoch: map.epoch,
    primary: acting[0] ?? null,
    acting: acting.map((id) => {
      const daemon = map.daemons.get(id)!;
      return { id, address: daemon.address, up: daemon.up };
    }),
  };
}

function placeText(place: Place): string {
  const members = place.acting.map(({ id, address, up }) => `${id} (${address}${up ? '' : ', down'})`);
  return [
    `object   ${place.object}, ${place.offsetInObject} bytes into it`,
    `PG       ${place.pg}, map epoch ${place.epoch}`,
    `primary  ${place.primary ?? 'nobody'}`,
    `acting   ${members.length === 0 ? 'nobody' : members.join(', ')}`,
  ].join('\n');
}

/** The map of this moment: what a subscription gives first. */
async function fetchMap(master: Master): Promise<StorageMap> {
  const { session } = await master.call('openSession', { name: 'ashlar map' });
  const { promise, resolve, reject } = Promise.withResolvers<StorageMap>();
  const subscription = master.subscribe(
    { role: 'client', session, epoch: 0 },
    {
      onUpdate: (update) => resolve(applyUpdate(null, update)),
      onClose: (reason) => reject(new StorageError('UNAVAILABLE', `no map from the master: ${reason}`)),
    },
  );
  try {
    return await promise;
  } finally {
    subscription.close();
  }
}
