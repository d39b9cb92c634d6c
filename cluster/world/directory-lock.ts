// One process per directory: a lock file that names its owner, and is void when the owner is dead.
//
// The owner is known by pid and start time, so that another process that got the same pid later is not taken for it.

import { linkSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { UsageError } from './options.ts';

interface Owner {
  pid: number;
  started: string;
}

/**
 * Takes the directory for this process until it ends or calls the result. Throws UsageError naming a live owner.
 * @param user what uses it, for the message: "ashlar up"
 */
export function lockDirectory(directory: string, user: string): () => void {
  const path = join(directory, 'lock');
  const mine = join(directory, `.lock.${process.pid}`);
  const self: Owner = { pid: process.pid, started: startTimeOf(process.pid) ?? '' };
  writeFileSync(mine, JSON.stringify(self));
  try {
    for (;;) {
      try {
        linkSync(mine, path); // fails if it exists: one of two that come at the same time wins
        const release = (): void => rmSync(path, { force: true });
        process.once('exit', release); // also when what follows is refused
        return release;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
      const owner = readOwner(path);
      if (owner !== null && isAlive(owner))
        throw new UsageError(
          `--dir ${directory} is in use by another ${user} (process ${owner.pid}): stop that one, or choose another directory`,
        );
      rmSync(path, { force: true });
    }
  } finally {
    rmSync(mine, { force: true });
  }
}

/** Is this very process, not just one with the same number, running? */
const isAlive = (owner: Owner): boolean => startTimeOf(owner.pid) === owner.started;

/**
 * Clock ticks from boot to the start of a process (proc(5), field 22); null if there is none, or only the remains of one
 * that ended and that nobody has waited for (state Z, field 3).
 */
function startTimeOf(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' '); // the name may hold spaces and brackets
    return fields[0] === 'Z' ? null : (fields[19] ?? null);
  } catch {
    return null;
  }
}

function readOwner(path: string): Owner | null {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Owner;
  } catch {
    return null; // torn by a crash, or gone: nobody's
  }
}
