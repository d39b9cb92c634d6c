// Where the roles' programs are. A role runs as its main file, whether `ashlar ROLE` or `ashlar up` starts it; nothing
// of master or daemon is imported here: gateways and roles meet on the wire.

import { fileURLToPath } from 'node:url';

const MAINS = {
  master: '../../cluster/master/main.ts',
  daemon: '../../cluster/daemon/main.ts',
  nbd: '../nbd/main.ts',
} as const;
export type RoleName = keyof typeof MAINS;

/** Commands of the master that work on its store while no master runs: programs of their own, too. */
const MASTER_COMMANDS = {
  recover: '../../cluster/master/recover-main.ts',
  restore: '../../cluster/master/restore-main.ts',
} as const;
export type MasterCommand = keyof typeof MASTER_COMMANDS;

export const ROLE_SUMMARIES: Record<RoleName, string> = {
  master: 'run the master: it keeps and publishes the storage map; or: master backup, restore, recover',
  daemon: 'run a storage daemon: one per disk',
  nbd: 'run an NBD gateway: it serves images to NBD clients',
};

/**
 * Options that Node runs a role with. A small young generation keeps the memory of a role near 150 MiB; a larger one
 * brings nothing, since little is allocated per request (BENCHMARKS.md).
 */
export const NODE_OPTIONS_OF_ROLES: readonly string[] = ['--max-semi-space-size=2'];

/** Path of a role's main file. In a package they are compiled: the same place, another suffix. */
export const roleMain = (role: RoleName): string => pathOf(MAINS[role]);

function pathOf(main: string): string {
  const suffix = import.meta.url.endsWith('.js') ? '.js' : '.ts';
  return fileURLToPath(new URL(main.replace(/\.ts$/, suffix), import.meta.url));
}

/** Makes this process the role, with the rest of the command line as its own. */
export async function becomeRole(role: RoleName, args: readonly string[]): Promise<void> {
  await becomeProgram(roleMain(role), args);
}

export async function becomeMasterCommand(name: MasterCommand, args: readonly string[]): Promise<void> {
  await becomeProgram(pathOf(MASTER_COMMANDS[name]), args);
}

async function becomeProgram(path: string, args: readonly string[]): Promise<void> {
  process.argv = [process.argv[0]!, path, ...args];
  await import(path);
}
