// What a primary knows to be wrong with the copies of its PGs: found by scrub or by a read, told to the master.
//
// One finding is one range of one object at one daemon. It is gone when that range was repaired from a proven copy, or
// when a scrub looks again and finds nothing. All in memory: what is forgotten with the process is found again.

import type { Inconsistency } from '../../proto/control.ts';
import type { ImageId, PgId } from '../../proto/ids.ts';

/** Findings kept per PG; a disk that lost everything has more to say than anybody wants to read. */
export const FINDINGS_MAX = 200;

export class Findings {
  readonly pg: PgId;
  open: Inconsistency[] = [];
  /** Found, but more than are kept. */
  more = 0;
  /** Ranges repaired from a proven copy since the process began. */
  repaired = 0;
  /** Found since the scrub began that is under way. */
  readonly #fresh = new Set<Inconsistency>();

  constructor(pg: PgId) {
    this.pg = pg;
  }

  add(finding: Inconsistency): void {
    this.open = this.open.filter((one) => !overlaps(one, finding));
    if (this.open.length === FINDINGS_MAX) this.more += 1;
    else {
      this.open.push(finding);
      this.#fresh.add(finding);
    }
  }

  /** The range is as it should be again, at this daemon. */
  repair(place: Place): void {
    this.repaired += 1;
    this.open = this.open.filter((one) => !overlaps(one, place));
  }

  beginScrub(): void {
    this.#fresh.clear();
    this.more = 0;
  }

  /** All objects, or those of one image, were looked at: what was not found again is not so any more. */
  endScrub(image: ImageId): void {
    this.open = this.open.filter((one) => this.#fresh.has(one) || (image !== 0 && one.image !== image));
    this.#fresh.clear();
  }
}

/** Of all PGs that this daemon is or was primary of. */
export class FindingsTable {
  readonly #byPg = new Map<PgId, Findings>();

  of(pg: PgId): Findings {
    let findings = this.#byPg.get(pg);
    if (findings === undefined) {
      findings = new Findings(pg);
      this.#byPg.set(pg, findings);
    }
    return findings;
  }

  forget(pg: PgId): void {
    this.#byPg.delete(pg);
  }

  values(): Iterable<Findings> {
    return this.#byPg.values();
  }
}

type Place = Omit<Inconsistency, 'why' | 'pg'>;

function overlaps(a: Place, b: Place): boolean {
  return (
    a.daemon === b.daemon &&
    a.image === b.image &&
    a.object === b.object &&
    a.offset < b.offset + b.length &&
    b.offset < a.offset + a.length
  );
}
