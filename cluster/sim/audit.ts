// The verdicts at the end of a run, when every fault is over.
//
//   1. liveness: all requests are answered within ANSWER_MS, every PG is active and clean within CLEAN_MS
//   2. the writer and the reader read the whole image once more, and the model agrees
//   3. every member of every PG holds the same objects, versions, blocks and checksums, proven against the data
//   4. the histories of all units are those of atomic registers

import { firstMismatch } from '../../proto/checksum.ts';
import { type ObjectKey, objectKey, pgName, sameVersion, versionName } from '../../proto/ids.ts';
import type { PgEntry } from '../../proto/map.ts';
import type { ObjectInfo, Store } from '../store/store.ts';
import type { ClusterSim } from './cluster-sim.ts';
import type { Operator } from './operator.ts';
import type { Workload } from './workload.ts';
import type { Writers } from './writers.ts';

/** Virtual time in which everything asked is answered once faults are over: reconnects, down detection, peering. */
const ANSWER_MS = 30_000;
/** Virtual time in which everything is copied where it belongs. */
const CLEAN_MS = 120_000;
const LOOKS = 4;
const LOOK_AGAIN_MS = 3_000;
/** Requests that the writer still issues after the faults, */
const LAST_OPERATIONS = 20;
/** and more if the faults left it time for fewer than these in all: they meet what is still being recovered. */
const OPERATIONS_LEAST = 150;

export async function audit(
  cluster: ClusterSim,
  workload: Workload,
  writers: Writers,
  operator: Operator | null,
): Promise<void> {
  operator?.stop();
  const wanted = Math.max(LAST_OPERATIONS, OPERATIONS_LEAST - workload.model.ackedOperations);
  workload.left = Math.min(workload.left, wanted);
  await cluster.settled(cluster.allIn(), ANSWER_MS, 'putting daemons in');
  await answered(cluster, workload, writers, workload.left);
  await cluster.untilClean(CLEAN_MS);
  if (operator !== null) await cluster.until(() => operator.idle, CLEAN_MS, 'removing an image');
  if (cluster.unreadable) await repairAll(cluster);
  await readEverything(cluster, writers);
  await compareCopies(cluster);
  if (operator !== null) expectRemoved(cluster, operator);
  workload.model.judgeHistories();
}

/** The lanes wait up to seconds between requests; the time limit is for the answers. */
async function answered(cluster: ClusterSim, workload: Workload, writers: Writers, operations: number): Promise<void> {
  const { plan } = cluster;
  const issuedMs = (plan.durationMs * Math.max(operations, LAST_OPERATIONS)) / plan.operations;
  const writerIdle = (): boolean => writers.current !== null && workload.left <= 0 && writers.current.inflight === 0;
  await cluster.until(writerIdle, ANSWER_MS + issuedMs * 10, 'answers to the writer');
  if (!plan.observer) return;
  writers.reader?.stop();
  const readerIdle = (): boolean => writers.reader?.inflight === 0;
  await cluster.until(readerIdle, ANSWER_MS, 'answers to the reader');
}

async function readEverything(cluster: ClusterSim, writers: Writers): Promise<void> {
  const done = (act: (finished: () => void) => void, what: string): Promise<void> => {
    let finished = false;
    act(() => {
      finished = true;
    });
    return cluster.until(() => finished, ANSWER_MS, what);
  };
  const writer = writers.current!;
  await done((finished) => writer.flush(finished), 'the last flush');
  await done((finished) => writer.readAll(finished), 'reading the image');
  const { reader } = writers;
  if (reader !== null) await done((finished) => reader.readAll(finished), 'reading the image by the reader');
}

/** A late fault may still start an interval over while this looks; what differs for good differs at every look. */
async function compareCopies(cluster: ClusterSim): Promise<void> {
  for (let look = 1; ; look++) {
    await cluster.untilClean(CLEAN_MS);
    try {
      for (const entry of cluster.map.pgs.values()) await compareMembers(cluster, entry);
      return;
    } catch (error) {
      if (look === LOOKS) throw error;
      cluster.scheduler.probe('audit looked again');
      await cluster.idle(LOOK_AGAIN_MS);
    }
  }
}

