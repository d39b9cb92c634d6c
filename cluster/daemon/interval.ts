// One interval of a PG as its primary sees it: from the first question to the members until the PG serves.
//
//   begin -> ask every member what it has (PG_QUERY) -> the newest log is the authority; if that is another member,
//   the master makes it the primary (a new interval) -> work out what each member misses (missing.ts) -> PG_ACTIVATE:
//   each member takes the log entries it lacks and makes "I was in this interval, and I am complete or not" durable
//   -> the master records that the interval may take writes -> serve (serving.ts) and recover (recovery.ts) -> every
//   member complete, durably: the master is told the PG is clean, and earlier intervals are forgotten.
//
// The order is what keeps acked writes: nobody serves before every member and the master have recorded that this
// interval exists, so whoever comes later knows whom it must ask. An Interval object never starts twice: a new epoch
// or a broken link ends it and another takes its place.

import type { PgState } from '../../proto/control.ts';
import { codeOfStatus, StorageError } from '../../proto/errors.ts';
import { Flag, type Frame, newFrame, Op } from '../../proto/frame.ts';
import { type DaemonId, pgName, sameVersion, VERSION_ZERO } from '../../proto/ids.ts';
import type { PgEntry, PoolEntry } from '../../proto/map.ts';
import {
  decodeEntries,
  decodeListing,
  decodeOldLeases,
  decodePgInfo,
  encodeActivation,
  type ListedObject,
  type OldLease,
  type WirePgInfo,
} from '../../proto/peer-messages.ts';
import type { LogEntry } from '../store/store.ts';
import type { Daemon } from './daemon.ts';
import {
  authorityAmong,
  type CatchUp,
  catchUpByList,
  catchUpByLog,
  catchUpDiverged,
  type MissingSet,
} from './missing.ts';
import { Recovery } from './recovery.ts';
import { Serving } from './serving.ts';

/** Pause before a peering that met an obstacle is tried again. */
const RETRY_MS = 200;
/** The same when a member has no space for what peering makes it write. */
const NO_SPACE_RETRY_MS = 5_000;

export class Interval {
  readonly daemon: Daemon;
  readonly entry: PgEntry;
  readonly pool: PoolEntry;
  /** Which of this process's peerings it is: they are numbered. */
  readonly attempt: number;
  /** The members besides this daemon. */
  readonly others: readonly DaemonId[];
  state: PgState = 'peering';
  /** Members that would help when the state is 'incomplete'. */
  waitFor: readonly DaemonId[] = [];
  serving: Serving | null = null;
  recovery: Recovery | null = null;
  readonly #infos = new Map<DaemonId, WirePgInfo>();
  readonly #missing = new Map<DaemonId, MissingSet>();
  /** Read leases of earlier intervals that members know of. */
  readonly #oldLeases: OldLease[] = [];
  #awaited = 0;
  #takingBack = false;
  #isClean = false;
  #over = false;

  constructor(daemon: Daemon, entry: PgEntry, pool: PoolEntry) {
    this.daemon = daemon;
    this.entry = entry;
    this.pool = pool;
    this.attempt = daemon.nextAttempt();
    this.others = entry.acting.slice(1);
  }

  get over(): boolean {
    return this.#over;
  }

  /** Ends it; whatever still comes in for it is ignored. */
  end(): void {
    this.#over = true;
    this.serving?.end();
    this.recovery?.end();
  }

