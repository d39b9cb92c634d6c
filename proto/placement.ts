// Placement: which daemons a PG belongs to, by weighted rendezvous hashing. Pure; only the master evaluates it.
//
// Every failure domain draws a number for the PG, -ln(u) / weight with u from xxHash(PG, domain); the R smallest win
// (the smallest of exponential variables with rates w wins with probability w / sum of w: Thaler and Ravishankar 1998,
// weighted as in Mosharaf's and Ceph's straw2). Inside each, the daemons draw again. A draw depends on nothing but the
// PG and the one drawing, so that a domain which comes, goes or changes weight moves only what it wins or loses:
//
//     pg 1.2a:  rack-a 0.31   rack-b 0.07 *   rack-c 0.55   rack-d 0.12 *      R = 2: best of rack-b, best of rack-d
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
  readonly weight: number;
  readonly in: boolean;
}

interface Domain {
  readonly hash: number;
  readonly weight: number;
  readonly daemons: readonly Candidate[];
}

/** Daemons that may be placed, by failure domain, in an order that does not depend on that of the input. */
export interface Topology {
  readonly domains: readonly Domain[];
  readonly daemons: readonly Candidate[];
}

/** Sorts out who may take PGs: `in`, with a weight above 0. */
export function topologyOf(candidates: Iterable<Candidate>): Topology {
  const daemons = [...candidates].filter((c) => c.in && c.weight > 0).sort((a, b) => a.id - b.id);
  const byDomain = new Map<string, Candidate[]>();
  for (const daemon of daemons) {
    const members = byDomain.get(daemon.domain);
    if (members === undefined) byDomain.set(daemon.domain, [daemon]);
    else members.push(daemon);
  }
  const names = [...byDomain.keys()].sort();
  const domains = names.map((name) => {
    const members = byDomain.get(name)!;
    return {
      hash: hashBytes(Buffer.from(name)),
      weight: members.reduce((sum, d) => sum + d.weight, 0),
      daemons: members,
    };
  });
  return { domains, daemons };
}

const scratch = Buffer.alloc(12);
const DOMAIN_DRAW = 1;
const DAEMON_DRAW = 2;

/** The number that one item draws for a PG; the smallest wins. */
function draw(pg: PgId, kind: number, item: number, weight: number): number {
  scratch.writeUInt32LE(pg, 0);
  scratch.writeUInt32LE(kind, 4);
  scratch.writeUInt32LE(item, 8);
  return -Math.log((hashBytes(scratch) + 0.5) / 2 ** 32) / weight;
}

/**
 * The daemons a PG belongs to, best first (the first is to be its primary): `replicas` of them in distinct failure
 * domains. With too few domains, the rest are distinct daemons of the domains there are; with too few daemons, the
 * result is shorter.
 */
export function place(topology: Topology, pg: PgId, replicas: number): DaemonId[] {
  assert(replicas >= 1);
  const placed: DaemonId[] = [];
  const { domains, daemons } = topology;
  for (const at of smallest(domains.length, replicas, (i) =>
    draw(pg, DOMAIN_DRAW, domains[i]!.hash, domains[i]!.weight),
  )) {
    const members = domains[at]!.daemons;
    const [best] = smallest(members.length, 1, (i) => draw(pg, DAEMON_DRAW, members[i]!.id, members[i]!.weight));
    placed.push(members[best!]!.id);
  }
  if (placed.length < replicas && placed.length < daemons.length) {
    const rest = daemons.filter((d) => !placed.includes(d.id));
    for (const at of smallest(rest.length, replicas - placed.length, (i) =>
      draw(pg, DAEMON_DRAW, rest[i]!.id, rest[i]!.weight),
    ))
      placed.push(rest[at]!.id);
  }
  return placed;
}

/** Indexes of the `wanted` smallest of `count` values, smallest first; equal ones by index. */
function smallest(count: number, wanted: number, value: (index: number) => number): number[] {
  const best: number[] = [];
  const values: number[] = [];
  for (let i = 0; i < count; i++) {
    const v = value(i);
    if (best.length === wanted && v >= values[wanted - 1]!) continue;
    let at = best.length;
    while (at > 0 && values[at - 1]! > v) at--;
    best.splice(at, 0, i);
    values.splice(at, 0, v);
    if (best.length > wanted) {
      best.pop();
      values.pop();
    }
  }
  return best;
}
