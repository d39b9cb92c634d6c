// `ashlar daemon-admin …`: what a person decides about a storage daemon. (`ashlar daemon` runs one.)

import type { Command } from 'commander';
import { UsageError } from '../../cluster/world/options.ts';
import type { ClusterStatus } from '../../proto/control.ts';
import { declareWithMaster, JSON_OPTION, type Master, print } from './command.ts';
import { sizeText, table } from './text.ts';

export function addDaemonCommands(program: Command): void {
  const daemon = program.command('daemon-admin').description('storage daemons: list, weigh, take out, bring back');
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
      const value = Number(weight);
      if (!/^\d+(\.\d+)?$/.test(weight!)) throw new UsageError(`weight must be a number, 0 or more, not "${weight}"`);
      print(json, await master.call('setDaemon', { id: idOf(id!), weight: value }), `daemon ${id}: weight ${value}`);
    },
  );
  declareWithMaster(
    daemon,
    'out <id>',
    'take a daemon out: its data is copied elsewhere',
    [JSON_OPTION],
    (master, { json }, [id]) => setIn(master, json, id!, false),
  );
  declareWithMaster(daemon, 'in <id>', 'bring a daemon back in', [JSON_OPTION], (master, { json }, [id]) =>
    setIn(master, json, id!, true),
  );
}

export const daemonTable = (daemons: ClusterStatus['daemons']): string =>
  table(
    ['DAEMON', 'STATE', 'ADDRESS', 'DOMAIN', 'WEIGHT', 'PGS', 'PRIMARY OF', 'USED', 'FREE'],
    daemons.map((daemon) => [
      daemon.id,
      `${daemon.up ? 'up' : 'down'}, ${daemon.in ? 'in' : 'out'}${daemon.space?.full ? ', full' : ''}`,
      daemon.address,
      daemon.domain,
      daemon.weight,
      daemon.pgs,
      daemon.primaries,
      daemon.space === null ? '?' : sizeText(daemon.space.usedBytes),
      daemon.space === null ? '?' : sizeText(daemon.space.freeBytes),
    ]),
  );

async function setIn(master: Master, json: boolean, text: string, value: boolean): Promise<void> {
  const id = idOf(text);
  print(json, await master.call('setDaemon', { id, in: value }), `daemon ${id}: ${value ? 'in' : 'out'}`);
}

function idOf(text: string): number {
  if (!/^[1-9]\d*$/.test(text))
    throw new UsageError(`a daemon is named by its number, not "${text}": see daemon-admin ls`);
  return Number(text);
}
