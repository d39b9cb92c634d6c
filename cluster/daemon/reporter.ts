// What a daemon tells the master about its PGs. Many PGs change at once (a peer dies, a daemon starts), so what comes
// within a few milliseconds goes in one call, and the master makes it durable in one transaction.

import type { ControlLink, PgInterval, PgReport } from '../../proto/control.ts';
import type { DaemonId, PgId } from '../../proto/ids.ts';
import type { Clock } from '../../proto/ports.ts';
import type { Interval } from './interval.ts';

const GATHER_MS = 2;
const RETRY_MS = 300;

interface Waiting {
  readonly interval: Interval;
  /** Members that miss something, in an interval that was said to be clean. */
  readonly behind: readonly DaemonId[];
  readonly done: (accepted: boolean) => void;
}

export class Reporter {
  readonly #clock: Clock;
  readonly #control: ControlLink;
  readonly #bootId: string;
  readonly #id: () => DaemonId;
  readonly #activate = new Map<PgId, Waiting>();
  readonly #clean = new Map<PgId, Waiting>();
  #scheduled = false;

  constructor(clock: Clock, control: ControlLink, bootId: string, id: () => DaemonId) {
    this.#clock = clock;
    this.#control = control;
    this.#bootId = bootId;
    this.#id = id;
  }

  /** Asks that the interval may take writes. While the master is away it waits: nothing may be guessed here. */
  activate(interval: Interval, done: (accepted: boolean) => void): void {
    this.#activate.set(interval.entry.pg, { interval, behind: [], done });
    this.#schedule(GATHER_MS);
  }

  /** Takes back, for these members, that the interval is clean. It serves meanwhile. */
  behind(interval: Interval, behind: readonly DaemonId[], done: () => void): void {
    this.#activate.set(interval.entry.pg, { interval, behind, done });
    this.#schedule(GATHER_MS);
  }

  /** Tells that every member has everything. Refused or lost, it changes nothing: the next map says what to do. */
  clean(interval: Interval): void {
    this.#clean.set(interval.entry.pg, { interval, behind: [], done: () => {} });
    this.#schedule(GATHER_MS);
  }

  #schedule(ms: number): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#clock.after(ms, () => {
      this.#scheduled = false;
      this.#send('activate', this.#activate);
      this.#send('clean', this.#clean);
    });
  }

  #send(method: 'activate' | 'clean', waiting: Map<PgId, Waiting>): void {
    const sent = [...waiting.values()].filter(({ interval }) => !interval.over);
    waiting.clear();
    if (sent.length === 0) return;
    const pgs: PgInterval[] = sent.map(({ interval: { entry, attempt }, behind }) => ({
      pg: entry.pg,
      since: entry.since,
      attempt,
      behind: [...behind],
    }));
    this.#control.call(method, { id: this.#id(), bootId: this.#bootId, pgs }).then(
      ({ accepted }) => {
        const yes = new Set(accepted);
        for (const { interval, done } of sent) if (!interval.over) done(yes.has(interval.entry.pg));
      },
      () => {
        for (const one of sent) if (!waiting.has(one.interval.entry.pg)) waiting.set(one.interval.entry.pg, one);
        this.#schedule(RETRY_MS);
      },
    );
  }
}

/** The state of a PG as its primary reports it. */
export function reportOf(interval: Interval): PgReport {
  const usage = interval.daemon.store.pgUsage(interval.entry.pg);
  return {
    pg: interval.entry.pg,
    since: interval.entry.since,
    state: interval.state,
    missing: interval.recovery?.missing ?? 0,
    missingBytes: interval.recovery?.missingBytes ?? 0,
    noSpace: interval.recovery?.noSpace ?? [],
    objects: usage.objects,
    bytes: usage.bytes,
    waitFor: [...interval.waitFor],
  };
}
