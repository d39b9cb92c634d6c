// `ashlar image …`

import type { Command } from 'commander';
import { parseSize, UsageError } from '../../cluster/world/options.ts';
import type { ClusterStatus } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { ImageEntry } from '../../proto/map.ts';
import { objectCount } from '../../proto/striping.ts';
import { declareWithMaster, JSON_OPTION, type Master, print } from './command.ts';
import { removeImage, shrinkImage } from './image-data.ts';
import { withPool } from './pool-client.ts';
import { imageTable } from './status.ts';
import { sizeText } from './text.ts';
import { POOL_NAME } from './up-settings.ts';

export function addImageCommands(program: Command): void {
  const image = program.command('image').description('images: virtual disks, each an NBD export');
  declareWithMaster(image, 'ls', 'list images', [JSON_OPTION], async (master, { json }) => {
    const status = await master.call('status', {});
    print(json, status.images, imageTable(status));
  });
  declareWithMaster(
    image,
    'create <name>',
    'make an image; it reads as zeros and takes no space until it is written',
    [
      { name: 'size', kind: 'size', required: true, help: 'bytes, or with K, M, G, T' },
      { name: 'pool', kind: 'string', default: POOL_NAME, help: 'pool that holds it' },
      { name: 'object-size', kind: 'size', default: 2 ** 20, help: 'a power of two, 64K to 32M' },
      { name: 'stripe-unit', kind: 'size', default: 0, help: 'bytes before the next object; 0: the object size' },
      { name: 'stripe-count', kind: 'integer', default: 1, help: 'objects that share a stripe' },
      JSON_OPTION,
    ],
    async (master, options, [name]) => {
      const order = Math.log2(options.objectSize);
      if (!Number.isInteger(order))
        throw new UsageError(`--object-size: must be a power of two, not ${options.objectSize}`);
      const made = await master.call('createImage', {
        name: name!,
        pool: options.pool,
        sizeBytes: options.size,
        order,
        stripeUnit: options.stripeUnit === 0 ? options.objectSize : options.stripeUnit,
        stripeCount: options.stripeCount,
      });
      print(options.json, made, `image ${made.name}: made, ${sizeText(made.sizeBytes)}`);
    },
  );
  declareWithMaster(image, 'info <name>', 'all about one image', [JSON_OPTION], async (master, { json }, [name]) => {
    const status = await master.call('status', {});
    const entry = imageOf(status, name!);
    const objects = objectCount(entry, entry.sizeBytes);
    print(json, { ...entry, objects }, infoText(status, entry, objects));
  });
  declareWithMaster(
    image,
    'resize <name> <size>',
    'grow an image, or with --shrink cut off its end',
    [{ name: 'shrink', kind: 'flag', help: 'allow to lose what lies beyond the new size' }, JSON_OPTION],
    async (master, { shrink, json }, [name, size]) => {
      const entry = await resize(master, name!, parseSize(size!), shrink);
      print(json, entry, `image ${entry.name}: ${sizeText(entry.sizeBytes)}`);
    },
  );
  declareWithMaster(
    image,
    'rm <name>',
    'remove an image and its data; repeat it if it was interrupted',
    [],
    async (master, _, [name]) => {
      const entry = imageOf(await master.call('status', {}), name!);
      await withPool(master, (client) => removeImage(master, client, entry));
      print(false, null, `image ${name}: removed`);
    },
  );
}

async function resize(master: Master, name: string, sizeBytes: number, shrink: boolean): Promise<ImageEntry> {
  const entry = imageOf(await master.call('status', {}), name);
  if (sizeBytes >= entry.sizeBytes) return master.call('resizeImage', { image: entry.id, sizeBytes });
  if (!shrink)
    throw new UsageError(
      `${name} has ${sizeText(entry.sizeBytes)}: cutting it to ${sizeText(sizeBytes)} loses what lies beyond; say --shrink to do it`,
    );
  if (sizeBytes < 1) throw new UsageError(`an image has at least 1 byte: see ashlar image rm`);
  await withPool(master, (client) => shrinkImage(master, client, entry, sizeBytes));
  return imageOf(await master.call('status', {}), name);
}

function imageOf(status: ClusterStatus, name: string): ClusterStatus['images'][number] {
  const entry = status.images.find((image) => image.name === name);
  if (entry === undefined) throw new StorageError('NOT_FOUND', `there is no image "${name}": see ashlar image ls`);
  return entry;
}

function infoText(status: ClusterStatus, entry: ClusterStatus['images'][number], objects: number): string {
  const striping =
    entry.stripeCount === 1 ? 'none' : `units of ${sizeText(entry.stripeUnit)} over ${entry.stripeCount} objects`;
  return [
    `image    ${entry.name} (number ${entry.id})`,
    `size     ${sizeText(entry.sizeBytes)} (${entry.sizeBytes} bytes), at most ${objects} objects of ${sizeText(2 ** entry.order)}`,
    `striping ${striping}`,
    `pool     ${status.pools.find((pool) => pool.id === entry.pool)?.name ?? entry.pool}`,
    `state    ${entry.state}`,
    `writer   ${entry.owner === '' ? 'nobody' : `${entry.owner}, fence ${entry.fence}`}`,
  ].join('\n');
}
