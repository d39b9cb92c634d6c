// How long a primary that was preferred stays the primary.
//
// When a PG gets its intended primary back, that daemon may lack the newest write and ask for the old one again
// (preferPrimary). Going back and forth under constant load would cost two short pauses each time, so the preferred one
// stays for a while, and longer each time. In memory only: after a restart of the master the first
// wait begins anew.

import type { PgId } from '../../proto/ids.ts';
import { PREFER_MOST_MS, PREFER_MS } from './limits.ts';

export class Preferences {
  readonly #waits = new Map<PgId, { until: number; ms: number }>();

  /** A member asked for another primary. */
  asked(pg: PgId, now: number): void {
    const wait = this.#waits.get(pg);
    const again = wait !== undefined && now < wait.until + PREFER_MOST_MS;
    const ms = again ? Math.min(wait.ms * 2, PREFER_MOST_MS) : PREFER_MS;
    this.#waits.set(pg, { until: now + ms, ms });
  }

  /** May the PG have its intended primary again? The first question about a PG starts its wait. */
  isDue(pg: PgId, now: number): boolean {
    const wait = this.#waits.get(pg);
    if (wait === undefined) this.asked(pg, now);
    return wait !== undefined && now >= wait.until;
  }
}
