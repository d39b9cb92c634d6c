// `ashlar master restore FILE --dir NEW` or `--store etcd://...`: a master's store from a backup, while no master runs. See backup.ts for what
// such a store is worth.

import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { Command } from 'commander';
import { StorageError } from '../../proto/errors.ts';
import { addOptions, exitOnUsage, optionsOf, UsageError } from '../world/options.ts';
import { decodeBackup, restoredPairs } from './backup.ts';
import { fillSharedStore, makeStore, runCommand } from './offline.ts';

const OPTIONS = [
  { name: 'dir', kind: 'string', default: '', help: "new directory for the master's store" },
  { name: 'store', kind: 'string', default: '', help: 'instead: empty etcd://HOST:PORT[,HOST:PORT...][/PREFIX]' },
] as const;

const command = new Command('ashlar master restore')
  .description("Makes a master's store of a backup: in a new directory, or for several masters in etcd.")
  .argument('<file>', 'what "ashlar master backup" wrote')
  .exitOverride()
  .allowExcessArguments(false);
addOptions(command, OPTIONS);
try {
  command.parse(process.argv.slice(2), { from: 'user' });
} catch (error) {
  exitOnUsage(error, 'ashlar master restore');
}

await runCommand('master restore', async () => {
  const { dir, store } = optionsOf(command, OPTIONS);
  if ((dir === '') === (store === '')) throw new UsageError('give either --dir or --store');
  const file = command.args[0]!;
  const backup = await decodeBackup(readFileSync(file)).catch((error: unknown) => {
    if (error instanceof StorageError) throw new StorageError(error.code, `${file}: ${error.message}`, error);
    throw error;
  });
  const pairs = await restoredPairs(backup);
  if (dir !== '') await makeStore(dir, pairs);
  else await fillSharedStore(store, pairs);
  process.stdout.write(
    `the master of cluster ${backup.clusterId} is restored in ${dir !== '' ? resolve(dir) : store}, as of map epoch ${backup.epoch}\n` +
      'it serves when every storage daemon has shown that nothing has happened since; if something has, it stops\n' +
      'itself: then use "ashlar master recover"\n',
  );
});
