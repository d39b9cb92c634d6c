// Scrubs as the master sees them: which are ordered, which are due, and what their PGs' primaries found.
//
//   startScrub, or the calendar -> order -> the PG's primary asks (reportScrubs) and gets it, again and again -> done
//
// An order survives everything that ends a scrub half way (a new interval, a dead primary): whoever is primary then
// gets it. All of it is in memory: after a restart of the master orders are gone; findings, and when a PG was scrubbed
// last, are told again by the daemons that know; a PG of which nobody knows is due at a moment of its own within the
// period. Nothing here is needed for any promise but that damage is found in time.

import type { Inconsistency, PgScrubStatus, ScrubOrder, ScrubReport } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { type DaemonId, type ImageId, type PgId, pgName, poolOfPg } from '../../proto/ids.ts';
import { SCRUB_DEEP_EVERY_MS, SCRUB_LIGHT_EVERY_MS } from './limits.ts';
import type { State } from './state.ts';

/** How often the calendar is looked at. */
const CALENDAR_MS = 10_000;

const NEVER = Number.NEGATIVE_INFINITY;

interface PgScrub {
  order: ScrubOrder | null;
  report: ScrubReport | null;
  /** NEVER, or when: before this master began, it is less than 0. */
  lightAt: number;
  deepAt: number;
  nextLightAt: number;
  nextDeepAt: number;
}

export interface ScrubWish {
  readonly image: ImageId;
  readonly deep: boolean;
  readonly repair: boolean;
}

export class Scrubs {
  /** Names this process of the master to the daemons, and begins the numbers of its orders. */
  readonly master: number;
  readonly #state: State;
  readonly #pgs = new Map<PgId, PgScrub>();
  #number: number;
  #nextTickAt = 0;

  /** @param random 0 to 2^32 - 1 */
  constructor(state: State, random: number) {
    this.#state = state;
    this.master = random >>> 1;
    this.#number = this.master;
  }

  /** Orders a scrub of a PG; what was ordered before and is not done becomes part of it. */
  order(pg: PgId, wish: ScrubWish, now: number): void {
    const scrub = this.#of(pg, now);
    const before = scrub.order;
    this.#number += 1;
    scrub.order = {
      pg,
      number: this.#number,
      image: before === null || before.image === wish.image ? wish.image : 0,
      deep: wish.deep || before?.deep === true,
      repair: wish.repair || before?.repair === true,
    };
  }

  /** What a daemon found in the PGs that it leads. */
  report(daemon: DaemonId, reports: readonly ScrubReport[], now: number): void {
    for (const report of reports) {
      if (!this.#leads(daemon, report.pg)) continue;
      const scrub = this.#of(report.pg, now);
      scrub.report = report;
      if (report.lightAgoMs >= 0) scrub.lightAt = Math.max(scrub.lightAt, now - report.lightAgoMs);
      if (report.deepAgoMs >= 0) scrub.deepAt = Math.max(scrub.deepAt, now - report.deepAgoMs);
      if (scrub.lightAt !== NEVER) scrub.nextLightAt = scrub.lightAt + SCRUB_LIGHT_EVERY_MS;
      if (scrub.deepAt !== NEVER) scrub.nextDeepAt = scrub.deepAt + SCRUB_DEEP_EVERY_MS;
      if (report.done && report.number === scrub.order?.number) scrub.order = null;
    }
  }

  /** What is ordered in the PGs that a daemon leads. */
  ordersFor(daemon: DaemonId): ScrubOrder[] {
    const orders: ScrubOrder[] = [];
    for (const { order } of this.#pgs.values()) if (order !== null && this.#leads(daemon, order.pg)) orders.push(order);
    return orders;
  }

  /** Orders what is due, and forgets PGs that are gone. */
  tick(now: number): void {
    if (now < this.#nextTickAt) return;
    this.#nextTickAt = now + CALENDAR_MS;
    for (const pg of this.#pgs.keys()) if (!this.#state.pgs.has(pg)) this.#pgs.delete(pg);
    for (const pg of this.#state.pgs.keys()) {
      const scrub = this.#of(pg, now);
      if (scrub.order !== null) continue;
      if (now >= scrub.nextDeepAt) this.order(pg, { image: 0, deep: true, repair: true }, now);
      else if (now >= scrub.nextLightAt) this.order(pg, { image: 0, deep: false, repair: false }, now);
    }
  }

  status(now: number): PgScrubStatus[] {
    return [...this.#state.pgs.keys()].map((pg) => {
      const { order, report, lightAt, deepAt } = this.#of(pg, now);
      const running = order !== null && report?.number === order.number;
      return {
        pg,
        ordered: order !== null,
        deep: order?.deep ?? false,
        objectsDone: running ? report.objectsDone : 0,
        objects: running ? report.objects : 0,
        lightAgoMs: lightAt === NEVER ? -1 : Math.round(now - lightAt),
        deepAgoMs: deepAt === NEVER ? -1 : Math.round(now - deepAt),
        repaired: report?.repaired ?? 0,
        inconsistencies: report?.inconsistencies ?? [],
        more: report?.more ?? 0,
      };
    });
  }

  /** Objects of which some copy is known to be bad; at least so many. */
  get inconsistent(): number {
    let count = 0;
    for (const { report } of this.#pgs.values())
      if (report !== null) count += new Set(report.inconsistencies.map(nameOf)).size;
    return count;
  }

  #of(pg: PgId, now: number): PgScrub {
    let scrub = this.#pgs.get(pg);
    if (scrub === undefined) {
      const part = spread(pg);
      scrub = {
        order: null,
        report: null,
        lightAt: NEVER,
        deepAt: NEVER,
        nextLightAt: now + part * SCRUB_LIGHT_EVERY_MS,
        nextDeepAt: now + part * SCRUB_DEEP_EVERY_MS,
      };
      this.#pgs.set(pg, scrub);
    }
    return scrub;
  }

  #leads(daemon: DaemonId, pg: PgId): boolean {
    return this.#state.pgs.get(pg)?.acting[0] === daemon;
  }
}

/** Throws StorageError NOT_FOUND if there is no such PG or image. */
export function pgsToScrub(state: State, { pg, image }: { pg: PgId; image: ImageId }): PgId[] {
  const entry = image === 0 ? undefined : state.images.get(image)?.entry;
  if (image !== 0 && entry === undefined) throw new StorageError('NOT_FOUND', `there is no image ${image}`);
  if (pg !== 0 && !state.pgs.has(pg)) throw new StorageError('NOT_FOUND', `there is no PG ${pgName(pg)}`);
  if (pg !== 0) return [pg];
  return [...state.pgs.keys()].filter((one) => entry === undefined || poolOfPg(one) === entry.pool);
}

const nameOf = ({ image, object }: Inconsistency): string => `${image}/${object}`;

/** A moment within a period, 0 to 1, of its own for each PG. */
const spread = (pg: PgId): number => (Math.imul(pg + 1, 0x9e3779b1) >>> 0) / 2 ** 32;
