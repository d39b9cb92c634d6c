// What this daemon still holds of PGs that it has left: data that was moved elsewhere is deleted here, slowly.
//
// Never on its own judgement: the master says for which PGs nobody needs it (they serve, and all members are complete).
// First the copy is marked incomplete, durably, so that a daemon that becomes a member again in the middle of it is
// known to miss something; at the end the PG is as if it had never been here.

import type { PgInterval } from '../../proto/control.ts';
import { type Epoch, type PgId, pgName, VERSION_ZERO } from '../../proto/ids.ts';
import type { ObjectInfo } from '../store/store.ts';
import type { Daemon } from './daemon.ts';

/** How often to look. */
const LOOK_MS = 2_000;
/** Objects deleted one after the other before others get a turn. */
const AT_ONCE = 16;

export class Leftovers {
  readonly #daemon: Daemon;
  #stopped = false;

  constructor(daemon: Daemon) {
    this.#daemon = daemon;
  }

  begin(): void {
    this.#daemon.clock.after(LOOK_MS, () => {
      if (this.#stopped) return;
      void this.#look().then(() => this.begin());
    });
  }

  stop(): void {
    this.#stopped = true;
  }

  async #look(): Promise<void> {
    const { store, control, map, identity, id } = this.#daemon;
    const left: PgInterval[] = [];
    for (const pg of store.pgs()) {
      const entry = map?.pgs.get(pg);
      if (entry === undefined || this.#daemon.holds(pg) || store.pgUsage(pg).objects === 0) continue;
      left.push({ pg, since: entry.since });
    }
    if (left.length === 0) return;
    try {
      const { accepted } = await control.call('forget', { id, bootId: identity.bootId, pgs: left });
      const sinces = new Map(left.map(({ pg, since }) => [pg, since]));
      for (const pg of accepted) await this.#forget(pg, sinces.get(pg) ?? 0);
    } catch (error) {
      this.#daemon.log.debug('leftovers stay for now', { why: String(error) });
    }
  }

  async #forget(pg: PgId, since: Epoch): Promise<void> {
    const { store, log } = this.#daemon;
    if (!this.#mine(pg, since)) return;
    store.setPg(pg, 0, false);
    await this.#synced();
    const objects = [...store.objects(pg)];
    for (let at = 0; at < objects.length; at += AT_ONCE) {
      if (!this.#mine(pg, since)) return;
      await Promise.all(objects.slice(at, at + AT_ONCE).map((info) => this.#remove(pg, info)));
    }
    if (!this.#mine(pg, since)) return;
    store.resetLog(pg, VERSION_ZERO);
    store.setPg(pg, 0, true);
    log.info('deleted what was left of a PG that has moved', { pg: pgName(pg), objects: objects.length });
  }

  /** Is the permission still good? It was for one interval: in a later one this daemon may have been a member, and left. */
  #mine(pg: PgId, since: Epoch): boolean {
    return !this.#stopped && !this.#daemon.holds(pg) && this.#daemon.map?.pgs.get(pg)?.since === since;
  }

  #remove(pg: PgId, { image, object }: ObjectInfo): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#daemon.store.recoverDelete(pg, image, object, (error) => (error === null ? resolve() : reject(error)));
    });
  }

  #synced(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#daemon.store.sync((error) => (error === null ? resolve() : reject(error)));
    });
  }
}
