// A daemon's or client's way to the master over gRPC.
//
// One connection per link carries calls and the subscription; it is made on first use and made again by itself, but a
// call that finds it broken fails with UNAVAILABLE, and a subscription that breaks ends: trying again is the caller's
// business, who knows whether it still makes sense. Nothing is retried here.

import { type ChannelCredentials, Client, credentials, type ServiceError } from '@grpc/grpc-js';
import type {
  ControlLink,
  ControlMethod,
  ControlReply,
  ControlRequest,
  Subscriber,
  Subscription,
  SubscriptionEvents,
} from '../../proto/control.ts';
import type { MapUpdate } from '../../proto/map.ts';
import { MESSAGE_BYTES_MAX, PING_EVERY_MS, PING_TIMEOUT_MS, rpcOf, storageErrorOf } from './grpc-proto.ts';

/** A call without an answer after this has failed with UNAVAILABLE. */
const CALL_MS = 5_000;
/** Calls that wait for all daemons to obey a fence, or for an old process to be gone. */
const SLOW_CALL_MS = 12_000;
const SLOW_CALLS: ReadonlySet<ControlMethod> = new Set(['lockImage', 'removeImage', 'register', 'createPool']);

const RECONNECT_MS = 100;
const RECONNECT_MOST_MS = 500;

export interface MasterLink extends ControlLink {
  /** Calls in progress fail with UNAVAILABLE. */
  close(): void;
}

/**
 * @param address of the master, "host:port"; nothing is sent before the first call or subscription
 * @param channel plain TCP unless given
 */
export function openControlLink(
  address: string,
  channel: ChannelCredentials = credentials.createInsecure(),
): MasterLink {
  return new GrpcLink(address, channel);
}

class GrpcLink implements MasterLink {
  readonly #client: Client;

  constructor(address: string, channel: ChannelCredentials) {
    this.#client = new Client(address, channel, {
      'grpc.keepalive_time_ms': PING_EVERY_MS,
      'grpc.keepalive_timeout_ms': PING_TIMEOUT_MS,
      'grpc.initial_reconnect_backoff_ms': RECONNECT_MS,
      'grpc.min_reconnect_backoff_ms': RECONNECT_MS,
      'grpc.max_reconnect_backoff_ms': RECONNECT_MOST_MS,
      'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
      'grpc.max_send_message_length': MESSAGE_BYTES_MAX,
      'grpc.enable_channelz': 0,
      'grpc.use_local_subchannel_pool': 1,
    });
  }

  call<M extends ControlMethod>(method: M, request: ControlRequest<M>): Promise<ControlReply<M>> {
    const { path, requestSerialize, responseDeserialize } = rpcOf(method);
    const { promise, resolve, reject } = Promise.withResolvers<ControlReply<M>>();
    const deadline = Date.now() + (SLOW_CALLS.has(method) ? SLOW_CALL_MS : CALL_MS);
    this.#client.makeUnaryRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
      { deadline },
      (error, reply) => {
        if (error !== null) reject(storageErrorOf(error));
        else resolve(reply as ControlReply<M>);
      },
    );
    return promise;
  }

  subscribe(subscriber: Subscriber, events: SubscriptionEvents): Subscription {
    const { path, requestSerialize, responseDeserialize } = rpcOf('subscribe');
    const stream = this.#client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, subscriber);
    let open = true;
    const ended = (reason: string): void => {
      if (!open) return;
      open = false;
      events.onClose(reason);
    };
    stream.on('data', (update: MapUpdate) => {
      if (open) events.onUpdate(update);
    });
    stream.on('error', (error: ServiceError) => ended(storageErrorOf(error).message));
    stream.on('end', () => ended('the master ended the subscription'));
    return {
      close() {
        if (!open) return;
        open = false;
        stream.cancel();
      },
    };
  }

  close(): void {
    this.#client.close();
  }
}
