// `ashlar daemon-admin …`: what a person decides about a storage daemon. (`ashlar daemon` runs one.)

import { setTimeout as pause } from 'node:timers/promises';
import type { Command } from 'commander';
import { UsageError } from '../../cluster/world/options.ts';
import type { ClusterStatus } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { declareWithMaster, JSON_OPTION, type Master, print } from './command.ts';
import { Progress, sizeText, table } from './text.ts';

type DaemonStatus = ClusterStatus['daemons'][number];

/** How often a drain that is waited for is looked at. */
const LOOK_MS = 1_000;

export function addDaemonCommands(program: Command): void {
  const daemon = program.command('daemon-admin').description('storage daemons: list, weigh, drain, remove');
  declareWithMaster(daemon, 'ls', 'list storage daemons', [JSON_OPTION], async (master, { json }) => {
    const { daemons } = await master.call('status', {});
    print(json, daemons, daemonTable(daemons));
  });
  declareWithMaster(
    daemon,
    'reweight <id> <weight>',
    'set the share of the data that a daemon takes, relative to the others; 0 takes none',
    [JSON_OPTION],
    async (master, { json }, [id, weight]) => {
      const value = numberOf('weight', weight!);
      print(json, await master.call('setDaemon', { id: idOf(id!), weight: value }), `daemon ${id}: weight ${value}`);
    },
  );
  declareWithMaster(
    daemon,
    'drain <id>',
    'move the data of a daemon to others; it serves until they have everything',
    [{ name: 'wait', kind: 'flag', help: 'show how it gets on, and end when nothing is left there' }, JSON_OPTION],
    async (master, { json, wait }, [text]) => {
      const id = idOf(text!);
      await refuseUnlessPlaceable(master, id);
      const entry = await master.call('setDaemon', { id, in: false });
      if (wait) await drained(master, id);
      print(json, entry, `daemon ${id}: ${wait ? 'drained, and empty' : 'draining'}`);
    },
  );
  declareWithMaster(
    daemon,
    'undrain <id>',
    'let a daemon take data again',
    [JSON_OPTION],
    async (master, { json }, [id]) => {
      print(json, await master.call('setDaemon', { id: idOf(id!), in: true }), `daemon ${id}: takes data`);
    },
  );
  declareWithMaster(
    daemon,
    'rm <id>',
    'remove a drained daemon, or one that is gone, for ever; refused while anything may need what it holds',
    [JSON_OPTION],
    async (master, { json }, [text]) => {
      const id = idOf(text!);
      await master.call('removeDaemon', { id });
      print(json, { id, removed: true }, `daemon ${id}: removed; its directory can be deleted`);
    },
  );
  declareWithMaster(
    daemon,
    'recovery-rate <id> <mb-per-second>',
    'cap what a daemon sends for recovery, at once; 0: as it was started',
    [JSON_OPTION],
    async (master, { json }, [id, rate]) => {
      const value = numberOf('mb-per-second', rate!);
      const recoveryBytesPerSecond = Math.round(value * 1e6);
      const entry = await master.call('setDaemon', { id: idOf(id!), recoveryBytesPerSecond });
      print(json, entry, `daemon ${id}: recovery ${value === 0 ? 'as it was started' : `at most ${value} MB/s`}`);
    },
  );
}

/** A drain that has nowhere to go would never end: it is refused before it begins. */
async function refuseUnlessPlaceable(master: Master, id: number): Promise<void> {
  const { daemons, pools } = await master.call('status', {});
  const left = daemons.filter((other) => other.id !== id && other.in && other.weight > 0).length;
  const wanting = pools.find((pool) => pool.replicas > left);
  if (wanting !== undefined && daemons.some((other) => other.id === id))
    throw new StorageError(
      'INVALID',
      `daemon ${id} can't be drained: pool "${wanting.name}" keeps ${wanting.replicas} copies, and ${left} other daemons take data; add one first`,
    );
}

/** Resolves when the daemon is member of no PG, and its disk is empty or, if it is down, not needed any more. */
async function drained(master: Master, id: number): Promise<void> {
  const progress = new Progress(`daemon ${id}: bytes moved`);
  let most = 0;
  for (;;) {
    const { daemons, recovery } = await master.call('status', {});
    const daemon = daemons.find((one) => one.id === id);
    if (daemon === undefined) throw new StorageError('NOT_FOUND', `daemon ${id} was removed meanwhile`);
    if (daemon.in) throw new StorageError('BUSY', `daemon ${id} was told to take data again`);
    const left = daemon.space?.usedBytes ?? (daemon.up ? Number.POSITIVE_INFINITY : 0);
    if (Number.isFinite(left)) {
      most = Math.max(most, left);
      progress.show(most - left, most);
    }
    // One that is down has left its PGs already: what it held must be whole elsewhere.
    const elsewhere = daemon.up ? left === 0 : recovery.degraded + recovery.misplaced === 0;
    if (daemon.pgs === 0 && elsewhere) return;
    await pause(LOOK_MS);
  }
}

export const daemonTable = (daemons: ClusterStatus['daemons']): string =>
  table(
    ['DAEMON', 'STATE', 'ADDRESS', 'DOMAIN', 'WEIGHT', 'PGS', 'PRIMARY OF', 'USED', 'FREE'],
    daemons.map((daemon) => [
      daemon.id,
      stateOf(daemon),
      daemon.address,
      daemon.domain,
      daemon.weight,
      daemon.pgs,
      daemon.primaries,
      daemon.space === null ? '?' : sizeText(daemon.space.usedBytes),
      daemon.space === null ? '?' : sizeText(daemon.space.freeBytes),
    ]),
  );

function stateOf({ up, in: isIn, space, pgs }: DaemonStatus): string {
  const placed = isIn ? 'in' : !up ? 'out' : pgs > 0 || (space?.usedBytes ?? 0) > 0 ? 'draining' : 'drained';
  return `${up ? 'up' : 'down'}, ${placed}${space?.full ? ', full' : ''}`;
}

function numberOf(what: string, text: string): number {
  if (!/^\d+(\.\d+)?$/.test(text)) throw new UsageError(`${what} must be a number, 0 or more, not "${text}"`);
  return Number(text);
}

function idOf(text: string): number {
  if (!/^[1-9]\d*$/.test(text))
    throw new UsageError(`a daemon is named by its number, not "${text}": see daemon-admin ls`);
  return Number(text);
}
