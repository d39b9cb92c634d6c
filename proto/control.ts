// The control plane as the cores see it: the master's methods, and the two ports through which daemons and clients
// reach them. master.proto has the same on the wire; cluster/world/grpc-*.ts and cluster/sim carry it.
//
// Errors are StorageError; UNAVAILABLE means that no answer came and the call may or may not have been carried out.
// Every method below is safe to repeat.

import type { DaemonId, Epoch, ImageId, PgId, PoolId, SessionId } from './ids.ts';
import type { DaemonEntry, ImageEntry, MapUpdate, PoolEntry } from './map.ts';

/** name: [request, reply] */
export interface ControlMethods {
  // --- storage daemons ---
  /** A daemon says who it is, before it subscribes. Refused (IDENTITY) if the cluster or the id is another's. */
  register: [
    {
      /** "" on a new directory: the daemon joins this cluster. */
      clusterId: string;
      uuid: string;
      bootId: string;
      address: string;
      unixAddress: string;
      host: string;
      domain: string;
      weight: number;
      /** Newest map epoch this daemon ever saw; a master whose store is older stops itself. */
      newestEpoch: Epoch;
    },
    /** recovering: no master yet, but one that is rebuilt from what the daemons know (testify); id and epoch are 0. */
    { clusterId: string; id: DaemonId; epoch: Epoch; recovering?: boolean },
  ];
  /** Everything a daemon knows that helps to rebuild a lost master. Refused (INVALID) by a master that is not lost. */
  testify: [Testimony, Record<string, never>];
  heartbeat: [
    {
      id: DaemonId;
      bootId: string;
      /** Newest map epoch that this daemon obeys: fences wait for it. */
      epoch: Epoch;
      /** State of the PGs it is primary of that changed since the last heartbeat that was answered; all after a reconnect. */
      pgs: PgReport[];
      space: SpaceReport;
      /** Bytes that this process has pushed to other daemons: what recovery's speed is told from. */
      recoveredBytes: number;
    },
    /** recoveryBytesPerSecond: the most that recovery may send, as people set it; 0: as the daemon was started. */
    { epoch: Epoch; recoveryBytesPerSecond: number },
  ];
  /** Interval history: these PGs are about to take writes. A PG not in `accepted` has a newer interval and must not. */
  activate: [{ id: DaemonId; bootId: string; pgs: PgInterval[] }, { accepted: PgId[] }];
  /** Every member of these PGs' acting sets has everything, durably: earlier intervals no longer matter. */
  clean: [{ id: DaemonId; bootId: string; pgs: PgInterval[] }, { accepted: PgId[] }];
  /**
   * May this daemon delete what it still holds of these PGs, which it is no member of any more? Accepted are those that
   * serve in that interval and are clean without it.
   */
  forget: [{ id: DaemonId; bootId: string; pgs: PgInterval[] }, { accepted: PgId[] }];
  /** `daemon`, a member of the acting set, has the newest log: make it the primary (a new interval). */
  preferPrimary: [{ pg: PgId; since: Epoch; daemon: DaemonId }, Record<string, never>];
  /**
   * What the daemon, as primary, found out about copies since it last told (all again when `master` changes), and what
   * is to be scrubbed in the PGs it leads: the same orders again until they are reported done.
   */
  reportScrubs: [{ id: DaemonId; bootId: string; reports: ScrubReport[] }, { master: number; orders: ScrubOrder[] }];
  /** A member does not answer its primary. The master marks it down; if it lives, it registers again. */
  reportFailure: [{ reporter: DaemonId; daemon: DaemonId; bootId: string; reason: string }, Record<string, never>];

  // --- clients ---
  /** A number for a new client session; it lives as long as its subscription. */
  openSession: [{ name: string }, { clusterId: string; session: SessionId }];
  /**
   * Become the image's only writer. Refused (BUSY, naming the owner) while another session holds it, unless takeOver.
   * Answered only when every up daemon obeys a map with the new fence. Asked again by the owner: the same fence.
   */
  lockImage: [{ session: SessionId; image: ImageId; takeOver: boolean }, { fence: number; epoch: Epoch }];
  /** Gives up the lock with this fence; a later one of the same session stays. */
  unlockImage: [{ session: SessionId; image: ImageId; fence: number }, Record<string, never>];

