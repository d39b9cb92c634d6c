// Balancing: moves a few PGs away from where the hash puts them, until every daemon is near its share.
//
// Hashing alone leaves a daemon of 100 PGs about 10 % off its share. Here a deterministic greedy search takes slots
// (one PG's copy on one daemon) from who has too many to who has too few, and then does the same with the primary role,
// until all are within 4 % (or one slot). What was moved stays moved: after a change of membership, targets start from
// the old ones, with only what the hash itself moved applied to them.
//
//   hash before [A,B]   target before [A,C]     (C stands in for B)
//   a daemon N joins, hash now [N,B]   ->   start [N,C]    only A's slot moves
//   B leaves,         hash now [A,D]   ->   start [A,C]    nothing moves: C keeps B's slot
//
// A correction prefers slots that move anyway, then those of daemons whose share changed, and only then moves a slot
// between two old daemons. Pure: topology and targets in, targets out.

import assert from 'node:assert/strict';
import type { DaemonId, PgId } from '../../proto/ids.ts';
import type { Topology } from '../../proto/placement.ts';

/** How far from its share a daemon may stay: this part of it, and always one slot. */
const TOLERANCE = 0.04;
/** Daemons looked at as the other end of a move, those furthest from their share first. */
const PARTNERS_MAX = 32;

/** PG -> daemons, the first to be the primary. */
export type Targets = ReadonlyMap<PgId, readonly DaemonId[]>;

export interface PoolBalance {
  readonly topology: Topology;
  readonly replicas: number;
  /** What the hash says now, for every PG of the pool. */
  readonly hashed: Targets;
  /** What it said before, and where the PGs belonged. Empty for a new pool. */
  readonly hashedBefore: Targets;
  readonly targetsBefore: Targets;
  /** The weights then. */
  readonly weightBefore: (daemon: DaemonId) => number;
}

/** The targets of one pool's PGs, balanced, with as little movement as that needs. */
export function balancePool(pool: PoolBalance): Map<PgId, DaemonId[]> {
  const slots = new SlotTable(pool, carryOver(pool));
  slots.balance();
  const holders = slots.holders();
  const primaries = new PrimaryTable(pool, holders);
  primaries.balance();
  return new Map([...pool.hashed].map(([pg, hashed]) => [pg, inOrder(holders.get(pg)!, primaries.of(pg), hashed)]));
}

/** The primary, then those whom the hash named in its order, then stand-ins: one order for one set and primary. */
function inOrder(holders: readonly DaemonId[], primary: DaemonId | undefined, hashed: readonly DaemonId[]): DaemonId[] {
  const rank = (id: DaemonId): number => {
    if (id === primary) return -1;
    const at = hashed.indexOf(id);
    return at === -1 ? hashed.length + id : at;
  };
  return [...holders].sort((a, b) => rank(a) - rank(b));
}

/** Old targets with what the hash moved applied to them. */
function carryOver({ topology, hashed, hashedBefore, targetsBefore }: PoolBalance): Map<PgId, DaemonId[]> {
  const placeable = new Map(topology.daemons.map((daemon) => [daemon.id, daemon.domain]));
  const carried = new Map<PgId, DaemonId[]>();
  for (const [pg, now] of hashed) {
    const before = hashedBefore.get(pg);
    const target = targetsBefore.get(pg);
    const start = before === undefined || target === undefined ? null : carriedTarget(before, target, now, placeable);
    carried.set(pg, start !== null && isSound(start, now, placeable) ? start : [...now]);
  }
  return carried;
}

function carriedTarget(
  before: readonly DaemonId[],
  target: readonly DaemonId[],
  now: readonly DaemonId[],
  placeable: ReadonlyMap<DaemonId, string>,
): DaemonId[] {
  const holder = holders(before, target);
  const gone = before.filter((daemon) => !now.includes(daemon));
  return now.map((daemon) => {
    if (before.includes(daemon)) return holder.get(daemon)!;
    const replaced = gone.shift();
    // A daemon that left and had a stand-in: the stand-in stays. One that was outbid: the new daemon gets the slot.
    if (replaced !== undefined && !placeable.has(replaced) && holder.get(replaced) !== replaced)
      return holder.get(replaced)!;
    return daemon;
  });
}

