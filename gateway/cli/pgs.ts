// `ashlar pg …`: what a person decides about a placement group.

import type { Command } from 'commander';
import { type DaemonId, type PgId, pgName } from '../../proto/ids.ts';
import { declareWithMaster, JSON_OPTION, print } from './command.ts';
import { parsePg } from './scrub.ts';

export function addPgCommands(program: Command): void {
  const pg = program.command('pg').description('placement groups: decide about one that waits');
  declareWithMaster(
    pg,
    'accept-data-loss <pg...>',
    'let PGs that wait for a daemon go on without it: what only that daemon has is lost, also if it comes back later. Make sure that it is dead',
    [{ name: 'daemon', kind: 'integer', required: true, help: 'the daemon to give up, by its number' }, JSON_OPTION],
    async (master, { daemon, json }, names) => {
      const pgs = names.map(parsePg);
      const accepted: { pg: string; daemon: DaemonId; waitFor: DaemonId[] }[] = [];
      for (const id of pgs) {
        const { waitFor } = await master.call('acceptDataLoss', { pg: id, daemon });
        accepted.push({ pg: pgName(id), daemon, waitFor });
        if (!json) print(false, null, sentence(id, daemon, waitFor));
      }
      if (json) print(true, accepted, '');
    },
  );
}

function sentence(pg: PgId, daemon: DaemonId, waitFor: readonly DaemonId[]): string {
  const others = waitFor.map((id) => `daemon ${id}`).join(' or ');
  const left = others === '' ? 'and goes on with what is left' : `but still for ${others}`;
  return `pg ${pgName(pg)}: waits no longer for daemon ${daemon}, ${left}`;
}
