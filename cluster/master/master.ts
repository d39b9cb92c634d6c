// The master's core: it keeps the storage map, and decides who holds what.
//
//   carriers (gRPC, simulator) ──handle()──> operations ──> commits.ts ──> durable ──> publisher.ts ──> subscribers
//                              ──subscribe()──> presence.ts (daemons), sessions.ts (clients)
//   a tick looks for silence: down, out, and back
//
// Heartbeats, reports and liveness stay in memory; everything that anybody may rely on is durable before it is said.
// This file knows neither gRPC nor SQLite; what a change means is in intervals.ts, planner.ts and directory.ts.

import type {
  ControlMethod,
  ControlReply,
  ControlRequest,
  ControlService,
  Subscriber,
  Subscription,
  SubscriptionEvents,
} from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { type DaemonId, type Epoch, pgName, type SessionId } from '../../proto/ids.ts';
import type { KeyValueStore } from '../../proto/kv.ts';
import { OUT_AFTER_MS } from '../../proto/limits.ts';
import type { StorageMap } from '../../proto/map.ts';
import type { Clock, Log, Random, Timer } from '../../proto/ports.ts';
import { pairsOf } from './backup.ts';
import { Commits, type Operation } from './commits.ts';
import { acceptDataLoss } from './data-loss.ts';
import { createImage, createPool, removeImage, resizeImage } from './directory.ts';
import { isSettled } from './intervals.ts';
import { ROOM_AGAIN_MS, TICK_MS } from './limits.ts';
import { lockImage, unlockImage } from './locks.ts';
import { activatePgs, cleanPgs, doubt, forgettablePgs, isMistaken, preferPrimary } from './marks.ts';
import { outdatedError } from './outdated.ts';
import { Planner } from './planner.ts';
import { Preferences } from './preferences.ts';
import { complain, isHeld, isSilent, newestWords, Presences } from './presence.ts';
import { Publisher } from './publisher.ts';
import { registerDaemon, setDaemon } from './registry.ts';
import { removeDaemon } from './removal.ts';
import { Room } from './room.ts';
import { pgsToScrub, Scrubs } from './scrubs.ts';
import { FenceWait, Sessions } from './sessions.ts';
import { type Change, loadState, type State } from './state.ts';
import { clusterStatus, reportOf } from './status.ts';

export interface MasterOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly random: Random;
  /** Owned by the master from now on: close() closes it. */
  readonly kv: KeyValueStore;
  /** A daemon that is down for so long goes out. */
  readonly outAfterMs?: number;
  /** The master must not go on: its store failed, is older than what the daemons have seen, or has another master. */
  readonly onFatal: (error: Error) => void;
}

type Handlers = { [M in ControlMethod]: (request: ControlRequest<M>) => Promise<ControlReply<M>> };

export class Master implements ControlService {
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #kv: KeyValueStore;
  readonly #outAfterMs: number;
  readonly #onFatal: (error: Error) => void;
  readonly #state: State;
  readonly #planner: Planner;
  readonly #publisher: Publisher;
  readonly #commits: Commits;
  readonly #presences = new Presences();
  readonly #preferences = new Preferences();
  readonly #scrubs: Scrubs;
  readonly #sessions: Sessions;
  readonly #fences: FenceWait;
  /** The most (object, member) pairs that were missing since it was last none. */
  #missingPeak = 0;
  #reportsChanged = false;
  /** When moves that wait for room were last looked at. */
  #roomLookedAt = Number.NEGATIVE_INFINITY;
  #tick: Timer;
  #closed = false;

  /** Reads what the store holds, or founds a cluster in an empty one. */
  static async open(options: MasterOptions): Promise<Master> {
    return new Master(options, await loadState(options.kv, uuid(options.random)));
  }

