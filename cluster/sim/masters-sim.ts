// Several masters on one model of etcd, under a seed: they crash, stop for a while, and lose etcd; calls to it are lost on
// the way there or on the way back, or arrive long after the caller gave up. People go on making pools and images.
//
//   people ──calls──► ElectedMaster x 3 ──RemoteStore: delay, loss, late arrival──► MemoryLeaseStore
//
// Judged without the product's own means:
//   - only the one whose name the leader key holds at that moment changes the cluster's keys
//   - the epoch in the store never goes back
//   - whoever asks sees everything that was acked to anybody before (linearizable reads)
//   - what was acked is there at the end, what was refused for certain is not, a pool has all its PGs or does not exist
//   - at the end, when nothing else fails, leaders die: a new one serves within 5 s, with everything

import assert from 'node:assert/strict';
import type { ControlMethod, ControlReply, ControlRequest } from '../../proto/control.ts';
import { NotLeaderError, StorageError } from '../../proto/errors.ts';
import type { LeaseStore, StoredPair, StoreOutcome, StoreTransaction } from '../../proto/lease-store.ts';
import type { Clock, Log } from '../../proto/ports.ts';
import { ElectedMaster } from '../master/elected-master.ts';
import { leaderKeyOf } from '../master/leader-kv.ts';
import { MemoryLeaseStore } from '../master/memory-lease-store.ts';
import { SimRandom } from './random.ts';
import { type Incarnation, type Machine, Scheduler } from './scheduler.ts';

const PREFIX = '/sim';
const MASTERS = 3;
const FAULTS_MS = 60_000;
/** After the last fault: an old lease runs out, and somebody leads and reads everything. */
const HEAL_MS = 15_000;
const NEW_LEADER_MS = 5_000;
const DEATHS_IN_PEACE = 3;
const CALL_TIMEOUT_MS = 1_000;
/** Too many PGs for one transaction. */
const PGS_OF_LARGE_POOL = 256;
const LARGE_POOLS = 5;

/** Defects that the judge must find. */
export type MastersBug =
  | 'none'
  | 'transactions without the guard'
  | 'a lease that never ends by the clock'
  | 'a journal that nobody finishes';

export interface MastersOutcome {
  readonly failure: Error | null;
  readonly digest: string;
  readonly acked: number;
  readonly terms: number;
  readonly probes: ReadonlyMap<string, number>;
  /** Times from a leader's death to the next one that served, when nothing else was wrong. */
  readonly takeOverMs: readonly number[];
}

interface Member {
  readonly machine: Machine;
  master: ElectedMaster | null;
  /** Until when nothing gets from it to etcd. */
  cutUntil: number;
}

const quiet: Log = { debug() {}, info() {}, warn() {}, error() {} };

export async function runMasters(seed: number, bug: MastersBug = 'none'): Promise<MastersOutcome> {
  const world = new MastersWorld(seed, bug);
  await world.run();
  const { scheduler } = world;
  return {
    failure: scheduler.failure,
    digest: scheduler.digest,
    acked: world.acked.size,
    terms: world.terms.size,
    probes: scheduler.probes,
    takeOverMs: world.takeOverMs,
  };
}

class MastersWorld {
  readonly scheduler: Scheduler;
  readonly acked = new Set<string>();
  readonly refused = new Set<string>();
  readonly terms = new Set<string>();
  readonly takeOverMs: number[] = [];
  readonly store: MemoryLeaseStore;
  readonly random: SimRandom;
  readonly bug: MastersBug;
  readonly #members: Member[];
  #storeDownUntil = 0;
  #faultsEnd = 0;
  #names = 0;
  #epoch = 0;
  #largePools = 0;

