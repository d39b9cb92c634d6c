// What kind of cluster lives in a directory: chosen by the options of the first `ashlar up`, remembered in
// D/cluster.json, and the same ever after. Later options may add daemons and move the NBD address; an option that
// contradicts what exists is refused before anything starts.

import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type OptionSpec, type Options, parseSize, UsageError } from '../../cluster/world/options.ts';
import { choosePort, splitAddress } from './addresses.ts';

export const UP_OPTIONS = [
  { name: 'dir', kind: 'string', default: './ashlar-data', help: 'directory of the whole cluster' },
  { name: 'daemons', kind: 'integer', help: 'number of storage daemons; default 3, or what the directory has' },
  { name: 'replicas', kind: 'integer', help: 'copies of everything; default 2' },
  {
    name: 'min-size',
    kind: 'integer',
    help: 'copies that must be reachable to take writes; default replicas - 1, at least 1',
  },
  { name: 'pg-count', kind: 'integer', help: 'placement groups of the pool, a power of two; default 64' },
  {
    name: 'durability',
    kind: 'string',
    help: 'flush (an ack survives any process) or sync (it is on disk); default flush',
  },
  { name: 'image', kind: 'list', help: 'NAME:SIZE, made if it is missing; default vol0:10G in a new directory' },
  { name: 'nbd', kind: 'string', help: 'NBD address, "none" for no TCP; default 127.0.0.1:10809' },
  { name: 'nbd-unix', kind: 'string', help: 'NBD unix socket, besides or instead of TCP' },
  { name: 'restart', kind: 'flag', default: false, help: 'start a process that dies again' },
  { name: 'stop-with-parent', kind: 'flag', default: false, help: 'stop when standard input ends' },
  { name: 'log-level', kind: 'string', default: 'info', help: 'of all processes: debug, info, warn, error' },
] as const satisfies readonly OptionSpec[];
export type UpOptions = Options<typeof UP_OPTIONS>;

export const POOL_NAME = 'default';
const DAEMONS_MAX = 64;

/** D/cluster.json. */
export interface Settings {
  daemons: number;
  replicas: number;
  /** 0: the master's rule, replicas - 1, at least 1. */
  minSize: number;
  pgCount: number;
  durability: 'flush' | 'sync';
  masterAddress: string;
  /** Of daemon 1, 2, … */
  daemonAddresses: string[];
  /** "" for none. */
  nbdAddress: string;
  nbdUnix: string;
}

export interface WantedImage {
  name: string;
  sizeBytes: number;
}

/** The settings for this start, and whether the directory was new. Throws UsageError. Writes nothing. */
export async function settingsFor(
  directory: string,
  options: UpOptions,
): Promise<{ settings: Settings; isNew: boolean }> {
  const before = readSettings(directory);
  const daemons = options.daemons ?? before?.daemons ?? 3;
  if (daemons < 1 || daemons > DAEMONS_MAX)
    throw new UsageError(`--daemons: must be 1 to ${DAEMONS_MAX}, not ${daemons}`);
  if (before !== null && daemons < before.daemons)
    throw new UsageError(
      `--daemons ${daemons}: ${directory} has ${before.daemons}, and fewer would leave data out; leave the option away`,
    );
  const settings: Settings = {
    daemons,
    replicas: fixed('replicas', options.replicas, before?.replicas, 2, directory),
    minSize: fixed('min-size', options.minSize, before?.minSize, 0, directory),
    pgCount: fixed('pg-count', options.pgCount, before?.pgCount, 64, directory),
    durability: durabilityOf(fixed('durability', options.durability, before?.durability, 'flush', directory)),
    masterAddress: before?.masterAddress ?? '',
    daemonAddresses: [...(before?.daemonAddresses ?? [])],
    nbdAddress: options.nbd ?? before?.nbdAddress ?? '127.0.0.1:10809',
    nbdUnix: options.nbdUnix ?? before?.nbdUnix ?? '',
  };
  if (settings.replicas < 1 || settings.replicas > daemons)
    throw new UsageError(`--replicas ${settings.replicas}: must be 1 to the number of daemons, ${daemons}`);
  if (settings.minSize > settings.replicas)
    throw new UsageError(`--min-size ${settings.minSize}: can't be more than --replicas ${settings.replicas}`);
  if (settings.nbdAddress === 'none') settings.nbdAddress = '';
  if (settings.nbdAddress === '' && settings.nbdUnix === '')
    throw new UsageError('--nbd none needs --nbd-unix PATH: otherwise nobody could reach an image');
  await choosePorts(settings, before);
  return { settings, isNew: before === null };
}

export function saveSettings(directory: string, settings: Settings): void {
  const path = join(directory, 'cluster.json');
  writeFileSync(`${path}.new`, `${JSON.stringify(settings, null, 2)}\n`, { flush: true });
  renameSync(`${path}.new`, path);
}

/** "vol0:10G" and the like. Throws UsageError. */
export function wantedImages(options: UpOptions, isNew: boolean): WantedImage[] {
  const texts = options.image.length > 0 ? options.image : isNew ? ['vol0:10G'] : [];
  return texts.map((text) => {
    const at = text.lastIndexOf(':');
    if (at < 1) throw new UsageError(`--image: "${text}" is not NAME:SIZE, such as vol0:10G`);
    return { name: text.slice(0, at), sizeBytes: parseSize(text.slice(at + 1)) };
  });
}

function readSettings(directory: string): Settings | null {
  const path = join(directory, 'cluster.json');
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw new UsageError(`--dir ${directory}: can't read ${path}: ${(error as Error).message}`);
  }
  try {
    return JSON.parse(text) as Settings;
  } catch (error) {
    throw new UsageError(
      `--dir ${directory}: ${path} is damaged (${(error as Error).message}): restore it from a copy`,
    );
  }
}

function fixed<V>(name: string, given: V | undefined, before: V | undefined, otherwise: V, directory: string): V {
  if (given !== undefined && before !== undefined && given !== before)
    throw new UsageError(`--${name} ${given}: ${directory} was made with ${before}; leave the option away`);
  return given ?? before ?? otherwise;
}

export function durabilityOf(text: string): 'flush' | 'sync' {
  if (text !== 'flush' && text !== 'sync') throw new UsageError(`--durability: must be flush or sync, not "${text}"`);
  return text;
}

/** Fills in every address that is not known yet. Those of an earlier start stay, so that clients find them again. */
async function choosePorts(settings: Settings, before: Settings | null): Promise<void> {
  const host = '127.0.0.1';
  const taken = new Set<number>();
  const choose = async (on: string): Promise<string> => {
    const port = await choosePort(on, taken);
    taken.add(port);
    return `${on}:${port}`;
  };
  for (const address of [settings.masterAddress, ...settings.daemonAddresses])
    if (address !== '') taken.add(splitAddress(address, 'cluster.json').port);
  if (settings.masterAddress === '') settings.masterAddress = await choose(host);
  while (settings.daemonAddresses.length < settings.daemons) settings.daemonAddresses.push(await choose(host));
  if (settings.nbdAddress === '') return;
  const nbd = splitAddress(settings.nbdAddress, '--nbd');
  if (nbd.port !== 0) return;
  const chosenBefore = before?.nbdAddress ?? '';
  settings.nbdAddress = chosenBefore.startsWith(`${nbd.host}:`) ? chosenBefore : await choose(nbd.host);
}