  private constructor(options: MasterOptions, state: State) {
    this.#clock = options.clock;
    this.#log = options.log;
    this.#kv = options.kv;
    this.#outAfterMs = options.outAfterMs ?? OUT_AFTER_MS;
    this.#onFatal = options.onFatal;
    this.#state = state;
    this.#scrubs = new Scrubs(state, options.random.u32());
    this.#planner = new Planner(state, () => new Room(this.#presences, state.pgs.values()));
    this.#publisher = new Publisher(options.clock, state.map());
    this.#sessions = new Sessions(options.clock);
    this.#fences = new FenceWait(options.clock, (epoch) => this.#laggards(epoch));
    this.#commits = new Commits(options.clock, options.kv, state, {
      settle: (change) => this.#planner.settle(change),
      committed: (update) => {
        if (update !== null) this.#publisher.publish(update);
        this.#fences.check();
      },
      fatal: (error) => this.#fail(error),
    });
    const now = this.#clock.now();
    for (const { entry } of state.daemons.values()) this.#presences.of(entry.id, entry.bootId, now);
    this.#tick = this.#clock.after(TICK_MS, () => this.#onTick());
  }

  get clusterId(): string {
    return this.#state.clusterId;
  }
  get epoch(): Epoch {
    return this.#state.epoch;
  }

  /** What was last published. */
  get map(): StorageMap {
    return this.#publisher.map;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#tick.cancel();
    await this.#commits.stop(new StorageError('UNAVAILABLE', 'the master is shutting down'));
    this.#publisher.dismissAll('the master is shutting down');
    await this.#kv.close();
  }

  /**
   * Ends it at once, because another may lead: nothing is done or told any more. A change under way may still become
   * durable, if the store lets it.
   */
  depose(why: string): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#tick.cancel();
    this.#publisher.dismissAll(why);
    void this.#commits.stop(new StorageError('UNAVAILABLE', why));
  }

  handle<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>> {
    if (this.#closed) return Promise.reject(new StorageError('UNAVAILABLE', 'the master has stopped'));
    return this.#handlers[method](request);
  }

  subscribe(subscriber: Subscriber, events: SubscriptionEvents): Subscription {
    if (this.#closed) throw new StorageError('UNAVAILABLE', 'the master is shutting down');
    if (subscriber.epoch > this.#state.epoch) {
      const ours = subscriber.role === 'daemon' || subscriber.clusterId === this.#state.clusterId;
      const who = subscriber.role === 'daemon' ? `daemon ${subscriber.id}` : `client session ${subscriber.session}`;
      throw this.#outdated(who, subscriber.epoch, ours);
    }
    return subscriber.role === 'daemon'
      ? this.#subscribeDaemon(subscriber, events)
      : this.#subscribeClient(subscriber.session, subscriber.epoch, events);
  }

  readonly #handlers: Handlers = {
    register: (request) => this.#register(request),
    testify: async () => {
      throw new StorageError('INVALID', 'this master is not being rebuilt: no testimony is wanted');
    },
    heartbeat: (request) => this.#heartbeat(request),
    activate: async (request) => {
      const words = this.#newestWords(request);
      return { accepted: await this.#submit((change) => activatePgs(change, words)) };
    },
    clean: async (request) => {
      const words = this.#newestWords(request);
      return { accepted: await this.#submit((change) => cleanPgs(change, words)) };
    },
    forget: async (request) => ({ accepted: await this.#submit((change) => forgettablePgs(change, request)) }),
    preferPrimary: async (request) => {
      await this.#submit((change) => preferPrimary(change, request));
      this.#preferences.asked(request.pg, this.#clock.now());
      return {};
    },
    reportFailure: (request) => this.#reportFailure(request),
    reportScrubs: async ({ id, bootId, reports }) => {
      this.#refuseStranger(id, bootId);
      this.#scrubs.report(id, reports, this.#clock.now());
      return { master: this.#scrubs.master, orders: this.#scrubs.ordersFor(id) };
    },
    startScrub: async (wish) => {
      const pgs = pgsToScrub(this.#state, wish);
      for (const pg of pgs) this.#scrubs.order(pg, wish, this.#clock.now());
      return { pgs };
    },
    scrubStatus: async () => ({ pgs: this.#scrubs.status(this.#clock.now()) }),
    openSession: async ({ name }) => {
      const session = await this.#submit((change) => change.number('session'));
      this.#sessions.opened(session, name);
      return { clusterId: this.#state.clusterId, session };
    },
    lockImage: (request) => this.#lockImage(request),
    unlockImage: (request) => this.#submit((change) => unlockImage(change, request)),
    createPool: (request) => this.#submit((change) => createPool(change, request)),
    createImage: (request) => this.#submit((change) => createImage(change, request)),
    resizeImage: (request) => this.#submit((change) => resizeImage(change, request)),
    removeImage: (request) => this.#removeImage(request),
    setDaemon: (request) => this.#submit((change) => setDaemon(change, request)),
    removeDaemon: (request) => this.#removeDaemon(request),
    acceptDataLoss: async (request) => {
      const reply = await this.#submit((change) => acceptDataLoss(change, request));
      const { pg, daemon } = request;
      this.#log.warn('an operator accepted the loss of data', { pg: pgName(pg), daemon, waitFor: reply.waitFor });
      return reply;
    },
    status: async () => {
      this.#watchRecovery();
      return clusterStatus({
        state: this.#state,
        presences: this.#presences,
        missingPeak: this.#missingPeak,
        inconsistent: this.#scrubs.inconsistent,
        now: this.#clock.now(),
        isAlive: (session) => this.#sessions.isAlive(session),
        target: (pg) => this.#planner.target(pg),
      });
    },
    backup: async () => ({
      clusterId: this.#state.clusterId,
      epoch: this.#state.epoch,
      pairs: pairsOf(this.#state),
    }),
  };

  /**
   * Somebody has seen a newer map: this master's store is an old copy, or theirs is another cluster. In the first case
   * it must not serve: what it would publish was published once already, with another meaning.
   */
  #outdated(who: string, theirs: Epoch, ours: boolean): StorageError {
    const mine = this.#state.epoch;
    if (!ours) return new StorageError('IDENTITY', `${who} has seen map epoch ${theirs} of another cluster`);
    const error = outdatedError(who, theirs, mine);
    this.#fail(error);
    return error;
  }

  // --- storage daemons ---

  async #register(request: ControlRequest<'register'>): Promise<ControlReply<'register'>> {
    if (request.newestEpoch > this.#state.epoch) {
      const ours = request.clusterId === this.#state.clusterId;
      throw this.#outdated(`daemon ${request.uuid}`, request.newestEpoch, ours);
    }
    await this.#oldProcessGone(request.uuid, request.bootId);
    const id = await this.#submit((change) => registerDaemon(change, request));
    const presence = this.#presences.of(id, request.bootId, this.#clock.now());
    if (presence.stream !== null && presence.streamBootId !== request.bootId) {
      this.#publisher.dismiss(presence.stream, 'another process of this daemon has registered');
      presence.stream = null;
    }
    return { clusterId: this.#state.clusterId, id, epoch: this.#state.epoch };
  }

  /**
   * A new process of a directory whose old process is still subscribed: either the old one has just died and its
   * connection is about to break, or both live. Waits until it is plain which; a heartbeat of the old one decides.
   * Of several that wait, the first to register goes ahead; the others, who may be dead by now, have to ask again.
   */
  async #oldProcessGone(daemonUuid: string, bootId: string): Promise<void> {
    const known = [...this.#state.daemons.values()].find(({ entry }) => entry.uuid === daemonUuid);
    if (known === undefined) return;
    const presence = this.#presences.get(known.entry.id);
    const old = presence?.stream ?? null;
    if (presence === undefined || old === null || presence.bootId === bootId) return;
    const heardAt = presence.heardAt;
    const bootBefore = known.entry.bootId;
    while (presence.stream === old && !isSilent(presence, this.#clock.now())) {
      if (presence.heardAt > heardAt)
        throw new StorageError(
          'IDENTITY',
          `daemon ${known.entry.id} (${daemonUuid}) is already running at ${known.entry.address}: one process per directory`,
        );
      await new Promise<void>((resolve) => this.#clock.after(TICK_MS / 5, resolve));
      if (this.#state.daemons.get(known.entry.id)?.entry.bootId !== bootBefore)
        throw new StorageError('UNAVAILABLE', `another process of daemon ${known.entry.id} registered in the meantime`);
    }
  }

  #subscribeDaemon(
    subscriber: { id: DaemonId; bootId: string; epoch: Epoch },
    events: SubscriptionEvents,
  ): Subscription {
    const { id, bootId } = subscriber;
    this.#refuseStranger(id, bootId);
    const now = this.#clock.now();
    const presence = this.#presences.of(id, bootId, now);
    const stream = this.#publisher.follow(subscriber.epoch, events);
    if (presence.stream !== null) this.#publisher.dismiss(presence.stream, 'replaced by a newer subscription');
    presence.stream = stream;
    presence.streamBootId = bootId;
    presence.heardAt = now;
    this.#background('mark a daemon up', (change) => this.#markUp(change, id, bootId));
    return {
      close: () => {
        this.#publisher.leave(stream);
        if (presence.stream !== stream) return;
        presence.stream = null;
        if (this.#closed) return;
        this.#background('mark a daemon down', (change) => {
          if (presence.stream === null) this.#markDown(change, id, bootId, 'its connection to the master broke');
        });
      },
    };
  }

  async #heartbeat(request: ControlRequest<'heartbeat'>): Promise<ControlReply<'heartbeat'>> {
    const { id, bootId } = request;
    this.#refuseStranger(id, bootId);
    const now = this.#clock.now();
    const presence = this.#presences.of(id, bootId, now);
    presence.heardAt = now;
    presence.space = request.space;
    presence.speed.sample(request.recoveredBytes, now);
    for (const report of request.pgs) if (this.#state.pgs.has(report.pg)) presence.reports.set(report.pg, report);
    if (request.pgs.length > 0) this.#reportsChanged = true;
    if (request.pgs.some((report) => isMistaken(this.#state.pgs.get(report.pg), report, id)))
      this.#background('look for other members', (change) => doubt(change, request.pgs, id));
    if (request.epoch > presence.ackedEpoch) {
      presence.ackedEpoch = request.epoch;
      this.#fences.check();
    }
    const { recoveryBytesPerSecond = 0 } = this.#state.daemons.get(id)!;
    return { epoch: this.#state.epoch, recoveryBytesPerSecond };
  }

  async #removeDaemon({ id }: ControlRequest<'removeDaemon'>): Promise<Record<string, never>> {
    await this.#submit((change) => removeDaemon(change, id, this.#presences.get(id)?.space ?? null));
    const stream = this.#presences.get(id)?.stream ?? null;
    this.#presences.forget(id);
    if (stream !== null) this.#publisher.dismiss(stream, 'this daemon was removed from the cluster');
    this.#log.info('daemon is removed', { daemon: id });
    return {};
  }

  async #reportFailure(request: ControlRequest<'reportFailure'>): Promise<Record<string, never>> {
    const { daemon, bootId, reporter } = request;
    const presence = this.#presences.get(daemon);
    if (presence === undefined || presence.bootId !== bootId || !this.#isUp(daemon)) return {};
    const isReporter = (id: DaemonId): boolean => id !== daemon && this.#isUp(id);
    const why = complain(presence, reporter, isReporter, this.#clock.now());
    if (why === null) return {};
    await this.#submit((change) => this.#markDown(change, daemon, bootId, `${why} (${request.reason})`));
    return {};
  }

  /** What a primary says, without what later words of it have overtaken. */
  #newestWords(request: ControlRequest<'activate'>): ControlRequest<'activate'> {
    const presence = this.#presences.get(request.id);
    if (presence?.bootId !== request.bootId) return request; // refused where it is carried out
    return { ...request, pgs: newestWords(presence, request.pgs) };
  }

  #refuseStranger(id: DaemonId, bootId: string): void {
    const record = this.#state.daemons.get(id);
    if (record === undefined) throw new StorageError('IDENTITY', `no daemon has the number ${id}: register first`);
    if (record.entry.bootId !== bootId)
      throw new StorageError(
        'IDENTITY',
        `daemon ${id} is another process (boot ${record.entry.bootId}): register first`,
      );
  }

  // --- liveness ---

  #isUp(id: DaemonId): boolean {
    return this.#state.daemons.get(id)?.entry.up ?? false;
  }

  #markUp(change: Change, id: DaemonId, bootId: string): void {
    const record = change.daemons.get(id);
    const presence = this.#presences.get(id);
    if (record === undefined || presence === undefined || record.entry.bootId !== bootId) return;
    if (presence.stream === null || presence.streamBootId !== bootId || isHeld(presence, this.#clock.now())) return;
    const outBy = record.outBy === 'operator' ? 'operator' : '';
    if (record.entry.up && record.outBy === outBy) return;
    change.daemons.set(id, { entry: { ...record.entry, up: true, in: outBy === '' }, outBy });
    this.#log.info('daemon is up', { daemon: id, address: record.entry.address });
  }

  #markDown(change: Change, id: DaemonId, bootId: string, why: string): void {
    const record = change.daemons.get(id);
    if (record === undefined || !record.entry.up || record.entry.bootId !== bootId) return;
    change.daemons.set(id, { ...record, entry: { ...record.entry, up: false } });
    const presence = this.#presences.get(id);
    if (presence !== undefined) {
      presence.downAt = this.#clock.now();
      presence.reports.clear();
    }
    this.#log.warn('daemon is down', { daemon: id, why });
  }

  #onTick(): void {
    this.#tick = this.#clock.after(TICK_MS, () => this.#onTick());
    this.#watchRecovery();
    const now = this.#clock.now();
    this.#letPrimariesGo(now);
    this.#scrubs.tick(now);
    this.#lookForRoom(now);
    for (const { entry, outBy } of this.#state.daemons.values()) {
      const presence = this.#presences.of(entry.id, entry.bootId, now);
      const { id, bootId } = entry;
      if (entry.up) {
        if (isSilent(presence, now))
          this.#background('mark a daemon down', (change) => this.#markDown(change, id, bootId, 'no heartbeat'));
      } else if (presence.stream !== null && !isSilent(presence, now) && !isHeld(presence, now)) {
        this.#background('mark a daemon up', (change) => this.#markUp(change, id, bootId));
      } else if (outBy === '' && now - presence.downAt >= this.#outAfterMs) {
        this.#background('put a daemon out', (change) => this.#markOut(change, id));
      }
    }
  }

  /** Moves that wait for room, or that have filled a disk, are looked at again now and then. */
  #lookForRoom(now: number): void {
    const full = [...this.#presences.values()].filter(({ space }) => space?.full === true).map(({ id }) => id);
    // One that has just run full is looked at right away: clients' writes may be refused because of it.
    if (now - this.#roomLookedAt < ROOM_AGAIN_MS && !this.#planner.isNewlyFull(full)) return;
    this.#roomLookedAt = now;
    this.#planner.setFull(full, this.#state.pgs.values());
    // Settling is what looks.
    if (this.#planner.holds) this.#background('go on with moves', () => {});
  }

  /** Clean PGs whose preferred primary need not be preferred any more go back to the intended one. */
  #letPrimariesGo(now: number): void {
    const due = [...this.#state.pgs.values()].filter(
      (record) => record.prefer !== 0 && isSettled(record) && this.#preferences.isDue(record.pg, now),
    );
    if (due.length === 0) return;
    this.#background('let preferred primaries go', (change) => {
      for (const { pg } of due) {
        const record = change.pgs.get(pg);
        if (record !== undefined && isSettled(record)) change.pgs.set(pg, { ...record, prefer: 0 });
      }
    });
  }

  /** Keeps the peak that progress is told against. */
  #watchRecovery(): void {
    if (!this.#reportsChanged) return;
    this.#reportsChanged = false;
    let missing = 0;
    for (const record of this.#state.pgs.values()) missing += reportOf(record, this.#presences)?.missing ?? 0;
    this.#missingPeak = missing === 0 ? 0 : Math.max(this.#missingPeak, missing);
  }

  #markOut(change: Change, id: DaemonId): void {
    const record = change.daemons.get(id);
    if (record === undefined || record.entry.up || record.outBy !== '') return;
    change.daemons.set(id, { entry: { ...record.entry, in: false }, outBy: 'down' });
    this.#log.warn('daemon is out: its data is copied elsewhere', { daemon: id });
  }

  // --- clients ---

  #subscribeClient(session: SessionId, epoch: Epoch, events: SubscriptionEvents): Subscription {
    if (session < 1 || session >= this.#state.counters.session)
      throw new StorageError('IDENTITY', `session ${session} was not opened here`);
    const stream = this.#publisher.follow(epoch, events);
    const replaced = this.#sessions.subscribed(session, stream);
    if (replaced !== null) this.#publisher.dismiss(replaced, 'replaced by a newer subscription');
    return {
      close: () => {
        this.#publisher.leave(stream);
        this.#sessions.unsubscribed(session, stream);
      },
    };
  }

  async #lockImage(request: ControlRequest<'lockImage'>): Promise<ControlReply<'lockImage'>> {
    await this.#subscribedSoon(request.session);
    const lock = await this.#submit((change) => lockImage(change, request, this.#sessions));
    await this.#fences.until(lock.fencedAt);
    return { fence: lock.fence, epoch: lock.fencedAt };
  }

  /**
   * A session that another master opened subscribes here in a moment: what it asks just before that need not fail. One
   * that does not come is refused as ever.
   */
  async #subscribedSoon(session: SessionId): Promise<void> {
    while (this.#sessions.mayComeBack(session) && !this.#closed)
      await new Promise<void>((resolve) => this.#clock.after(TICK_MS / 5, resolve));
  }

  async #removeImage(request: ControlRequest<'removeImage'>): Promise<Record<string, never>> {
    const fencedAt = await this.#submit((change) => {
      removeImage(change, request, (session) => this.#sessions.isAlive(session));
      return change.images.get(request.image)?.fencedAt ?? 0;
    });
    await this.#fences.until(fencedAt);
    return {};
  }

  /** Up daemons that may still accept an older fence than that of `epoch`. */
  #laggards(epoch: Epoch): string[] {
    const names: string[] = [];
    for (const { entry } of this.#state.daemons.values())
      if (entry.up && (this.#presences.get(entry.id)?.ackedEpoch ?? 0) < epoch) names.push(`daemon ${entry.id}`);
    return names;
  }

  // --- commits ---

  #submit<T>(operation: Operation<T>): Promise<T> {
    return this.#commits.submit(operation);
  }

  /** For changes that nobody waits for: if the master stops before they are made, they are moot. */
  #background(what: string, operation: Operation<void>): void {
    this.#commits.submit(operation).catch((error: unknown) => this.#log.debug(`could not ${what}`, { error }));
  }

  #fail(error: Error): void {
    if (this.#closed) return;
    this.#log.error('the master stops', { error });
    this.depose(`the master has stopped: ${error.message}`);
    this.#onFatal(error);
  }
}

function uuid(random: Random): string {
  const hex = Array.from({ length: 4 }, () => random.u32().toString(16).padStart(8, '0')).join('');
  const variant = '89ab'[random.u32() % 4];
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`;
}
