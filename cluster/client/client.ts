// A client of the pool: a session with the master, the newest map, and open images.
//
//   PoolClient -> ObjectRouter -> DaemonLink per daemon
//        \-> PoolImage per open image
//
// While the master is away everything goes on with the last map; the subscription is renewed when it is back.

import type { ControlLink, Subscription } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { Epoch, ImageId } from '../../proto/ids.ts';
import { applyUpdate, type ImageEntry, type MapUpdate, type StorageMap } from '../../proto/map.ts';
import type { Clock, Log, Network } from '../../proto/ports.ts';
import type { Image, ImageClient } from './image.ts';
import { ObjectRouter } from './object-router.ts';
import { PoolImage } from './pool-image.ts';

const MASTER_RETRY_MS = 300;
const UNLOCK_AGAIN_MS = 1_000;

export interface ClientPorts {
  readonly clock: Clock;
  readonly network: Network;
  readonly control: ControlLink;
  readonly log: Log;
  /** What `status` calls this client. */
  readonly name: string;
  /** Machine it runs on, as in DaemonEntry.host. */
  readonly host: string;
  /** Unique to this process. */
  readonly clientId: string;
}

export class PoolClient implements ImageClient {
  readonly router: ObjectRouter;
  readonly #ports: ClientPorts;
  readonly #open = new Map<number, Set<PoolImage>>();
  /** Locks that are being given back. */
  readonly #unlocking = new Map<ImageId, Promise<void>>();
  #mapWaiters: { wanted: (map: StorageMap) => boolean; resolve: (map: StorageMap) => void }[] = [];
  #subscription: Subscription | null = null;
  /** An update did not fit: only a whole map will do. */
  #lostTrack = false;
  /** It has said something on the present subscription. */
  #masterIsThere = false;
  #stopped = false;

  constructor(ports: ClientPorts) {
    this.#ports = ports;
    this.router = new ObjectRouter(ports.clock, ports.network, ports.log, ports.host, ports.clientId);
  }

  get map(): StorageMap | null {
    return this.router.map;
  }

  /** Opens the session and waits for the first map. Rejects with UNAVAILABLE if the master can't be reached. */
  async start(): Promise<void> {
    const { session } = await this.#ports.control.call('openSession', { name: this.#ports.name });
    this.router.session = session;
    this.#subscribe();
    await this.mapWhere(() => true);
  }

  images(): ImageEntry[] {
    const entries = [...(this.map?.images.values() ?? [])].filter((image) => image.state === 'ready');
    return entries.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** The image of this name. Throws NOT_FOUND. */
  imageByName(name: string): ImageEntry {
    const entry = this.images().find((image) => image.name === name);
    if (entry === undefined) throw new StorageError('NOT_FOUND', `there is no image "${name}"`);
    return entry;
  }

  async open(name: string, options: { readOnly: boolean; takeOver: boolean }): Promise<Image> {
    return this.openImage(this.imageByName(name), options);
  }

  async openImage(entry: ImageEntry, options: { readOnly: boolean; takeOver: boolean }): Promise<PoolImage> {
    const { control, clock } = this.#ports;
    const { session } = this.router;
    let fence = 0;
    let current = entry;
    if (!options.readOnly) {
      await this.#unlocking.get(entry.id);
      const lock = await control.call('lockImage', { session, image: entry.id, takeOver: options.takeOver });
      fence = lock.fence;
      await this.mapWhere((m) => m.epoch >= lock.epoch);
      current = this.map?.images.get(entry.id) ?? entry;
    }
    const image: PoolImage = new PoolImage(clock, this.router, current, {
      readOnly: options.readOnly,
      fence,
      unlock: async () => {
        this.#open.get(entry.id)?.delete(image);
        if (fence !== 0) await this.#unlock(entry.id, fence);
      },
    });
    const same = this.#open.get(entry.id) ?? new Set();
    this.#open.set(entry.id, same.add(image));
    return image;
  }

  /**
   * Gives a lock back; resolves after the first try. Goes on trying until the master has heard it, else the image would
   * be locked for as long as this session lives; who opens it again waits for that, for its lock would be the same one.
   */
  #unlock(image: ImageId, fence: number): Promise<void> {
    const { control, clock } = this.#ports;
    const ask = (): Promise<unknown> => control.call('unlockImage', { session: this.router.session, image, fence });
    const again = (): Promise<unknown> =>
      this.#stopped
        ? Promise.resolve()
        : new Promise<void>((resolve) => clock.after(UNLOCK_AGAIN_MS, resolve)).then(ask).catch(again);
    const first = ask();
    const heard = first.catch(again).then(() => {
      if (this.#unlocking.get(image) === heard) this.#unlocking.delete(image);
    });
    this.#unlocking.set(image, heard);
    return first.then(
      () => {},
      () => {},
    );
  }

  /** The first map, from now on, that `wanted` accepts. */
  mapWhere(wanted: (map: StorageMap) => boolean): Promise<StorageMap> {
    if (this.map !== null && wanted(this.map)) return Promise.resolve(this.map);
    return new Promise((resolve) => this.#mapWaiters.push({ wanted, resolve }));
  }

  /** Ends the session without flushing: close the images first. */
  async close(): Promise<void> {
    this.#stopped = true;
    this.#subscription?.close();
    this.router.stop();
  }

  #subscribe(): void {
    if (this.#stopped) return;
    const epoch: Epoch = this.#lostTrack ? 0 : (this.map?.epoch ?? 0);
    this.#subscription = this.#ports.control.subscribe(
      { role: 'client', session: this.router.session, epoch, clusterId: this.map?.clusterId ?? '' },
      {
        onUpdate: (update) => this.#onUpdate(update),
        onClose: (reason) => {
          this.#subscription = null;
          if (this.#stopped) return;
          // Once per loss, however often it is sought in vain.
          if (this.#masterIsThere)
            this.#ports.log.warn('lost the master, going on with the last map', {
              why: reason,
              epoch: this.map?.epoch,
            });
          this.#masterIsThere = false;
          this.#ports.clock.after(MASTER_RETRY_MS, () => this.#subscribe());
        },
      },
    );
  }

  #onUpdate(update: MapUpdate): void {
    if (this.#stopped) return;
    this.#masterIsThere = true;
    let map: StorageMap;
    try {
      map = applyUpdate(this.map, update);
    } catch (error) {
      this.#ports.log.warn('map update does not fit, asking for the whole map', { why: String(error) });
      this.#subscription?.close();
      this.#lostTrack = true;
      this.#ports.clock.after(MASTER_RETRY_MS, () => this.#subscribe());
      return;
    }
    this.#lostTrack = false;
    if (map === this.map) return;
    this.router.onMap(map);
    for (const [id, images] of this.#open) for (const image of images) image.onMap(map.images.get(id));
    const waiters = this.#mapWaiters;
    this.#mapWaiters = [];
    for (const waiter of waiters) {
      if (waiter.wanted(map)) waiter.resolve(map);
      else this.#mapWaiters.push(waiter);
    }
  }
}