  // --- people ---
  createPool: [
    {
      name: string;
      pgCount: number;
      replicas: number /** 0: replicas - 1, at least 1 */;
      minSize: number;
      durability: 'flush' | 'sync';
    },
    PoolEntry,
  ];
  createImage: [
    { name: string; pool: string; sizeBytes: number; order: number; stripeUnit: number; stripeCount: number },
    ImageEntry,
  ];
  /** Growing is free; shrinking is done by the client after it deleted what lies beyond (see cluster/client). */
  resizeImage: [{ image: ImageId; sizeBytes: number }, ImageEntry];
  /** Step 1 (state becomes 'removing', the fence goes up); step 2, when the objects are gone, with `done`. */
  removeImage: [{ image: ImageId; done: boolean }, Record<string, never>];
  /** recoveryBytesPerSecond: see heartbeat. */
  setDaemon: [{ id: DaemonId; weight?: number; in?: boolean; recoveryBytesPerSecond?: number }, DaemonEntry];
  /**
   * Forgets a daemon for ever; its number and its directory never come back. Refused (BUSY, saying what) while it holds
   * anything that may be needed: it must be drained, or down and out with everything clean without it.
   */
  removeDaemon: [{ id: DaemonId }, Record<string, never>];
  /**
   * The PG no longer waits for what that daemon, which is down, may have of it. Refused (INVALID) if it does not wait for
   * it, and (BUSY) while the daemon is up. The reply names whom it still waits for.
   */
  acceptDataLoss: [{ pg: PgId; daemon: DaemonId }, { waitFor: DaemonId[] }];
  status: [Record<string, never>, ClusterStatus];
  /** Scrubs one PG, or all (pg 0), all objects or those of one image (0: all). Answered at once, with the PGs concerned. */
  startScrub: [{ pg: PgId; image: ImageId; deep: boolean; repair: boolean }, { pgs: PgId[] }];
  scrubStatus: [Record<string, never>, { pgs: PgScrubStatus[] }];
  /** Everything the master has on stable storage, as of one moment: what `ashlar master restore` makes a master of. */
  backup: [Record<string, never>, { clusterId: string; epoch: Epoch; pairs: { key: string; value: string }[] }];
}
export type ControlMethod = keyof ControlMethods;
export type ControlRequest<M extends ControlMethod> = ControlMethods[M][0];
export type ControlReply<M extends ControlMethod> = ControlMethods[M][1];

export interface PgInterval {
  pg: PgId;
  since: Epoch;
  /** Which of its process's peerings says so: a word of an earlier one does not count after that of a later one. */
  attempt?: number;
  /**
   * Of activate, in an interval that was said to be clean and had to be peered anew: members that have every acked write
   * and yet miss something, such as a write that they had no space for. They don't count as complete until it is clean.
   */
  behind?: DaemonId[];
}

export interface Testimony {
  clusterId: string;
  uuid: string;
  /** 0: it never joined the cluster. */
  id: DaemonId;
  bootId: string;
  newestEpoch: Epoch;
  /** The whole newest map that it has; null: none. */
  map: MapUpdate | null;
  /** Intervals that it led and that the master is known to have allowed to take writes. */
  activated: PgInterval[];
  /** What is on its stable storage of each PG that it ever held. */
  pgs: PgTestimony[];
  /** Highest session number in its logs, and image number among its objects. */
  sessionMost: SessionId;
  imageMost: ImageId;
}
/** See PgInfo in cluster/store/store.ts. */
export interface PgTestimony {
  pg: PgId;
  les: Epoch;
  complete: boolean;
  /** The interval that the newest entry was written in. */
  lastSince: Epoch;
}

export type PgState = 'peering' | 'active' | 'incomplete' | 'undersized' | 'down';
export interface PgReport {
  pg: PgId;
  since: Epoch;
  state: PgState;
  /** (object, member) pairs that still miss something; 0 and active = clean. */
  missing: number;
  /** What they are in bytes, as far as is known. */
  missingBytes: number;
  /** Members that have no space for what they miss. */
  noSpace: DaemonId[];
  objects: number;
  /** Allocated bytes of one copy. */
  bytes: number;
  /** Members whose answer it waits for, or who would help. */
  waitFor: DaemonId[];
}
export interface SpaceReport {
  usedBytes: number;
  freeBytes: number;
  full: boolean;
}

