// How the CLI writes for people: tables, sizes, durations, progress. --json bypasses all of it.

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** "10 GiB", "1.5 MiB", "512 bytes". */
export function sizeText(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${UNITS[unit]}`;
}

/** An estimate as people say one: "about 20 s", "about 3 min", "about 2 h". */
export function aboutText(seconds: number): string {
  if (seconds < 100) return `about ${Math.max(1, seconds)} s`;
  if (seconds < 100 * 60) return `about ${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `about ${Math.round(seconds / 3600)} h`;
  return `about ${Math.round(seconds / 86_400)} days`;
}

/** Columns aligned, two spaces apart; numbers to the right. "" if there are no rows and no heading. */
export function table(heading: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const all = [heading, ...rows.map((row) => row.map(String))];
  const widths = heading.map((_, column) => Math.max(...all.map((row) => (row[column] ?? '').length)));
  const rightward = heading.map((_, column) => rows.length > 0 && rows.every((row) => typeof row[column] === 'number'));
  return all
    .map((row) =>
      row
        .map((cell, column) => (rightward[column] ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

const BAR_CELLS = 30;

/** "[##########--------------------]  33 %" */
export function bar(done: number, total: number): string {
  const part = total === 0 ? 1 : Math.min(1, done / total);
  const cells = Math.floor(part * BAR_CELLS);
  return `[${'#'.repeat(cells)}${'-'.repeat(BAR_CELLS - cells)}] ${String(Math.floor(part * 100)).padStart(3)} %`;
}

/** Plain lines come no closer than this, so that a log stays readable. */
const PLAIN_LINE_MS = 2_000;

/** Progress of long work on stderr: a bar that redraws itself on a terminal, a line now and then elsewhere. */
export class Progress {
  readonly #what: string;
  #saidAt = Number.NEGATIVE_INFINITY;
  constructor(what: string) {
    this.#what = what;
  }
  show(done: number, total: number): void {
    const text = `${this.#what} ${bar(done, total)} ${done} of ${total}`;
    if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}${done >= total ? '\n' : ''}`);
    else if (done >= total || performance.now() - this.#saidAt > PLAIN_LINE_MS) {
      this.#saidAt = performance.now();
      process.stderr.write(`${text}\n`);
    }
  }
}
