// What goes wrong in a run: the faults that the seed's plan enables, one after the other at random moments.
//
// Everything it does ends: processes are started again, partitions heal, pauses are over. After stop() nothing new
// begins, and heal() ends what still lasts.

import type { ClusterSim } from './cluster-sim.ts';
import type { Fault } from './plan.ts';
import type { SimRandom } from './random.ts';
import type { Machine } from './scheduler.ts';
import { CALM_NETWORK } from './sim-network.ts';
import type { Writers } from './writers.ts';

const LONG_PAUSE_MS = 60_000;
const PAGE_BYTES = 4_096;
/** A disk that is full has room for fewer pages than this. */
const FREE_PAGES_MAX = 64;

export class Nemesis {
  readonly #cluster: ClusterSim;
  readonly #writers: Writers;
  /** When and what. */
  readonly #schedule: SimRandom;
  /** How: of its own for each strike, so that leaving one out changes no other. */
  #random: SimRandom;
  #over = false;
  /** Faults that took place. */
  fired = 0;
  /** Times that one was tried, or left out. */
  strikes = 0;

  constructor(cluster: ClusterSim, writers: Writers) {
    this.#cluster = cluster;
    this.#writers = writers;
    this.#schedule = cluster.random.fork('nemesis');
    this.#random = this.#schedule;
  }

  start(): void {
    const { network, control, plan } = this.#cluster;
    network.faults = { ...plan.network };
    control.faults = {
      lossChance: plan.controlLossChance,
      resetChance: plan.controlLossChance / 4,
      repeatChance: plan.controlRepeatChance,
    };
    // A run in which nothing goes wrong says nothing: the first fault comes early.
    this.#nextWithin(plan.durationMs / 4);
  }

  /** Ends every fault. */
  heal(): void {
    const { network, control, daemons } = this.#cluster;
    this.#over = true;
    network.faults = { ...CALM_NETWORK };
    control.faults = { lossChance: 0, resetChance: 0, repeatChance: 0 };
    network.unblockAll(this.#cluster.machines);
    for (const machine of this.#cluster.machines) machine.resume();
    for (const { home } of daemons) home.calm();
  }

  #nextWithin(mostMs: number): void {
    const { scheduler, plan } = this.#cluster;
    scheduler.after(Math.min(mostMs, this.#schedule.exponential(plan.faultEveryMs)), 'nemesis', () => {
      if (this.#over) return;
      const fault = this.#schedule.pick(plan.faults);
      const number = this.strikes++;
      this.#random = this.#schedule.fork(`strike ${number}`);
      const leftOut = plan.faultsLeftOut.includes(number);
      const struck = leftOut || this.#strike(fault);
      if (struck && !leftOut) {
        this.fired++;
        scheduler.probe(fault);
        scheduler.note('', `nemesis: ${fault}`);
      }
      this.#nextWithin(struck ? Infinity : plan.faultEveryMs / 4);
    });
  }

  /** False if it can't be done now. */
  #strike(fault: Fault): boolean {
    const cluster = this.#cluster;
    const random = this.#random;
    switch (fault) {
      case 'crash daemon':
        return this.#endOne('crash');
      case 'cut power of a daemon':
        return this.#endOne('powerCut');
      case 'cut all power':
        return this.#endAll();
      case 'pause daemon':
        return this.#pause(random.pick(cluster.daemons).machine);
      case 'pause master':
        return this.#pause(cluster.masterMachine);
      case 'crash master':
        if (!cluster.masterMachine.up) return false;
        cluster.endMaster('crash', this.#downtime());
        return true;
      case 'crash writer':
        return this.#writers.crash(this.#downtime());
      case 'take over':
        return this.#writers.takeOver();
      case 'partition':
        return this.#partition();
      case 'reset connections':
        cluster.network.resetBetween(random.pick(cluster.machines), random.pick(cluster.machines));
        return true;
      case 'break streams':
        cluster.control.breakStreams(random.pick(cluster.machines));
        return true;
      case 'move data':
        return cluster.setDaemon(random.pick(cluster.daemons), {
          in: random.chance(0.6),
          weight: random.pick([0.1, 1, 1, 10]),
        });
      case 'disk fails': {
        // One write or sync soon; the daemon must stop itself, and starts again on a disk that works.
        const { home } = random.pick(cluster.daemons);
        home.mayFail = true;
        home.disk.failNth(random.pick(['write', 'sync']), random.between(1, 30), 'IO');
        return true;
      }
      case 'add daemon':
        return cluster.addDaemon();
      case 'images come and go':
        // The operator does so all the time in such a plan.
        return false;
      case 'disk full':
        return this.#fillDisk();
      case 'read fails': {
        const { home } = random.pick(cluster.daemons);
        home.mayFail = true;
        cluster.unreadable = true;
        home.disk.failNth('read', random.between(1, 20), 'IO');
        return true;
      }
      case 'bit rot':
        return this.#rot();
      case 'disk stalls':
        Object.assign(random.pick(cluster.daemons).home.disk.faults, {
          readDelayMs: 1,
          syncDelayMs: 10,
          stallChance: 0.1,
          stallMaxMs: 2_000,
        });
        return true;
    }
  }

  /** Mostly short, as when something restarts it; sometimes long enough to be taken for dead. */
  #downtime(): number {
    return this.#random.chance(0.5) ? 20 + this.#random.unit() * 500 : this.#random.unit() * 8_000;
  }

  #endOne(how: 'crash' | 'powerCut'): boolean {
    const target = this.#random.pick(this.#cluster.daemons);
    if (!target.machine.up) return false;
    this.#cluster.endDaemon(target, how, this.#downtime());
    if (how === 'powerCut') this.#writers.model.onPowerCut();
    return true;
  }

