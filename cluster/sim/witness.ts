// What the simulator sees and no client can: it looks into the daemons' stores at moments at which something is claimed.
//
// A wrong word does no harm there until a disk is lost or a writer is unlucky, so that no read would show it:
//
//   clean    every member of the interval has everything, durably: the history of the PG is forgotten
//   forget   a daemon that has left the PG may delete its copy
//   append   a primary logs a write that it has not logged before

import type { ControlReply, ControlRequest, ControlService } from '../../proto/control.ts';
import { type Epoch, type PgId, pgName, versionName } from '../../proto/ids.ts';
import type { Store } from '../store/store.ts';
import type { ClusterSim } from './cluster-sim.ts';
import type { Scheduler } from './scheduler.ts';

/** The master's service, with every word about complete copies compared with the copies. */
export function witnessed(cluster: ClusterSim, service: ControlService): ControlService {
  return {
    subscribe: (subscriber, events) => service.subscribe(subscriber, events),
    handle: async (method, request) => {
      if (method === 'clean') expectComplete(cluster, request as ControlRequest<'clean'>);
      const reply = await service.handle(method, request);
      if (method === 'forget') {
        const { pgs } = request as ControlRequest<'forget'>;
        const { accepted } = reply as ControlReply<'forget'>;
        expectComplete(cluster, { pgs: pgs.filter(({ pg }) => accepted.includes(pg)) });
      }
      return reply;
    },
  };
}

/**
 * Fails the run if a member of one of these intervals, as far as it is still the newest, never held everything in it. It
 * may have fallen behind since, when the members peered anew: by what nobody was told is written.
 */
function expectComplete(cluster: ClusterSim, { pgs }: Pick<ControlRequest<'clean'>, 'pgs'>): void {
  const { map } = cluster;
  for (const { pg, since } of pgs) {
    const entry = map.pgs.get(pg);
    if (entry === undefined || entry.since !== since) continue;
    for (const { daemon, store, machine, home } of cluster.daemons) {
      if (daemon === null || store === null || !entry.acting.includes(daemon.id)) continue;
      // The master may not have heard yet that the process it means is gone.
      if (map.daemons.get(daemon.id)?.bootId !== machine.incarnation?.name) continue;
      const complete = home.completeIn.get(pg);
      if (complete === since) continue;
      const has = `complete in ${complete}, last active in ${store.pgInfo(pg).les}`;
      cluster.scheduler.fail(
        new Error(`PG ${pgName(pg)} is said to be clean in ${since}, but ${machine.name} was last ${has}`),
      );
    }
  }
}

/**
 * Fails the run if a primary logs a request that its log holds already: a write that was sent again is answered from the
 * log. Only what a primary is asked to write comes without leave to use the reserve.
 * @param completeIn gets the newest interval in which each PG was whole here
 */
export function watched(scheduler: Scheduler, store: Store, completeIn: Map<PgId, Epoch>): Store {
  const setPg = store.setPg.bind(store);
  store.setPg = (pg, les, complete) => {
    if (complete) completeIn.set(pg, les);
    setPg(pg, les, complete);
  };
  const append = store.append.bind(store);
  store.append = (entry, payload, checks, reserve, done) => {
    const { pg, session, sessionSeq, version } = entry;
    const before = payload !== null && !reserve ? store.findRequest(pg, session, sessionSeq) : null;
    if (before !== null)
      scheduler.fail(
        new Error(
          `PG ${pgName(pg)}: request ${session} ${sessionSeq} is applied as ${versionName(before)}, and again as ${versionName(version)}`,
        ),
      );
    append(entry, payload, checks, reserve, done);
  };
  return store;
}
