// What a seed means: the shape of the cluster, the workload, and which faults there are and how often.
//
// Every seed enables a random subset of the faults with random rates (swarm testing, Groce et al. 2012): a fault that
// is always there hides what only happens in its absence.

import type { SimRandom } from './random.ts';
import { CALM_NETWORK, type NetworkFaults } from './sim-network.ts';

export type Fault =
  | 'crash daemon'
  | 'pause daemon'
  | 'cut power of a daemon'
  | 'cut all power'
  | 'crash master'
  | 'pause master'
  | 'crash writer'
  | 'take over'
  | 'partition'
  | 'reset connections'
  | 'break streams'
  | 'disk stalls'
  | 'disk fails'
  | 'move data'
  | 'add daemon'
  | 'images come and go'
  | 'disk full'
  | 'read fails'
  | 'bit rot';

export interface Plan {
  readonly seed: number;
  readonly daemons: number;
  readonly replicas: number;
  readonly minSize: number;
  readonly pgCount: number;
  readonly durability: 'flush' | 'sync';
  readonly layout: { order: number; stripeUnit: number; stripeCount: number };
  readonly imageBytes: number;
  readonly store: 'memory' | 'disk';
  /** Entries that a PG's log keeps (memory only): past them a member catches up by comparing lists. */
  readonly logEntriesMax: number;
  /** Bytes that a daemon's disk has room for; null: as many as are wanted. */
  readonly diskBytes: number | null;
  /** Clocks of machines run up to 5 % fast or slow. */
  readonly clocksDrift: boolean;
  /** Reads of the stores may take a while, and other things happen meanwhile. */
  readonly slowReads: boolean;
  /** A daemon that is down for so long loses its data to others. */
  readonly outAfterMs: number;
  /** Requests in flight by the writer. */
  readonly depth: number;
  readonly operations: number;
  /** Virtual time that the faults and the workload share. */
  readonly durationMs: number;
  /** Unit of the register checks and the grain of requests: whole blocks, or sectors that make clients read and modify. */
  readonly grainBytes: 4096 | 512;
  readonly largestBytes: number;
  /** Share of the requests that zero a range, and of those the share that zero whole objects. */
  readonly zeroShare: number;
  readonly observer: boolean;
  /** Whether the daemons and the client of one host talk over unix sockets. */
  readonly oneHost: boolean;
  readonly faults: readonly Fault[];
  readonly faultEveryMs: number;
  /** Numbers of the strikes that do not take place: shrink.ts. */
  readonly faultsLeftOut: readonly number[];
  readonly network: NetworkFaults;
  readonly controlLossChance: number;
  readonly controlRepeatChance: number;
}

const ALWAYS_POSSIBLE: readonly Fault[] = [
  'crash daemon',
  'pause daemon',
  'crash master',
  'pause master',
  'crash writer',
  'take over',
  'partition',
  'reset connections',
  'break streams',
  'move data',
];
const ADDED: readonly Fault[] = ['add daemon', 'images come and go'];
const ADDED_WITH_DISKS: readonly Fault[] = [...ADDED, 'disk full', 'read fails', 'bit rot'];
/**
 * With one copy damaged, the others must stay whole: a member that must be brought up to date meanwhile can't be, if the
 * damage is at its primary. Damage must not wait for long, so these faults leave no member behind.
 */
const BESIDE_ROT: readonly Fault[] = [
  'bit rot',
  'crash writer',
  'take over',
  'crash master',
  'images come and go',
  'disk stalls',
];
const DISK_BYTES = 64 * 1024 * 1024;
const WITH_DISKS: readonly Fault[] = ['cut power of a daemon', 'cut all power', 'disk stalls', 'disk fails'];

export function planOf(seed: number, random: SimRandom, stores: readonly ('memory' | 'disk')[]): Plan {
  // What was added later has a stream of its own, so that the seeds keep meaning what they meant in the rest.
  const more = random.fork('more');
  const daemons = random.pick([3, 3, 3, 4]);
  const replicas = random.pick([2, 2, 3]);
  const store = random.pick(stores);
  const order = random.pick([16, 16, 17]);
  const striped = random.chance(0.25);
  const possible = store === 'disk' ? [...ALWAYS_POSSIBLE, ...WITH_DISKS] : [...ALWAYS_POSSIBLE];
  const faults = random.shuffle(possible).slice(0, random.between(1, 5));
  const later = store === 'disk' ? ADDED_WITH_DISKS : ADDED;
  faults.push(...later.filter(() => more.chance(0.2)));
  if (faults.includes('bit rot')) faults.splice(0, Infinity, ...faults.filter((fault) => BESIDE_ROT.includes(fault)));
  const grainBytes = random.chance(0.3) ? 512 : 4096;
  const largestBytes = random.pick([4096, 16_384, 65_536, 262_144]);
  return {
    seed,
    daemons,
    replicas,
    minSize: random.chance(0.7) ? 0 : random.between(1, replicas),
    pgCount: random.pick([1, 2, 4, 8]),
    durability: random.chance(0.8) ? 'flush' : 'sync',
    layout: striped
      ? { order, stripeUnit: random.pick([4096, 16_384]), stripeCount: random.pick([2, 3]) }
      : { order, stripeUnit: 2 ** order, stripeCount: 1 },
    imageBytes: random.pick([4, 8, 16]) * 65_536 * (largestBytes > 65_536 ? 2 : 1),
    store,
    logEntriesMax: random.pick([4096, 30, 5]),
    diskBytes: faults.includes('disk full') ? DISK_BYTES : null,
    clocksDrift: more.chance(0.3),
    slowReads: more.chance(0.3),
    outAfterMs: random.pick([600_000, 600_000, 5_000]),
    depth: random.pick([1, 4, 16]),
    operations: random.between(200, 600),
    durationMs: random.between(10_000, 40_000),
    grainBytes,
    largestBytes,
    zeroShare: more.pick([0.07, 0.07, 0.25]),
    observer: random.chance(0.5),
    oneHost: random.chance(0.3),
    faults,
    faultEveryMs: random.pick([1_000, 2_500, 6_000]),
    faultsLeftOut: [],
    network: { ...networkOf(random), repeatChance: more.chance(0.3) ? more.unit() * 0.02 : 0 },
    controlLossChance: random.chance(0.3) ? 0.05 : 0,
    controlRepeatChance: more.chance(0.3) ? 0.1 : 0,
  };
}

function networkOf(random: SimRandom): NetworkFaults {
  const rate = (chance: number, most: number): number => (random.chance(chance) ? random.unit() * most : 0);
  return {
    ...CALM_NETWORK,
    delayMeanMs: random.pick([0.1, 1, 10]),
    bytesPerMs: random.pick([1_000_000, 20_000]),
    clogChance: rate(0.3, 0.01),
    clogMaxMs: random.pick([200, 5_000]),
    lossChance: rate(0.3, 0.002),
    silenceMeanMs: random.pick([3_000, 15_000]),
    resetChance: rate(0.3, 0.002),
    flipChance: rate(0.3, 0.005),
  };
}
