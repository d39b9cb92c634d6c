// What a master says, and ends with, when somebody of its cluster has seen a newer map than its store holds.

import { StorageError } from '../../proto/errors.ts';
import type { Epoch } from '../../proto/ids.ts';

/** UNAVAILABLE, not IDENTITY: the other side is right, and must live to meet the right master. */
export function outdatedError(who: string, theirs: Epoch, mine: Epoch): StorageError {
  return new StorageError(
    'UNAVAILABLE',
    `${who} has seen map epoch ${theirs}, this master's store ends at ${mine}: it is an old copy and must not be ` +
      'served from; put the newest store back, or rebuild it: ashlar master recover --from-daemons --dir NEW',
  );
}
