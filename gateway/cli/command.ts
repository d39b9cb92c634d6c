// One command of the CLI: its options and arguments declared, its errors turned into exit codes.
//
//   0  done    1  refused or failed    2  wrong usage    3  the master can't be reached
//
// `ashlar health` gives its own codes (see health.ts).

import type { Command } from 'commander';
import {
  addOptions,
  exitOnUsage,
  type OptionSpec,
  type Options,
  optionsOf,
  UsageError,
} from '../../cluster/world/options.ts';
import { StorageError } from '../../proto/errors.ts';
import { masterAddress, openMaster } from './control.ts';

export const EXIT_FAILED = 1;
export const EXIT_UNREACHABLE = 3;

export const MASTER_OPTION = {
  name: 'master',
  kind: 'string',
  default: '',
  help: 'address of the master, or of several: A,B,C; default that of ./ashlar-data',
} as const satisfies OptionSpec;
export const JSON_OPTION = { name: 'json', kind: 'flag', help: 'print JSON' } as const satisfies OptionSpec;

export type Master = ReturnType<typeof openMaster>;

/** Declares `ashlar … NAME ARGUMENTS`. `run` gets typed options and the arguments in order. */
export function declare<const S extends readonly OptionSpec[]>(
  parent: Command,
  usage: string,
  summary: string,
  specs: S,
  run: (options: Options<S>, args: string[]) => Promise<void>,
): void {
  const command = parent.command(usage).description(summary);
  addOptions(command, specs);
  command.action(async (..._: unknown[]) => {
    try {
      await run(optionsOf(command, specs), command.args);
    } catch (error) {
      exitWith(error, fullName(command));
    }
  });
}

/** The same for a command that talks to the master: --master is added, the link opened before and closed after. */
export function declareWithMaster<const S extends readonly OptionSpec[]>(
  parent: Command,
  usage: string,
  summary: string,
  specs: S,
  run: (master: Master, options: Options<S>, args: string[]) => Promise<void>,
): void {
  const command = parent.command(usage).description(summary);
  const withMaster = [...specs, MASTER_OPTION] as const;
  addOptions(command, withMaster);
  command.action(async (..._: unknown[]) => {
    try {
      const { master: given } = optionsOf(command, [MASTER_OPTION]);
      const master = openMaster(masterAddress(given));
      try {
        await run(master, optionsOf(command, withMaster) as Options<S>, command.args);
      } finally {
        master.close();
      }
    } catch (error) {
      exitWith(error, fullName(command));
    }
  });
}

/** Prints what is wrong and ends the process with the documented code; what is no error of the world is thrown again. */
export function exitWith(error: unknown, command: string): never {
  if (error instanceof StorageError) {
    process.stderr.write(`${command}: ${error.message}\n`);
    process.exit(error.code === 'UNAVAILABLE' ? EXIT_UNREACHABLE : EXIT_FAILED);
  }
  if (error instanceof UsageError || (error as Error).name === 'CommanderError') exitOnUsage(error, command);
  if (error instanceof Error && (error as NodeJS.ErrnoException).code !== undefined) {
    process.stderr.write(`${command}: ${error.message}\n`);
    process.exit(EXIT_FAILED);
  }
  throw error;
}

export function print(json: boolean, value: unknown, text: string): void {
  process.stdout.write(json ? `${JSON.stringify(value, null, 2)}\n` : text === '' ? '' : `${text}\n`);
}

function fullName(command: Command): string {
  return command.parent === null ? command.name() : `${fullName(command.parent)} ${command.name()}`;
}
