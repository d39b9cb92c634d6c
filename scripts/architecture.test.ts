// The rules that ARCHITECTURE.md states about imports and cores, as tests over the text of all sources.
//
//   1. imports point one way: gateway -> cluster/client -> proto; master, daemon, client and store never import each
//      other, but daemon -> store; cluster/world (real clocks, sockets, disks) is for main files; only cluster/sim
//      sees every core
//   2. cores do no I/O and have no time or chance of their own: these come in through proto/ports.ts
//   3. gateway/nbd-protocol-ts stands alone
//   4. no file is longer than LINES_MAX
//
// Tests are free to import what they need and to use real time. A file that must break a rule is listed in ADAPTERS
// with its reason; an entry that no file needs any more fails.

import { globSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..');
const LINES_MAX = 600;

/** Area of a source: the longest of these that its path begins with. */
const AREAS = [
  'proto',
  'cluster/master',
  'cluster/daemon',
  'cluster/store',
  'cluster/client',
  'cluster/meta',
  'cluster/sim',
  'cluster/world',
  'gateway/nbd-protocol-ts',
  'gateway',
  'scripts',
  'vm-tests',
] as const;
type Area = (typeof AREAS)[number];

/** What each area may import besides itself. */
const MAY_IMPORT: Record<Area, readonly Area[]> = {
  proto: [],
  'cluster/master': ['proto'],
  'cluster/daemon': ['proto', 'cluster/store'],
  'cluster/store': ['proto'],
  'cluster/client': ['proto'],
  'cluster/meta': ['proto'],
  'cluster/sim': ['proto', 'cluster/master', 'cluster/daemon', 'cluster/store', 'cluster/client', 'cluster/meta'],
  'cluster/world': ['proto'],
  'gateway/nbd-protocol-ts': [],
  gateway: ['proto', 'cluster/client', 'cluster/meta', 'gateway/nbd-protocol-ts'],
  scripts: ['proto', 'cluster/client', 'cluster/world', 'gateway', 'gateway/nbd-protocol-ts', 'vm-tests'],
  'vm-tests': AREAS,
};

/** Areas whose files are cores. gateways' other files talk to sockets and kernels: that is what they are for. */
const CORE_AREAS: readonly Area[] = [
  'proto',
  'cluster/master',
  'cluster/daemon',
  'cluster/store',
  'cluster/client',
  'cluster/meta',
  'cluster/sim',
  'gateway/nbd-protocol-ts',
];

/** Files that tie a core to the world, and why each of them may: they may import cluster/world and use node's I/O. */
const ADAPTERS: Record<string, string> = {
  'cluster/master/main.ts': 'the process: argv, signals, the gRPC server, the SQLite file',
  'cluster/master/recover-main.ts': 'the process that rebuilds a lost master: argv, the gRPC server, the SQLite file',
  'cluster/master/restore-main.ts': 'the process that makes a store of a backup: argv, files',
  'cluster/master/offline.ts': 'a store made in a new directory, or in etcd: files, SQLite, exit codes',
  'cluster/daemon/main.ts': 'the process: argv, signals, sockets, the directory',
  'cluster/master/server.ts': 'the core, its store and gRPC put together: what the process and the tests start',
  'gateway/nbd/socket-wire.ts': 'a session on a socket: takes over the connections that the server accepted',
  'cluster/sim/main.ts': 'the command line of the simulation, which tells real time',
  'cluster/sim/scheduler.ts': "gives Node's loop a turn between batches of events, to learn of unhandled rejections",
  'cluster/sim/tripwire.ts': 'names the forbidden functions in order to replace them',
};

const FORBIDDEN_MODULES =
  /^node:(fs|net|tls|dns|dgram|http|https|http2|timers|worker_threads|child_process|cluster|os|perf_hooks|inspector)(\/|$)/;
const FORBIDDEN_WORDS: readonly [RegExp, string][] = [
  [/(?<![.\w])Date\b/, 'Date'],
  [/(?<![.\w])performance\b/, 'performance'],
  [/\b(setTimeout|setInterval|setImmediate|queueMicrotask)\b/, 'a timer or a microtask'],
  [/\bprocess\s*\.\s*(nextTick|hrtime|uptime)\b/, 'process time or ticks'],
  [/\bMath\s*\.\s*random\b/, 'Math.random'],
  [/\b(randomBytes|randomUUID|randomInt|randomFill|getRandomValues)\b/, 'random numbers of node:crypto'],
  [/\bAbortSignal\s*\.\s*timeout\b/, 'AbortSignal.timeout'],
];

interface Source {
  readonly path: string;
  readonly text: string;
}

const areaOf = (path: string): Area | null => AREAS.find((area) => path.startsWith(`${area}/`)) ?? null;
/** Tests, and what only they use. */
const isTest = (path: string): boolean => /(\.test|\/fixture|\/testing)\.ts$/.test(path);
const isBench = (path: string): boolean => /(^|[/.-])bench(mark)?s?([/.-]|$)/.test(path);

/** Everything that breaks a rule in one source. */
function faultsOf(source: Source): string[] {
  const { path, text } = source;
  const faults: string[] = [];
  const lines = text.split('\n').length;
  if (lines > LINES_MAX) faults.push(`${path}: ${lines} lines, at most ${LINES_MAX}`);
  const area = areaOf(path);
  if (area === null) return faults;
  const specifiers = importsOf(text);
  if (area === 'gateway/nbd-protocol-ts') faults.push(...standAloneFaults(path, specifiers));
  if (isTest(path) || isBench(path)) return faults;
  for (const specifier of specifiers)
    if (isTest(specifier)) faults.push(`${path}: imports ${specifier}, which is for tests`);
  faults.push(...directionFaults(path, area, specifiers));
  if (CORE_AREAS.includes(area)) faults.push(...purityFaults(path, text, specifiers));
  return faults;
}

/** Parts of node that compute and do nothing else. */
const STANDARD = ['node:assert/strict', 'node:buffer'];

/** Tests of the package may use the test runner and node; its sources nothing at all but each other. */
function standAloneFaults(path: string, specifiers: readonly string[]): string[] {
  return specifiers
    .filter((specifier) => {
      if (specifier.startsWith('.'))
        return areaOf(normalize(join(dirname(path), specifier))) !== 'gateway/nbd-protocol-ts';
      return !isTest(path) && !STANDARD.includes(specifier);
    })
    .map((specifier) => `${path}: imports ${specifier}, but the package stands alone`);
}

function directionFaults(path: string, area: Area, specifiers: readonly string[]): string[] {
  const faults: string[] = [];
  for (const specifier of specifiers) {
    if (!specifier.startsWith('.')) continue;
    if (!specifier.endsWith('.ts')) faults.push(`${path}: imports ${specifier} without .ts`);
    const target = areaOf(normalize(join(dirname(path), specifier)));
    if (target === null || target === area || MAY_IMPORT[area].includes(target)) continue;
    if (target === 'cluster/world' && mayUseTheWorld(path)) continue;
    faults.push(`${path}: ${area} imports ${target}`);
  }
  return faults;
}

const mayUseTheWorld = (path: string): boolean =>
  path in ADAPTERS || path.endsWith('/main.ts') || path.startsWith('gateway/cli/');

function purityFaults(path: string, text: string, specifiers: readonly string[]): string[] {
  if (path in ADAPTERS) return [];
  const faults = specifiers
    .filter((specifier) => FORBIDDEN_MODULES.test(specifier))
    .map((specifier) => `${path}: a core imports ${specifier}`);
  const code = codeOf(text);
  for (const [pattern, what] of FORBIDDEN_WORDS) if (pattern.test(code)) faults.push(`${path}: a core uses ${what}`);
  return faults;
}

/** Module specifiers of all static, dynamic and re-exporting imports. */
function importsOf(text: string): string[] {
  const pattern =
    /^\s*(?:import|export)\b[^;'"`]*?\bfrom\s*['"]([^'"]+)['"]|^\s*import\s*['"]([^'"]+)['"]|\bimport\s*\(\s*['"]([^'"]+)['"]/gm;
  return [...text.matchAll(pattern)].map((match) => (match[1] ?? match[2] ?? match[3])!);
}

