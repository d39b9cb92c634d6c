// `ashlar pool …`

import type { Command } from 'commander';
import type { PoolEntry } from '../../proto/map.ts';
import { declareWithMaster, JSON_OPTION, print } from './command.ts';
import { table } from './text.ts';
import { durabilityOf } from './up-settings.ts';

export function addPoolCommands(program: Command): void {
  const pool = program.command('pool').description('pools: how many copies, and how they are spread');
  declareWithMaster(pool, 'ls', 'list pools', [JSON_OPTION], async (master, { json }) => {
    const { pools } = await master.call('status', {});
    print(json, pools, poolTable(pools));
  });
  declareWithMaster(
    pool,
    'create <name>',
    'make a pool',
    [
      { name: 'replicas', kind: 'integer', default: 2, help: 'copies of everything' },
      {
        name: 'min-size',
        kind: 'integer',
        default: 0,
        help: 'copies needed to take writes; 0: replicas - 1, at least 1',
      },
      { name: 'pg-count', kind: 'integer', default: 64, help: 'placement groups, a power of two' },
      { name: 'durability', kind: 'string', default: 'flush', help: 'flush or sync' },
      JSON_OPTION,
    ],
    async (master, options, [name]) => {
      const { replicas, minSize, pgCount } = options;
      const durability = durabilityOf(options.durability);
      const made = await master.call('createPool', { name: name!, replicas, minSize, pgCount, durability });
      print(options.json, made, `pool ${made.name}: made`);
    },
  );
}

const poolTable = (pools: readonly PoolEntry[]): string =>
  table(
    ['POOL', 'REPLICAS', 'MIN SIZE', 'PGS', 'DURABILITY'],
    pools.map((pool) => [pool.name, pool.replicas, pool.minSize, pool.pgCount, pool.durability]),
  );
