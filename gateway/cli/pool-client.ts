// The CLI as a client of the pool: for the few commands that touch objects.

import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import { PoolClient } from '../../cluster/client/client.ts';
import { openClock } from '../../cluster/world/clock.ts';
import { openLog } from '../../cluster/world/log.ts';
import { createNetwork } from '../../cluster/world/sockets.ts';
import type { Master } from './command.ts';

/** Runs `work` with a client that has the newest map, and closes it. */
export async function withPool<T>(master: Master, work: (client: PoolClient) => Promise<T>): Promise<T> {
  const client = new PoolClient({
    clock: openClock(),
    network: createNetwork(),
    control: master,
    log: openLog('cli', 'error'),
    name: `ashlar on ${hostname()}, process ${process.pid}`,
    host: hostname(),
    clientId: randomUUID(),
  });
  await client.start();
  try {
    return await work(client);
  } finally {
    await client.close();
  }
}
