// `ashlar pg …`: what a person decides about a placement group.

import type { Command } from 'commander';
import { pgName } from '../../proto/ids.ts';
import { declareWithMaster, JSON_OPTION, print } from './command.ts';
import { parsePg } from './scrub.ts';

export function addPgCommands(program: Command): void {
  const pg = program.command('pg').description('placement groups: decide about one that waits');
  declareWithMaster(
    pg,
    'accept-data-loss <pg>',
    'let a PG that waits for a daemon go on without it: what only that daemon has is lost, also if it comes back later. Make sure that it is dead',
    [{ name: 'daemon', kind: 'integer', required: true, help: 'the daemon to give up, by its number' }, JSON_OPTION],
    async (master, { daemon, json }, [text]) => {
      const id = parsePg(text!);
      const { waitFor } = await master.call('acceptDataLoss', { pg: id, daemon });
      const left =
        waitFor.length > 0
          ? `; it still waits for ${waitFor.map((other) => `daemon ${other}`).join(' or ')}`
          : ' and goes on with what is left';
      print(json, { pg: pgName(id), daemon, waitFor }, `pg ${pgName(id)}: no longer waits for daemon ${daemon}${left}`);
    },
  );
}
