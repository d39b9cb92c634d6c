// Options of every command: one list of specs, four places where a value may come from.
//
//   flag --out-after 5m   >   environment ASHLAR_OUT_AFTER   >   "out-after" in the JSON file of --config   >   default
//
// commander reads the command line and prints the help; this file turns text into typed values, looks in the other
// places, and says in one sentence what is wrong, where it came from, and what to do. It knows no role and no option
// but --config. Roles call parseOptions(); the CLI, which has commands below commands, uses addOptions() and
// optionsOf().

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Command, CommanderError, Option } from 'commander';

export type OptionKind = 'string' | 'integer' | 'size' | 'seconds' | 'flag' | 'list';
export interface OptionSpec {
  /** As on the command line without the dashes: "out-after". The value's key is outAfter. */
  readonly name: string;
  /**
   * integer: 0 or more. size: bytes, with K, M, G or T for powers of 1024. seconds: a number of them, with ms, s, m or h
   * (the value is in seconds, maybe with a fraction). list: repeat the flag, or separate by commas.
   */
  readonly kind: OptionKind;
  readonly default?: string | number | boolean | readonly string[];
  readonly help: string;
  readonly required?: true;
}

type Values = { string: string; integer: number; size: number; seconds: number; flag: boolean; list: string[] };
type CamelCase<S extends string> = S extends `${infer Head}-${infer Tail}`
  ? `${Head}${Capitalize<CamelCase<Tail>>}`
  : S;
type ValueOf<S extends OptionSpec> = S extends { default: unknown } | { required: true } | { kind: 'flag' | 'list' }
  ? Values[S['kind']]
  : Values[S['kind']] | undefined;
/** Typed result: one key per spec. A flag without default is false, a list [], anything else undefined. */
export type Options<S extends readonly OptionSpec[]> = { [K in S[number] as CamelCase<K['name']>]: ValueOf<K> };

/** The user asked for something that can't be: the message says what, why and what to do. Exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}
export const EXIT_USAGE = 2;

/**
 * Options of a role's process. On a wrong option prints why on stderr and exits with 2; on --help prints it and exits
 * with 0.
 * @param role how the command is called: "master", or "ashlar up"
 */
export function parseOptions<const S extends readonly OptionSpec[]>(
  role: string,
  summary: string,
  specs: S,
  argv: readonly string[] = process.argv.slice(2),
): Options<S> {
  const command = new Command(role).description(summary).exitOverride();
  command.allowExcessArguments(false);
  addOptions(command, specs);
  try {
    command.parse(argv, { from: 'user' });
    return optionsOf(command, specs);
  } catch (error) {
    return exitOnUsage(error, role);
  }
}

/** Ends the process the documented way for what commander or optionsOf() throw; throws anything else again. */
export function exitOnUsage(error: unknown, command: string): never {
  if (error instanceof CommanderError) process.exit(error.exitCode === 0 ? 0 : EXIT_USAGE); // it has printed already
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`${command}: ${error.message}\n`);
  process.exit(EXIT_USAGE);
}

/** Declares `specs`, and --config, on a commander command. */
export function addOptions(command: Command, specs: readonly OptionSpec[]): void {
  for (const spec of specs) {
    const flags = spec.kind === 'flag' ? `--${spec.name}` : `--${spec.name} <${PLACEHOLDERS[spec.kind]}>`;
    const option = new Option(flags, helpOf(spec));
    if (spec.kind === 'list')
      option.argParser((text: string, before: string[] | undefined) => [...(before ?? []), text]);
    command.addOption(option);
  }
  command.addOption(new Option('--config <file>', 'JSON file with any of these options (env ASHLAR_CONFIG)'));
  command.showHelpAfterError(`Run "${command.name()} --help" for all options.`);
}

/** Values of `specs` for a parsed command. Throws UsageError. @param read text of a config file */
export function optionsOf<const S extends readonly OptionSpec[]>(
  command: Command,
  specs: S,
  environment: Readonly<Record<string, string | undefined>> = process.env,
  read: (path: string) => string = (path) => readFileSync(path, 'utf8'),
): Options<S> {
  const flags = command.opts() as Record<string, unknown>;
  const path = (flags.config as string | undefined) ?? environment.ASHLAR_CONFIG;
  const file = path === undefined || path === '' ? {} : readConfig(path, specs, read);
  const values: Record<string, unknown> = {};
  for (const spec of specs) {
    const key = camelCase(spec.name);
    const fromEnvironment = environment[environmentName(spec.name)];
    if (flags[key] !== undefined) values[key] = convert(spec, flags[key], `--${spec.name}`);
    else if (fromEnvironment !== undefined && fromEnvironment !== '')
      values[key] = convert(spec, fromEnvironment, environmentName(spec.name));
    else if (Object.hasOwn(file, spec.name)) values[key] = convert(spec, file[spec.name], `"${spec.name}" in ${path}`);
    else if (spec.default !== undefined) values[key] = convert(spec, spec.default, `default of --${spec.name}`);
    else if (spec.required)
      throw new UsageError(
        `--${spec.name} is missing (${spec.help}): pass it, set ${environmentName(spec.name)}, or put "${spec.name}" into the --config file`,
      );
    else values[key] = spec.kind === 'flag' ? false : spec.kind === 'list' ? [] : undefined;
  }
  return values as Options<S>;
}