  constructor(seed: number, bug: MastersBug) {
    this.random = new SimRandom(seed);
    this.bug = bug;
    this.scheduler = new Scheduler(this.random.fork('scheduler'));
    this.store = new MemoryLeaseStore({ now: () => this.scheduler.now });
    this.#members = Array.from({ length: MASTERS }, (_, n) => ({
      machine: this.scheduler.machine(`master-${n + 1}`),
      master: null,
      cutUntil: 0,
    }));
  }

  async run(): Promise<void> {
    const { scheduler } = this;
    for (const member of this.#members) this.#boot(member);
    for (const n of [1, 2, 3]) scheduler.after(n, 'person', () => this.#person());
    this.#faultsEnd = FAULTS_MS;
    this.#nemesis();
    await scheduler.run(() => false, FAULTS_MS);
    for (const { machine } of this.#members) if (machine.up) machine.resume();
    await scheduler.run(() => false, HEAL_MS);
    if (scheduler.failure !== null) return;
    await this.#judgeEnd();
    for (let deaths = 0; deaths < DEATHS_IN_PEACE && scheduler.failure === null; deaths++) {
      const orphanedAt = scheduler.now;
      const leader = this.#leader!;
      leader.machine.end('crash');
      leader.master = null;
      await scheduler.run(() => this.#leader !== undefined, NEW_LEADER_MS);
      this.takeOverMs.push(scheduler.now - orphanedAt);
      await this.#judgeEnd();
      this.#boot(leader);
      await scheduler.run(() => false, this.random.between(1, 2_000));
    }
  }

  get #leader(): Member | undefined {
    return this.#members.find(({ master }) => master?.leads);
  }

  /** A call's answer, with the events that it needs. */
  async #statusOf(master: ElectedMaster): Promise<ControlReply<'status'>> {
    let status: ControlReply<'status'> | null = null;
    master.handle('status', {}).then(
      (reply) => {
        status = reply;
      },
      (error: unknown) => this.scheduler.fail(error as Error),
    );
    await this.scheduler.run(() => status !== null, 1_000);
    if (this.scheduler.failure !== null) throw this.scheduler.failure;
    assert(status !== null);
    return status;
  }

  #boot(member: Member): void {
    const process = member.machine.boot();
    const clock: Clock =
      this.bug === 'a lease that never ends by the clock'
        ? { now: () => 0, after: (ms, fire) => process.after(ms, fire), soon: (run) => process.soon(run) }
        : process;
    member.master = new ElectedMaster({
      clock,
      log: quiet,
      random: this.random.fork(process.name),
      store: new RemoteStore(this, member, process),
      prefix: PREFIX,
      onFatal: (error) => this.scheduler.fail(new Error(`${process.name} gave up: ${error.message}`, { cause: error })),
    });
    member.master.campaign(process.name);
  }

  // --- faults

  #nemesis(): void {
    const { scheduler, random } = this;
    scheduler.after(random.between(500, 6_000), 'nemesis', () => {
      if (scheduler.now >= this.#faultsEnd - 500) return;
      const leader = this.#leader;
      const victim = leader !== undefined && random.chance(0.7) ? leader : random.pick(this.#members);
      const durationMs = random.between(300, 8_000);
      switch (random.below(5)) {
        case 0:
          if (!victim.machine.up) break;
          scheduler.probe('crash');
          victim.machine.end('crash');
          victim.master = null;
          scheduler.after(durationMs, 'boot', () => this.#boot(victim));
          break;
        case 1:
          if (!victim.machine.up) break;
          scheduler.probe('pause');
          victim.machine.pause(durationMs);
          break;
        case 2:
          scheduler.probe('cut off from etcd');
          victim.cutUntil = scheduler.now + durationMs;
          break;
        case 3:
          scheduler.probe('etcd away');
          this.#storeDownUntil = scheduler.now + durationMs / 2;
          break;
        default:
          if (victim.master === null) break;
          scheduler.probe('told to stop');
          void this.#stopGently(victim);
      }
      this.#nemesis();
    });
  }
  async #stopGently(member: Member): Promise<void> {
    const { master, machine } = member;
    const process = machine.incarnation;
    await master!.close();
    if (member.master !== master || !process?.alive) return; // it died on the way
    machine.end('crash');
    member.master = null;
    this.scheduler.after(1_000, 'boot', () => this.#boot(member));
  }
  /** Does a call from here arrive now? */
  isCut(member: Member): boolean {
    return this.scheduler.now < member.cutUntil || this.scheduler.now < this.#storeDownUntil;
  }
  get isHealing(): boolean {
    return this.scheduler.now >= this.#faultsEnd;
  }

  // --- people

  #person(): void {
    const { scheduler, random } = this;
    scheduler.after(random.between(20, 300), 'person', () => {
      if (this.isHealing) return;
      const member =
        this.#members.find(({ master }) => master?.leads && random.chance(0.6)) ?? random.pick(this.#members);
      const process = member.machine.incarnation;
      // What reaches a stopped process waits there; a dead one answers nobody.
      if (process?.alive)
        scheduler.schedule(scheduler.now + random.exponential(2), process, 'call', 0, () => void this.#ask(member));
      this.#person();
    });
  }

  async #ask(member: Member): Promise<void> {
    const master = member.master!;
    const kind = this.random.below(10);
    if (kind < 4) return this.#read(master);
    const name = `n${++this.#names}`;
    if (kind === 4 && this.#largePools < LARGE_POOLS) {
      this.#largePools++;
      const pool = { name, pgCount: PGS_OF_LARGE_POOL, replicas: 1, minSize: 1, durability: 'flush' as const };
      return this.#make(master, name, 'createPool', pool);
    }
    const layout = { order: 20, stripeUnit: 2 ** 20, stripeCount: 1 };
    const pool = [...this.acked].find((made) => made.startsWith('p:'))?.slice(2);
    if (pool === undefined)
      return this.#make(master, name, 'createPool', { name, pgCount: 2, replicas: 1, minSize: 1, durability: 'flush' });
    return this.#make(master, name, 'createImage', { name, pool, sizeBytes: 2 ** 20, ...layout });
  }

  async #make<M extends ControlMethod>(
    master: ElectedMaster,
    name: string,
    method: M,
    request: ControlRequest<M>,
  ): Promise<void> {
    try {
      await master.handle(method, request);
      this.acked.add(`${method === 'createPool' ? 'p' : 'i'}:${name}`);
    } catch (error) {
      if (error instanceof NotLeaderError) this.refused.add(name);
      else if (!(error instanceof StorageError) || error.code !== 'UNAVAILABLE') this.scheduler.fail(error as Error);
    }
  }

  async #read(master: ElectedMaster): Promise<void> {
    const before = [...this.acked];
    const status = await master.handle('status', {}).catch((error: unknown) => {
      if (!(error instanceof StorageError) || error.code !== 'UNAVAILABLE') this.scheduler.fail(error as Error);
      return null;
    });
    if (status === null) return;
    this.scheduler.probe('read');
    const missing = missingIn(status, before);
    if (missing.length > 0)
      this.scheduler.fail(new Error(`a read does not see ${missing.join(', ')}, acked before it`));
  }

  // --- the judge

  /** A transaction is being carried out, sent by this process. */
  async judge(process: Incarnation, { puts, deletes }: StoreTransaction): Promise<void> {
    const leader = await this.store.get(leaderKeyOf(PREFIX));
    if (leader !== null) this.terms.add(leader.created);
    const keys = [...puts.map(({ key }) => key), ...deletes];
    if (!keys.some((key) => key.startsWith(`${PREFIX}/`))) return;
    if (leader?.value !== process.name)
      throw new Error(`${process.name} changed ${keys[0]} while ${leader?.value ?? 'nobody'} led`);
    const epoch = Number(puts.find(({ key }) => key === `${PREFIX}/epoch`)?.value ?? this.#epoch);
    if (epoch < this.#epoch) throw new Error(`the epoch went back from ${this.#epoch} to ${epoch}`);
    this.#epoch = epoch;
  }

  async #judgeEnd(): Promise<void> {
    const master = this.#leader?.master;
    if (master === undefined || master === null)
      return this.scheduler.fail(new Error('nobody leads, and nothing fails'));
    const status = await this.#statusOf(master);
    const missing = missingIn(status, [...this.acked]);
    if (missing.length > 0) this.scheduler.fail(new Error(`acked and lost: ${missing.join(', ')}`));
    const there = new Set([...status.pools, ...status.images].map(({ name }) => name));
    const risen = [...this.refused].filter((name) => there.has(name));
    if (risen.length > 0) this.scheduler.fail(new Error(`refused and there all the same: ${risen.join(', ')}`));
    for (const { id, pgCount } of status.pools) {
      const pgs = await this.store.range(`${PREFIX}/pgs/${id}.`);
      if (pgs.length !== pgCount) this.scheduler.fail(new Error(`pool ${id} has ${pgs.length} of ${pgCount} PGs`));
    }
    const journal = await this.store.range(`${PREFIX}:journal/`);
    // Left behind, it would be harmless but for what is missing because of it: with that bug the judge waits for more.
    if (this.bug !== 'a journal that nobody finishes' && journal.length > 0)
      this.scheduler.fail(new Error('a journal was left behind by nobody'));
  }
}

