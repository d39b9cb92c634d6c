// Who follows the map, and what each still needs.
//
// Every durable change arrives here as one update. A subscriber gets, at the end of the turn of the loop, one update
// from the epoch it has to the newest: incrementals joined, or everything if it has none or fell behind what is kept.
// So a burst of changes costs each subscriber one message. Updates are never delivered from inside subscribe().

import type { SubscriptionEvents } from '../../proto/control.ts';
import type { Epoch } from '../../proto/ids.ts';
import { MAP_INCREMENTALS_KEPT } from '../../proto/limits.ts';
import { applyUpdate, fullUpdate, type MapUpdate, type StorageMap } from '../../proto/map.ts';
import { joinUpdates } from '../../proto/map-updates.ts';
import type { Clock } from '../../proto/ports.ts';

export interface Follower {
  readonly events: SubscriptionEvents;
  /** What it has, counting what is on its way. */
  epoch: Epoch;
  open: boolean;
}

export class Publisher {
  readonly #clock: Clock;
  #map: StorageMap;
  readonly #incrementals: MapUpdate[] = [];
  readonly #followers = new Set<Follower>();
  #scheduled = false;

  constructor(clock: Clock, map: StorageMap) {
    this.#clock = clock;
    this.#map = map;
  }

  get map(): StorageMap {
    return this.#map;
  }

  follow(epoch: Epoch, events: SubscriptionEvents): Follower {
    const follower: Follower = { events, epoch, open: true };
    this.#followers.add(follower);
    this.#schedule();
    return follower;
  }

  /** Stops it without a word: the subscriber is the one who left. */
  leave(follower: Follower): void {
    follower.open = false;
    this.#followers.delete(follower);
  }

  /** Ends it, and says so. */
  dismiss(follower: Follower, reason: string): void {
    if (!follower.open) return;
    this.leave(follower);
    this.#clock.soon(() => follower.events.onClose(reason));
  }

  dismissAll(reason: string): void {
    for (const follower of this.#followers) this.dismiss(follower, reason);
  }

  publish(update: MapUpdate): void {
    this.#map = applyUpdate(this.#map, update);
    this.#incrementals.push(update);
    if (this.#incrementals.length > MAP_INCREMENTALS_KEPT) this.#incrementals.shift();
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#clock.soon(() => this.#deliver());
  }

  #deliver(): void {
    this.#scheduled = false;
    const made = new Map<Epoch, MapUpdate>();
    for (const follower of this.#followers) {
      if (follower.epoch >= this.#map.epoch) continue;
      let update = made.get(follower.epoch);
      if (update === undefined) {
        update = this.#updateFrom(follower.epoch);
        made.set(follower.epoch, update);
      }
      follower.epoch = update.to;
      follower.events.onUpdate(update);
    }
  }

  #updateFrom(epoch: Epoch): MapUpdate {
    const at = this.#incrementals.findIndex((update) => update.from === epoch);
    if (epoch === 0 || at === -1) return fullUpdate(this.#map);
    return this.#incrementals.slice(at).reduce(joinUpdates);
  }
}
