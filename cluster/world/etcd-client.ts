// etcd behind the port of proto/lease-store.ts, through its gRPC API (version 3.4 and newer), with etcd.proto.
//
// It knows several members of one etcd cluster and speaks to one; when that does not answer, to the next. Reads and
// calls about leases are repeated there by themselves. A transaction is not, once it may have been heard: whether it
// happened is then for the caller to find out. Plain TCP, no users: etcd belongs on a network of its own, or on the
// masters' machines.

import { join } from 'node:path';
import {
  Client,
  type ClientDuplexStream,
  credentials,
  type MethodDefinition,
  type ServiceDefinition,
  type ServiceError,
  status,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { StorageError } from '../../proto/errors.ts';
import {
  ABSENT,
  type LeaseStore,
  type StoreCompare,
  type StoredPair,
  type StoreOutcome,
  type StoreTransaction,
} from '../../proto/lease-store.ts';
import { MESSAGE_BYTES_MAX, PING_TIMEOUT_MS, wasNeverSent } from './grpc-proto.ts';
import { UsageError } from './options.ts';

/** 64-bit numbers are names to us: leases, revisions. As text they stay whole. */
const services = loadSync(join(import.meta.dirname, 'etcd.proto'), {
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  arrays: true,
  oneofs: false,
}) as unknown as Record<string, ServiceDefinition>;
type AnyMethod = MethodDefinition<object, object>;
const KV = services['etcdserverpb.KV'] as Record<'Range' | 'Txn', AnyMethod>;
const LEASE = services['etcdserverpb.Lease'] as Record<'LeaseGrant' | 'LeaseRevoke' | 'LeaseKeepAlive', AnyMethod>;

/** Limits per attempt. A renewal that takes longer is better asked of another member. */
const LEASE_CALL_MS = 800;
const READ_MS = 2_000;
const TRANSACT_MS = 3_000;
/** etcd ends connections that are pinged more often than every 5 s (--grpc-keepalive-min-time). */
const PING_EVERY_MS = 6_000;
const RECONNECT_MS = 100;
const RECONNECT_MOST_MS = 500;
/** Pairs per answer of a range: a few hundred KiB. */
const PAGE_PAIRS = 1_000;

export interface EtcdAddress {
  /** "host:port" each. */
  readonly endpoints: readonly string[];
  /** Of our keys, without a slash at its end. */
  readonly prefix: string;
}
const DEFAULT_PREFIX = '/ashlar';

/** What "etcd://HOST:PORT[,HOST:PORT...][/PREFIX]" says. Throws UsageError. */
export function parseEtcdAddress(text: string): EtcdAddress {
  const match = /^etcd:\/\/([^/]+)(\/[\w./-]*)?$/.exec(text);
  const endpoints = match?.[1]?.split(',') ?? [];
  if (match === null || !endpoints.every((endpoint) => /^([\w.-]+|\[[\da-f:]+\]):\d{1,5}$/i.test(endpoint)))
    throw new UsageError(
      `--store: "${text}" is no shared store: give etcd://HOST:PORT[,HOST:PORT...][/PREFIX], such as etcd://127.0.0.1:2379`,
    );
  const prefix = (match[2] ?? '').replace(/\/+$/, '');
  return { endpoints, prefix: prefix === '' ? DEFAULT_PREFIX : prefix };
}

/** Nothing is sent before the first call. */
export function openEtcd(endpoints: readonly string[]): LeaseStore {
  return new EtcdClient(endpoints);
}

interface WirePair {
  key: Buffer;
  value: Buffer;
  create_revision: string;
  lease: string;
}
interface RangeReply {
  header: { revision: string };
  kvs: WirePair[];
  more: boolean;
}
interface TxnReply {
  header: { revision: string };
  succeeded: boolean;
  responses: { response_range?: RangeReply }[];
}

class EtcdClient implements LeaseStore {
  readonly #members: readonly { readonly endpoint: string; readonly client: Client }[];
  #current = 0;

  constructor(endpoints: readonly string[]) {
    this.#members = endpoints.map((endpoint) => ({
      endpoint,
      client: new Client(endpoint, credentials.createInsecure(), {
        'grpc.keepalive_time_ms': PING_EVERY_MS,
        'grpc.keepalive_timeout_ms': PING_TIMEOUT_MS,
        'grpc.initial_reconnect_backoff_ms': RECONNECT_MS,
        'grpc.min_reconnect_backoff_ms': RECONNECT_MS,
        'grpc.max_reconnect_backoff_ms': RECONNECT_MOST_MS,
        'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
        'grpc.enable_channelz': 0,
        'grpc.use_local_subchannel_pool': 1,
      }),
    }));
  }

  async get(key: string): Promise<StoredPair | null> {
    const reply = (await this.#repeatable(KV.Range, { key: Buffer.from(key) }, READ_MS)) as RangeReply;
    return reply.kvs.length === 0 ? null : pairOf(reply.kvs[0]!);
  }

  async range(prefix: string): Promise<StoredPair[]> {
    const pairs: StoredPair[] = [];
    const range_end = endOf(prefix);
    let key = Buffer.from(prefix);
    let revision = '0';
    for (;;) {
      const request = { key, range_end, limit: PAGE_PAIRS, revision };
      const reply = (await this.#repeatable(KV.Range, request, READ_MS)) as RangeReply;
      for (const pair of reply.kvs) pairs.push(pairOf(pair));
      if (!reply.more) return pairs;
      // The pages that follow are of the same moment as the first.
      if (revision === '0') revision = reply.header.revision;
      key = Buffer.concat([reply.kvs.at(-1)!.key, Buffer.of(0)]);
    }
  }

  async transact(transaction: StoreTransaction): Promise<StoreOutcome> {
    const { compares, puts, deletes, deletePrefix, otherwise } = transaction;
    const success: object[] = [];
    for (const { key, value, lease = ABSENT } of puts)
      success.push({ request_put: { key: Buffer.from(key), value: Buffer.from(value), lease } });
    for (const key of deletes) success.push({ request_delete_range: { key: Buffer.from(key) } });
    if (deletePrefix !== undefined)
      success.push({ request_delete_range: { key: Buffer.from(deletePrefix), range_end: endOf(deletePrefix) } });
    const failure = [{ request_range: { key: Buffer.from(otherwise) } }];
    const request = { compare: compares.map(wireCompare), success, failure };
    const reply = (await this.#call(KV.Txn, request, TRANSACT_MS, wasNeverSent)) as TxnReply;
    if (reply.succeeded) return { done: true, created: reply.header.revision };
    const found = reply.responses[0]?.response_range?.kvs[0];
    return { done: false, found: found === undefined ? null : pairOf(found) };
  }

  async grant(ttlMs: number): Promise<{ lease: string; ttlMs: number }> {
    const request = { TTL: Math.ceil(ttlMs / 1_000) };
    const reply = (await this.#repeatable(LEASE.LeaseGrant, request, LEASE_CALL_MS)) as { ID: string; TTL: string };
    return { lease: reply.ID, ttlMs: Number(reply.TTL) * 1_000 };
  }

  async renew(lease: string): Promise<boolean> {
    const reply = (await this.#repeatable(LEASE.LeaseKeepAlive, { ID: lease }, LEASE_CALL_MS)) as { TTL: string };
    return Number(reply.TTL) > 0;
  }

  async revoke(lease: string): Promise<void> {
    try {
      await this.#repeatable(LEASE.LeaseRevoke, { ID: lease }, LEASE_CALL_MS);
    } catch (error) {
      if (!(error instanceof StorageError) || error.code !== 'NOT_FOUND') throw error;
    }
  }

  close(): void {
    for (const { client } of this.#members) client.close();
  }

  #repeatable(method: AnyMethod, request: object, timeoutMs: number): Promise<object> {
    return this.#call(method, request, timeoutMs, isNoAnswer);
  }

  /** One attempt with each member, from the current one on, for as long as `mayRepeat` says of the failure. */
  async #call(
    method: AnyMethod,
    request: object,
    timeoutMs: number,
    mayRepeat: (error: ServiceError) => boolean,
  ): Promise<object> {
    for (let attempt = 1; ; attempt++) {
      const at = this.#current;
      const { endpoint, client } = this.#members[at]!;
      try {
        return await attemptOf(client, method, request, timeoutMs);
      } catch (error) {
        const failure = error as ServiceError;
        if (isNoAnswer(failure) && this.#current === at) this.#current = (at + 1) % this.#members.length;
        if (attempt < this.#members.length && mayRepeat(failure)) continue;
        throw storageErrorOf(failure, endpoint);
      }
    }
  }
}

function attemptOf(client: Client, method: AnyMethod, request: object, timeoutMs: number): Promise<object> {
  const { path, requestSerialize, responseDeserialize } = method;
  const { promise, resolve, reject } = Promise.withResolvers<object>();
  const deadline = Date.now() + timeoutMs;
  if (!method.responseStream) {
    client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, { deadline }, (error, reply) => {
      if (error !== null) reject(error);
      else resolve(reply!);
    });
    return promise;
  }
  // A renewal: one request and one answer on a stream of its own.
  const stream: ClientDuplexStream<object, object> = client.makeBidiStreamRequest(
    path,
    requestSerialize,
    responseDeserialize,
    { deadline },
  );
  stream.on('data', (reply: object) => {
    resolve(reply);
    stream.cancel();
  });
  stream.on('error', reject); // after the answer: the cancellation, which nobody hears
  stream.on('end', () => reject(Object.assign(new Error('no answer'), { code: status.UNAVAILABLE, details: 'ended' })));
  stream.write(request);
  return promise;
}

const isNoAnswer = ({ code }: ServiceError): boolean =>
  code === status.UNAVAILABLE || code === status.DEADLINE_EXCEEDED || code === status.CANCELLED;

function storageErrorOf(error: ServiceError, endpoint: string): StorageError {
  const message = `etcd at ${endpoint}: ${error.details ?? error.message}`;
  switch (error.code) {
    case status.NOT_FOUND:
      return new StorageError('NOT_FOUND', message, error);
    case status.INVALID_ARGUMENT:
    case status.FAILED_PRECONDITION:
      return new StorageError('INVALID', message, error);
    case status.RESOURCE_EXHAUSTED: // its space quota is used up, or the request is too large
      return new StorageError('NO_SPACE', message, error);
    default:
      return new StorageError('UNAVAILABLE', message, error);
  }
}

function wireCompare(compare: StoreCompare): object {
  const key = Buffer.from(compare.key);
  return 'value' in compare
    ? { result: 'EQUAL', target: 'VALUE', key, value: Buffer.from(compare.value) }
    : { result: 'EQUAL', target: 'CREATE', key, create_revision: compare.created };
}

const pairOf = ({ key, value, create_revision, lease }: WirePair): StoredPair => ({
  key: key.toString(),
  value: value.toString(),
  created: create_revision,
  lease,
});

/** The first key after all that begin with `prefix`. Text in UTF-8 has no byte 255, so the last byte can grow. */
function endOf(prefix: string): Buffer {
  const end = Buffer.from(prefix);
  end[end.length - 1]!++;
  return end;
}