/** What is missing and what lies where it should not stay, of a pool or of all of them. */
export interface RecoveryStatus {
  /** Copies that should be there and are not: too few daemons, or not yet made. */
  degraded: number;
  /** Copies being made of objects that have enough of them: data on its way to another daemon. */
  misplaced: number;
  /** Bytes still to be sent to daemons that are there. */
  missingBytes: number;
}

/** A range of one object that one daemon does not hold as it should. */
export interface Inconsistency {
  pg: PgId;
  image: ImageId;
  object: number;
  /** Bytes into the object, and how many. */
  offset: number;
  length: number;
  daemon: DaemonId;
  /** For people. */
  why: string;
}

export interface ScrubOrder {
  pg: PgId;
  /** Grows; a daemon carries each out once. */
  number: number;
  /** 0: all. */
  image: ImageId;
  /** Reads and verifies every block of every copy; else versions and checksums are compared. */
  deep: boolean;
  /** Puts right what can be proven. */
  repair: boolean;
}
export interface ScrubReport {
  pg: PgId;
  /** The order being carried out, or the last one that was; 0: none. */
  number: number;
  done: boolean;
  objectsDone: number;
  objects: number;
  /** Age of the last scrub of all objects that this process finished, in milliseconds; -1: none. For a new master. */
  lightAgoMs: number;
  deepAgoMs: number;
  /** Ranges repaired since the daemon's process began. */
  repaired: number;
  inconsistencies: Inconsistency[];
  /** So many more were found than are listed. */
  more: number;
}
/** What the master knows about scrubs of a PG. Times are ages in milliseconds; -1: none that anybody remembers. */
export interface PgScrubStatus {
  pg: PgId;
  /** An order is waiting or being carried out. */
  ordered: boolean;
  deep: boolean;
  objectsDone: number;
  objects: number;
  lightAgoMs: number;
  deepAgoMs: number;
  repaired: number;
  inconsistencies: Inconsistency[];
  more: number;
}

export interface ClusterStatus {
  clusterId: string;
  epoch: Epoch;
  /** clean: every PG active with nothing missing. degraded: all serve. blocked: some I/O waits. */
  health: 'clean' | 'degraded' | 'blocked';
  /** Sentences for people, most urgent first: what waits, and for whom. */
  reasons: string[];
  daemons: (DaemonEntry & { space: SpaceReport | null; pgs: number; primaries: number })[];
  pools: PoolEntry[];
  images: (ImageEntry & { owner: string })[];
  pgStates: Record<string, number>;
  /** (object, member) pairs missing now, and the most there were since it was last 0: progress = 1 - missing / peak. */
  missing: number;
  missingPeak: number;
  objects: number;
  bytes: number;
  recovery: RecoveryStatus & {
    bytesPerSecond: number;
    /** Seconds until nothing is missing, at this speed; -1: nobody can tell. */
    secondsLeft: number;
    pools: (RecoveryStatus & { pool: PoolId })[];
  };
  /** Objects of which some copy is known to be bad. */
  inconsistent: number;
  pgs: PgReport[];
}

/** A daemon's or client's way to the master. */
export interface ControlLink {
  call<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>>;
  /**
   * Map updates: at once whatever is newer than `epoch`, then each change as it becomes durable. The stream is also how
   * the master sees that the subscriber lives: when it breaks, a daemon is marked down and a session's locks are free.
   */
  subscribe(subscriber: Subscriber, events: SubscriptionEvents): Subscription;
}
export type Subscriber =
  | { role: 'daemon'; id: DaemonId; bootId: string; epoch: Epoch }
  /** clusterId: that of the map it has; "" if it has none. */
  | { role: 'client'; session: SessionId; epoch: Epoch; clusterId?: string };
export interface SubscriptionEvents {
  onUpdate(update: MapUpdate): void;
  /** The stream broke or was refused. The subscriber decides when to try again. */
  onClose(reason: string): void;
}
export interface Subscription {
  close(): void;
}

/** What the master core offers to whoever carries the control plane (gRPC server, simulator). */
export interface ControlService {
  handle<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>>;
  /** Returns what to call when the subscriber's stream breaks. Throws StorageError to refuse. */
  subscribe(subscriber: Subscriber, events: SubscriptionEvents): Subscription;
}

export type { PoolId };
