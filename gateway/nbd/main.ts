// The NBD gateway's process: options, a client of the pool, and the server on top of it.

import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { resolve } from 'node:path';
import { PoolClient } from '../../cluster/client/client.ts';
import { openClock } from '../../cluster/world/clock.ts';
import { openControlLink } from '../../cluster/world/grpc-link.ts';
import { hostId } from '../../cluster/world/host.ts';
import { type Life, ROLE_OPTIONS, type Running, runRole } from '../../cluster/world/lifecycle.ts';
import { parseOptions, UsageError } from '../../cluster/world/options.ts';
import { createNetwork, hostAndPort } from '../../cluster/world/sockets.ts';
import { StorageError } from '../../proto/errors.ts';
import { startNbdServer } from './server.ts';

const options = parseOptions('nbd', 'run an NBD gateway: it serves images to NBD clients', [
  ...ROLE_OPTIONS,
  { name: 'master', kind: 'string', default: '127.0.0.1:10800', help: 'address of the master, or of several: A,B,C' },
  { name: 'listen', kind: 'string', default: '127.0.0.1:10809', help: 'address to serve NBD on, or none' },
  { name: 'unix', kind: 'string', default: '', help: 'unix socket to serve NBD on as well' },
  { name: 'read-only', kind: 'flag', default: false, help: 'serve every image read-only, without taking its lock' },
  { name: 'take-over', kind: 'flag', default: false, help: 'take images from a gateway that still holds them' },
]);

/** Pause before a master that is not there yet is sought again: gateways and masters may start in any order. */
const MASTER_AGAIN_MS = 500;

await runRole('nbd', options, start);

async function start({ log }: Life): Promise<Running> {
  if (options.listen === 'none' && options.unix === '') throw new UsageError('--listen none needs --unix PATH');
  const clock = openClock();
  const unixPath = options.unix === '' ? null : resolve(options.unix);
  const name = `nbd gateway on ${hostname()}, ${unixPath ?? options.listen}, process ${process.pid}`;
  const client = new PoolClient({
    clock,
    network: createNetwork(),
    control: openControlLink(options.master),
    log,
    name,
    host: hostId(),
    clientId: randomUUID(),
  });
  for (let tries = 0; !(await reached(client)); tries++) {
    if (tries === 0) log.warn('the master is not there yet: waiting for it', { master: options.master });
    await new Promise<void>((resolve) => clock.after(MASTER_AGAIN_MS, resolve));
  }
  const server = await startNbdServer({
    client,
    listen: options.listen === 'none' ? null : hostAndPort(options.listen),
    unixPath,
    takeOver: options.takeOver,
    readOnly: options.readOnly,
    log,
    clock,
  });
  return {
    listening: { address: server.address ?? `unix:${server.unixPath}`, unix: server.unixPath },
    async stop() {
      await server.close();
      await client.close();
    },
  };
}

async function reached(client: PoolClient): Promise<boolean> {
  try {
    await client.start();
    return true;
  } catch (error) {
    if (error instanceof StorageError && error.code === 'UNAVAILABLE') return false;
    throw error;
  }
}