function missingIn(status: ControlReply<'status'>, names: readonly string[]): string[] {
  const there = new Set([
    ...status.pools.map(({ name }) => `p:${name}`),
    ...status.images.map(({ name }) => `i:${name}`),
  ]);
  return names.filter((name) => !there.has(name));
}

/** The way of one process to etcd. */
class RemoteStore implements LeaseStore {
  readonly #world: MastersWorld;
  readonly #member: Member;
  readonly #process: Incarnation;

  constructor(world: MastersWorld, member: Member, process: Incarnation) {
    this.#world = world;
    this.#member = member;
    this.#process = process;
  }

  get(key: string): Promise<StoredPair | null> {
    return this.#send('get', () => this.#world.store.get(key));
  }
  range(prefix: string): Promise<StoredPair[]> {
    const blind = this.#world.bug === 'a journal that nobody finishes' && prefix.includes(':journal/');
    return this.#send('range', async () => (blind ? [] : this.#world.store.range(prefix)));
  }
  transact(transaction: StoreTransaction): Promise<StoreOutcome> {
    return this.#send('transact', async () => {
      const outcome = await this.#world.store.transact(this.#spoiled(transaction));
      if (outcome.done)
        await this.#world
          .judge(this.#process, transaction)
          .catch((error: unknown) => this.#world.scheduler.fail(error as Error));
      return outcome;
    });
  }
  grant(ttlMs: number): Promise<{ lease: string; ttlMs: number }> {
    return this.#send('grant', () => this.#world.store.grant(ttlMs));
  }
  renew(lease: string): Promise<boolean> {
    return this.#send('renew', () => this.#world.store.renew(lease));
  }
  revoke(lease: string): Promise<void> {
    return this.#send('revoke', () => this.#world.store.revoke(lease));
  }
  close(): void {}