  #endAll(): boolean {
    const cluster = this.#cluster;
    for (const daemon of cluster.daemons)
      if (daemon.machine.up) cluster.endDaemon(daemon, 'powerCut', this.#downtime());
    if (cluster.masterMachine.up) cluster.endMaster('powerCut', this.#downtime());
    if (this.#random.chance(0.5)) this.#writers.crash(this.#downtime());
    this.#writers.model.onPowerCut();
    return true;
  }

  #fillDisk(): boolean {
    const { disk } = this.#random.pick(this.#cluster.daemons).home;
    disk.limit(this.#random.below(FREE_PAGES_MAX) * PAGE_BYTES);
    this.#cluster.scheduler.after(this.#random.unit() * 8_000, 'space again', () => disk.limit(null));
    return true;
  }

  /**
   * Flips a bit of a block that is stored. Always on the same daemon, and only while all members of all PGs are complete:
   * every block then has a good copy elsewhere.
   */
  #rot(): boolean {
    const cluster = this.#cluster;
    const { home, store } = cluster.daemons[0]!;
    if (cluster.plan.replicas < 2 || store === null || !cluster.isWhole()) return false;
    const name = this.#random.pick(home.disk.names());
    if (!name.startsWith('data-')) return false;
    const pages = home.disk.pagesOf(name);
    if (pages.length === 0) return false;
    const position = this.#random.pick(pages) * PAGE_BYTES + this.#random.below(PAGE_BYTES);
    cluster.unreadable = true;
    return home.disk.rot(name, position, this.#random.below(8));
  }

  #pause(machine: Machine): boolean {
    if (!machine.up) return false;
    machine.pause(this.#random.chance(0.1) ? this.#random.unit() * LONG_PAUSE_MS : this.#downtime());
    return true;
  }

  /** Cuts one machine from one other, from several, or from all; one way or both. */
  #partition(): boolean {
    const { scheduler, network } = this.#cluster;
    const random = this.#random;
    const living = this.#cluster.machines.filter((machine) => machine.up && machine.name !== 'admin');
    if (living.length < 2) return false;
    const lone = random.pick(living);
    const others = random.shuffle(living.filter((machine) => machine !== lone));
    const cut = others.slice(0, random.pick([1, random.between(1, others.length), others.length]));
    const ways = random.pick(['to', 'from', 'both', 'both']);
    for (const other of cut) {
      if (ways !== 'from') network.block(lone, other);
      if (ways !== 'to') network.block(other, lone);
    }
    scheduler.after(random.chance(0.5) ? random.unit() * 2_000 : random.unit() * 15_000, 'partition heals', () => {
      for (const other of cut) {
        network.unblock(lone, other);
        network.unblock(other, lone);
      }
    });
    return true;
  }
}
