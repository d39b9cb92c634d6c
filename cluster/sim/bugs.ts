// Bugs that a replicated store can have, as edits of a few words: the simulation must find every one of them.
//
// Each has the plan under which it shows soonest: the parts named replace what the seed draws, all else is the seed's.
// `{}` is the swarm itself. A bug that needs two edits is one that a second line of defence covers: the first edit takes
// that line away, and `why` says so.

import type { Plan } from './plan.ts';
import type { Edit } from './planting.ts';
import { CALM_NETWORK } from './sim-network.ts';

export interface Bug {
  readonly name: string;
  readonly edits: readonly Edit[];
  readonly plan?: Partial<Plan>;
  /** What the test waits for at most. */
  readonly seedsMax?: number;
  /** What the edits do, where the name does not say it. */
  readonly why?: string;
}

const edit = (file: string, find: string, replace: string): Edit => ({ file: `cluster/${file}`, find, replace });

/** Machines lose power together and come back one after the other. */
const POWER: Partial<Plan> = {
  store: 'disk',
  replicas: 2,
  minSize: 1,
  faults: ['cut all power'],
  faultEveryMs: 2_500,
  depth: 16,
  operations: 2_000,
  imageBytes: 262_144,
  largestBytes: 16_384,
  durability: 'flush',
  observer: false,
};
const POWER_AND_WRITER: Partial<Plan> = { ...POWER, faults: ['cut all power', 'crash writer'] };
/** Few requests at a time, so that hardly ever a flush waits for power to be back and replays everything at once. */
const POWER_BETWEEN_FLUSHES: Partial<Plan> = {
  ...POWER,
  depth: 2,
  operations: 1_500,
  imageBytes: 131_072,
  largestBytes: 4_096,
};
/** Members that come and go while everything is written, with logs too short to catch up by. */
const CHURN: Partial<Plan> = {
  store: 'memory',
  faults: ['crash daemon', 'partition'],
  faultEveryMs: 700,
  depth: 16,
  operations: 1_500,
  minSize: 1,
};
const CHURN_BY_LIST: Partial<Plan> = { ...CHURN, logEntriesMax: 5 };
/** Frames that are late by seconds now and then, to small images. */
const CLOGGED: Partial<Plan> = {
  store: 'memory',
  replicas: 2,
  minSize: 1,
  depth: 16,
  operations: 1_500,
  imageBytes: 262_144,
  largestBytes: 16_384,
  observer: true,
  controlLossChance: 0,
  network: { ...CALM_NETWORK, delayMeanMs: 2, clogChance: 0.01, clogMaxMs: 3_000 },
};
const FLIPS: Partial<Plan> = { network: { ...CALM_NETWORK, flipChance: 0.01 } };
/** One disk that forgets bits again and again. */
const ROT: Partial<Plan> = {
  store: 'disk',
  faults: ['bit rot'],
  faultEveryMs: 150,
  imageBytes: 262_144,
  depth: 16,
};
const TAKE_OVERS: Partial<Plan> = { faults: ['take over'], faultEveryMs: 400, observer: true, depth: 16 };

