// What is particular to etcd's addresses and members; what the store does is in cluster/master/leader-kv.test.ts.

import { once } from 'node:events';
import { createServer } from 'node:net';
import test from 'ava';
import { StorageError } from '../../proto/errors.ts';
import { openEtcd, parseEtcdAddress } from './etcd-client.ts';
import { EtcdProcess, whyNoEtcd } from './etcd-fixture.ts';
import { UsageError } from './options.ts';

test('an address names the members and, if wanted, where in the store the cluster is', (t) => {
  const endpoints = ['127.0.0.1:2379'];
  t.deepEqual(parseEtcdAddress('etcd://127.0.0.1:2379'), { endpoints, prefix: '/ashlar' });
  t.deepEqual(parseEtcdAddress('etcd://127.0.0.1:2379/'), { endpoints, prefix: '/ashlar' });
  t.deepEqual(parseEtcdAddress('etcd://a.example:1,[::1]:2/disks/one/'), {
    endpoints: ['a.example:1', '[::1]:2'],
    prefix: '/disks/one',
  });
  for (const bad of ['', 'etcd://', 'http://a:1', 'etcd://a', 'etcd://a:1,', 'etcd://a:1/x:y', 'etcd://a:1/a b', 'a:1'])
    t.throws(() => parseEtcdAddress(bad), { instanceOf: UsageError, message: /^--store: / }, bad);
});

async function deadEndpoint(): Promise<string> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return `127.0.0.1:${port}`;
}

test('a store that is not there is UNAVAILABLE, and says which member was asked', async (t) => {
  const endpoint = await deadEndpoint();
  const store = openEtcd([endpoint]);
  t.teardown(() => store.close());
  const error = await t.throwsAsync(store.get('/a'), { instanceOf: StorageError });
  t.is(error!.code, 'UNAVAILABLE');
  t.true(error!.message.startsWith(`etcd at ${endpoint}: `));
});

const why = whyNoEtcd();
const withEtcd = why === null ? test : test.skip;
withEtcd(
  `a member that is gone is passed over, for reads, leases and transactions${why === null ? '' : ` (${why})`}`,
  async (t) => {
    const etcd = await EtcdProcess.start();
    t.teardown(() => etcd.remove());
    const dead = await deadEndpoint();
    const transaction = { compares: [], puts: [{ key: '/a', value: '1' }], deletes: [], otherwise: '/a' };
    for (const act of ['transact', 'get', 'grant'] as const) {
      const store = openEtcd([dead, etcd.endpoint]);
      t.teardown(() => store.close());
      if (act === 'transact') t.true((await store.transact(transaction)).done);
      else if (act === 'get') t.is((await store.get('/a'))!.value, '1');
      else t.is((await store.grant(2_500)).ttlMs, 3_000, 'whole seconds, never less than was asked for');
    }
  },
);