/** Who holds the slot that the hash gives to each daemon: itself, or its stand-in. */
function holders(hashed: readonly DaemonId[], target: readonly DaemonId[]): Map<DaemonId, DaemonId> {
  const standIns = target.filter((daemon) => !hashed.includes(daemon));
  return new Map(hashed.map((daemon) => [daemon, target.includes(daemon) ? daemon : (standIns.shift() ?? daemon)]));
}

/** Placeable, distinct, and in as many failure domains as the hash found. */
function isSound(
  target: readonly DaemonId[],
  hashed: readonly DaemonId[],
  placeable: ReadonlyMap<DaemonId, string>,
): boolean {
  const domainsOf = (daemons: readonly DaemonId[]): number => new Set(daemons.map((d) => placeable.get(d))).size;
  return (
    target.every((daemon) => placeable.has(daemon)) &&
    new Set(target).size === hashed.length &&
    domainsOf(target) >= domainsOf(hashed)
  );
}

interface Slot {
  readonly pg: PgId;
  /** Indexes of daemons. */
  readonly holders: number[];
  /** Who held it before: what stays there need not be copied. */
  readonly before: ReadonlySet<number>;
}

interface Move {
  slot: Slot;
  from: number;
  to: number;
  cost: number;
  /** How far apart the two ends are: the more, the better. */
  gain: number;
}

/** Copies per daemon. */
class SlotTable {
  readonly #ids: DaemonId[];
  readonly #domainOf: readonly number[];
  readonly #shares: number[];
  /** 1: its share grew, -1: it shrank, 0: neither by much. */
  readonly #trend: number[];
  readonly #counts: number[];
  readonly #slots: Slot[] = [];
  readonly #slotsOf: Set<Slot>[];

