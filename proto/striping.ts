// Striping: where a byte of an image lives, as RBD lays it out (Ceph documentation, "File striping").
//
// An image is cut into stripe units; `stripeCount` objects form a set; units go round the objects of a set until these
// are full, then the next set follows. With stripeCount 1 the unit is the whole object: object = offset / objectSize.
//
//   unit 64 KiB, count 2, object 128 KiB:   object 0: units 0 2    object 1: units 1 3    object 2: units 4 6 ...

import assert from 'node:assert/strict';
import { BLOCK_BYTES, OBJECT_ORDER_MAX, OBJECT_ORDER_MIN } from './limits.ts';

export interface Layout {
  /** log2 of the object size in bytes. */
  readonly order: number;
  /** Bytes before moving on to the next object; a power of two, 4 KiB to the object size. */
  readonly stripeUnit: number;
  /** Objects that share a stripe. */
  readonly stripeCount: number;
}

/** A byte range in one object, and where in the request it belongs. */
export interface ObjectExtent {
  object: number;
  /** Bytes into the object. */
  offset: number;
  length: number;
  /** Bytes into the request's buffer. */
  at: number;
}

/** Why this layout can't be, or null if it can. */
export function invalidLayout(layout: Layout): string | null {
  const { order, stripeUnit, stripeCount } = layout;
  if (!Number.isInteger(order) || order < OBJECT_ORDER_MIN || order > OBJECT_ORDER_MAX)
    return `object size must be a power of two from 64 KiB to 32 MiB (order ${OBJECT_ORDER_MIN} to ${OBJECT_ORDER_MAX}), not order ${order}`;
  const objectBytes = 1 << order;
  if (
    !Number.isInteger(stripeUnit) ||
    stripeUnit < BLOCK_BYTES ||
    stripeUnit > objectBytes ||
    objectBytes % stripeUnit !== 0 ||
    !Number.isInteger(Math.log2(stripeUnit))
  )
    return `stripe unit must be a power of two from 4 KiB to the object size, not ${stripeUnit}`;
  if (!Number.isInteger(stripeCount) || stripeCount < 1 || stripeCount > 64)
    return `stripe count must be 1 to 64, not ${stripeCount}`;
  if (stripeCount === 1 && stripeUnit !== objectBytes)
    return 'a stripe unit below the object size needs a stripe count above 1';
  return null;
}

/** Objects that an image of `sizeBytes` can touch: numbers 0 to the result - 1. */
export function objectCount(layout: Layout, sizeBytes: number): number {
  const setBytes = (1 << layout.order) * layout.stripeCount;
  return Math.ceil(sizeBytes / setBytes) * layout.stripeCount;
}

/** Cuts a byte range of the image into extents of objects, in the order of the image; joins neighbours in one object. */
export function extentsOf(layout: Layout, offset: number, length: number): ObjectExtent[] {
  assert(offset >= 0 && length >= 0);
  const { stripeUnit, stripeCount } = layout;
  const objectBytes = 1 << layout.order;
  const unitsPerObject = objectBytes / stripeUnit;
  const extents: ObjectExtent[] = [];
  let last: ObjectExtent | null = null;
  for (let done = 0; done < length; ) {
    const position = offset + done;
    const unit = Math.floor(position / stripeUnit);
    const stripe = Math.floor(unit / stripeCount);
    const object = Math.floor(stripe / unitsPerObject) * stripeCount + (unit % stripeCount);
    const inUnit = position % stripeUnit;
    const inObject = (stripe % unitsPerObject) * stripeUnit + inUnit;
    const take = Math.min(stripeUnit - inUnit, length - done);
    if (
      last !== null &&
      last.object === object &&
      last.offset + last.length === inObject &&
      last.at + last.length === done
    )
      last.length += take;
    else {
      last = { object, offset: inObject, length: take, at: done };
      extents.push(last);
    }
    done += take;
  }
  return extents;
}
