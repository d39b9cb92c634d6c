// `ashlar up`: a whole cluster on one machine, for as long as this process runs.
//
// stdout carries one line, "ready {json}", when I/O is served; everything for people goes to stderr.

import { mkdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { lockDirectory } from '../../cluster/world/directory-lock.ts';
import { UpCluster } from './up-cluster.ts';
import { type Settings, saveSettings, settingsFor, type UpOptions, wantedImages } from './up-settings.ts';

const EXIT_FAILED = 1;

/** Runs until SIGINT or SIGTERM, then stops all and exits with 0; a second signal kills all and exits with 1. */
export async function up(options: UpOptions): Promise<never> {
  const say = (line: string): void => {
    process.stderr.write(`ashlar up: ${line}\n`);
  };
  const directory = resolve(options.dir);
  mkdirSync(directory, { recursive: true });
  lockDirectory(directory, 'ashlar up');

  const { settings, isNew } = await settingsFor(directory, options);
  const images = wantedImages(options, isNew);
  const cluster = new UpCluster(directory, settings, options, say);
  let stopping = false;

  async function stop(exitCode: number): Promise<never> {
    stopping = true;
    await cluster.stop();
    process.exit(exitCode);
  }
  function onStop(why: string): void {
    if (stopping) {
      say(`${why} again: killing all`);
      cluster.killAll();
      process.exit(EXIT_FAILED);
    }
    say(`${why}: stopping`);
    void stop(0);
  }
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => onStop(name));
  if (options.stopWithParent) {
    process.stdin.on('end', () => stopping || onStop('standard input ended'));
    process.stdin.on('error', () => stopping || onStop('standard input broke'));
    process.stdin.resume();
  }
  process.stdout.on('error', () => {}); // who started us may not read on

  try {
    await cluster.start(images, () => saveSettings(directory, settings));
    const ready = await describe(directory, settings, cluster);
    process.stdout.write(`ready ${JSON.stringify(ready)}\n`);
  } catch (error) {
    if (!stopping) {
      say((error as Error).message);
      await stop(EXIT_FAILED);
    }
  }
  return new Promise(() => {}); // signals end it
}

/** What "ready" tells: how to reach everything. */
async function describe(directory: string, settings: Settings, cluster: UpCluster): Promise<Record<string, unknown>> {
  const { nbdAddress, nbdUnix } = settings;
  const status = await cluster.status();
  const running = (role: string) => cluster.entries.filter((entry) => entry.role === role);
  const brief = ({ id, pid, address }: { id: number; pid: number | null; address: string }) => ({ id, pid, address });
  return {
    pid: process.pid,
    directory,
    clusterId: status.clusterId,
    master: settings.masterAddress,
    daemons: running('daemon').map(brief),
    nbd: { address: nbdAddress, unix: nbdUnix, pid: running('nbd')[0]?.pid ?? null },
    exports: status.images.map(({ name, sizeBytes }) => ({
      name,
      sizeBytes,
      uri: nbdAddress === '' ? unixUri(name, nbdUnix) : `nbd://${nbdAddress}/${encodeURIComponent(name)}`,
      ...(nbdUnix === '' ? {} : { unixUri: unixUri(name, nbdUnix) }),
    })),
  };
}

const unixUri = (name: string, path: string): string =>
  `nbd+unix:///${encodeURIComponent(name)}?socket=${encodeURIComponent(resolve(path))}`;
