// `ashlar master backup|restore|recover`: what keeps a cluster alive whose master's disk is not. (`ashlar master` runs one.)

import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { Command } from 'commander';
import { MASTER_BACKUP, seal } from '../../proto/sealed.ts';
import { declareWithMaster, JSON_OPTION, print } from './command.ts';
import { becomeMasterCommand, type MasterCommand } from './roles.ts';
import { sizeText } from './text.ts';

const OFFLINE: Record<MasterCommand, string> = {
  recover: 'rebuild a lost master from its storage daemons',
  restore: "make a master's store of a backup",
};

/** @param master the command that runs the role */
export function addMasterCommands(master: Command): void {
  declareWithMaster(
    master,
    'backup <file>',
    'write everything that the running master knows to one file',
    [JSON_OPTION],
    async (link, { json }, [file]) => {
      const backup = await link.call('backup', {});
      const bytes = seal(MASTER_BACKUP, backup);
      replaceFile(file!, bytes);
      const { clusterId, epoch } = backup;
      print(
        json,
        { file: resolve(file!), clusterId, epoch, bytes: bytes.length },
        `${file}: cluster ${clusterId} as of map epoch ${epoch}, ${sizeText(bytes.length)}`,
      );
    },
  );
  for (const name of Object.keys(OFFLINE) as MasterCommand[])
    master
      .command(name)
      .description(OFFLINE[name])
      .helpOption(false) // its program knows its options
      .allowUnknownOption()
      .allowExcessArguments()
      .action((_, command: Command) => becomeMasterCommand(name, command.args));
}

/** The file is the old one or the new one, whole and on stable storage, whatever happens. Readable by its owner only. */
function replaceFile(path: string, bytes: Buffer): void {
  const temporary = `${path}.${process.pid}.new`;
  try {
    const descriptor = openSync(temporary, 'wx', 0o600);
    try {
      writeFileSync(descriptor, bytes);
      fsyncSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
  const directory = openSync(dirname(resolve(path)), 'r');
  fsyncSync(directory);
  closeSync(directory);
}
