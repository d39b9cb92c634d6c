// Which requests must be refused before anything is done, and with which error: the protocol document's table.
//
//                 READ     WRITE    ZEROES   TRIM     CACHE    STATUS
// past the end    EINVAL   ENOSPC   ENOSPC   EINVAL   EINVAL   EINVAL
// read-only       -        EPERM    EPERM    EPERM    -        -
// misaligned, unknown command, a flag that is unknown, not of this command or not negotiated:   EINVAL
// too long        EINVAL   EINVAL   -        -        -        -         (effects without payload have no limit)
//
// Refusals are constants: to refuse a request allocates nothing.

import { Command, CommandFlag, Errno, TransmissionFlag } from './constants.ts';
import type { Negotiated } from './handshake.ts';
import type { RequestHeader } from './request-decoder.ts';

export interface Refusal {
  readonly error: Errno;
  /** For a human: sent with structured replies. */
  readonly message: string;
}

const UNKNOWN_COMMAND: Refusal = { error: Errno.EINVAL, message: 'unknown command' };
const UNKNOWN_FLAG: Refusal = { error: Errno.EINVAL, message: 'a flag that this command does not take here' };
const NOT_OFFERED: Refusal = { error: Errno.EINVAL, message: 'the export does not offer this command' };
const READ_ONLY: Refusal = { error: Errno.EPERM, message: 'the export is read-only' };
const MISALIGNED: Refusal = { error: Errno.EINVAL, message: 'not a multiple of the minimum block size' };
const TOO_LONG: Refusal = { error: Errno.EINVAL, message: 'longer than the maximum payload' };
const PAST_END: Refusal = { error: Errno.EINVAL, message: 'past the end of the export' };
const NO_SPACE: Refusal = { error: Errno.ENOSPC, message: 'past the end of the export' };
const NO_CONTEXT: Refusal = { error: Errno.EINVAL, message: 'no metadata context was negotiated' };
const EMPTY_STATUS: Refusal = { error: Errno.EINVAL, message: 'block status of nothing' };
const FLUSH_RANGE: Refusal = { error: Errno.EINVAL, message: 'flush takes no range' };

/** What the rules depend on. `sizeBytes` may change while requests come. */
export interface RequestRules {
  sizeBytes: number;
  /** TransmissionFlag bits told to the client. */
  readonly flags: number;
  readonly allocationContext: boolean;
  readonly minimumBlockBytes: number;
  readonly maximumPayloadBytes: number;
}

export function rulesOf(negotiated: Negotiated): RequestRules {
  return {
    sizeBytes: negotiated.terms.sizeBytes,
    flags: negotiated.flags,
    allocationContext: negotiated.allocationContext,
    minimumBlockBytes: negotiated.terms.minimumBlockBytes,
    maximumPayloadBytes: negotiated.terms.maximumPayloadBytes,
  };
}

/** Why the request must not be carried out, or null if it may. DISC is never refused. */
export function refusalOf(request: RequestHeader, rules: RequestRules): Refusal | null {
  const { command, flags } = request;
  if (command > Command.BLOCK_STATUS) return UNKNOWN_COMMAND;
  if (command === Command.DISC) return null;
  if (flags !== 0 && (flags & ~allowedFlags(command, rules)) !== 0) return UNKNOWN_FLAG;
  switch (command) {
    case Command.READ:
      if (request.lengthBytes > rules.maximumPayloadBytes) return TOO_LONG;
      return rangeRefusal(request, rules, PAST_END);
    case Command.WRITE:
      if ((rules.flags & TransmissionFlag.READ_ONLY) !== 0) return READ_ONLY;
      if (request.lengthBytes > rules.maximumPayloadBytes) return TOO_LONG;
      return rangeRefusal(request, rules, NO_SPACE);
    case Command.FLUSH:
      if ((rules.flags & TransmissionFlag.SEND_FLUSH) === 0) return NOT_OFFERED;
      return request.offset === 0 && request.lengthBytes === 0 ? null : FLUSH_RANGE;
    case Command.TRIM:
      if ((rules.flags & TransmissionFlag.READ_ONLY) !== 0) return READ_ONLY;
      if ((rules.flags & TransmissionFlag.SEND_TRIM) === 0) return NOT_OFFERED;
      return rangeRefusal(request, rules, PAST_END);
    case Command.WRITE_ZEROES:
      if ((rules.flags & TransmissionFlag.READ_ONLY) !== 0) return READ_ONLY;
      if ((rules.flags & TransmissionFlag.SEND_WRITE_ZEROES) === 0) return NOT_OFFERED;
      return rangeRefusal(request, rules, NO_SPACE);
    case Command.CACHE:
      if ((rules.flags & TransmissionFlag.SEND_CACHE) === 0) return NOT_OFFERED;
      return rangeRefusal(request, rules, PAST_END);
    default:
      if (!rules.allocationContext) return NO_CONTEXT;
      if (request.lengthBytes === 0) return EMPTY_STATUS;
      return rangeRefusal(request, rules, PAST_END);
  }
}

/** By subtraction, so that offset + length can't lose digits; an offset that no Number holds is Infinity. */
function rangeRefusal(request: RequestHeader, rules: RequestRules, pastEnd: Refusal): Refusal | null {
  const { offset, lengthBytes } = request;
  if (offset > rules.sizeBytes || lengthBytes > rules.sizeBytes - offset) return pastEnd;
  const block = rules.minimumBlockBytes;
  if (block > 1 && (offset % block !== 0 || lengthBytes % block !== 0)) return MISALIGNED;
  return null;
}

/** FUA is legal with every command once it is offered; the others belong to one command each. */
function allowedFlags(command: number, rules: RequestRules): number {
  const offered = rules.flags;
  let allowed = (offered & TransmissionFlag.SEND_FUA) !== 0 ? CommandFlag.FUA : 0;
  switch (command) {
    case Command.READ:
      if ((offered & TransmissionFlag.SEND_DF) !== 0) allowed |= CommandFlag.DF;
      break;
    case Command.WRITE_ZEROES:
      allowed |= CommandFlag.NO_HOLE;
      if ((offered & TransmissionFlag.SEND_FAST_ZERO) !== 0) allowed |= CommandFlag.FAST_ZERO;
      break;
    case Command.BLOCK_STATUS:
      allowed |= CommandFlag.REQ_ONE;
      break;
  }
  return allowed;
}
