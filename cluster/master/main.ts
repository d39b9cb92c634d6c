// The master's process. See server.ts for what it serves, and cluster/world/lifecycle.ts for how it lives and ends.

import { OUT_AFTER_MS } from '../../proto/limits.ts';
import { ROLE_OPTIONS, runRole } from '../world/lifecycle.ts';
import { type OptionSpec, parseOptions, UsageError } from '../world/options.ts';
import { startMaster, startSharedMaster } from './server.ts';

const OPTIONS = [
  ...ROLE_OPTIONS,
  { name: 'dir', kind: 'string', default: '', help: 'directory that holds what the master knows' },
  {
    name: 'store',
    kind: 'string',
    default: '',
    help: 'instead of --dir: etcd://HOST:PORT[,HOST:PORT...][/PREFIX], shared by several masters of which one leads',
  },
  { name: 'listen', kind: 'string', default: '127.0.0.1:10800', help: 'address of the control plane, host:port' },
  {
    name: 'advertise',
    kind: 'string',
    default: '',
    help: 'with --store: host:port under which others reach this master, if not the one it listens on',
  },
  {
    name: 'out-after',
    kind: 'seconds',
    default: OUT_AFTER_MS / 1000,
    help: 'a storage daemon that stays down so long is out: its data is copied elsewhere',
  },
] as const satisfies readonly OptionSpec[];

const options = parseOptions('master', 'Keeps the storage map: who holds what, and who may write.', OPTIONS);

await runRole('master', options, async (life) => {
  const shared = {
    listen: options.listen,
    outAfterMs: options.outAfter * 1000,
    log: life.log,
    onFatal: (error: Error) => life.fail(`the master must stop: ${error.message}`, error),
  };
  if ((options.dir === '') === (options.store === ''))
    throw new UsageError('give either --dir, for a master alone, or --store, for one of several');
  if (options.store !== '') {
    const server = await startSharedMaster({ ...shared, store: options.store, advertise: options.advertise });
    return { listening: { address: server.address, store: options.store }, stop: () => server.close() };
  }
  const server = await startMaster({ ...shared, dir: options.dir });
  return { listening: { address: server.address, clusterId: server.clusterId }, stop: () => server.close() };
});
