// What a daemon scrubs, one PG at a time, and what it tells the master about it.
//
// The master's orders come with the answer to each report, again and again until they are reported done; so nothing is
// lost with a message, an interval or a process. A PG that is not whole now (still recovering) is scrubbed when it is.

import type { ScrubOrder, ScrubReport } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { type PgId, pgName } from '../../proto/ids.ts';
import type { Daemon } from './daemon.ts';
import type { Interval } from './interval.ts';
import { Scrub } from './scrub.ts';

/** How often the master is asked for orders, and told what changed; less often while there are no orders. */
const REPORT_MS = 1_000;
const REPORT_IDLE_MS = 4_000;
/** The same while a scrub is under way: whoever ordered it may be looking. */
const REPORT_RUNNING_MS = 300;

/** The last order carried out in a PG, and when all of its objects were scrubbed last; -1: never. */
interface Done {
  readonly number: number;
  readonly lightAt: number;
  readonly deepAt: number;
}

export class Scrubs {
  readonly #daemon: Daemon;
  /** Orders as the master gave them last. */
  #orders: readonly ScrubOrder[] = [];
  #running: Scrub | null = null;
  readonly #done = new Map<PgId, Done>();
  /** What the master was told last per PG, as text. */
  readonly #told = new Map<PgId, string>();
  #master = 0;
  #stopped = false;

  constructor(daemon: Daemon) {
    this.#daemon = daemon;
  }

  begin(): void {
    this.#reportLater();
  }
  stop(): void {
    this.#stopped = true;
  }

  #reportLater(): void {
    const idle = this.#orders.length === 0;
    const pauseMs = this.#running !== null ? REPORT_RUNNING_MS : idle ? REPORT_IDLE_MS : REPORT_MS;
    this.#daemon.clock.after(pauseMs, () => {
      if (this.#stopped) return;
      this.#report().then(
        () => {
          this.#next();
          this.#reportLater();
        },
        (error: unknown) => {
          // The master is away: nothing new is begun, and everything is told again.
          if (!(error instanceof StorageError)) throw error;
          this.#told.clear();
          this.#reportLater();
        },
      );
    });
  }

  async #report(): Promise<void> {
    const { id, identity, control } = this.#daemon;
    if (id === 0) return;
    const reports = this.#changed();
    const reply = await control.call('reportScrubs', { id, bootId: identity.bootId, reports });
    this.#orders = reply.orders;
    if (reply.master === this.#master) return;
    // Another process of the master knows nothing of what the one before was told.
    this.#master = reply.master;
    this.#told.clear();
  }

  #changed(): ScrubReport[] {
    const pgs = new Set([...this.#done.keys(), ...[...this.#daemon.findings.values()].map(({ pg }) => pg)]);
    if (this.#running !== null) pgs.add(this.#running.order.pg);
    const changed: ScrubReport[] = [];
    for (const pg of pgs) {
      if (this.#daemon.intervalOf(pg) === null) {
        // Whoever leads it now finds out for itself.
        this.#daemon.findings.forget(pg);
        this.#done.delete(pg);
        this.#told.delete(pg);
        continue;
      }
      const report = this.#reportOf(pg);
      // Ages grow all the time: they alone are no news.
      const text = JSON.stringify({ ...report, lightAgoMs: 0, deepAgoMs: 0 });
      if (this.#told.get(pg) === text) continue;
      this.#told.set(pg, text);
      changed.push(report);
    }
    return changed;
  }

  #reportOf(pg: PgId): ScrubReport {
    const { open, more, repaired } = this.#daemon.findings.of(pg);
    const running = this.#running?.order.pg === pg ? this.#running : null;
    const last = this.#done.get(pg);
    const agoMs = (at = -1): number => (at === -1 ? -1 : Math.round(this.#daemon.clock.now() - at));
    return {
      pg,
      number: running?.order.number ?? last?.number ?? 0,
      done: running === null,
      objectsDone: running?.objectsDone ?? 0,
      objects: running?.objects ?? 0,
      lightAgoMs: agoMs(last?.lightAt),
      deepAgoMs: agoMs(last?.deepAt),
      repaired,
      inconsistencies: open,
      more,
    };
  }

  /** Begins the next order that can be carried out now. */
  #next(): void {
    if (this.#running !== null || this.#stopped) return;
    for (const order of this.#orders) {
      const interval = this.#daemon.intervalOf(order.pg);
      if (interval === null || this.#done.get(order.pg)?.number === order.number || !isWhole(interval)) continue;
      this.#run(interval, order);
      return;
    }
  }

  #run(interval: Interval, order: ScrubOrder): void {
    const scrub = new Scrub(interval, order);
    this.#running = scrub;
    const { pg, deep } = order;
    scrub.run().then(
      () => {
        this.#running = null;
        this.#finished(order);
        const { open, repaired } = this.#daemon.findings.of(pg);
        this.#daemon.log.info('scrubbed', { pg: pgName(pg), deep, inconsistent: open.length, repaired });
        this.#next();
      },
      (error: unknown) => {
        if (!(error instanceof StorageError)) throw error;
        this.#running = null;
        this.#daemon.log.info('a scrub was broken off', { pg: pgName(pg), why: error.message });
      },
    );
  }

  #finished({ pg, number, image, deep }: ScrubOrder): void {
    const { lightAt, deepAt } = this.#done.get(pg) ?? { lightAt: -1, deepAt: -1 };
    const now = this.#daemon.clock.now();
    const all = image === 0;
    this.#done.set(pg, { number, lightAt: all ? now : lightAt, deepAt: all && deep ? now : deepAt });
  }
}

/** Every member has everything: what differs is damage. */
const isWhole = (interval: Interval): boolean => interval.serving !== null && interval.recovery?.missing === 0;
