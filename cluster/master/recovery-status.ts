// How recovery gets on: what is missing, what lies where it should not stay, how fast it goes and how long it will take.
//
// A copy is degraded while its object has fewer complete copies than the pool wants, be it that there are too few daemons
// or that it is not made yet; it is misplaced while the object has enough, and another is made where placement wants it.
// Counted from the reports of primaries: see status.ts for when one counts.

import type { ClusterStatus, PgReport, RecoveryStatus } from '../../proto/control.ts';
import { poolOfPg } from '../../proto/ids.ts';
import type { PgRecord } from './intervals.ts';
import { RECOVERY_SPEED_KEPT, RECOVERY_SPEED_SAMPLE_MS } from './limits.ts';
import type { Presences } from './presence.ts';
import type { State } from './state.ts';

/** What is left of an earlier speed below this is nothing. */
const STANDSTILL_BYTES_PER_SECOND = 1024;

/** Bytes per second of a counter that grows, smoothed over a few samples; a counter that falls has begun anew. */
export class Speed {
  bytesPerSecond = 0;
  #bytes = 0;
  #at: number | null = null;

  sample(bytes: number, now: number): void {
    if (this.#at === null || bytes < this.#bytes) {
      this.#bytes = bytes;
      this.#at = now;
      return;
    }
    const ms = now - this.#at;
    if (ms < RECOVERY_SPEED_SAMPLE_MS) return;
    const latest = ((bytes - this.#bytes) / ms) * 1000;
    this.bytesPerSecond =
      this.bytesPerSecond === 0
        ? latest
        : RECOVERY_SPEED_KEPT * this.bytesPerSecond + (1 - RECOVERY_SPEED_KEPT) * latest;
    if (this.bytesPerSecond < STANDSTILL_BYTES_PER_SECOND) this.bytesPerSecond = 0;
    this.#bytes = bytes;
    this.#at = now;
  }
}

/** @param reports one per record of the state, in the same order */
export function recoveryStatus(
  state: State,
  presences: Presences,
  reports: readonly PgReport[],
): ClusterStatus['recovery'] {
  const pools = [...state.pools.keys()].map((pool) => ({ pool, degraded: 0, misplaced: 0, missingBytes: 0 }));
  const byPool = new Map(pools.map((sums) => [sums.pool, sums]));
  let at = 0;
  for (const record of state.pgs.values()) {
    const pool = poolOfPg(record.pg);
    const { degraded, misplaced, missingBytes } = ofPg(record, reports[at++]!, state.pools.get(pool)!.replicas);
    const sums = byPool.get(pool)!;
    sums.degraded += degraded;
    sums.misplaced += misplaced;
    sums.missingBytes += missingBytes;
  }
  const sumOf = (key: keyof RecoveryStatus): number => pools.reduce((sum, one) => sum + one[key], 0);
  const missingBytes = sumOf('missingBytes');
  let bytesPerSecond = 0;
  for (const { id, speed } of presences.values())
    if (state.daemons.get(id)?.entry.up) bytesPerSecond += speed.bytesPerSecond;
  const missing = reports.some((report) => report.missing > 0);
  return {
    degraded: sumOf('degraded'),
    misplaced: sumOf('misplaced'),
    missingBytes,
    bytesPerSecond: Math.round(bytesPerSecond),
    secondsLeft: !missing ? 0 : bytesPerSecond === 0 ? -1 : Math.ceil(missingBytes / bytesPerSecond),
    pools,
  };
}

function ofPg(record: PgRecord, report: PgReport, replicas: number): RecoveryStatus {
  const { missing, missingBytes, objects } = report;
  const complete = record.acting.filter((daemon) => record.complete.includes(daemon)).length;
  const absent = objects * Math.max(0, replicas - record.acting.length);
  return complete >= replicas
    ? { degraded: 0, misplaced: missing, missingBytes }
    : { degraded: missing + absent, misplaced: 0, missingBytes };
}
