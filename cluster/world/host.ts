// Which machine this is, for "do we share a unix socket": the kernel's boot id, and the host name, which differs between
// containers of one kernel.

import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';

/** Equal for two processes that run on one machine and in one container. */
export function hostId(): string {
  return `${hostname()}/${readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()}`;
}
