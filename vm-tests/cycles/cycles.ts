// The kinds of faults that real processes go through, one per cycle: what is done, for how long, and how it is healed.
//
//   apply the fault ─► load goes on ─► heal           (trial.ts waits, measures and audits)
//
// `death`: processes died, of which the cluster can do without: I/O is back within 2 s of it, healed or not. `outage`: I/O
// may wait until the fault is healed. At most (copies - 1) daemons lose or damage data in one cycle; none is lost for good.

import { Command, NbdClient, NbdError } from '../lib/nbd-client.ts';
import type { LiveCluster } from './live-cluster.ts';
import { copyFiles, corruptAtRest } from './rot.ts';

export interface World {
  cluster: LiveCluster;
  /** 0 to 1 */
  random: () => number;
  /** One line of what happened, with the time. */
  tell(line: string): void;
  sleep(ms: number): Promise<void>;
  /** Longest time that a process is stopped for. */
  freezeMaxMs: number;
  /** Called just before the first damage is done: times count from then. */
  begin(): Promise<void>;
  /** Called just before healing: the same. */
  heal(): Promise<void>;
}
export type Effect = 'death' | 'outage';
type Kind = (world: World) => Promise<Effect>;

const pick = <T>({ random }: World, from: readonly T[]): T => from[Math.floor(random() * from.length)]!;
const between = ({ random }: World, least: number, most: number): number =>
  least + Math.floor(random() * (most - least));

async function killing(world: World, victims: string[], effect: Effect, awayMs: number): Promise<Effect> {
  const { cluster } = world;
  await world.begin();
  await cluster.kill(...victims);
  world.tell(`killed ${victims.join(', ')} for ${awayMs} ms`);
  await world.sleep(awayMs);
  await world.heal();
  await cluster.startAgain(...victims);
  world.tell(`started ${victims.join(', ')} again`);
  return effect;
}
async function freezing(world: World, victim: string, effect: Effect): Promise<Effect> {
  const ms = between(world, 1_000, world.freezeMaxMs);
  await world.begin();
  world.cluster.freeze(victim);
  world.tell(`stopped ${victim} for ${ms} ms`);
  await world.sleep(ms);
  await world.heal();
  world.cluster.thaw();
  return effect;
}
type Fault = Parameters<LiveCluster['proxy']['apply']>[1];
async function hurting(world: World, source: string, target: string, fault: Fault, ms: number): Promise<Effect> {
  const { proxy } = world.cluster;
  const matches = (wanted: string, name: string): boolean => wanted === '*' || name.startsWith(wanted);
  await world.begin();
  proxy.apply((from, to) => matches(source, from) && matches(target, to), fault);
  world.tell(`link ${source}>${target}: ${JSON.stringify(fault)} for ${ms} ms`);
  await world.sleep(ms);
  await world.heal();
  if (world.random() < 0.5) {
    // What was under way is lost with its connections, else it comes late.
    world.tell(`healed; ${proxy.reset((from, to) => matches(source, from) && matches(target, to))} connections reset`);
  }
  proxy.heal();
  return 'outage';
}
async function resetting(world: World, source: string, target: string, times: number): Promise<Effect> {
  const { proxy } = world.cluster;
  await world.begin();
  for (let i = 0; i < times; i++) {
    const count = proxy.reset((from, to) => from.startsWith(source) && to.startsWith(target));
    world.tell(`reset ${count} connections ${source}>${target}`);
    await world.sleep(between(world, 50, 400));
  }
  await world.heal();
  return 'outage';
}

