// A daemon's or client's way to the master, or to the one of several masters that leads, over gRPC.
//
//   MastersLink ── which master? ──► MasterConnection per address
//
// With one master a call that finds it away fails with UNAVAILABLE, and a subscription that breaks ends: trying again is
// the caller's business, who knows whether it still makes sense.
//
// Only where there is somebody else to ask, a call is repeated here: with the leader that the answer names, else with
// the next of the list, for FIND_LEADER_MS at most. Not repeated, once they may have been heard, are calls that would
// then be refused because they were carried out; and none that is out of date by then.

import { type ChannelCredentials, credentials, type ServiceError } from '@grpc/grpc-js';
import type {
  ControlLink,
  ControlMethod,
  ControlReply,
  ControlRequest,
  Subscriber,
  Subscription,
  SubscriptionEvents,
} from '../../proto/control.ts';
import { NotLeaderError, StorageError } from '../../proto/errors.ts';
import { isNoAnswer, MasterConnection } from './grpc-connection.ts';
import { wasNeverSent } from './grpc-proto.ts';

/** A new leader acts within 5 s; a call looks for it a little longer. */
const FIND_LEADER_MS = 7_000;
/** Between rounds in which no master led, twice as long each time. */
const ROUND_MS = 50;
const ROUND_MOST_MS = 200;
/** Masters of one cluster that a link knows, those it was told of by others included. */
const MASTERS_MOST = 16;
/** True when they were sent, and maybe not when they are sent again. */
const NEVER_REPEATED: ReadonlySet<ControlMethod> = new Set(['heartbeat', 'reportFailure']);
/** Sent again after they were carried out, they would be refused: it exists already, or is gone. */
const NOT_REPEATED_IF_SENT: ReadonlySet<ControlMethod> = new Set(['createPool', 'createImage', 'removeDaemon']);

export interface MasterLink extends ControlLink {
  /** Calls in progress fail with UNAVAILABLE. */
  close(): void;
}

/**
 * @param masters "host:port", or several of one cluster with commas between; nothing is sent before the first call
 * @param channel plain TCP unless given
 */
export function openControlLink(
  masters: string,
  channel: ChannelCredentials = credentials.createInsecure(),
): MasterLink {
  return new MastersLink(
    masters.split(',').filter((address) => address !== ''),
    channel,
  );
}

class MastersLink implements MasterLink {
  readonly #channel: ChannelCredentials;
  /** In the order in which they are tried. */
  readonly #masters: { readonly address: string; link: MasterConnection | null }[];
  #current = 0;
  #closed = false;

  constructor(addresses: readonly string[], channel: ChannelCredentials) {
    this.#channel = channel;
    this.#masters = addresses.map((address) => ({ address, link: null }));
  }

  async call<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>> {
    const until = performance.now() + FIND_LEADER_MS;
    let failures = 0;
    let pauseMs = ROUND_MS;
    for (;;) {
      const at = this.#current;
      const several = this.#masters.length > 1;
      try {
        return await this.#linkTo(at).call(method, request, several);
      } catch (error) {
        if (!(error instanceof StorageError)) throw error;
        const told = this.#moveOn(at, error);
        if (this.#closed || !mayRepeat(method, error, several) || performance.now() > until) throw error;
        if (told) continue; // somebody knows better: ask there at once
        if (++failures % this.#masters.length !== 0) continue;
        await new Promise((resolve) => setTimeout(resolve, pauseMs));
        pauseMs = Math.min(2 * pauseMs, ROUND_MOST_MS);
      }
    }
  }

  subscribe(subscriber: Subscriber, events: SubscriptionEvents): Subscription {
    const at = this.#current;
    const several = this.#masters.length > 1;
    return this.#linkTo(at).subscribe(subscriber, several, {
      onUpdate: (update) => events.onUpdate(update),
      onClose: (reason, error) => {
        this.#moveOn(at, error);
        events.onClose(reason);
      },
    });
  }

  close(): void {
    this.#closed = true;
    for (const { link } of this.#masters) link?.close();
  }

  /**
   * The master at `at` does not lead, or does not answer: the next calls go elsewhere. True if it said where the leader
   * is, and that is worth a try at once: the named one may have just died.
   */
  #moveOn(at: number, error: StorageError): boolean {
    if (!isElsewhere(error) || this.#current !== at) return false;
    this.#current = (at + 1) % this.#masters.length;
    if (!(error instanceof NotLeaderError) || error.leader === '') return false;
    let named = this.#masters.findIndex(({ address }) => address === error.leader);
    if (named === -1 && this.#masters.length < MASTERS_MOST)
      named = this.#masters.push({ address: error.leader, link: null }) - 1;
    if (named === -1 || this.#masters[named]!.link?.isDown) return false;
    this.#current = named;
    return true;
  }

  #linkTo(at: number): MasterConnection {
    const master = this.#masters[at]!;
    master.link ??= new MasterConnection(master.address, this.#channel);
    return master.link;
  }
}

/** Did no master say this, or one that does not lead? */
const isElsewhere = (error: StorageError): boolean =>
  error instanceof NotLeaderError || (error.cause !== undefined && isNoAnswer(error.cause as ServiceError));

function mayRepeat(method: ControlMethod, error: StorageError, several: boolean): boolean {
  if (NEVER_REPEATED.has(method) || !isElsewhere(error)) return false;
  if (error instanceof NotLeaderError) return true;
  if (!several) return false;
  return !NOT_REPEATED_IF_SENT.has(method) || wasNeverSent(error.cause as ServiceError);
}
