#!/usr/bin/env node
// `ashlar`: the one command. Its own work is to find the right subcommand; each lives in a file of its name.
//
// Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the master can't be reached (health has its own).

import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { declare, exitWith } from './command.ts';
import { addDaemonCommands } from './daemons.ts';
import { addImageCommands } from './images.ts';
import { addMapCommand } from './map.ts';
import { addMasterCommands } from './master.ts';
import { addPgCommands } from './pgs.ts';
import { addPoolCommands } from './pools.ts';
import { becomeRole, ROLE_SUMMARIES, type RoleName } from './roles.ts';
import { addScrubCommands } from './scrub.ts';
import { addStatusCommands } from './status.ts';
import { up } from './up.ts';
import { UP_OPTIONS } from './up-settings.ts';

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

const program = new Command('ashlar')
  .description('A network block device you can trust, on hardware you already own.')
  .version(version)
  .exitOverride()
  .showHelpAfterError('Run "ashlar --help" for all commands.')
  .addHelpText('after', '\nExit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the master cannot be reached.');

declare(program, 'up', 'run a whole cluster on this machine until Ctrl-C', UP_OPTIONS, up);
for (const role of Object.keys(ROLE_SUMMARIES) as RoleName[]) {
  const command = program.command(role).description(ROLE_SUMMARIES[role]);
  if (role === 'master') addMasterCommands(command); // first: they have help of their own
  command
    .helpOption(false) // the role's program knows its options
    .allowUnknownOption()
    .allowExcessArguments()
    .action((_, { args }: Command) => becomeRole(role, args));
}
addStatusCommands(program);
addMapCommand(program);
addPoolCommands(program);
addImageCommands(program);
addDaemonCommands(program);
addPgCommands(program);
addScrubCommands(program);

try {
  await program.parseAsync();
} catch (error) {
  exitWith(error, 'ashlar');
}