/** The source without comments, and with the text of strings and templates taken out. */
function codeOf(text: string): string {
  let code = '';
  /** Depth of braces at which each open template goes on. */
  const templates: number[] = [];
  let braces = 0;
  for (let at = 0; at < text.length; at++) {
    const here = text[at]!;
    const next = text[at + 1];
    if (here === '/' && next === '/') at = end(text, '\n', at) - 1;
    else if (here === '/' && next === '*') at = end(text, '*/', at) + 1;
    else if (here === "'" || here === '"') at = endOfQuoted(text, at, here);
    else if (here === '/' && /(^|[(,=:[!&|?{};\n]|return|=>)\s*$/.test(code.slice(-16)))
      at = endOfQuoted(text, at, '/');
    else if (here === '`') at = skipTemplate(at + 1);
    else if (here === '}' && templates.at(-1) === braces) {
      templates.pop();
      at = skipTemplate(at + 1);
    } else {
      if (here === '{') braces++;
      if (here === '}') braces--;
      code += here;
    }
  }
  return code;

  /** Skips a template's text to its end, or to its next expression. */
  function skipTemplate(from: number): number {
    for (let at = from; at < text.length; at++) {
      if (text[at] === '\\') at++;
      else if (text[at] === '`') return at;
      else if (text[at] === '$' && text[at + 1] === '{') {
        templates.push(braces);
        return at + 1;
      }
    }
    return text.length;
  }
}

const end = (text: string, mark: string, from: number): number => {
  const at = text.indexOf(mark, from);
  return at === -1 ? text.length : at;
};

function endOfQuoted(text: string, from: number, quote: string): number {
  let inClass = false;
  for (let at = from + 1; at < text.length; at++) {
    if (text[at] === '\\') at++;
    else if (text[at] === '\n') return at - 1;
    else if (quote === '/' && text[at] === '[') inClass = true;
    else if (quote === '/' && text[at] === ']') inClass = false;
    else if (text[at] === quote && !inClass) return at;
  }
  return text.length;
}

const sources: Source[] = globSync('{proto,cluster,gateway,scripts,vm-tests}/**/*.ts', {
  cwd: ROOT,
  exclude: (path) => path.includes('node_modules'),
})
  .sort()
  .map((path) => ({ path, text: readFileSync(join(ROOT, path), 'utf8') }));

test('every source keeps the rules of imports, cores and length', (t) => {
  t.true(sources.length > 50, 'the sources were found');
  t.deepEqual(sources.flatMap(faultsOf), []);
});

test('every exception is still needed', (t) => {
  for (const path of Object.keys(ADAPTERS)) {
    const source = sources.find((candidate) => candidate.path === path);
    if (source === undefined) {
      t.fail(`${path} does not exist`);
      continue;
    }
    const specifiers = importsOf(source.text);
    const usesWorld = specifiers.some(
      (specifier) => specifier.includes('/world/') || FORBIDDEN_MODULES.test(specifier),
    );
    const code = codeOf(source.text);
    t.true(usesWorld || FORBIDDEN_WORDS.some(([pattern]) => pattern.test(code)), `${path} breaks no rule`);
  }
});

// --- the rules can fail

const BAD: [path: string, text: string, fault: RegExp][] = [
  ['cluster/client/x.ts', "import { Daemon } from '../daemon/daemon.ts';", /cluster\/client imports cluster\/daemon/],
  ['cluster/master/x.ts', "import type { Store } from '../store/store.ts';", /cluster\/master imports cluster\/store/],
  ['cluster/daemon/x.ts', "import {\n  A,\n  B,\n} from '../master/master.ts';", /imports cluster\/master/],
  ['proto/x.ts', "export { Image } from '../cluster/client/image.ts';", /proto imports cluster\/client/],
  ['cluster/daemon/x.ts', "import { clock } from '../world/clock.ts';", /imports cluster\/world/],
  ['cluster/world/x.ts', "import { Store } from '../store/store.ts';", /cluster\/world imports cluster\/store/],
  ['gateway/nbd/x.ts', "import { Daemon } from '../../cluster/daemon/daemon.ts';", /gateway imports cluster\/daemon/],
  ['gateway/nbd/x.ts', "const x = await import('../../cluster/master/master.ts');", /gateway imports cluster\/master/],
  ['cluster/client/x.ts', "import { y } from './fixture.ts';", /for tests/],
  ['cluster/client/x.ts', "import { y } from './y';", /without \.ts/],
  ['gateway/nbd-protocol-ts/x.ts', "import { crc32 } from 'node:zlib';", /stands alone/],
  ['gateway/nbd-protocol-ts/x.ts', "import { x } from '../../proto/ids.ts';", /stands alone/],
  ['gateway/nbd-protocol-ts/x.test.ts', "import { x } from '../../proto/ids.ts';", /stands alone/],
  ['cluster/store/x.ts', "import { readFileSync } from 'node:fs';", /a core imports node:fs/],
  ['cluster/store/x.ts', "import { readFile } from 'node:fs/promises';", /a core imports node:fs\/promises/],
  ['cluster/client/x.ts', "import { setTimeout } from 'node:timers/promises';", /a core imports node:timers/],
  ['proto/x.ts', 'const now = Date.now();', /a core uses Date/],
  ['proto/x.ts', 'const now = performance.now();', /a core uses performance/],
  ['cluster/daemon/x.ts', 'setTimeout(() => {}, 5);', /a timer or a microtask/],
  ['cluster/daemon/x.ts', 'queueMicrotask(() => {});', /a timer or a microtask/],
  ['cluster/daemon/x.ts', 'process.nextTick(() => {});', /process time or ticks/],
  ['cluster/daemon/x.ts', 'const id = Math.random();', /Math.random/],
  ['cluster/daemon/x.ts', "import { randomUUID } from 'node:crypto';\nrandomUUID();", /random numbers/],
  // biome-ignore lint/suspicious/noTemplateCurlyInString: the snippet is a template
  ['cluster/daemon/x.ts', 'const text = `at ${`${Date.now()}`} now`;', /a core uses Date/],
  ['cluster/daemon/x.ts', "const half = a / b; const c = /'/.test(x); const now = Date.now();", /a core uses Date/],
  ['scripts/x.ts', 'x;\n'.repeat(LINES_MAX + 1), /lines, at most/],
];
for (const [path, text, fault] of BAD)
  test(`found: ${path} with ${JSON.stringify(text.slice(0, 60))}`, (t) => {
    const faults = faultsOf({ path, text });
    t.true(
      faults.some((found) => fault.test(found)),
      `expected ${fault}, found ${JSON.stringify(faults)}`,
    );
  });

const GOOD: [path: string, text: string][] = [
  ['cluster/daemon/x.ts', "import type { Store } from '../store/store.ts';"],
  ['cluster/daemon/main.ts', "import { disk } from '../world/disk.ts';\nimport { readFileSync } from 'node:fs';"],
  ['cluster/daemon/x.ts', '// Date.now() would be wrong here\nconst a = "setTimeout";'],
  // biome-ignore lint/suspicious/noTemplateCurlyInString: the snippet is a template
  ['cluster/daemon/x.ts', 'const a = `Math.random() ${b} Date.now()`; /* performance.now() */'],
  ['cluster/daemon/x.test.ts', "import { Master } from '../master/master.ts';\nsetTimeout(() => {}, 1);"],
  ['cluster/client/x.ts', 'const entry = map.Date; const updatedAt = lastUpdateDate;'],
  ['gateway/nbd/server.ts', "import { createServer } from 'node:net';"],
];
for (const [path, text] of GOOD)
  test(`allowed: ${path} with ${JSON.stringify(text.slice(0, 60))}`, (t) => {
    t.deepEqual(faultsOf({ path, text }), []);
  });
