// Placement: which daemons a PG belongs to, by weighted rendezvous hashing. Pure; only the master evaluates it.
//
// Every daemon draws a number for the PG, -ln(u) / weight with u from xxHash(PG, daemon). The smallest number of a
// failure domain is the domain's; the R domains with the smallest numbers win, each with the daemon that drew it:
//
//     pg 1.2a:  rack a: 1 0.31  2 0.80     rack b: 3 0.07*  4 0.22     rack c: 5 0.12*  6 0.95      R = 2: [3, 5]
//
// The smallest of exponential variables with rates w wins with probability w / sum of w, and the minimum of some is
// again exponential with the sum of their rates (rendezvous hashing: Thaler and Ravishankar 1998; weights: Ceph's straw2
// is the same idea). So daemons and domains win by weight, and because a draw depends on nothing but the PG and the
// daemon, one that comes, goes or changes weight moves only what it wins or loses itself.
//
// What this does not do: liveness (a down daemon keeps its place until it is out) and exact balance: see
// cluster/master/intervals.ts and balance.ts.

import assert from 'node:assert/strict';
import { hashBytes } from './checksum.ts';
import type { DaemonId, PgId } from './ids.ts';

/** What placement needs to know of a daemon. */
export interface Candidate {
  readonly id: DaemonId;
  readonly domain: string;
  /** Share relative to the others; 0 takes nothing. */
  readonly weight: number;
  readonly in: boolean;
}

/** Daemons that may be placed, and their failure domains by number, in an order that does not depend on the input's. */
export interface Topology {
  readonly daemons: readonly Candidate[];
  readonly domainOf: readonly number[];
  readonly domainCount: number;
}

/** Sorts out who may take PGs: `in`, with a weight above 0. */
export function topologyOf(candidates: Iterable<Candidate>): Topology {
  const daemons = [...candidates].filter((c) => c.in && c.weight > 0).sort((a, b) => a.id - b.id);
  const numbers = new Map<string, number>();
  for (const { domain } of daemons) if (!numbers.has(domain)) numbers.set(domain, numbers.size);
  return { daemons, domainOf: daemons.map(({ domain }) => numbers.get(domain)!), domainCount: numbers.size };
}

const scratch = Buffer.alloc(8);

/** The number that a daemon draws for a PG; the smallest wins. */
function draw(pg: PgId, { id, weight }: Candidate): number {
  scratch.writeUInt32LE(pg, 0);
  scratch.writeUInt32LE(id, 4);
  return -Math.log((hashBytes(scratch) + 0.5) / 2 ** 32) / weight;
}

/**
 * The daemons a PG belongs to, best first (the first is to be its primary): `replicas` of them in distinct failure
 * domains. With too few domains, the rest are other daemons of the domains there are; with too few daemons, the result
 * is shorter.
 */
export function place({ daemons, domainOf, domainCount }: Topology, pg: PgId, replicas: number): DaemonId[] {
  assert(replicas >= 1);
  const draws = daemons.map((daemon) => draw(pg, daemon));
  const bestOf: number[] = new Array(domainCount).fill(-1);
  for (let at = 0; at < draws.length; at++) {
    const best = bestOf[domainOf[at]!]!;
    if (best === -1 || draws[at]! < draws[best]!) bestOf[domainOf[at]!] = at;
  }
  const placed = smallest(bestOf, draws, replicas);
  if (placed.length < replicas) {
    const rest = [...draws.keys()].filter((at) => !placed.includes(at));
    placed.push(...smallest(rest, draws, replicas - placed.length));
  }
  return placed.map((at) => daemons[at]!.id);
}

/** The `wanted` items with the smallest draws, smallest first; equal ones in the order given. */
function smallest(items: readonly number[], draws: readonly number[], wanted: number): number[] {
  const best: number[] = [];
  for (const item of items) {
    if (best.length === wanted && draws[item]! >= draws[best[wanted - 1]!]!) continue;
    let at = best.length;
    while (at > 0 && draws[best[at - 1]!]! > draws[item]!) at--;
    best.splice(at, 0, item);
    if (best.length > wanted) best.pop();
  }
  return best;
}
