// One master's address: a connection that carries calls and the subscription.
//
// It is made on first use and made again by itself; a call that finds it broken fails at once. A process that was
// stopped still accepts connections, by its kernel, and says nothing: where there are other masters to ask, it gets
// CONNECT_MS to say hello. On a connection that stood before, pings find it out. See grpc-link.ts for which master.

import { type ChannelCredentials, Client, connectivityState, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import type { ControlMethod, ControlReply, ControlRequest, Subscriber, Subscription } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import type { MapUpdate } from '../../proto/map.ts';
import {
  CODE_TRAILER,
  MESSAGE_BYTES_MAX,
  NEVER_SENT,
  PING_EVERY_MS,
  PING_TIMEOUT_MS,
  rpcOf,
  storageErrorOf,
} from './grpc-proto.ts';

/** A call without an answer after this has failed with UNAVAILABLE. */
const CALL_MS = 5_000;
/** The same where another master can be asked. */
const CALL_ONE_OF_SEVERAL_MS = 2_500;
/** Calls that wait for all daemons to obey a fence, or for an old process to be gone. */
const SLOW_CALL_MS = 12_000;
const SLOW_CALLS: ReadonlySet<ControlMethod> = new Set(['lockImage', 'removeImage', 'register', 'createPool']);

/** One of several masters that is not connected after this is passed over. */
const CONNECT_MS = 1_000;
const RECONNECT_MS = 100;
const RECONNECT_MOST_MS = 500;

export interface ConnectionEvents {
  onUpdate(update: MapUpdate): void;
  onClose(reason: string, error: StorageError): void;
}

export class MasterConnection {
  readonly #address: string;
  readonly #client: Client;
  /** The last thing it did was not to answer. */
  isDown = false;

  constructor(address: string, channel: ChannelCredentials) {
    this.#address = address;
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

  /** @param several there are others to ask */
  async call<M extends ControlMethod>(
    method: M,
    request: ControlRequest<M>,
    several: boolean,
  ): Promise<ControlReply<M>> {
    if (several) await this.#connected();
    const { path, requestSerialize, responseDeserialize } = rpcOf(method);
    const limitMs = SLOW_CALLS.has(method) ? SLOW_CALL_MS : several ? CALL_ONE_OF_SEVERAL_MS : CALL_MS;
    const deadline = Date.now() + limitMs;
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        { deadline },
        (error, reply) => {
          this.isDown = error !== null && isNoAnswer(error);
          if (error !== null) reject(storageErrorOf(error));
          else resolve(reply as ControlReply<M>);
        },
      );
    });
  }

  /** @param several there are others to ask */
  subscribe(subscriber: Subscriber, several: boolean, events: ConnectionEvents): Subscription {
    let open = true;
    let cancel = (): void => {};
    const ended = (error: StorageError): void => {
      if (!open) return;
      open = false;
      events.onClose(error.message, error);
    };
    const start = (): void => {
      if (!open) return;
      const { path, requestSerialize, responseDeserialize } = rpcOf('subscribe');
      const stream = this.#client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, subscriber);
      cancel = () => stream.cancel();
      stream.on('data', (update: MapUpdate) => {
        this.isDown = false;
        if (open) events.onUpdate(update);
      });
      stream.on('error', (error: ServiceError) => {
        this.isDown = isNoAnswer(error);
        ended(storageErrorOf(error));
      });
      stream.on('end', () => ended(new StorageError('UNAVAILABLE', 'the master ended the subscription')));
    };
    if (several) this.#connected().then(start, ended);
    else start();
    return {
      close() {
        if (!open) return;
        open = false;
        cancel();
      },
    };
  }

  close(): void {
    this.#client.close();
  }

  /** Resolves when it is connected, or when a call would fail at once. Rejects with UNAVAILABLE after CONNECT_MS. */
  #connected(): Promise<void> {
    const channel = this.#client.getChannel();
    const deadline = Date.now() + CONNECT_MS;
    return new Promise((resolve, reject) => {
      const look = (late?: Error): void => {
        const state = channel.getConnectivityState(true);
        if (state !== connectivityState.IDLE && state !== connectivityState.CONNECTING) return resolve();
        if (late === undefined) return channel.watchConnectivityState(state, deadline, look);
        this.isDown = true;
        const details = `${NEVER_SENT}: ${this.#address} does not answer`;
        reject(storageErrorOf({ code: status.UNAVAILABLE, details, metadata: new Metadata() }));
      };
      look();
    });
  }
}

/** Did nobody say this? */
export const isNoAnswer = ({ code, metadata }: Pick<ServiceError, 'code' | 'metadata'>): boolean =>
  (code === status.UNAVAILABLE || code === status.DEADLINE_EXCEEDED || code === status.CANCELLED) &&
  (metadata?.get(CODE_TRAILER).length ?? 0) === 0;
