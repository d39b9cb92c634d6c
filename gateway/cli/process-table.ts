// D/processes.json: who runs, from which anyone can kill and restart one by hand; kept true.
//
//   [{"role":"daemon","id":2,"pid":4711,"address":"127.0.0.1:21002","argv":["/…/node","/…/main.ts",…],"cwd":"/…"}, …]
//
// A process that died stays in the table with pid null, so that its argv can be found. One that somebody started again
// by hand is found by the status file that every role writes (D/run/ROLE-N.json), and its pid goes into the table.
// The file is replaced as a whole, by rename: a reader never sees half of it.

import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface ProcessEntry {
  role: 'master' | 'daemon' | 'nbd' | 's3' | 'meta' | 'mount';
  /** Daemons: their number in the map. Others: 1. */
  id: number;
  /** null: not running. */
  pid: number | null;
  address: string;
  argv: readonly string[];
  cwd: string;
}

const ORDER: ProcessEntry['role'][] = ['master', 'daemon', 'nbd', 's3', 'meta', 'mount'];
/** How often the table looks after processes that are not this process's children. */
const LOOK_MS = 250;

export class ProcessTable {
  /** Somebody started a process of the table by hand, or one of those died. */
  onChange: ((entry: ProcessEntry, event: 'adopted' | 'lost') => void) | null = null;
  readonly #path: string;
  readonly #entries: { entry: ProcessEntry; statusFile: string; adopted: boolean }[] = [];
  readonly #timer: NodeJS.Timeout;

  constructor(directory: string) {
    this.#path = join(directory, 'processes.json');
    this.#timer = setInterval(() => this.#look(), LOOK_MS);
  }

  get entries(): readonly ProcessEntry[] {
    return this.#entries.map((row) => row.entry);
  }
  /** Adds a process that runs as our child. */
  add(entry: ProcessEntry, statusFile: string): void {
    this.#entries.push({ entry, statusFile, adopted: false });
    this.#entries.sort(({ entry: a }, { entry: b }) => ORDER.indexOf(a.role) - ORDER.indexOf(b.role) || a.id - b.id);
    this.#write();
  }
  /** Our child is gone (null), or a new one runs in its place. */
  setPid(entry: ProcessEntry, pid: number | null): void {
    const row = this.#entries.find((candidate) => candidate.entry === entry)!;
    if (pid === null) forgetStatus(row.statusFile, entry.pid);
    entry.pid = pid;
    row.adopted = false;
    this.#write();
  }
  /** Runs, but not as our child: we learn of its end only by looking. */
  isAdopted(entry: ProcessEntry): boolean {
    return this.#entries.some((row) => row.entry === entry && row.adopted);
  }
  close(): void {
    clearInterval(this.#timer);
  }

  #look(): void {
    for (const row of this.#entries) {
      const { entry } = row;
      if (entry.pid === null) {
        const pid = pidOfStatus(row.statusFile);
        if (pid === null || !runsArgv(pid, entry.argv)) continue;
        row.adopted = true;
        entry.pid = pid;
        this.#write();
        this.onChange?.(entry, 'adopted');
      } else if (row.adopted && !runsArgv(entry.pid, entry.argv)) {
        this.setPid(entry, null);
        this.onChange?.(entry, 'lost');
      }
    }
  }
  #write(): void {
    const temporary = `${this.#path}.new`;
    writeFileSync(temporary, `${JSON.stringify(this.entries, null, 2)}\n`);
    renameSync(temporary, this.#path);
  }
}

/** The table as an earlier `ashlar up` left it: [] if there was none. */
export function readProcesses(directory: string): ProcessEntry[] {
  try {
    return JSON.parse(readFileSync(join(directory, 'processes.json'), 'utf8')) as ProcessEntry[];
  } catch {
    return [];
  }
}

/** Does process `pid` run exactly this command line? Pids are used again; command lines with our paths are not. */
export function runsArgv(pid: number, argv: readonly string[]): boolean {
  try {
    const running = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1);
    return running.length === argv.length && running.slice(1).every((word, i) => word === argv[i + 1]);
  } catch {
    return false;
  }
}

function pidOfStatus(statusFile: string): number | null {
  try {
    return (JSON.parse(readFileSync(statusFile, 'utf8')) as { pid: number }).pid;
  } catch {
    return null;
  }
}

/** A killed process could not take its status file back. */
function forgetStatus(statusFile: string, pid: number | null): void {
  if (pid !== null && pidOfStatus(statusFile) === pid) rmSync(statusFile, { force: true });
}