  constructor(pool: PoolBalance, start: Targets) {
    const { daemons } = pool.topology;
    this.#ids = daemons.map((daemon) => daemon.id);
    this.#domainOf = pool.topology.domainOf;
    const indexOf = new Map(this.#ids.map((id, index) => [id, index]));
    this.#counts = daemons.map(() => 0);
    this.#slotsOf = daemons.map(() => new Set());
    for (const [pg, target] of start) {
      const before = (pool.targetsBefore.get(pg) ?? []).map((id) => indexOf.get(id) ?? -1);
      const slot: Slot = { pg, holders: target.map((id) => indexOf.get(id)!), before: new Set(before) };
      this.#slots.push(slot);
      for (const index of slot.holders) {
        this.#counts[index]!++;
        this.#slotsOf[index]!.add(slot);
      }
    }
    this.#shares = sharesOf(pool, start.size);
    const grown = daemons.map((daemon) => daemon.weight - pool.weightBefore(daemon.id));
    this.#trend = grown.map(Math.sign);
  }

  /** Who holds each PG, in no order. */
  holders(): ReadonlyMap<PgId, readonly DaemonId[]> {
    return new Map(this.#slots.map((slot) => [slot.pg, slot.holders.map((index) => this.#ids[index]!)]));
  }

  /** Ends because every move brings its two ends closer together, and nobody is looked at twice between two moves. */
  balance(): void {
    const stuck = new Set<number>();
    for (let worst = this.#worst(stuck); worst !== -1; worst = this.#worst(stuck)) {
      const move = this.#bestMove(worst);
      if (move === null) stuck.add(worst);
      else {
        this.#make(move);
        stuck.clear();
      }
    }
  }

  #deviation = (index: number): number => this.#counts[index]! - this.#shares[index]!;
  #tolerance = (index: number): number => toleranceOf(this.#shares[index]!);

  #worst(stuck: ReadonlySet<number>): number {
    let worst = -1;
    let most = 0;
    for (let index = 0; index < this.#ids.length; index++) {
      const over = Math.abs(this.#deviation(index)) - this.#tolerance(index);
      if (over > most && !stuck.has(index)) {
        worst = index;
        most = over;
      }
    }
    return worst;
  }

  #bestMove(worst: number): Move | null {
    const gives = this.#deviation(worst) > 0;
    const sign = gives ? 1 : -1;
    const partners = this.#ids
      .map((_, index) => index)
      .filter((index) => index !== worst && sign * (this.#deviation(worst) - this.#deviation(index)) > 1)
      .sort((a, b) => sign * (this.#deviation(a) - this.#deviation(b)) || a - b)
      .slice(0, PARTNERS_MAX);
    let best: Move | null = null;
    for (const partner of partners) {
      const [from, to] = gives ? [worst, partner] : [partner, worst];
      const gain = this.#deviation(from) - this.#deviation(to);
      for (const slot of this.#slotsOf[from]!) {
        if (!this.#isSound(slot, from, to)) continue;
        const cost = this.#cost(slot, from, to);
        if (best === null || cost < best.cost || (cost === best.cost && gain > best.gain))
          best = { slot, from, to, cost, gain };
      }
    }
    return best;
  }

  #isSound({ holders }: Slot, from: number, to: number): boolean {
    if (holders.includes(to)) return false;
    const domain = this.#domainOf[to];
    if (domain === this.#domainOf[from]) return true;
    const others = holders.filter((index) => index !== from);
    // Either a domain that the PG does not have yet, or no worse than before: `from` shared its domain as well.
    return (
      !others.some((index) => this.#domainOf[index] === domain) ||
      others.some((index) => this.#domainOf[index] === this.#domainOf[from])
    );
  }

  /** -1: a copy less to make. 0: none more. 1: one more, on or off a daemon whose share changed. 2: between old ones. */
  #cost({ before }: Slot, from: number, to: number): number {
    const copies = (before.has(from) ? 1 : 0) - (before.has(to) ? 1 : 0);
    return copies === 1 && this.#trend[to]! <= 0 && this.#trend[from]! >= 0 ? 2 : copies;
  }

  #make({ slot, from, to }: Move): void {
    slot.holders[slot.holders.indexOf(from)] = to;
    this.#counts[from]!--;
    this.#counts[to]!++;
    this.#slotsOf[from]!.delete(slot);
    this.#slotsOf[to]!.add(slot);
  }
}

const toleranceOf = (share: number): number => Math.max(0.999, TOLERANCE * share);

/**
 * Copies each daemon should have: by weight, but never more than one per PG for a daemon, nor for a failure domain
 * while there are enough of them; what a capped one can't take, the others share.
 */
function sharesOf({ topology, replicas }: PoolBalance, pgCount: number): number[] {
  const { daemons, domainOf, domainCount } = topology;
  const copies = Math.min(replicas, daemons.length) * pgCount;
  const weights = daemons.map((daemon) => daemon.weight);
  if (domainCount < replicas) return filled(weights, copies, pgCount);
  const domainWeights: number[] = new Array(domainCount).fill(0);
  for (const [at, weight] of weights.entries()) domainWeights[domainOf[at]!]! += weight;
  const domainShares = filled(domainWeights, copies, pgCount);
  return weights.map((weight, at) => (domainShares[domainOf[at]!]! * weight) / domainWeights[domainOf[at]!]!);
}

/** Splits `total` by weight, nobody getting more than `cap`. */
function filled(weights: readonly number[], total: number, cap: number): number[] {
  const shares = weights.map(() => 0);
  const open = new Set(weights.keys());
  let left = total;
  while (open.size > 0) {
    const weight = [...open].reduce((sum, at) => sum + weights[at]!, 0);
    const full = [...open].filter((at) => (left * weights[at]!) / weight >= cap);
    if (full.length === 0) {
      for (const at of open) shares[at] = (left * weights[at]!) / weight;
      return shares;
    }
    for (const at of full) {
      shares[at] = cap;
      left -= cap;
      open.delete(at);
    }
  }
  return shares;
}

/** The primary role: which member of each PG comes first. Moving it copies nothing. */
class PrimaryTable {
  readonly #holders: ReadonlyMap<PgId, readonly DaemonId[]>;
  readonly #primary = new Map<PgId, DaemonId>();
  readonly #shares: Map<DaemonId, number>;
  readonly #led = new Map<DaemonId, Set<PgId>>();

  constructor({ topology, hashed, targetsBefore }: PoolBalance, holders: ReadonlyMap<PgId, readonly DaemonId[]>) {
    this.#holders = holders;
    const weight = topology.daemons.reduce((sum, daemon) => sum + daemon.weight, 0);
    this.#shares = new Map(topology.daemons.map((d) => [d.id, (holders.size * d.weight) / weight]));
    for (const { id } of topology.daemons) this.#led.set(id, new Set());
    for (const [pg, members] of holders) {
      const wishes = [targetsBefore.get(pg)?.[0], ...hashed.get(pg)!, ...members];
      const primary = wishes.find((id) => id !== undefined && members.includes(id));
      if (primary === undefined) continue;
      this.#primary.set(pg, primary);
      this.#led.get(primary)!.add(pg);
    }
  }

  of(pg: PgId): DaemonId | undefined {
    return this.#primary.get(pg);
  }

  balance(): void {
    const stuck = new Set<DaemonId>();
    for (let worst = this.#worst(stuck); worst !== null; worst = this.#worst(stuck)) {
      const path = this.#path(worst);
      if (path === null) stuck.add(worst);
      else {
        for (const { pg, to } of path) this.#lead(pg, to);
        stuck.clear();
      }
    }
  }

  #deviation = (daemon: DaemonId): number => this.#led.get(daemon)!.size - this.#shares.get(daemon)!;

  #worst(stuck: ReadonlySet<DaemonId>): DaemonId | null {
    let worst: DaemonId | null = null;
    let most = 0;
    for (const [daemon, share] of this.#shares) {
      const over = Math.abs(this.#deviation(daemon)) - toleranceOf(share);
      if (over > most && !stuck.has(daemon)) {
        worst = daemon;
        most = over;
      }
    }
    return worst;
  }

  /**
   * The shortest chain of hand-overs from a daemon that leads too much to one that leads too little, with `worst` at
   * one end: A gives a PG to B, and B, no worse than before, gives one to C.
   */
  #path(worst: DaemonId): { pg: PgId; to: DaemonId }[] | null {
    const gives = this.#deviation(worst) > 0;
    const reached = new Map<DaemonId, { pg: PgId; next: DaemonId } | null>([[worst, null]]);
    const queue = [worst];
    for (let at = 0; at < queue.length; at++) {
      const here = queue[at]!;
      const distance = Math.abs(this.#deviation(worst) - this.#deviation(here));
      const opposite = gives ? this.#deviation(here) < 0 : this.#deviation(here) > 0;
      if (here !== worst && opposite && distance > 1) return this.#unwind(here, reached, gives);
      for (const [pg, other] of gives ? this.#offers(here) : this.#wishes(here))
        if (!reached.has(other)) {
          reached.set(other, { pg, next: here });
          queue.push(other);
        }
    }
    return null;
  }

  #unwind(
    end: DaemonId,
    reached: ReadonlyMap<DaemonId, { pg: PgId; next: DaemonId } | null>,
    gives: boolean,
  ): { pg: PgId; to: DaemonId }[] {
    const path: { pg: PgId; to: DaemonId }[] = [];
    for (let here = end; ; ) {
      const step = reached.get(here) ?? null;
      if (step === null) return path;
      path.push({ pg: step.pg, to: gives ? here : step.next });
      here = step.next;
    }
  }

  /** PGs that a daemon leads, with each other member who could. */
  *#offers(daemon: DaemonId): Iterable<[PgId, DaemonId]> {
    for (const pg of this.#led.get(daemon)!)
      for (const other of this.#holders.get(pg)!) if (other !== daemon) yield [pg, other];
  }

  /** PGs that a daemon is a member of, with who leads them. */
  *#wishes(daemon: DaemonId): Iterable<[PgId, DaemonId]> {
    for (const [pg, members] of this.#holders) {
      const primary = this.#primary.get(pg)!;
      if (primary !== daemon && members.includes(daemon)) yield [pg, primary];
    }
  }

  #lead(pg: PgId, daemon: DaemonId): void {
    assert(this.#holders.get(pg)!.includes(daemon), 'the role moves between members');
    this.#led.get(this.#primary.get(pg)!)!.delete(pg);
    this.#led.get(daemon)!.add(pg);
    this.#primary.set(pg, daemon);
  }
}
