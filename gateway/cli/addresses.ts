// Addresses that `ashlar up` gives its children: chosen once, remembered, and looked at before anything starts.

import { createServer } from 'node:net';
import { UsageError } from '../../cluster/world/options.ts';

/**
 * Ports are chosen below the range from which Linux takes the local ports of outgoing connections (32768 up): while a
 * daemon is down, nobody gets its port by accident.
 */
const PORT_FIRST = 20_000;
const PORT_LAST = 31_999;
const ATTEMPTS = 200;

/** A port of `host` on which nobody listens, and not in `taken`. */
export async function choosePort(host: string, taken: ReadonlySet<number>): Promise<number> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const port = PORT_FIRST + Math.floor(Math.random() * (PORT_LAST - PORT_FIRST + 1));
    if (!taken.has(port) && (await whyTaken(host, port)) === null) return port;
  }
  throw new Error(`no free port between ${PORT_FIRST} and ${PORT_LAST} on ${host} in ${ATTEMPTS} attempts`);
}

/** Throws UsageError if nobody could listen on `address` now. @param option which option to change */
export async function checkFree(address: string, option: string): Promise<void> {
  const { host, port } = splitAddress(address, option);
  const why = await whyTaken(host, port);
  if (why === 'EADDRINUSE')
    throw new UsageError(`${option}: ${address} is in use by another program: stop it, or choose another port`);
  if (why !== null) throw new UsageError(`${option}: nobody can listen on ${address} here (${why})`);
}

/** "host:port" or "[v6]:port". Throws UsageError. */
export function splitAddress(address: string, option: string): { host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(address);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535)
    throw new UsageError(`${option}: "${address}" is no address: give HOST:PORT, such as 127.0.0.1:10809`);
  return { host: match[1] ?? match[2]!, port };
}

/** Error code of an attempt to listen there, or null if it went well. */
function whyTaken(host: string, port: number): Promise<string | null> {
  return new Promise((resolve) => {
    const server = createServer();
    server.on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve(null)));
  });
}
