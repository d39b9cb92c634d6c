// The control plane of a master that is being rebuilt: it takes the daemons' testimonies, and does nothing else.
//
//   daemon --register--> "recovering" --testify--> kept here, the newest one of each directory
//                                                       all that are needed have spoken --> done, once
//
// Daemons ask their master's address over and over, so listening there is all it takes to be found by them. Everybody
// else hears UNAVAILABLE and waits. No interval can become active meanwhile: what the daemons said stays true.

import type {
  ControlMethod,
  ControlReply,
  ControlRequest,
  ControlService,
  Subscription,
  Testimony,
} from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { DaemonId } from '../../proto/ids.ts';
import { newestMap, silent } from './recover.ts';

/** Directories that may testify: more are none of one cluster's. */
const TESTIMONIES_MAX = 65_535;

export class Testimonies implements ControlService {
  readonly #byUuid = new Map<string, Testimony>();
  readonly #acceptMissing: readonly DaemonId[];
  readonly #heard: (testimony: Testimony) => void;

  /** @param heard called after each testimony that was taken, also when it is repeated */
  constructor(acceptMissing: readonly DaemonId[], heard: (testimony: Testimony) => void) {
    this.#acceptMissing = acceptMissing;
    this.#heard = heard;
  }

  all(): Testimony[] {
    return [...this.#byUuid.values()];
  }

  /** Daemons, of the newest map so far, that are still needed; null: nobody has brought a map yet. */
  awaited(): DaemonId[] | null {
    const testimonies = this.all();
    if (testimonies.every(({ map }) => map === null)) return null;
    return silent(newestMap(testimonies), testimonies).filter((id) => !this.#acceptMissing.includes(id));
  }

  handle<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>> {
    return new Promise((resolve) => resolve(this.#answer(method, request) as ControlReply<M>));
  }

  subscribe(): Subscription {
    throw rebuilding();
  }

  #answer(method: ControlMethod, request: unknown): object {
    if (method === 'register') {
      const { clusterId } = request as ControlRequest<'register'>;
      return { clusterId, id: 0, epoch: 0, recovering: true };
    }
    if (method !== 'testify') throw rebuilding();
    const testimony = request as Testimony;
    const { uuid, clusterId, map } = testimony;
    if (uuid === '') throw new StorageError('INVALID', 'a testimony without the uuid of its directory');
    if (map !== null && (map.from !== 0 || map.clusterId !== clusterId))
      throw new StorageError('INVALID', `daemon ${uuid} brought a map that is not whole, or not of its cluster`);
    if (this.#byUuid.size >= TESTIMONIES_MAX) throw new StorageError('INVALID', 'more testimonies than daemons');
    const others = this.all().filter((other) => other.uuid !== uuid);
    // Throws, and keeps nothing, if it is of another cluster than those before.
    if (map !== null) newestMap([...others, testimony]);
    this.#byUuid.set(uuid, testimony);
    this.#heard(testimony);
    return {};
  }
}

const rebuilding = (): StorageError =>
  new StorageError('UNAVAILABLE', 'the master is being rebuilt from its daemons: it serves when that is done');
