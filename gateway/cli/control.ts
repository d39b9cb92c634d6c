// The CLI's way to the master: found by --master, by ASHLAR_MASTER, or by the processes.json of an `ashlar up` in the
// usual place.

import { type MasterLink, openControlLink } from '../../cluster/world/grpc-link.ts';
import { UsageError } from '../../cluster/world/options.ts';
import { readProcesses } from './process-table.ts';

const USUAL_DIRECTORY = './ashlar-data';

export function openMaster(address: string): MasterLink {
  return openControlLink(address);
}

/** @param given value of --master, from wherever; "" if there is none. Throws UsageError if nothing tells. */
export function masterAddress(given: string): string {
  if (given !== '') return given;
  const master = readProcesses(USUAL_DIRECTORY).find((entry) => entry.role === 'master');
  if (master !== undefined) return master.address;
  throw new UsageError(
    `--master is missing: pass it, set ASHLAR_MASTER, or run this where ${USUAL_DIRECTORY} of an ashlar up is`,
  );
}
