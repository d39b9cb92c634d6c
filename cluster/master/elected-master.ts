// One of several masters on a shared store: a master's core for as long as it leads, a signpost otherwise.
//
//   Election ──onLead──► LeaderKv.open ──► Master.open ──► serves
//            ──onDeposed──► Master.depose: at once, whatever is under way; the next term reads everything again
//
// Carriers see one ControlService that is always there. Calls to one who does not lead fail with NotLeaderError, which
// says who does. Before and after each call the lease is looked at: a process that was stopped and goes on with what it
// had read before finds out before it answers anybody.

import type {
  ControlMethod,
  ControlReply,
  ControlRequest,
  ControlService,
  Subscriber,
  Subscription,
  SubscriptionEvents,
} from '../../proto/control.ts';
import { NotLeaderError, StorageError } from '../../proto/errors.ts';
import type { LeaseStore } from '../../proto/lease-store.ts';
import type { Clock, Log, Random } from '../../proto/ports.ts';
import { Election } from './election.ts';
import { LeaderKv, leaderKeyOf } from './leader-kv.ts';
import type { Master } from './master.ts';
import { openMaster, type RestoredMaster } from './restored-master.ts';

export interface ElectedMasterOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly random: Random;
  readonly store: LeaseStore;
  /** Of this cluster's keys in the store. */
  readonly prefix: string;
  readonly outAfterMs?: number;
  /** It must not go on, and no other master on this store would do better: the store is an old copy, or not ours. */
  readonly onFatal: (error: Error) => void;
}

export class ElectedMaster implements ControlService {
  readonly #options: ElectedMasterOptions;
  #election: Election | null = null;
  #master: Master | RestoredMaster | null = null;
  /** Of this term. */
  #kv: LeaderKv | null = null;
  /** Which term this is: what a former one still does is ignored. */
  #term = 0;

  constructor(options: ElectedMasterOptions) {
    this.#options = options;
  }

  /**
   * From now on it leads when nobody else does.
   * @param address where clients and daemons reach this master; what the others tell them while it leads
   */
  campaign(address: string): void {
    const { clock, log, store, prefix } = this.#options;
    this.#election = new Election({
      clock,
      log,
      store,
      key: leaderKeyOf(prefix),
      name: address,
      onLead: (created) => void this.#lead(++this.#term, created),
      onDeposed: (why) => this.#stepDown(why),
    });
  }

  /** It serves now. */
  get leads(): boolean {
    return this.#master !== null && this.#election!.leads;
  }

  handle<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>> {
    if (!this.leads) return Promise.reject(this.#notLeader());
    const term = this.#term;
    const confirm = (): void => {
      if (this.#term !== term || !this.leads)
        throw new StorageError('UNAVAILABLE', 'this master lost the lead while it answered: ask again');
    };
    // A refusal counts as much as an answer: there are some that a daemon ends itself for.
    return this.#master!.handle(method, request).then(
      (reply) => {
        confirm();
        return reply;
      },
      (error: unknown) => {
        confirm();
        throw error;
      },
    );
  }

  subscribe(subscriber: Subscriber, events: SubscriptionEvents): Subscription {
    if (!this.leads) throw this.#notLeader();
    return this.#master!.subscribe(subscriber, events);
  }

  /** Hands over: resolves when another may lead. */
  async close(): Promise<void> {
    await this.#election?.close();
  }

  async #lead(term: number, created: string): Promise<void> {
    const { clock, log, random, store, prefix, outAfterMs, onFatal } = this.#options;
    let kv: LeaderKv | null = null;
    try {
      kv = await LeaderKv.open({ store, prefix, created });
      const leaderKv = kv;
      if (this.#term === term) this.#kv = kv;
      const master = await openMaster({
        clock,
        log,
        random,
        kv,
        ...(outAfterMs === undefined ? {} : { outAfterMs }),
        onFatal: (error) => this.#onFatal(term, leaderKv, error),
      });
      if (this.#term !== term || !this.#election!.leads) return master.depose('another master may lead');
      this.#master = master;
      log.info('this master serves', { clusterId: master.clusterId, epoch: master.epoch });
    } catch (error) {
      if (this.#term !== term) return;
      if (error instanceof StorageError && (error.code === 'UNAVAILABLE' || error.code === 'NO_SPACE'))
        this.#election!.resign(`it could not read the shared store: ${error.message}`);
      else onFatal(error as Error);
    }
  }

  /** The store failed a commit: what it holds is unknown, so another term begins by reading it. */
  #onFatal(term: number, kv: LeaderKv, error: Error): void {
    if (this.#term !== term) return;
    if (kv.broken !== null) this.#election!.resign(error.message);
    else this.#options.onFatal(error);
  }

  #stepDown(why: string): void {
    this.#term++;
    const master = this.#master;
    this.#master = null;
    void this.#kv?.close(); // what waits to be written is not even tried
    this.#kv = null;
    master?.depose(`this master does not lead any more: ${why}`);
  }

  #notLeader(): NotLeaderError {
    return new NotLeaderError(this.#election?.leader ?? '');
  }
}
