// `ashlar master recover`: a process that listens at a lost master's address until every daemon has testified, fills a
// new store, and ends. See recover.ts for why the result is safe, testimonies.ts for how the daemons are asked.

import { resolve } from 'node:path';
import type { Testimony } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { serveGrpc } from '../world/grpc-server.ts';
import { openLog } from '../world/log.ts';
import { parseOptions, UsageError } from '../world/options.ts';
import { pairsOf } from './backup.ts';
import { fillSharedStore, makeStore, refuseUsed, runCommand } from './offline.ts';
import { newestMap, recoverState } from './recover.ts';
import { Testimonies } from './testimonies.ts';

const options = parseOptions(
  'master recover',
  'Rebuilds a lost master from what its storage daemons know, into a new directory or an empty shared store.',
  [
    { name: 'from-daemons', kind: 'flag', help: 'ask the running daemons: the only way there is' },
    { name: 'dir', kind: 'string', default: '', help: "new directory for the master's store" },
    { name: 'store', kind: 'string', default: '', help: 'or the empty store of several masters: etcd://HOST:PORT,...' },
    {
      name: 'listen',
      kind: 'string',
      default: '127.0.0.1:10800',
      help: 'address at which the daemons seek the master',
    },
    { name: 'accept-missing', kind: 'list', help: 'numbers of daemons that will not answer' },
    {
      name: 'accept-data-loss',
      kind: 'flag',
      help: 'give up writes that only a missing daemon or an incomplete copy may have',
    },
    { name: 'wait', kind: 'seconds', default: 60, help: 'how long to wait for the daemons' },
    { name: 'log-level', kind: 'string', default: 'warn', help: 'debug, info, warn, error or silent' },
  ],
);

await runCommand('master recover', async () => {
  if (!options.fromDaemons)
    throw new UsageError('say --from-daemons: the running daemons are what a master is rebuilt from');
  const acceptMissing = daemonNumbers(options.acceptMissing);
  if ((options.dir === '') === (options.store === '')) throw new UsageError('give either --dir or --store');
  if (options.dir !== '') refuseUsed(resolve(options.dir));
  const testimonies = await gather(acceptMissing);
  const { state, notes } = recoverState(testimonies, { acceptMissing, acceptDataLoss: options.acceptDataLoss });
  if (options.dir !== '') await makeStore(options.dir, pairsOf(state));
  else await fillSharedStore(options.store, pairsOf(state));
  const place = options.dir || options.store;
  const where = options.dir !== '' ? `--dir ${options.dir}` : `--store ${options.store}`;
  say(
    `the master of cluster ${state.clusterId} is rebuilt in ${place}: daemons ${[...state.daemons.keys()].join(', ')}; ` +
      `${state.images.size} images, ${state.pgs.size} pgs, map epoch ${state.epoch}`,
  );
  for (const note of notes) say(`note: ${note}`);
  say(`start it: ashlar master ${where} --listen ${options.listen}`);
});

/** Everybody's testimony. Rejects with UNAVAILABLE, naming who is silent, when the time is over. */
async function gather(acceptMissing: readonly number[]): Promise<Testimony[]> {
  const { promise, resolve: done, reject } = Promise.withResolvers<void>();
  const spoken = new Set<string>();
  const service: Testimonies = new Testimonies(acceptMissing, ({ uuid, id, map }) => {
    const awaited = service.awaited();
    if (!spoken.has(uuid)) {
      spoken.add(uuid);
      const brought = map === null ? 'without a map' : `with map epoch ${map.to}`;
      say(`daemon ${id} (${uuid}) has testified ${brought}; waiting for ${whom(awaited)}`);
    }
    if (awaited?.length === 0) done();
  });
  const server = await serveGrpc(service, options.listen, openLog('master', options.logLevel));
  say(`listening on ${server.address} for the storage daemons`);
  const late = setTimeout(() => {
    const awaited = service.awaited();
    const message =
      awaited === null
        ? `no daemon with a map came to ${server.address} in ${options.wait} s: do they run, and is that their --master?`
        : `waited ${options.wait} s in vain for ${whom(awaited)}: start them, or name them with --accept-missing`;
    reject(new StorageError('UNAVAILABLE', message));
  }, options.wait * 1000);
  try {
    await promise;
    return service.all();
  } finally {
    clearTimeout(late);
    await server.close();
  }

  function whom(awaited: readonly number[] | null): string {
    if (awaited === null) return 'a daemon with a map';
    if (awaited.length === 0) return 'nobody';
    const { daemons } = newestMap(service.all());
    return awaited.map((id) => `daemon ${id} (${daemons.get(id)?.address})`).join(', ');
  }
}

function daemonNumbers(words: readonly string[]): number[] {
  return words.map((word) => {
    if (!/^[1-9]\d*$/.test(word)) throw new UsageError(`--accept-missing takes numbers of daemons, not "${word}"`);
    return Number(word);
  });
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}
