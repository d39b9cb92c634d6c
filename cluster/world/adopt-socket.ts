// Gives an accepted connection the `onread` option, which says where each read's bytes go.
//
// `onread` is an option of a socket's constructor only, and a server makes its sockets itself: so the accepted
// connection's handle is moved to a new socket. Without it each read costs a new 64 KiB block.

import { Socket } from 'node:net';

/**
 * Where sockets read to unless they have a better place: one block for all of them, because whoever gets the bytes has
 * looked at all of them, or copied what it keeps, before it returns to the event loop.
 */
export const READ_SLAB = Buffer.allocUnsafeSlow(256 * 1024);

export interface OnRead {
  /** Where the next read goes. */
  readonly buffer: () => Buffer;
  /** So many bytes have come. False: pause. */
  readonly callback: (bytes: number) => boolean;
}

/** A socket with `onread` on the connection of `accepted`, which is empty afterwards; null if that can't be done. */
export function adoptSocket(accepted: Socket, onread: OnRead): Socket | null {
  const shell = accepted as unknown as { _handle?: object | null };
  const handle = shell._handle;
  if (typeof handle !== 'object' || handle === null) return null;
  shell._handle = null;
  accepted.destroy();
  // `handle` is not among the documented options, though every server's own sockets are made with it.
  return new Socket({ handle, allowHalfOpen: true, onread } as ConstructorParameters<typeof Socket>[0]);
}
