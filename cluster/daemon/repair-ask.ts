// One question of a primary to a member, as a promise: for repair and scrub, where a promise per question costs nothing.

import { codeOfStatus, StorageError } from '../../proto/errors.ts';
import type { Frame } from '../../proto/frame.ts';
import type { DaemonId } from '../../proto/ids.ts';
import type { Daemon } from './daemon.ts';

/**
 * Rejects with StorageError: UNAVAILABLE if there is no answer or the member is in another interval, else why it refuses.
 */
export function askMember(daemon: Daemon, id: DaemonId, frame: Frame): Promise<Frame> {
  return new Promise((resolve, reject) => {
    daemon.peer(id).request(frame, {
      onReply: (reply) => {
        const code = codeOfStatus(reply.status);
        if (code === 'OK') resolve(reply);
        else reject(new StorageError(code === 'STALE' ? 'UNAVAILABLE' : code, `daemon ${id} refuses: ${code}`));
      },
      onLost: () => reject(new StorageError('UNAVAILABLE', `lost the connection to daemon ${id}`)),
    });
  });
}