  begin(): void {
    if (this.entry.waitFor.length > 0) return this.#waitsFor(this.entry.waitFor);
    if (this.entry.acting.length < this.pool.minSize) {
      this.state = 'undersized';
      return;
    }
    this.#awaited = this.others.length;
    for (const id of this.others)
      this.#ask(id, this.#frame(Op.PG_QUERY), (reply) => {
        this.#infos.set(id, decodePgInfo(reply.meta));
        this.#oldLeases.push(...decodeOldLeases(reply.meta!));
        if (--this.#awaited === 0) this.#choose();
      });
    if (this.others.length === 0) this.#choose();
  }

  /** Nobody here has what was acked. Any of these may: nothing is served until one of them is back, or given up. */
  #waitsFor(daemons: readonly DaemonId[]): void {
    this.state = 'incomplete';
    this.waitFor = daemons;
    const { daemon, entry } = this;
    daemon.log.warn(`pg ${pgName(entry.pg)} waits for ${daemons.map((id) => `daemon ${id}`).join(' or ')}`, {
      pg: pgName(entry.pg),
      since: entry.since,
      lastActive: entry.lastActive,
    });
  }

  /** Everybody answered: who has the newest log? */
  #choose(): void {
    let mine = this.daemon.store.pgInfo(this.entry.pg);
    const ids = [this.daemon.id, ...this.others];
    const infos = [mine, ...this.others.map((id) => this.#infos.get(id)!)];
    const best = authorityAmong(infos, this.entry.lastActive);
    if (best === -1) {
      // Those who are here were still being recovered; what they miss is with somebody else.
      return this.#waitsFor([...this.daemon.map!.daemons.values()].filter((d) => !d.up).map((d) => d.id));
    }
    if (best !== 0) {
      this.daemon.log.info('another member has the newest log', { pg: pgName(this.entry.pg), daemon: ids[best] });
      this.daemon.control
        .call('preferPrimary', { pg: this.entry.pg, since: this.entry.since, daemon: ids[best]! })
        // The new interval ends this one; if none comes, the answer may be another by then.
        .then(
          () => this.startOverLater(),
          () => this.startOverLater(),
        );
      return;
    }
    if (!mine.complete) mine = this.#takeAsItIs(mine);
    this.#awaited = this.others.length + 2;
    for (const id of this.others) this.#compare(id, this.#infos.get(id)!, mine);
    this.#waitOutLeases();
    this.daemon.store.setPg(this.entry.pg, this.entry.since, true);
    this.daemon.store.sync((error) => {
      if (error === null && !this.#over) this.#activated();
    });
  }

  /**
   * Whoever had more was given up: what is here is the truth from now on. Objects that were half copied go, and the log
   * begins anew: its entries tell of content that never came.
   */
  #takeAsItIs(mine: WirePgInfo): WirePgInfo {
    const { store, log } = this.daemon;
    const { pg, since } = this.entry;
    const half = [...store.objects(pg)].filter(({ version }) => sameVersion(version, VERSION_ZERO));
    // A store that can't do that tells the daemon itself, which stops.
    for (const { image, object } of half) store.recoverDelete(pg, image, object, () => {});
    store.resetLog(pg, { since, seq: mine.last.seq + 1 });
    log.warn('an incomplete copy is taken as it is: others were given up', { pg: pgName(pg), removed: half.length });
    return store.pgInfo(pg);
  }

  /** Whoever led the PG before may still answer reads for a moment: nothing newer may be true until then. */
  #waitOutLeases(): void {
    const { daemon, entry } = this;
    if (daemon.ledBefore(this) || daemon.isAllowed(this)) return this.#activated();
    const leases = [...this.#oldLeases, ...daemon.leases.outstanding(entry)];
    daemon.leases.waitOut(entry, leases, () => {
      if (!this.#over) this.#activated();
    });
  }

  /** Finds out what one member misses, by the cheapest way there is. */
  #compare(id: DaemonId, theirs: WirePgInfo, mine: WirePgInfo): void {
    const { store } = this.daemon;
    const pg = this.entry.pg;
    if (theirs.complete) {
      if (sameVersion(theirs.last, mine.last)) return this.#activate(id, catchUpByLog(mine.last, []));
      const after = store.logAfter(pg, theirs.last);
      if (after !== null) return this.#activate(id, catchUpByLog(theirs.last, after));
      const whole = store.logAfter(pg, mine.tail);
      if (whole !== null && theirs.last.seq > theirs.tail.seq)
        return this.#ask(id, this.#frame(Op.PG_LOG), (reply) => {
          const entries = decodeEntries<LogEntry>(pg, reply.meta);
          const catchUp = catchUpDiverged(whole, mine.tail, entries, theirs.tail);
          if (catchUp !== null) this.#activate(id, catchUp);
          else this.#compareLists(id, mine);
        });
    }
    this.#compareLists(id, mine);
  }

  #compareLists(id: DaemonId, mine: WirePgInfo): void {
    const listed: ListedObject[] = [];
    this.#ask(id, this.#frame(Op.PG_LIST), (reply) => {
      for (const info of decodeListing(reply.meta)) listed.push(info);
      if ((reply.flags & Flag.LAST) === 0) return;
      const { store } = this.daemon;
      const log = store.logAfter(this.entry.pg, mine.tail) ?? [];
      this.#activate(id, catchUpByList(mine.last, store.objects(this.entry.pg), listed, log));
    });
  }

  #activate(id: DaemonId, catchUp: CatchUp): void {
    const { missing, mode, version, entries } = catchUp;
    if (missing.size > 0) {
      this.#missing.set(id, missing);
      this.daemon.log.info('member is behind', { pg: pgName(this.entry.pg), daemon: id, mode, objects: missing.size });
    }
    const frame = this.#frame(Op.PG_ACTIVATE);
    frame.meta = encodeActivation({ mode, version, complete: missing.size === 0, entries });
    this.#ask(id, frame, () => this.#activated());
  }

  /** One more of the members and this daemon has made the interval durable; or all old leases are over. */
  #activated(): void {
    if (--this.#awaited > 0) return;
    // Peered anew after a broken link, a PG need not wait for a master that is away.
    if (this.daemon.isAllowed(this)) {
      if (this.#missing.size > 0 && this.daemon.saidClean(this)) this.#takeBackClean();
      return this.#serve();
    }
    this.daemon.reporter.activate(this, (accepted) => {
      if (this.#over) return;
      if (accepted) this.#serve();
      else this.startOverLater();
    });
  }

  /**
   * What nobody acked is missing somewhere, and what was acked may be overwritten there half way: the master must not
   * count on these copies, to delete others for instance.
   */
  #takeBackClean(): void {
    this.#takingBack = true;
    this.daemon.reporter.behind(this, [...this.#missing.keys()], () => {
      this.#takingBack = false;
      if (this.#isClean) this.daemon.reporter.clean(this);
    });
  }

  /** Every member has everything, durably. */
  clean(): void {
    this.#isClean = true;
    this.daemon.onClean(this);
    // Not before the master has heard the opposite, which might overtake it.
    if (!this.#takingBack) this.daemon.reporter.clean(this);
  }

  #serve(): void {
    this.state = 'active';
    this.serving = new Serving(this);
    this.recovery = new Recovery(this, this.#missing);
    this.daemon.onActive(this);
    this.recovery.begin();
  }

  #frame(op: Op): Frame {
    const frame = newFrame(op);
    frame.epoch = this.daemon.epoch;
    frame.pg = this.entry.pg;
    frame.since = this.entry.since;
    return frame;
  }

  /** Asks a member; no answer or a refusal ends this attempt, and another follows. */
  #ask(id: DaemonId, frame: Frame, done: (reply: Frame) => void): void {
    this.daemon.peer(id).request(frame, {
      onReply: (reply) => {
        if (this.#over) return;
        let why: string = codeOfStatus(reply.status);
        if (reply.status === 0) {
          try {
            return done(reply);
          } catch (error) {
            if (!(error instanceof StorageError)) throw error;
            why = error.message;
          }
        }
        this.daemon.log.debug('member refuses', { pg: pgName(this.entry.pg), daemon: id, why });
        if (why !== 'NO_SPACE') return this.startOverLater();
        // It can't even log what others have logged: asking often would not make room.
        this.waitFor = [id];
        this.startOverLater(NO_SPACE_RETRY_MS);
      },
      onLost: () => {
        if (!this.#over) this.startOverLater();
      },
    });
  }

  /** Peers once more in the same interval after a pause. */
  startOverLater(pauseMs = RETRY_MS): void {
    this.daemon.clock.after(pauseMs, () => {
      if (!this.#over) this.daemon.restartInterval(this);
    });
  }
}