export const KINDS: Record<string, Kind> = {
  'a daemon is killed': (world) =>
    killing(world, [pick(world, world.cluster.daemons)], 'death', between(world, 300, 2_500)),
  'the master is killed': (world) => killing(world, ['master'], 'death', between(world, 300, 2_500)),
  'the gateway is killed': (world) => killing(world, ['gateway'], 'outage', between(world, 0, 500)),
  'a daemon and the master are killed': (world) =>
    killing(world, ['master', pick(world, world.cluster.daemons)], 'outage', between(world, 0, 1_500)),
  'a daemon and the gateway are killed': (world) =>
    killing(world, ['gateway', pick(world, world.cluster.daemons)], 'outage', between(world, 0, 1_500)),
  'two daemons are killed': (world) => {
    const spared = pick(world, world.cluster.daemons);
    const victims = world.cluster.daemons.filter((name) => name !== spared).slice(0, 2);
    return killing(world, victims, 'outage', between(world, 0, 1_500));
  },
  'one daemon after the other is killed': async (world) => {
    await world.begin();
    for (const name of world.cluster.daemons) {
      await world.cluster.kill(name);
      world.tell(`killed ${name}`);
      await world.sleep(between(world, 0, 400));
      await world.cluster.startAgain(name);
    }
    await world.heal();
    return 'outage';
  },
  'everything is killed': (world) => killing(world, world.cluster.names, 'outage', between(world, 0, 500)),
  'a daemon is stopped and goes on': (world) => freezing(world, pick(world, world.cluster.daemons), 'outage'),
  'the master is stopped and goes on': (world) => freezing(world, 'master', 'outage'),
  'the gateway is stopped and goes on': (world) => freezing(world, 'gateway', 'outage'),
  'a daemon is killed while another is slow': async (world) => {
    const { daemons, proxy } = world.cluster;
    const slow = pick(world, daemons);
    const victim = pick(
      world,
      daemons.filter((name) => name !== slow),
    );
    await world.begin();
    proxy.apply((from, to) => from === slow || to === slow, { delayMs: 100, jitterMs: 200 });
    world.tell(`${slow} is slow; killed ${victim}`);
    await world.cluster.kill(victim);
    await world.sleep(between(world, 500, 2_000));
    await world.cluster.startAgain(victim);
    await world.sleep(500);
    await world.heal();
    proxy.heal();
    return 'outage';
  },
  'all links are slow': (world) =>
    hurting(world, '*', '*', { delayMs: 20, jitterMs: 80 }, between(world, 1_000, 3_000)),
  'a daemon does not hear another': (world) =>
    hurting(world, pick(world, world.cluster.daemons), 'daemon', { hold: pick(world, ['forth', 'back']) }, 3_000),
  'a daemon does not hear the gateway': (world) =>
    hurting(world, 'gateway', pick(world, world.cluster.daemons), { hold: pick(world, ['forth', 'back']) }, 2_500),
  'a daemon is cut off from the master': (world) =>
    hurting(
      world,
      pick(world, world.cluster.daemons),
      'master',
      { hold: pick(world, ['forth', 'back', 'both']), refuse: true },
      between(world, 2_000, 6_000),
    ),
  'the gateway is cut off from the master': (world) =>
    hurting(world, 'gateway', 'master', { hold: 'both', refuse: true }, between(world, 2_000, 6_000)),
  'a daemon is cut off from everybody': async (world) => {
    const name = pick(world, world.cluster.daemons);
    const { proxy } = world.cluster;
    const ms = between(world, 2_000, 6_000);
    await world.begin();
    proxy.apply((from, to) => from === name || to === name, { hold: 'both', refuse: true });
    world.tell(`${name} is cut off from everybody for ${ms} ms`);
    await world.sleep(ms);
    await world.heal();
    proxy.heal();
    return 'outage';
  },
  'connections between daemons break': (world) => resetting(world, 'daemon', 'daemon', 4),
  'connections of the gateway break': (world) => resetting(world, 'gateway', 'daemon', 4),
  'connections to the master break': (world) => resetting(world, '', 'master', 3),
  "connections of the oracle's clients break": (world) => resetting(world, 'oracle', 'gateway', 3),
  'connections are closed in one direction only': async (world) => {
    const { proxy } = world.cluster;
    await world.begin();
    for (const direction of ['forth', 'back'] as const) {
      const source = pick(world, ['gateway', 'daemon', 'oracle']);
      const target = source === 'oracle' ? 'gateway' : pick(world, [...world.cluster.daemons, 'master']);
      const count = proxy.halfClose((from, to) => from.startsWith(source) && to === target, direction);
      world.tell(`half-closed ${count} connections ${source}>${target}, ${direction}`);
      await world.sleep(1_000);
    }
    await world.heal();
    proxy.reset((_, to) => to !== 'master'); // nobody has to notice the missing half by itself
    return 'outage';
  },
  'a link trickles': (world) =>
    hurting(
      world,
      pick(world, ['gateway', ...world.cluster.daemons]),
      pick(world, world.cluster.daemons),
      { bytesPerSecond: between(world, 1, 1_000) },
      between(world, 1_500, 4_000),
    ),
  'bits flip between gateway and daemons': (world) =>
    hurting(world, 'gateway', 'daemon', { flipEveryBytes: 300_000 }, between(world, 1_500, 3_000)),
  'bits flip between daemons': (world) =>
    hurting(world, 'daemon', 'daemon', { flipEveryBytes: 200_000 }, between(world, 1_500, 3_000)),
  'a disk is full': async (world) => {
    const free = between(world, 0, 24) * 2 ** 20;
    await world.begin();
    world.cluster.fillSmallDisk(free + 1);
    const filling = new Filling(world);
    const refused = await Promise.race([filling.ended.then(() => true), world.sleep(FILL_MS).then(() => false)]);
    const size = `${filling.written >> 20} MiB of new data`;
    // Filled up at once by somebody else, there is no reserve: what a primary has and a member can't take waits.
    const what = refused ? `ENOSPC after ${size}` : `a write waits after ${size}`;
    world.tell(`${world.cluster.smallDaemon}: ${free >> 20} MiB left; ${what}`);
    await world.sleep(1_000);
    await world.heal();
    world.cluster.fillSmallDisk(0);
    filling.stop();
    await Promise.race([
      filling.ended,
      world.sleep(UNFILL_MS).then(() => {
        throw new Error(`a write that waited for space is not answered ${UNFILL_MS} ms after there was some`);
      }),
    ]);
    return 'outage';
  },
  'a copy rots while its daemon is down': async (world) => {
    const { cluster } = world;
    const victim = pick(world, cluster.daemons);
    await world.begin();
    await cluster.kill(victim);
    world.tell(`killed ${victim}; ${corruptAtRest(cluster.directoryOf(victim), world.random)}`);
    await world.sleep(between(world, 0, 500));
    await world.heal();
    await cluster.startAgain(victim);
    return 'outage';
  },
  'an older copy of the data is put back': (world) => puttingBack(world, (name) => name.startsWith('data-')),
  'an older copy of the whole disk is put back': (world) => puttingBack(world, () => true),
};