export const BUGS: readonly Bug[] = [
  // --- replication
  {
    name: 'ack-at-one-copy',
    edits: [
      edit('daemon/serving.ts', 'write.awaited = others.length + 1;', 'write.awaited = 1;'),
      edit('daemon/serving.ts', 'payloadPool.give(write.request.frame.payload);', ''),
    ],
    why: 'the second edit leaves the memory to the garbage collector, as giving it too early would be seen first',
    plan: { ...CLOGGED, faults: ['crash daemon', 'crash writer'], faultEveryMs: 500 },
  },
  {
    name: 'reads-see-uncommitted-writes',
    edits: [edit('daemon/serving.ts', 'if (write !== null) return waitFor(write, request);', '')],
    plan: {
      ...CLOGGED,
      faults: ['crash daemon', 'crash writer'],
      faultEveryMs: 400,
      imageBytes: 65_536,
      largestBytes: 4_096,
      grainBytes: 4_096,
      network: { ...CALM_NETWORK, delayMeanMs: 2, clogChance: 0.05, clogMaxMs: 3_000 },
      layout: { order: 16, stripeUnit: 65_536, stripeCount: 1 },
    },
  },
  {
    name: 'stale-epoch-served',
    edits: [
      edit('daemon/serving.ts', "if (frame.epoch < this.#since) return refuse(request, 'STALE', epoch);", ''),
      edit('daemon/daemon.ts', "if (frame.epoch < pg.entry.since) return refuse(request, 'STALE', this.epoch);", ''),
    ],
    why: 'the check stands in two places, for requests that come and for those that waited',
    plan: { ...CLOGGED, faults: ['move data'], faultEveryMs: 300 },
  },
  {
    name: 'newer-epoch-not-waited-for',
    edits: [
      edit('daemon/daemon.ts', 'this.map === null || frame.epoch > this.epoch', 'this.map === null'),
      edit(
        'master/master.ts',
        'await this.#fences.until(lock.fencedAt);\n    return { fence: lock.fence',
        'return { fence: lock.fence',
      ),
    ],
    plan: { ...CLOGGED, faults: ['take over', 'partition'], faultEveryMs: 200 },
    why: 'a lock is granted when the daemons know the fence, so that no frame of its owner is ever newer than that',
  },
  {
    name: 'fence-ignored',
    edits: [edit('daemon/request.ts', "if (fenced(frame, image)) return 'FENCED';", '')],
    plan: TAKE_OVERS,
  },
  {
    name: 'retries-applied-twice',
    edits: [edit('daemon/serving.ts', '(frame.flags & Flag.RETRY) !== 0 && this.#answeredBefore(request)', 'false')],
  },
  {
    name: 'old-connection-still-read',
    edits: [
      edit('daemon/inbound.ts', "this.#known.get(name)?.close('the same peer has connected again');", ''),
      edit(
        'daemon/inbound.ts',
        'newest.connection < hello.connection) return null;',
        'newest.connection !== 0) return null;',
      ),
    ],
    plan: {
      ...CLOGGED,
      replicas: 1,
      faults: ['reset connections'],
      faultEveryMs: 700,
      operations: 3_000,
      durationMs: 60_000,
      imageBytes: 65_536,
      largestBytes: 4_096,
      grainBytes: 4_096,
      network: { ...CALM_NETWORK, delayMeanMs: 1, lossChance: 0.005, silenceMeanMs: 15_000 },
    },
  },
  {
    name: 'member-takes-damaged-data',
    edits: [
      edit(
        'daemon/member.ts',
        "return firstMismatch(payload, meta, image, object, offset) === -1 ? null : 'CHECKSUM';",
        'return null;',
      ),
    ],
    plan: FLIPS,
  },
  {
    name: 'primary-takes-damaged-data',
    edits: [edit('daemon/serving.ts', "if (bad !== -1) return refuse(request, 'CHECKSUM', daemon.epoch);", '')],
    plan: FLIPS,
  },
  {
    name: 'member-acks-fua-unsynced',
    edits: [edit('daemon/member.ts', 'if ((frame.flags & Flag.FUA) === 0) this', 'if (true) this')],
    plan: { ...POWER_AND_WRITER, imageBytes: 131_072, depth: 4 },
  },
  {
    name: 'member-memory-given-too-early',
    edits: [
      edit(
        'daemon/member.ts',
        'state.lastSeq = frame.pgSeq;',
        'state.lastSeq = frame.pgSeq;\n    payloadPool.give(frame.payload);',
      ),
    ],
  },
  {
    name: 'write-memory-given-at-the-first-answer',
    edits: [
      edit(
        'daemon/serving.ts',
        'if (--this.awaited === 0) this.#serving.commit(this);',
        'if (--this.awaited === 0) this.#serving.commit(this);\n    else payloadPool.give(this.request?.frame.payload ?? null);',
      ),
    ],
  },
  // --- peering
  {
    name: 'serves-before-the-master-knows',
    edits: [
      edit(
        'daemon/interval.ts',
        'this.daemon.reporter.activate(this, (accepted) => {',
        'if (true) return this.#serve();\n    this.daemon.reporter.activate(this, (accepted) => {',
      ),
    ],
    plan: CHURN,
  },
  {
    name: 'primary-believes-itself',
    edits: [edit('daemon/interval.ts', 'if (best !== 0) {', 'if (false) {')],
    plan: CHURN,
  },
  {
    name: 'authority-by-log-length',
    edits: [
      edit('daemon/missing.ts', '!info.complete || info.les < lastActive', '!info.complete'),
      edit(
        'daemon/missing.ts',
        'return a.les !== b.les ? a.les > b.les : compareVersions(a.last, b.last) > 0;',
        'return a.last.seq > b.last.seq;',
      ),
      edit('master/intervals.ts', 'if (!past.acting.some((d) => record.acting.includes(d))) for', 'if (false) for'),
    ],
    plan: { ...CHURN, replicas: 2 },
    why: 'les is compared with lastActive as well',
  },
  {
    name: 'no-wait-for-past-intervals',
    edits: [
      edit('master/intervals.ts', 'if (!past.acting.some((d) => record.acting.includes(d))) for', 'if (false) for'),
      edit('daemon/missing.ts', '!info.complete || info.les < lastActive', '!info.complete'),
    ],
    plan: { ...CHURN, replicas: 2 },
    why: 'a daemon does not believe a log older than the newest interval either',
  },
  {
    name: 'interval-history-forgotten',
    edits: [
      edit('master/intervals.ts', 'record.activated ? withInterval(record.history, record) : record.history', '[]'),
    ],
    plan: { ...CHURN, faults: ['crash daemon', 'move data'], faultEveryMs: 300 },
  },
  {
    name: 'published-before-it-is-durable',
    edits: [
      edit(
        'master/commits.ts',
        'if (batch !== null) {',
        'if (batch !== null) {\n      this.#events.committed(update);',
      ),
    ],
    plan: { faults: ['crash master', 'crash daemon', 'take over'], faultEveryMs: 200 },
  },
  {
    name: 'divergent-entries-kept',
    edits: [
      edit(
        'daemon/missing.ts',
        'for (const entry of theirs) if (entry.version.seq > common.seq) addEntry(missing, entry);',
        '',
      ),
    ],
    plan: { ...CLOGGED, pgCount: 2, faults: ['crash daemon', 'crash writer'], faultEveryMs: 600 },
  },
  {
    name: 'catch-up-forgets-the-last-entry',
    edits: [
      edit(
        'daemon/missing.ts',
        "for (const entry of after) addEntry(missing, entry);\n  return { mode: 'keep'",
        "for (const entry of after.slice(0, -1)) addEntry(missing, entry);\n  return { mode: 'keep'",
      ),
    ],
    plan: CHURN,
  },
  // --- recovery
  {
    name: 'clean-reported-too-early',
    edits: [
      edit(
        'daemon/recovery.ts',
        'if (this.#left.size === 0) return this.#clean();\n    for',
        'this.#clean();\n    for',
      ),
    ],
    plan: CHURN_BY_LIST,
  },
  {
    name: 'member-complete-before-the-last-push',
    edits: [
      edit(
        'daemon/recovery.ts',
        'if (left === 0) this.#completeMember(id);',
        'if (left === 1) this.#completeMember(id);',
      ),
    ],
    plan: CHURN_BY_LIST,
  },
  {
    name: 'half-a-push-taken-as-whole',
    edits: [
      edit(
        'daemon/member.ts',
        'version: last ? { since: frame.seq, seq: frame.pgSeq } : { since: 0, seq: 0 }',
        'version: { since: frame.seq, seq: frame.pgSeq }',
      ),
    ],
    plan: {
      ...CHURN_BY_LIST,
      replicas: 2,
      faults: ['crash daemon', 'reset connections'],
      faultEveryMs: 400,
      grainBytes: 4_096,
      largestBytes: 4_096,
      imageBytes: 1_048_576,
      layout: { order: 20, stripeUnit: 1_048_576, stripeCount: 1 },
      network: { ...CALM_NETWORK, delayMeanMs: 10 },
    },
  },
  {
    name: 'push-does-not-replace',
    edits: [edit('daemon/member.ts', 'replace: (frame.flags & Flag.FIRST) !== 0', 'replace: false')],
    plan: CHURN_BY_LIST,
  },
  {
    name: 'deleted-object-resurrected',
    edits: [
      edit(
        'daemon/member.ts',
        'if (frame.pgSeq === 0) return store.recoverDelete(frame.pg, frame.image, frame.object, done);',
        'if (frame.pgSeq === 0) return done(null);',
      ),
    ],
    plan: { ...CHURN_BY_LIST, zeroShare: 0.4 },
  },
  {
    name: 'writes-do-not-wait-for-recovery',
    edits: [edit('daemon/serving.ts', 'if (this.#interval.recovery?.defer(key, request) === true) return;', '')],
    plan: CHURN_BY_LIST,
  },
  {
    name: 'leftovers-deleted-too-early',
    edits: [
      edit(
        'master/marks.ts',
        'record.since !== since || !isSettled(record)) return false;',
        'record.since !== since) return false;',
      ),
      edit(
        'master/marks.ts',
        'return !record.acting.includes(id) && record.acting.every((member) => record.complete.includes(member));',
        'return !record.acting.includes(id);',
      ),
    ],
    plan: { ...CHURN, faults: ['crash daemon', 'partition', 'move data'] },
  },
  {
    name: 'own-copy-not-verified',
    edits: [edit('daemon/repair-verify.ts', 'payload === null ? [] : badBlocks(payload, checks, range)', '[]')],
    plan: { store: 'disk', replicas: 2, faults: ['bit rot', 'take over'], faultEveryMs: 400, operations: 1_000 },
  },
  // --- store
  {
    name: 'log-never-synced',
    edits: [
      edit(
        'store/log.ts',
        'for (const file of files) file.sync((error) => this.onSynced(error, target));',
        'for (const _ of files) this.clock.soon(() => this.onSynced(null, target));',
      ),
    ],
    plan: POWER_AND_WRITER,
  },
  {
    name: 'torn-batch-redone',
    edits: [edit('store/redo.ts', 'if (!this.isWhole(batch)) {', 'if (false) {')],
    plan: POWER,
  },
  {
    name: 'segment-reused-too-early',
    edits: [
      edit(
        'store/checkpoint.ts',
        'const limit = (Math.floor(redoPosition / segmentBytes) + segments) * segmentBytes;',
        'const limit = (Math.floor(redoPosition / segmentBytes) + segments + 2) * segmentBytes;',
      ),
    ],
    plan: {
      ...POWER,
      replicas: 1,
      faults: ['cut power of a daemon', 'disk stalls'],
      depth: 64,
      operations: 6_000,
      imageBytes: 4_194_304,
      largestBytes: 32_768,
      pgCount: 1,
    },
  },
  {
    name: 'slot-reused-too-early',
    edits: [
      edit(
        'store/checkpoint.ts',
        'content.dirty = new Set();\n    content.retired = new Set();',
        'content.dirty = new Set();\n    for (const slot of content.retired) slot.file.giveBack(slot);\n    content.retired = new Set();',
      ),
    ],
    plan: { ...POWER, largestBytes: 262_144, operations: 2_000 },
  },
  {
    name: 'checkpoint-before-its-data-is-durable',
    edits: [
      edit(
        'store/checkpoint.ts',
        'for (const file of this.touched) file.sync(onSynced);',
        'for (const _ of this.touched) this.clock.soon(() => onSynced(null));',
      ),
    ],
    plan: { ...POWER, largestBytes: 65_536, operations: 2_000 },
  },
  // --- client
  {
    name: 'checksums-not-checked-by-the-client',
    edits: [
      edit(
        'client/object-op.ts',
        'if (firstMismatch(payload, meta, this.image, this.object, this.offset) !== -1) return false;',
        '',
      ),
    ],
    plan: FLIPS,
  },
  {
    name: 'unflushed-writes-forgotten',
    edits: [
      edit('client/flusher.ts', 'if (this.#unflushed.anyStale(map, count))', 'if (false)'),
      edit(
        'client/flusher.ts',
        'else if (this.#unflushed.anyStale(this.#router.map!, count)) this.#make(count, done);',
        '',
      ),
    ],
    plan: POWER_BETWEEN_FLUSHES,
  },
  {
    name: 'flush-drops-what-came-later',
    edits: [
      edit(
        'client/flusher.ts',
        'if (error === null) this.#unflushed.drop(count);',
        'if (error === null) this.#unflushed.drop(this.#unflushed.size);',
      ),
    ],
    plan: { ...POWER_BETWEEN_FLUSHES, depth: 4, operations: 800, faults: ['cut all power', 'disk stalls'] },
  },
  {
    name: 'flush-asks-only-the-primary',
    edits: [
      edit(
        'client/flusher.ts',
        'for (const id of map.pgs.get(pg)!.acting) daemons.add(id);',
        'daemons.add(map.pgs.get(pg)!.acting[0]!);',
      ),
    ],
    plan: POWER,
  },
  {
    name: 'replay-over-newer-writes',
    edits: [
      edit(
        'client/unflushed.ts',
        'for (const { start, end } of without(change, over)) pieces.push({ change, start, end });',
        'pieces.push({ change, start: change.start, end: change.end });',
      ),
    ],
    plan: { store: 'memory', faults: ['crash daemon'], faultEveryMs: 300, depth: 16 },
  },
  {
    name: 'replay-out-of-order',
    edits: [
      edit(
        'client/unflushed.ts',
        'for (const { start, end } of without(change, over)) pieces.push({ change, start, end });',
        'pieces.push({ change, start: change.start, end: change.end });',
      ),
      edit('client/unflushed.ts', 'if (isStale(change, map)) {', 'if (true) {'),
      edit('client/unflushed.ts', 'pieces: pieces.reverse() }', 'pieces }'),
    ],
    plan: { store: 'memory', faults: ['crash daemon'], faultEveryMs: 300, depth: 16 },
    why: 'all is replayed, newest first; without the first two edits no two pieces overlap, and the order is free',
  },
  {
    name: 'reads-not-overlaid-with-unflushed-writes',
    edits: [
      edit(
        'client/pool-image.ts',
        'if (!this.#mayBeStale) return true;\n    const end',
        'if (true) return true;\n    const end',
      ),
    ],
    plan: POWER_BETWEEN_FLUSHES,
  },
  {
    name: 'changes-of-a-block-overtake-each-other',
    edits: [edit('client/block-locks.ts', 'for (let i = 0; i < index; i++) if', 'for (let i = 0; i < 0; i++) if')],
    plan: { depth: 16, faults: ['reset connections', 'crash daemon'], faultEveryMs: 300 },
  },

  // --- scrub and repair
  {
    name: 'repair-from-an-unproven-copy',
    edits: [
      edit(
        'daemon/repair.ts',
        'let unproven = own.bad;',
        `for (const block of own.bad) {
          const bytes = own.payload!.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
          const number = range.offset / BLOCK_BYTES + block;
          own.checks.writeUInt32LE(blockChecksum(bytes, range.image, range.object, number), block * 4);
        }
        let unproven: number[] = [];`,
      ),
    ],
    why: 'the primary believes its own bytes, gives them a new checksum, and hands them to readers and members',
    plan: ROT,
  },
  {
    name: 'scrub-that-overlooks-bad-blocks',
    edits: [edit('daemon/scrub.ts', 'if (counts.some((count) => count > 0)) return true;', '')],
    plan: ROT,
  },
];
