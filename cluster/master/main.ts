// The master's process. See server.ts for what it serves, and cluster/world/lifecycle.ts for how it lives and ends.

import { OUT_AFTER_MS } from '../../proto/limits.ts';
import { ROLE_OPTIONS, runRole } from '../world/lifecycle.ts';
import { type OptionSpec, parseOptions } from '../world/options.ts';
import { startMaster } from './server.ts';

const OPTIONS = [
  ...ROLE_OPTIONS,
  { name: 'dir', kind: 'string', required: true, help: 'directory that holds what the master knows' },
  { name: 'listen', kind: 'string', default: '127.0.0.1:10800', help: 'address of the control plane, host:port' },
  {
    name: 'out-after',
    kind: 'seconds',
    default: OUT_AFTER_MS / 1000,
    help: 'a storage daemon that stays down so long is out: its data is copied elsewhere',
  },
] as const satisfies readonly OptionSpec[];

const options = parseOptions('master', 'Keeps the storage map: who holds what, and who may write.', OPTIONS);

await runRole('master', options, async (life) => {
  const server = await startMaster({
    dir: options.dir,
    listen: options.listen,
    outAfterMs: options.outAfter * 1000,
    log: life.log,
    onFatal: (error) => life.fail(`the master must stop: ${error.message}`, error),
  });
  return { listening: { address: server.address, clusterId: server.clusterId }, stop: () => server.close() };
});