/** The environment variable of an option: ASHLAR_OUT_AFTER. */
export const environmentName = (name: string): string => `ASHLAR_${name.toUpperCase().replaceAll('-', '_')}`;

const SIZE_UNITS: Record<string, number> = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40, p: 2 ** 50 };

/** Bytes of "4096", "64K", "1.5GiB", "10g". Throws UsageError. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?$/i.exec(text.trim());
  const bytes = match === null ? Number.NaN : Number(match[1]) * SIZE_UNITS[match[2]!.toLowerCase()]!;
  if (!Number.isSafeInteger(bytes))
    throw new UsageError(`"${text}" is not a size: give whole bytes, or a number with K, M, G or T, such as 10G`);
  return bytes;
}

const SECOND_UNITS: Record<string, number> = { '': 1, ms: 0.001, s: 1, m: 60, h: 3600 };

/** Seconds of "1.5", "30s", "500ms", "10m", "1h". Throws UsageError. */
export function parseSeconds(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h)?$/i.exec(text.trim());
  const seconds = match === null ? Number.NaN : Number(match[1]) * SECOND_UNITS[(match[2] ?? '').toLowerCase()]!;
  if (!Number.isFinite(seconds))
    throw new UsageError(`"${text}" is not a time: give seconds, or a number with ms, s, m or h, such as 10m`);
  return seconds;
}

const PLACEHOLDERS: Record<OptionKind, string> = {
  string: 'value',
  integer: 'number',
  size: 'size',
  seconds: 'time',
  flag: '',
  list: 'value',
};

function helpOf(spec: OptionSpec): string {
  const parts = [`env ${environmentName(spec.name)}`];
  if (spec.required) parts.unshift('required');
  if (spec.kind === 'list') parts.push('may be repeated');
  if (spec.default !== undefined && spec.default !== '' && spec.default !== false)
    parts.push(`default ${String(spec.default)}`);
  return `${spec.help} (${parts.join(', ')})`;
}

/** One value from wherever: text of the command line or the environment, any JSON of a file, a default. */
function convert(spec: OptionSpec, raw: unknown, where: string): unknown {
  try {
    return CONVERTERS[spec.kind](raw);
  } catch (error) {
    assert(error instanceof UsageError);
    throw new UsageError(`${where}: ${error.message}`);
  }
}

const shown = (raw: unknown): string => (typeof raw === 'string' ? `"${raw}"` : (JSON.stringify(raw) ?? String(raw)));

const CONVERTERS: Record<OptionKind, (raw: unknown) => unknown> = {
  string(raw) {
    if (typeof raw !== 'string') throw new UsageError(`must be text, not ${shown(raw)}`);
    return raw;
  },
  integer(raw) {
    const value = typeof raw === 'string' && /^\d+$/.test(raw) ? Number(raw) : raw;
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0)
      throw new UsageError(`must be a whole number, 0 or more, not ${shown(raw)}`);
    return value;
  },
  size: (raw) => parseSize(typeof raw === 'number' ? String(raw) : (CONVERTERS.string(raw) as string)),
  seconds: (raw) => parseSeconds(typeof raw === 'number' ? String(raw) : (CONVERTERS.string(raw) as string)),
  flag(raw) {
    if (typeof raw === 'boolean') return raw;
    const word = typeof raw === 'string' || typeof raw === 'number' ? String(raw).toLowerCase() : '';
    if (['1', 'true', 'yes', 'on'].includes(word)) return true;
    if (['0', 'false', 'no', 'off'].includes(word)) return false;
    throw new UsageError(`must be true or false, not ${shown(raw)}`);
  },
  list(raw) {
    const items: readonly unknown[] = Array.isArray(raw) ? raw : [raw];
    return items.flatMap((item) => {
      if (typeof item !== 'string') throw new UsageError(`must be text or an array of texts, not ${shown(raw)}`);
      return item.split(',').filter((part) => part !== '');
    });
  },
};

function readConfig(
  path: string,
  specs: readonly OptionSpec[],
  read: (path: string) => string,
): Record<string, unknown> {
  let parsed: unknown;
  try {
    parsed = JSON.parse(read(path));
  } catch (error) {
    throw new UsageError(`config file ${path} can't be read: ${(error as Error).message}`);
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed))
    throw new UsageError(`config file ${path} must hold one JSON object, such as {"log-level": "warn"}`);
  const known = specs.map((spec) => spec.name);
  for (const key of Object.keys(parsed))
    if (!known.includes(key))
      throw new UsageError(`config file ${path}: unknown key "${key}"; known are ${known.join(', ')}`);
  return parsed as Record<string, unknown>;
}

const camelCase = (name: string): string => name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());
