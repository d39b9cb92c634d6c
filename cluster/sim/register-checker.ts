// Is the history of one block that of an atomic register? And is what a read returned still allowed after power cuts?
//
// Every write carries a unique stamp, so a read names the write it saw. Then linearizability needs no search: take each
// write with its reads as a cluster; its zone runs from the earliest finish to the latest start in it. The history is
// linearizable if and only if (Gibbons and Korach, "Testing shared memories", 1997; Golab, Li and Shah, 2011)
//   1. no read ends before its write starts (and none sees a stamp that nobody wrote),
//   2. no two forward zones (finish before start: the value certainly held throughout) overlap,
//   3. no backward zone (finish after start: it may be anywhere inside) lies within a forward zone of another write.
//
// Zeros are not unique: blocks that were zeroed more than once (the initial state counts) are checked by Lowe's
// just-in-time search over sets of states instead ("Testing for linearizability", 2017), exact for any history.
//
// Times are positions in one sequence of starts and finishes, all different. A write whose outcome nobody knows
// finishes at Infinity. Reads that failed are left out by the caller.

/** The stamp of zeroes and of the state before the first write. */
export const ZEROS = 0;

export interface RegisterOperation {
  readonly kind: 'write' | 'read';
  /** Stamp written or seen; ZEROS for a zeroing. */
  readonly stamp: number;
  readonly start: number;
  /** Infinity: nobody knows whether it took effect. */
  readonly finish: number;
  /** If nobody knows: it can't take effect after this. */
  readonly expires?: number;
}

/** Why the history is not linearizable, or null if it is. The register holds ZEROS before everything. */
export function violation(history: readonly RegisterOperation[]): string | null {
  const zeroings = history.filter((op) => op.kind === 'write' && op.stamp === ZEROS).length;
  return zeroings === 0 ? violationByZones(history) : violationBySearch(history);
}

interface Cluster {
  readonly stamp: number;
  writeStart: number;
  written: boolean;
  read: boolean;
  minFinish: number;
  expires: number;
  maxStart: number;
}

/** The zone algorithm. All writes have different stamps, none is ZEROS. */
export function violationByZones(history: readonly RegisterOperation[]): string | null {
  const clusters = new Map<number, Cluster>();
  const clusterOf = (stamp: number): Cluster => {
    let cluster = clusters.get(stamp);
    if (cluster === undefined) {
      cluster = {
        stamp,
        writeStart: 0,
        written: false,
        read: false,
        minFinish: Infinity,
        expires: Infinity,
        maxStart: -Infinity,
      };
      clusters.set(stamp, cluster);
    }
    return cluster;
  };
  // The initial state is a write before everything.
  const initial = clusterOf(ZEROS);
  initial.written = true;
  initial.writeStart = -2;
  initial.minFinish = -1;
  initial.maxStart = -2;
  for (const op of history) {
    const cluster = clusterOf(op.stamp);
    // A write of unknown outcome counts only if it was read, and then it had taken effect by the time it expired.
    cluster.minFinish = Math.min(cluster.minFinish, op.finish);
    cluster.expires = Math.min(cluster.expires, op.expires ?? Infinity);
    cluster.maxStart = Math.max(cluster.maxStart, op.start);
    if (op.kind === 'write') {
      if (cluster.written) throw new Error(`stamp ${op.stamp} was written twice: the workload is wrong`);
      cluster.written = true;
      cluster.writeStart = op.start;
    } else cluster.read = true;
  }
  for (const cluster of clusters.values()) {
    if (!cluster.written) return `a read saw stamp ${cluster.stamp}, which nobody wrote`;
    if (cluster.minFinish < cluster.writeStart) return `a read saw stamp ${cluster.stamp} before it was written`;
  }
  // A write of unknown outcome that nobody read may never have happened.
  const zones = [...clusters.values()].filter((c) => c.read || c.minFinish !== Infinity);
  for (const zone of zones) zone.minFinish = Math.min(zone.minFinish, zone.expires);
  const forward = zones.filter((zone) => zone.minFinish < zone.maxStart).sort((a, b) => a.minFinish - b.minFinish);
  for (let i = 1; i < forward.length; i++) {
    const before = forward[i - 1]!;
    const after = forward[i]!;
    if (after.minFinish < before.maxStart)
      return `stamps ${before.stamp} and ${after.stamp} were each the value at one time, but neither came first`;
  }
  for (const zone of zones) {
    if (zone.minFinish < zone.maxStart) continue;
    for (const around of forward)
      if (around.minFinish < zone.maxStart && zone.minFinish < around.maxStart)
        return `stamp ${zone.stamp} was written while ${around.stamp} was certainly the value throughout`;
  }
  return null;
}