/** Killed, copied, run under load, killed again, and the copy is what it finds when it starts. */
async function puttingBack(world: World, chosen: (name: string) => boolean): Promise<Effect> {
  const { cluster } = world;
  const victim = pick(world, cluster.daemons);
  await world.begin();
  await cluster.kill(victim);
  const copy = copyFiles(cluster.directoryOf(victim), chosen);
  await cluster.startAgain(victim);
  world.tell(`killed ${victim}, copied ${copy.names.join(' ')}, started it again`);
  await world.sleep(between(world, 500, 2_000));
  await cluster.kill(victim);
  copy.putBack();
  world.tell(`killed ${victim} again, put the copy back`);
  await world.heal();
  await cluster.startAgain(victim);
  return 'outage';
}

/** Writes new blocks until the server says that there is no space, and frees them again: a full disk takes trims. */
class Filling {
  readonly ended: Promise<void>;
  written = 0;
  #stopped = false;

  constructor({ cluster }: World) {
    this.ended = this.#run(cluster.gatewayAddress);
    this.ended.catch(() => {}); // whoever waits sees it
  }
  /** There is space again: no more is needed. */
  stop(): void {
    this.#stopped = true;
  }
  async #run(address: string): Promise<void> {
    const client = await NbdClient.open(address, FILLER.name);
    const chunk = Buffer.alloc(FILLER_CHUNK_BYTES, 0x66);
    try {
      for (; this.written < FILLER.sizeBytes && !this.#stopped; this.written += chunk.length)
        await client.write(this.written, chunk);
      if (!this.#stopped) throw new Error(`${this.written} bytes went onto a full disk without an error`);
    } catch (error) {
      if (!(error instanceof NbdError) || error.errno !== ENOSPC) throw error;
    }
    for (let at = 0; at <= this.written && at < FILLER.sizeBytes; at += chunk.length)
      await client.request(Command.TRIM, 0, at, chunk.length, null, 0);
    await client.disconnect();
  }
}
const FILL_MS = 15_000;
const UNFILL_MS = 60_000;
const EIO = 5;
const ENOSPC = 28;
const FILLER_CHUNK_BYTES = 2 ** 20;
/** An image for what fills disks. */
export const FILLER = { name: 'filler', sizeBytes: 320 * 2 ** 20, order: 20 };

/** Kinds that need a disk of their own, which only root can make. */
export const NEEDS_ROOT = ['a disk is full'];
/** Kinds that leave damage, to be found by a deep scrub before another copy may be damaged. */
export const DAMAGING = ['a copy rots while its daemon is down', 'an older copy of the data is put back'];

/**
 * Errors that the server may answer with in a cycle of this kind, by NBD's number: an I/O error is honest where the
 * network mangles data. None in any other: what rotted has a good copy elsewhere, and I/O waits until it can be done.
 */
export function mayRefuse(kind: string, errno: number): boolean {
  if (errno === EIO) return kind.startsWith('bits flip');
  return errno === ENOSPC && kind === 'a disk is full';
}

/** `count` kinds: every one of `kinds` before any comes again, in an order that the seed decides. */
export function planOf(kinds: readonly string[], count: number, random: () => number): string[] {
  const plan: string[] = [];
  while (plan.length < count) {
    const deck = [...kinds];
    while (deck.length > 0 && plan.length < count) plan.push(deck.splice(Math.floor(random() * deck.length), 1)[0]!);
  }
  return plan;
}