/** Damage on one daemon is found and repaired; from here on every read must succeed again. */
async function repairAll(cluster: ClusterSim): Promise<void> {
  await cluster.settled(cluster.scrubAll(), CLEAN_MS, 'scrubbing everything');
  cluster.unreadable = false;
}

/** What was removed is gone from every member, and does not come back. */
function expectRemoved(cluster: ClusterSim, operator: Operator): void {
  for (const entry of cluster.map.pgs.values())
    for (const id of entry.acting)
      for (const { image, object } of storeOf(cluster, id).objects(entry.pg))
        if (operator.removed.has(image))
          throw new Error(`daemon ${id} holds object ${object} of image ${image}, which was removed`);
}

async function compareMembers(cluster: ClusterSim, entry: PgEntry): Promise<void> {
  const stores = entry.acting.map((id) => storeOf(cluster, id));
  const [primary, ...others] = stores;
  const name = `PG ${pgName(entry.pg)}`;
  if (primary === undefined) throw new Error(`${name} has no members`);
  const objects = objectsOf(primary, entry.pg);
  const info = primary.pgInfo(entry.pg);
  for (const store of stores) {
    const theirs = store.pgInfo(entry.pg);
    if (theirs.les !== entry.since || !theirs.complete)
      throw new Error(`${name}: a member was last active in ${theirs.les}, complete ${theirs.complete}`);
    if (!sameVersion(theirs.last, info.last))
      throw new Error(`${name}: logs end at ${versionName(info.last)} and ${versionName(theirs.last)}`);
    const { objects: count } = store.pgUsage(entry.pg);
    const held = [...store.objects(entry.pg)].length;
    if (count !== held) throw new Error(`${name}: ${count} objects are accounted for, ${held} are there`);
  }
  for (const other of others) {
    const theirs = objectsOf(other, entry.pg);
    if (theirs.size !== objects.size)
      throw new Error(`${name}: a member has ${theirs.size} objects, the primary ${objects.size}`);
    for (const [key, object] of objects) {
      const copy = theirs.get(key);
      if (copy === undefined) throw new Error(`${name}: a member lacks object ${object.object}`);
      if (!sameVersion(copy.version, object.version))
        throw new Error(
          `${name}: object ${object.object} has versions ${versionName(object.version)} and ${versionName(copy.version)}`,
        );
    }
  }
  for (const object of objects.values()) {
    const contents = [];
    for (const store of stores) contents.push(await contentOf(cluster, store, object, name));
    for (const content of contents)
      if (!content.equals(contents[0]!)) throw new Error(`${name}: object ${object.object} differs between members`);
  }
}

function storeOf(cluster: ClusterSim, id: number): Store {
  const daemon = cluster.daemons.find(({ daemon }) => daemon?.id === id);
  if (daemon?.store == null) throw new Error(`daemon ${id} is in an acting set and does not run`);
  return daemon.store;
}

const objectsOf = (store: Store, pg: number): Map<ObjectKey, ObjectInfo> =>
  new Map([...store.objects(pg)].map((info) => [objectKey(info.image, info.object), info]));

/** All bytes of an object, each block proven by its checksum. */
async function contentOf(cluster: ClusterSim, store: Store, info: ObjectInfo, name: string): Promise<Buffer> {
  const { image, object, order } = info;
  let content: Buffer | null = null;
  store.read(image, object, order, 0, 2 ** order, (error, checks, payload) => {
    if (error !== null) throw error;
    content = payload ?? Buffer.alloc(2 ** order);
    const bad = payload === null ? -1 : firstMismatch(payload, checks!, image, object, 0);
    if (bad !== -1) throw new Error(`${name}: block ${bad} of object ${object} fails its checksum`);
  });
  await cluster.until(() => content !== null, ANSWER_MS, 'reading a store');
  return content!;
}
