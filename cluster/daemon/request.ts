// A client's request on its way through a PG: the frame and whom to answer.

import { type ErrorCode, wireStatus } from '../../proto/errors.ts';
import { type Frame, Op, replyTo } from '../../proto/frame.ts';
import { BLOCK_BYTES, OBJECT_ORDER_MAX, OBJECT_ORDER_MIN } from '../../proto/limits.ts';
import { type ImageEntry, pgOfObject, type StorageMap } from '../../proto/map.ts';
import type { Connection } from '../../proto/ports.ts';

export interface Request {
  readonly frame: Frame;
  readonly from: Connection;
}

/** Answers with an error; `epoch` tells the client which map explains it. */
export function refuse(request: Request, code: ErrorCode, epoch: number): void {
  request.from.send(replyTo(request.frame, wireStatus(code), epoch));
}

/** Why a request that changes or reads an object can't be carried out, or null. The frame's epoch was checked before. */
export function invalidRequest(frame: Frame, map: StorageMap): ErrorCode | null {
  const image = map.images.get(frame.image);
  if (image === undefined) return 'NOT_FOUND';
  if (frame.op === Op.LIST) return null;
  const pool = map.pools.get(image.pool);
  if (pool === undefined || pgOfObject(pool, frame.image, frame.object) !== frame.pg) return 'INVALID';
  if (frame.order !== image.order || frame.order < OBJECT_ORDER_MIN || frame.order > OBJECT_ORDER_MAX) return 'INVALID';
  if (fenced(frame, image)) return 'FENCED';
  if (frame.op === Op.DELETE || frame.op === Op.STATUS) return null;
  const { offset, length } = frame;
  if (offset % BLOCK_BYTES !== 0 || length % BLOCK_BYTES !== 0 || length === 0) return 'INVALID';
  if (offset + length > 1 << frame.order) return 'INVALID';
  if (frame.op !== Op.WRITE) return null;
  if (frame.payload?.length !== length || frame.meta?.length !== (length / BLOCK_BYTES) * 4) return 'INVALID';
  return null;
}

/** A writer needs the newest lock; so does a reader that says it has one. A reader without (fence 0) may read. */
function fenced(frame: Frame, image: ImageEntry): boolean {
  const writes = frame.op === Op.WRITE || frame.op === Op.ZERO || frame.op === Op.DELETE;
  return (writes || frame.fence !== 0) && frame.fence < image.fence;
}
