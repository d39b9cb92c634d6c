// From a master alone to several on etcd: a backup, restored into the store that they share.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import type { StorageError } from '../../proto/errors.ts';
import type { Log } from '../../proto/ports.ts';
import { EtcdProcess, whyNoEtcd } from '../world/etcd-fixture.ts';
import { openControlLink } from '../world/grpc-link.ts';
import { fillSharedStore } from './offline.ts';
import { startMaster, startSharedMaster } from './server.ts';

const quiet: Log = { debug() {}, info() {}, warn() {}, error() {} };
const code = (error: unknown) => (error as StorageError).code;

const why = whyNoEtcd();
const withEtcd = why === null ? test : test.skip;
withEtcd(
  `a backup of a master alone becomes the store of several, once, and not while one of them runs${why === null ? '' : ` (${why})`}`,
  async (t) => {
    const etcd = await EtcdProcess.start();
    t.teardown(() => etcd.remove());
    const store = `etcd://${etcd.endpoint}/moved`;
    const dir = mkdtempSync(join(tmpdir(), 'ashlar-move-'));
    t.teardown(() => rmSync(dir, { recursive: true }));
    const common = {
      listen: '127.0.0.1:0',
      outAfterMs: 600_000,
      log: quiet,
      onFatal: (error: Error) => t.fail(error.message),
    };

    const alone = await startMaster({ ...common, dir });
    const before = openControlLink(alone.address);
    t.teardown(() => before.close());
    // More PGs than one transaction of etcd holds.
    await before.call('createPool', { name: 'p', pgCount: 256, replicas: 1, minSize: 0, durability: 'sync' });
    const { pairs, epoch } = await before.call('backup', {});
    await alone.close();
    await fillSharedStore(store, pairs);
    t.is(code(await t.throwsAsync(fillSharedStore(store, pairs))), 'EXISTS');

    const several = await startSharedMaster({ ...common, store, advertise: '' });
    t.teardown(() => several.close());
    const after = openControlLink(several.address);
    t.teardown(() => after.close());
    const status = await after.call('status', {});
    t.is(status.clusterId, alone.clusterId);
    t.is(status.epoch, epoch);
    t.deepEqual(
      status.pools.map(({ name, pgCount }) => [name, pgCount]),
      [['p', 256]],
    );
    t.is((await after.call('backup', {})).pairs.length, pairs.length);
    const busy = await t.throwsAsync(fillSharedStore(store, pairs), { message: /leads on .*: stop all masters first/ });
    t.is(code(busy), 'BUSY');
  },
);