/** Just-in-time linearization: keeps every state the register may be in, and what has taken effect early in each. */
export function violationBySearch(history: readonly RegisterOperation[]): string | null {
  const needed = new Set(history.filter((op) => op.kind === 'read').map((op) => op.stamp));
  // A write of unknown outcome whose stamp nobody saw may never have happened.
  const ops = history.filter((op) => op.finish !== Infinity || needed.has(op.stamp));
  const moments = ops.flatMap((op, index) => [
    { time: op.start, index, begins: true },
    { time: Math.min(op.finish, op.expires ?? Infinity), index, begins: false },
  ]);
  moments.sort((a, b) => a.time - b.time);
  let states: State[] = [{ stamp: ZEROS, effected: [] }];
  const pending = new Set<number>();
  for (const { time, index, begins } of moments) {
    if (time === Infinity) break;
    if (begins) {
      pending.add(index);
      continue;
    }
    const op = ops[index]!;
    const settled = settle(states, index, pending, ops);
    // One that expires has taken effect by now, or never will.
    states =
      op.finish === Infinity ? distinct([...states.filter((s) => !s.effected.includes(index)), ...settled]) : settled;
    pending.delete(index);
    if (states.length === 0)
      return `no order of operations explains the ${op.kind} of stamp ${op.stamp} at ${op.start}`;
  }
  return null;
}

interface State {
  readonly stamp: number;
  /** Pending operations that have taken effect in this state, ascending. */
  readonly effected: readonly number[];
}

/** States in which operation `index` has taken effect, reached from `states` by letting pending operations do so. */
function settle(
  states: readonly State[],
  index: number,
  pending: ReadonlySet<number>,
  ops: readonly RegisterOperation[],
): State[] {
  const seen = new Set<string>();
  const settled = new Map<string, State>();
  const queue = [...states];
  for (let state = queue.pop(); state !== undefined; state = queue.pop()) {
    const key = `${state.stamp}:${state.effected.join()}`;
    if (seen.has(key)) continue;
    seen.add(key);
    if (state.effected.includes(index)) {
      const effected = state.effected.filter((other) => other !== index);
      settled.set(`${state.stamp}:${effected.join()}`, { stamp: state.stamp, effected });
      continue;
    }
    for (const candidate of pending) {
      if (state.effected.includes(candidate)) continue;
      const op = ops[candidate]!;
      if (op.kind === 'read' && op.stamp !== state.stamp) continue;
      const effected = [...state.effected, candidate].sort((a, b) => a - b);
      queue.push({ stamp: op.kind === 'write' ? op.stamp : state.stamp, effected });
    }
  }
  return [...settled.values()];
}

const distinct = (states: readonly State[]): State[] => [
  ...new Map(states.map((state) => [`${state.stamp}:${state.effected.join()}`, state])).values(),
];

export interface WindowWrite {
  readonly stamp: number;
  readonly start: number;
  /** When it was acknowledged; Infinity if never. */
  readonly finish: number;
  /** When a flush or the write's own FUA, begun after its ack, came back: from then on no power cut takes it. */
  durable: number;
}

/**
 * What a read may return when power cuts may have taken what was acked and not flushed: any stamp written before the
 * read ended, and not yet superseded by a write that was durable, and begun after the first was acked, before the read began.
 */
export function outsideWindow(writes: readonly WindowWrite[], read: RegisterOperation): string | null {
  const initial: WindowWrite = { stamp: ZEROS, start: -2, finish: -1, durable: -1 };
  let why = `a read saw stamp ${read.stamp}, which nobody wrote`;
  for (const write of [initial, ...writes]) {
    if (write.stamp !== read.stamp) continue;
    if (write.start > read.finish) {
      why = `a read saw stamp ${read.stamp} before it was written`;
      continue;
    }
    const successor = writes.find((later) => later.start > write.finish && later.durable < read.start);
    if (successor === undefined) return null;
    why = `a read saw stamp ${read.stamp} although stamp ${successor.stamp}, written later, was durable`;
  }
  return why;
}
