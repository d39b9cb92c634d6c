// Who leads: one key of a shared store, held under a lease.
//
//   follow ──the key is absent──► grant a lease, claim the key ──► lead ──renewals fail, or the lease is gone──► follow
//     ▲  looks every FOLLOW_MS          somebody was faster │         └──resign()──► revoke ──► follow
//     └─────────────────────────────────────────────────────┘
//
// The lead ends by our own monotonic clock, LEASE_MARGIN_MS before the store can possibly give the key to another. That is
// for honest answers. Safety does not rest on clocks: each transaction of a leader demands that its life of the key goes
// on (leader-kv.ts). Each term has a lease of its own, so that nothing sent in an earlier term can ever be accepted.
//
// What a leader does is not known here: see elected-master.ts.

import { StorageError } from '../../proto/errors.ts';
import { ABSENT, type LeaseStore } from '../../proto/lease-store.ts';
import type { Clock, Log } from '../../proto/ports.ts';
import { FOLLOW_MS, LEASE_MARGIN_MS, LEASE_MS, RENEW_MS, RENEW_RETRY_MS } from './limits.ts';

export interface ElectionOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly store: LeaseStore;
  readonly key: string;
  /** What the key says while we lead: where others find us. */
  readonly name: string;
  /** We lead, in the life of the key that `created` names. */
  readonly onLead: (created: string) => void;
  /** We do not lead any more, since before this call. */
  readonly onDeposed: (why: string) => void;
}

interface Term {
  readonly lease: string;
  readonly ttlMs: number;
  /** By our clock: up to here nobody else can have the key. */
  until: number;
  /** Wakes up whoever waits for its end. */
  readonly ended: PromiseWithResolvers<void>;
}

export class Election {
  readonly #options: ElectionOptions;
  readonly #clock: Clock;
  #leader = '';
  #term: Term | null = null;
  #closed = false;
  /** A lease of ours that the store has not heard the end of: while it lasts, its key keeps everybody waiting. */
  #leftover: string | null = null;
  readonly #campaign: Promise<void>;
  #wake: () => void = () => {};

  constructor(options: ElectionOptions) {
    this.#options = options;
    this.#clock = options.clock;
    this.#campaign = this.#run();
  }

  /** At this very moment. */
  get leads(): boolean {
    return this.#term !== null && this.#clock.now() < this.#term.until;
  }

  /** Name of the other who leads, as far as we know; "" if nobody does. */
  get leader(): string {
    return this.#leader;
  }

  /** Ends the lead; another takes it at once, or we again. Does nothing for one who does not lead. */
  resign(why: string): void {
    if (this.#term !== null) this.#depose(this.#term, why);
  }

  /** Resigns and takes no part any more. Resolves when another may lead. */
  async close(): Promise<void> {
    this.#closed = true;
    this.resign('it was told to stop');
    this.#wake();
    await this.#campaign;
  }

  async #run(): Promise<void> {
    while (!this.#closed) {
      try {
        await this.#giveLeftoverBack();
        const pair = await this.#options.store.get(this.#options.key);
        this.#leader = pair?.value ?? '';
        if (pair === null && !this.#closed) await this.#standForElection();
      } catch (error) {
        this.#leader = '';
        this.#options.log.warn('the shared store does not answer', { why: messageOf(error) });
      }
      if (!this.#closed) await this.#pause(FOLLOW_MS);
    }
    this.#leader = '';
  }

  /** Resolves when we lost, or when our term is over. */
  async #standForElection(): Promise<void> {
    const { store, key, name, log } = this.#options;
    const asked = this.#clock.now();
    const { lease, ttlMs } = await store.grant(LEASE_MS);
    const term: Term = { lease, ttlMs, until: asked + ttlMs - LEASE_MARGIN_MS, ended: Promise.withResolvers() };
    try {
      const claim = { compares: [{ key, created: ABSENT }], puts: [{ key, value: name, lease }], deletes: [] };
      const outcome = await store.transact({ ...claim, otherwise: key });
      if (outcome.done && !this.#closed && this.#clock.now() < term.until) {
        this.#term = term;
        log.info('this master leads', { term: outcome.created });
        this.#watch(term);
        void this.#renewals(term);
        this.#options.onLead(outcome.created);
        await term.ended.promise;
      }
    } finally {
      // Also if it is unknown whether the claim was heard: with the lease the key goes too.
      this.#leftover = lease;
      await this.#giveLeftoverBack().catch((error: unknown) =>
        log.warn('a lease could not be given back yet', { why: messageOf(error) }),
      );
    }
  }

  async #giveLeftoverBack(): Promise<void> {
    if (this.#leftover === null) return;
    await this.#options.store.revoke(this.#leftover);
    this.#leftover = null;
  }

  async #renewals(term: Term): Promise<void> {
    await this.#sleep(RENEW_MS);
    while (this.#term === term) {
      const asked = this.#clock.now();
      try {
        if (!(await this.#options.store.renew(term.lease))) {
          this.#depose(term, 'its lease is over');
          return;
        }
        // A term that ended while the answer was under way stays ended.
        if (this.#clock.now() < term.until) term.until = asked + term.ttlMs - LEASE_MARGIN_MS;
        await this.#sleep(RENEW_MS);
      } catch (error) {
        this.#options.log.warn('the lease could not be renewed', { why: messageOf(error) });
        await this.#sleep(RENEW_RETRY_MS);
      }
    }
  }

  /** Ends the term when its time has come. */
  #watch(term: Term): void {
    this.#clock.after(Math.max(0, term.until - this.#clock.now()), () => {
      if (this.#term !== term) return;
      if (this.#clock.now() < term.until) this.#watch(term);
      else this.#depose(term, 'the shared store did not renew its lease in time');
    });
  }

  #depose(term: Term, why: string): void {
    if (this.#term !== term) return;
    this.#term = null;
    this.#leader = '';
    this.#options.log.warn('this master does not lead any more', { why });
    this.#options.onDeposed(why);
    term.ended.resolve();
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.#clock.after(ms, resolve));
  }
  /** A sleep that close() ends. */
  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = this.#clock.after(ms, resolve);
      this.#wake = () => {
        timer.cancel();
        resolve();
      };
    });
  }
}

const messageOf = (error: unknown): string => {
  if (error instanceof StorageError) return error.message;
  throw error; // a wrong program, not a wrong world
};
