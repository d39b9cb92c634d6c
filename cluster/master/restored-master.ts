// A master on a store that was restored from a backup: it proves that nothing has happened since before it says a word.
//
//   proving ──every daemon of the store has come with an epoch no newer than the store's──► mark removed ──► Master
//      └─────one daemon or client has seen a newer epoch──► fatal: `ashlar master recover`
//
// Without this, daemons that were away as long as the backup is old would take the old master for the right one. It
// would publish epochs that were published before with another meaning, pass by the newest of them, and a daemon that
// knows better would come too late to be noticed: two histories, and acked writes of the true one lost. So until the
// proof is complete nothing is committed and nothing is published, not even that a daemon is up; and a daemon that never
// comes back is a case for `recover --accept-missing`.

import type {
  ControlMethod,
  ControlReply,
  ControlRequest,
  ControlService,
  Subscriber,
  Subscription,
  SubscriptionEvents,
} from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { DaemonId, Epoch } from '../../proto/ids.ts';
import { RESTORED_KEY } from './backup.ts';
import { Master, type MasterOptions } from './master.ts';
import { outdatedError } from './outdated.ts';
import { loadState, type State } from './state.ts';

/** A master for the store: one that must prove itself first if it was restored. */
export async function openMaster(options: MasterOptions): Promise<Master | RestoredMaster> {
  const restored = (await options.kv.get(RESTORED_KEY)) !== null;
  return restored ? new RestoredMaster(options, await loadState(options.kv, '')) : Master.open(options);
}

export class RestoredMaster implements ControlService {
  readonly #options: MasterOptions;
  readonly clusterId: string;
  /** Of the store: nothing is committed before the proof. */
  readonly epoch: Epoch;
  /** Daemons that have not come yet, by the uuids of their directories. */
  readonly #awaited: Map<string, DaemonId>;
  /** Once it is proven. */
  #master: Promise<Master> | null = null;
  #opened: Master | null = null;
  #stopped: StorageError | null = null;

  constructor(options: MasterOptions, state: State) {
    this.#options = options;
    this.clusterId = state.clusterId;
    this.epoch = state.epoch;
    this.#awaited = new Map([...state.daemons.values()].map(({ entry }) => [entry.uuid, entry.id]));
    options.log.warn('the store was restored: nothing is served before its daemons have shown that it is the newest', {
      epoch: this.epoch,
      daemons: [...this.#awaited.values()],
    });
  }

  async handle<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>> {
    if (this.#stopped !== null) throw this.#stopped;
    if (this.#master === null && method === 'register') this.#onRegister(request as ControlRequest<'register'>);
    if (this.#master === null) throw this.#waiting();
    return (await this.#master).handle(method, request);
  }

  subscribe(subscriber: Subscriber, events: SubscriptionEvents): Subscription {
    if (this.#stopped !== null) throw this.#stopped;
    if (this.#opened !== null) return this.#opened.subscribe(subscriber, events);
    if (subscriber.epoch > this.epoch && subscriber.role === 'client' && subscriber.clusterId === this.clusterId)
      throw this.#fail(`client session ${subscriber.session}`, subscriber.epoch);
    throw this.#waiting();
  }

  /** As Master's: ends it at once, because another may lead. */
  depose(why: string): void {
    this.#stopped ??= new StorageError('UNAVAILABLE', why);
    if (this.#master === null) return;
    const depose = (master: Master): void => master.depose(why);
    this.#master.then(depose, () => {}); // one that could not open has said why already
  }

  async close(): Promise<void> {
    this.#stopped ??= new StorageError('UNAVAILABLE', 'the master is shutting down');
    if (this.#master === null) await this.#options.kv.close();
    else await (await this.#master).close();
  }

  #onRegister({ clusterId, uuid, newestEpoch }: ControlRequest<'register'>): void {
    if (clusterId !== this.clusterId) return; // a new one, or a stranger: proves nothing
    if (newestEpoch > this.epoch) throw this.#fail(`daemon ${uuid}`, newestEpoch);
    this.#awaited.delete(uuid);
    if (this.#awaited.size > 0) return;
    this.#options.log.info('every daemon has come, none has seen a newer map: the restored store is served from');
    this.#master = this.#begin();
    this.#master.catch((error: Error) => this.#options.onFatal(error));
  }

  async #begin(): Promise<Master> {
    const { kv } = this.#options;
    const compares = [{ key: '/epoch', value: String(this.epoch) }];
    if (!(await kv.batch({ compares, puts: [], deletes: [RESTORED_KEY] })))
      throw new StorageError('IDENTITY', 'another master has written to this store');
    this.#opened = await Master.open(this.#options);
    return this.#opened;
  }

  #fail(who: string, theirs: Epoch): StorageError {
    this.#stopped = outdatedError(who, theirs, this.epoch);
    this.#options.onFatal(this.#stopped);
    return this.#stopped;
  }

  #waiting(): StorageError {
    const missing = [...this.#awaited.values()].map((id) => `daemon ${id}`).join(', ');
    return new StorageError(
      'UNAVAILABLE',
      `the master was restored from a backup, and waits for ${missing} to show that nothing has happened since; ` +
        'if one is gone for good: ashlar master recover --from-daemons --accept-missing',
    );
  }
}