  #spoiled(transaction: StoreTransaction): StoreTransaction {
    if (this.#world.bug !== 'transactions without the guard') return transaction;
    const compares = transaction.compares.filter((compare) => !('created' in compare) || compare.created === '0');
    return { ...transaction, compares };
  }

  /** The request is on its way whatever becomes of its sender; the answer needs one who is alive. */
  #send<T>(kind: string, carryOut: () => Promise<T>): Promise<T> {
    const { scheduler, random } = this.#world;
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const process = this.#process;
    const noAnswer = (): void => reject(new StorageError('UNAVAILABLE', `no answer to ${kind}`));
    const timeout = process.after(CALL_TIMEOUT_MS, noAnswer);
    const healing = this.#world.isHealing;
    const late = !healing && random.chance(0.02);
    const onTheWayMs = late ? random.between(800, 9_000) : random.exponential(2);
    if (late) scheduler.probe('arrives late');
    scheduler.after(onTheWayMs, kind, () => {
      if (!late && this.#world.isCut(this.#member)) return;
      const answerLost = !healing && random.chance(0.02);
      if (answerLost) scheduler.probe('answer lost');
      const answer = (act: () => void): void => {
        if (answerLost || !process.alive) return;
        scheduler.schedule(scheduler.now + random.exponential(2), process, `${kind} answered`, 0, () => {
          timeout.cancel();
          act();
        });
      };
      carryOut().then(
        (value) => answer(() => resolve(value)),
        (error: unknown) => answer(() => reject(error)),
      );
    });
    return promise;
  }
}
