// The one error of Ashlar's world: what went wrong, said once, with a stable code.
//
// A wrong program asserts and crashes. A wrong world is a StorageError: its code travels on the wire (frames carry the
// number, gRPC the name); only a gateway's last step turns it into an errno or an HTTP status.

/** code: [number on the wire, may the same request succeed later without anybody doing anything?] */
const CODES = {
  OK: [0, false],
  /** The request was stamped with an older interval than the one in force: learn the map, send again. */
  STALE: [1, true],
  /** The daemon is not the primary, or not a member, of this PG in the current interval. */
  NOT_PRIMARY: [2, true],
  /** No space left on a member of the acting set. */
  NO_SPACE: [3, false],
  /** Stored data fails its checksum, or a disk failed. */
  IO: [4, false],
  /** Refused: malformed, misaligned or outside the object. */
  INVALID: [5, false],
  /** The image's lock has a newer owner. */
  FENCED: [6, false],
  NOT_FOUND: [7, false],
  EXISTS: [8, false],
  /** The other side belongs to another cluster, or is another process than the map says. */
  IDENTITY: [9, false],
  /** The payload does not match the checksums it came with. */
  CHECKSUM: [10, true],
  /** Somebody else holds the lock, or the thing is in use. */
  BUSY: [11, false],
  /** Not now: shutting down, or the other side cannot be reached. */
  UNAVAILABLE: [12, true],
  TIMEOUT: [13, true],
  READ_ONLY: [14, false],
  /** Protocol version or feature that this side does not have. */
  UNSUPPORTED: [15, false],
} as const satisfies Record<string, readonly [number, boolean]>;

export type ErrorCode = keyof typeof CODES;

const NAMES: ErrorCode[] = [];
for (const [name, [wire]] of Object.entries(CODES)) NAMES[wire] = name as ErrorCode;

/** Number of a code in a frame's status field. */
export const wireStatus = (code: ErrorCode): number => CODES[code][0];
/** Code of a frame's status field; a number from a newer peer reads as IO. */
export const codeOfStatus = (status: number): ErrorCode => NAMES[status] ?? 'IO';

export class StorageError extends Error {
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'StorageError';
    this.code = code;
  }
  /** May the same request succeed later without anybody doing anything? */
  get retryable(): boolean {
    return CODES[this.code][1];
  }
}

/** Asked the wrong one of several masters: nothing was done, and the same request may go to the one who leads. */
export class NotLeaderError extends StorageError {
  /** "host:port" of the master that leads; "" if that is not known. */
  readonly leader: string;
  constructor(leader: string) {
    super('UNAVAILABLE', leader === '' ? 'no master leads at the moment' : `not the leader: the leader is ${leader}`);
    this.name = 'NotLeaderError';
    this.leader = leader;
  }
}
