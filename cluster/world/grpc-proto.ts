// What both ends of the gRPC carrier share: the service as proto/master.proto describes it, how StorageErrors travel,
// and the times after which a silent connection is taken for dead.

import { join } from 'node:path';
import {
  logVerbosity,
  type Metadata,
  type MethodDefinition,
  type ServiceDefinition,
  setLogVerbosity,
  status,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { ControlMethod } from '../../proto/control.ts';
import { type ErrorCode, NotLeaderError, StorageError } from '../../proto/errors.ts';

// What goes wrong is in the errors that calls get; the library's own lines on stderr would say it twice, as no JSON.
setLogVerbosity(logVerbosity.NONE);

const SCHEMA = join(import.meta.dirname, '../../proto/master.proto');

/** Messages are plain objects with the fields of proto/control.ts: camelCase, enums by name, 64 bits as numbers. */
export const masterService = loadSync(SCHEMA, {
  keepCase: false,
  longs: Number,
  enums: String,
  defaults: true,
  arrays: true,
  objects: true,
  oneofs: false,
})['ashlar.v1.Master'] as ServiceDefinition;

type AnyMethod = MethodDefinition<object, object>;

/** rpc LockImage for lockImage. */
export const rpcName = (method: ControlMethod | 'subscribe'): string =>
  method.charAt(0).toUpperCase() + method.slice(1);
export const rpcOf = (method: ControlMethod | 'subscribe'): AnyMethod => masterService[rpcName(method)] as AnyMethod;

/** Every unary method, as control.ts calls it. */
export const CONTROL_METHODS = Object.keys(masterService)
  .filter((name) => name !== 'Subscribe')
  .map((name) => (name.charAt(0).toLowerCase() + name.slice(1)) as ControlMethod);

/** A full map of many thousand PGs, or a status with their reports, must fit. */
export const MESSAGE_BYTES_MAX = 64 * 2 ** 20;

/**
 * Each side pings a connection that carries streams this often, and ends it when no answer comes: a stopped process or
 * a vanished machine is noticed after the sum at the latest. One ping in two seconds is nothing to an idle machine.
 */
export const PING_EVERY_MS = 2_000;
export const PING_TIMEOUT_MS = 2_000;

/** Trailer that carries the code; the status code is for tools that know gRPC but not Ashlar. */
export const CODE_TRAILER = 'ashlar-code';
/** Trailer of a NotLeaderError: where the leader is, or empty. */
export const LEADER_TRAILER = 'ashlar-leader';

const GRPC_STATUS: Partial<Record<ErrorCode, status>> = {
  STALE: status.ABORTED,
  INVALID: status.INVALID_ARGUMENT,
  NOT_FOUND: status.NOT_FOUND,
  EXISTS: status.ALREADY_EXISTS,
  IDENTITY: status.PERMISSION_DENIED,
  BUSY: status.FAILED_PRECONDITION,
  UNAVAILABLE: status.UNAVAILABLE,
  TIMEOUT: status.DEADLINE_EXCEEDED,
  UNSUPPORTED: status.UNIMPLEMENTED,
};
export const grpcStatusOf = (code: ErrorCode): status => GRPC_STATUS[code] ?? status.UNKNOWN;

/** The StorageError that a failed call means. Without a trailer no answer came from the master itself. */
export function storageErrorOf(error: { code: status; details: string; metadata?: Metadata }): StorageError {
  const leader = error.metadata?.get(LEADER_TRAILER)[0];
  if (typeof leader === 'string') return new NotLeaderError(leader);
  const code = error.metadata?.get(CODE_TRAILER)[0];
  if (typeof code === 'string') return new StorageError(code as ErrorCode, error.details, error);
  switch (error.code) {
    case status.UNIMPLEMENTED:
      return new StorageError('UNSUPPORTED', `the master does not know this call: ${error.details}`, error);
    case status.INTERNAL:
    case status.UNKNOWN:
    case status.INVALID_ARGUMENT:
      return new StorageError('IO', `the master failed: ${error.details}`, error);
    default:
      return new StorageError('UNAVAILABLE', `no answer from the master: ${error.details}`, error);
  }
}

/** What the library says when there was no connection; it has no code for it. */
export const NEVER_SENT = 'No connection established';
/** A call that failed so can't have been carried out. */
export const wasNeverSent = ({ code, details }: { code: status; details: string }): boolean =>
  code === status.UNAVAILABLE && details.includes(NEVER_SENT);
