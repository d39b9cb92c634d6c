// Carries a ControlService (the master) over gRPC.
//
//   unary call ──> service.handle(method, request) ──> reply, or status with the StorageError's code in a trailer
//   Subscribe  ──> service.subscribe(...)          ──> MapUpdates, one in flight per stream
//
// While one update of a stream is in flight, those that follow are joined into one: a subscriber that does not read
// costs at most one map of memory, until the pings find that it is dead. When a stream ends, for whatever reason, the
// service is told at once. It does not know what the messages mean.

import {
  Metadata,
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceError,
  type sendUnaryData,
} from '@grpc/grpc-js';
import type {
  ControlMethod,
  ControlReply,
  ControlRequest,
  ControlService,
  Subscriber,
  Subscription,
} from '../../proto/control.ts';
import { NotLeaderError, StorageError } from '../../proto/errors.ts';
import type { MapUpdate } from '../../proto/map.ts';
import { joinUpdates } from '../../proto/map-updates.ts';
import type { Log } from '../../proto/ports.ts';
import {
  CODE_TRAILER,
  CONTROL_METHODS,
  grpcStatusOf,
  LEADER_TRAILER,
  MESSAGE_BYTES_MAX,
  masterService,
  PING_EVERY_MS,
  PING_TIMEOUT_MS,
  rpcName,
} from './grpc-proto.ts';

export interface GrpcServer {
  /** "host:port" with the real port where 0 was asked. */
  readonly address: string;
  /** Ends every connection. */
  close(): Promise<void>;
}

/** How long calls in progress may take to end when the server closes. */
const CLOSE_MS = 500;

/**
 * Serves on `address`, "host:port". Rejects with StorageError BUSY if another process listens there.
 * @param credentials plain TCP unless given
 */
export async function serveGrpc(
  service: ControlService,
  address: string,
  log: Log,
  credentials: ServerCredentials = ServerCredentials.createInsecure(),
): Promise<GrpcServer> {
  const server = new Server({
    'grpc.keepalive_time_ms': PING_EVERY_MS,
    'grpc.keepalive_timeout_ms': PING_TIMEOUT_MS,
    'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
    'grpc.max_send_message_length': MESSAGE_BYTES_MAX,
    'grpc.enable_channelz': 0,
  });
  const handlers: Record<string, (call: never, reply: never) => void> = {
    Subscribe: (call: ServerWritableStream<WireSubscriber, MapUpdate>) => serveStream(service, call, log),
  };
  for (const method of CONTROL_METHODS)
    handlers[rpcName(method)] = (call: UnaryCall, reply: sendUnaryData<object>) =>
      serveUnary(service, method, call, reply, log);
  server.addService(masterService, handlers as never);

  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(address, credentials, (error, bound) => {
      if (error === null) resolve(bound);
      else if (/EADDRINUSE/.test(error.message))
        reject(new StorageError('BUSY', `another process listens on ${address}`, error));
      else reject(new StorageError('INVALID', `can't listen on ${address}: ${error.message}`, error));
    });
  });
  return {
    address: `${address.slice(0, address.lastIndexOf(':'))}:${port}`,
    close: () =>
      new Promise<void>((resolve) => {
        const force = setTimeout(() => {
          server.forceShutdown();
          resolve(); // a session that was dying when the shutdown began never reports, and tryShutdown waits for it
        }, CLOSE_MS);
        server.tryShutdown(() => {
          clearTimeout(force);
          resolve();
        });
      }),
  };
}

type UnaryCall = ServerUnaryCall<ControlRequest<ControlMethod>, ControlReply<ControlMethod>>;

function serveUnary(
  service: ControlService,
  method: ControlMethod,
  call: UnaryCall,
  reply: sendUnaryData<object>,
  log: Log,
): void {
  service.handle(method, call.request).then(
    (answer) => reply(null, answer),
    (error: unknown) => reply(wireError(error, method, log)),
  );
}

/** Subscriber as it comes off the wire: the fields of the other role are there, empty. */
interface WireSubscriber {
  role: 'daemon' | 'client';
  id: number;
  bootId: string;
  session: number;
  epoch: number;
  clusterId: string;
}

function serveStream(service: ControlService, call: ServerWritableStream<WireSubscriber, MapUpdate>, log: Log): void {
  let subscription: Subscription | null = null;
  let waiting: MapUpdate | null = null;
  let inFlight = false;
  let ended = false;

  function send(update: MapUpdate): void {
    if (ended) return;
    if (inFlight) {
      waiting = waiting === null ? update : joinUpdates(waiting, update);
      return;
    }
    inFlight = true;
    call.write(update, () => {
      inFlight = false;
      const next = waiting;
      waiting = null;
      if (next !== null) send(next);
    });
  }
  function end(): void {
    if (ended) return;
    ended = true;
    waiting = null;
    subscription?.close();
  }

  call.on('cancelled', end);
  call.on('close', end);
  call.on('error', end);
  try {
    subscription = service.subscribe(subscriberOf(call.request), {
      onUpdate: send,
      onClose(reason) {
        if (ended) return;
        ended = true;
        call.emit('error', wireError(new StorageError('UNAVAILABLE', reason), 'subscribe', log));
      },
    });
    if (ended) subscription.close();
  } catch (error) {
    ended = true;
    call.emit('error', wireError(error, 'subscribe', log));
  }
}

function subscriberOf({ role, id, bootId, session, epoch, clusterId }: WireSubscriber): Subscriber {
  return role === 'daemon' ? { role, id, bootId, epoch } : { role, session, epoch, clusterId };
}

function wireError(error: unknown, method: string, log: Log): Partial<ServiceError> {
  const metadata = new Metadata();
  if (error instanceof StorageError) {
    metadata.set(CODE_TRAILER, error.code);
    if (error instanceof NotLeaderError) metadata.set(LEADER_TRAILER, error.leader);
    return { code: grpcStatusOf(error.code), details: error.message, metadata };
  }
  log.error('a call failed in an unexpected way', { method, error });
  metadata.set(CODE_TRAILER, 'IO');
  return { code: grpcStatusOf('IO'), details: 'internal error of the master: see its log', metadata };
}
