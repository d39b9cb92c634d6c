// What comes in wrong, from clients, strangers and disks: a clear error or a closed connection, nothing lost, and the
// process goes on serving others.

import { randomBytes } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { connect, type NetConnectOpts } from 'node:net';
import { join } from 'node:path';
import test from 'ava';
import { Cluster, runAshlar, startRole, startRoleOnSmallDisk } from './lib/cluster.ts';
import { brokenPromises, Load } from './lib/load.ts';
import { Command, NbdClient, NbdError } from './lib/nbd-client.ts';
import { type Running, sleep, temporaryDirectory, testUnless, until } from './lib/processes.ts';
import { BLOCK, stampedBlock } from './lib/stamps.ts';

const EINVAL = 22;
const ENOSPC = 28;
const EOVERFLOW = 75;

test.serial('a wrong request gets its error, and the connection goes on', async (t) => {
  t.timeout(60_000);
  const MiB = 2 ** 20;
  const cluster = await Cluster.start(t, { images: ['disk:8M'] });
  const { address } = cluster.ready.nbd;
  const client = await NbdClient.open(address, 'disk');
  t.is(client.sizeBytes, 8 * MiB);
  await client.write(0, stampedBlock(0, 1));
  const page = Buffer.alloc(BLOCK);
  const cases: [string, [number, number, number, number, Buffer | null, number], number[]][] = [
    ['read past the end', [Command.READ, 0, 8 * MiB - 512, 1024, null, 1024], [EINVAL]],
    ['read far past the end', [Command.READ, 0, 2 ** 52, 4096, null, 4096], [EINVAL]],
    ['write past the end', [Command.WRITE, 0, 8 * MiB, BLOCK, page, 0], [ENOSPC, EINVAL]],
    ['write across the end', [Command.WRITE, 0, 8 * MiB - 1, BLOCK, page, 0], [ENOSPC, EINVAL]],
    ['trim past the end', [Command.TRIM, 0, 8 * MiB - BLOCK, 2 * BLOCK, null, 0], [EINVAL, ENOSPC]],
    ['zeroes past the end', [Command.WRITE_ZEROES, 0, 8 * MiB, BLOCK, null, 0], [ENOSPC, EINVAL]],
    ['a command nobody knows', [99, 0, 0, 0, null, 0], [EINVAL]],
    ['write with flags nobody knows', [Command.WRITE, 0x4000, 0, BLOCK, page, 0], [EINVAL]],
    ['read with flags nobody knows', [Command.READ, 0x8000, 0, BLOCK, null, BLOCK], [EINVAL]],
    ['read of more than the limit', [Command.READ, 0, 0, 2 ** 31, null, 0], [EINVAL, EOVERFLOW]],
  ];
  for (const [what, request, errnos] of cases) {
    const error = await t.throwsAsync(client.request(...request), { instanceOf: NbdError }, what);
    t.true(errnos.includes((error as NbdError).errno), `${what}: ${(error as NbdError).errno}`);
  }
  t.deepEqual(await client.read(0, BLOCK), stampedBlock(0, 1), 'none of them changed anything');
  const second = await NbdClient.open(address, 'disk');
  await t.throwsAsync(second.request(Command.WRITE, 0, 0, 2 ** 31, page, 0), undefined, 'a write of 2 GiB');
  second.destroy();
  await t.throwsAsync(NbdClient.open(address, 'omega'), { message: /refused/ });
  await t.throwsAsync(NbdClient.open(address, 'x'.repeat(5_000)));
  t.deepEqual(await client.read(0, BLOCK), stampedBlock(0, 1));
  await client.disconnect();
});

/** What strangers send. */
const GARBAGE: [string, Buffer][] = [
  ['nothing', Buffer.alloc(0)],
  ['zeros', Buffer.alloc(100_000)],
  ['noise', randomBytes(200_000)],
  ['a web request', Buffer.from('GET / HTTP/1.1\r\nHost: ashlar\r\n\r\n')],
  ['TLS', Buffer.from('16030100f8010000f40303', 'hex')],
  ['HTTP/2 and then noise', Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), randomBytes(50_000)])],
  ['half a frame of the data plane', Buffer.concat([Buffer.from('ASHL\x01\x02'), Buffer.alloc(40)])],
  ['a frame with a wrong checksum', Buffer.concat([Buffer.from('ASHL\x01\x02'), randomBytes(90)])],
  ['an NBD client that wants 4 GiB of option', Buffer.from('0000000349484156454f505400000007ffffffff', 'hex')],
  ['an NBD client with a wrong magic', Buffer.from('00000003deadbeefdeadbeef0000000700000004', 'hex')],
];

test.serial('garbage on every port closes a connection at most: no client under load notices', async (t) => {
  t.timeout(120_000);
  const cluster = await Cluster.start(t, {
    images: ['disk:64M'],
    more: ['--nbd-unix', join(temporaryDirectory(t, 'sock'), 's')],
  });
  const { address, unix } = cluster.ready.nbd;
  const blocks = 2_000;
  const load = await Load.start({ address, image: 'disk', blocks, depth: 8, flushEvery: 50, seed: 9 });
  const targets: [string, NetConnectOpts][] = [
    ...[cluster.ready.master, address, ...cluster.ready.daemons.map((daemon) => daemon.address)].map(
      (target): [string, NetConnectOpts] => {
        const [host, port] = target.split(':');
        return [target, { host: host!, port: Number(port) }];
      },
    ),
    ['NBD by unix socket', { path: unix }],
    ...cluster
      .daemonDirectories()
      .map((directory): [string, NetConnectOpts] => [directory, { path: join(directory, 'daemon.sock') }]),
  ];
  load.resetGap();
  const pids = cluster.processes().map((entry) => entry.pid);
  for (const [, target] of targets) await Promise.all(GARBAGE.map(([, bytes]) => send(target, bytes)));
  for (const [, target] of targets) await Promise.all(Array.from({ length: 100 }, () => send(target, randomBytes(64))));
  t.deepEqual(
    cluster.processes().map((entry) => entry.pid),
    pids,
    'every process is the one it was',
  );
  t.is((await cluster.ashlar('health')).code, 0);
  t.deepEqual(load.errors, []);
  t.true(load.gapMs < 3_000, `no answer for ${load.gapMs.toFixed(0)} ms`);
  await load.stop();
  t.deepEqual(await brokenPromises(address, 'disk', blocks, load.promises, 'acked'), []);
});

/** Sends bytes to whoever listens, and goes away after a moment if the other side does not. */
function send(target: NetConnectOpts, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => {
    const socket = connect(target, () => socket.write(bytes));
    const timer = setTimeout(() => socket.destroy(), 300);
    socket.on('error', () => {}); // refused or reset: as it may
    socket.on('data', () => {});
    socket.on('close', () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

const NODE_NOT_ROOT = process.getuid?.() === 0 ? null : 'needs root (to mount a small file system)';

testUnless(test, NODE_NOT_ROOT)(
  'a full disk: writes get ENOSPC, reads and trims go on, and after a trim writes do too',
  async (t) => {
    t.timeout(120_000);
    const directory = temporaryDirectory(t, 'full');
    const roles: Running[] = [];
    const master = await startRole(t, 'master', '--dir', join(directory, 'master'), '--listen', '127.0.0.1:0');
    roles.push(master.role);
    for (const id of [1, 2]) {
      const disk = join(directory, `disk-${id}`);
      mkdirSync(disk);
      // A socket on a disk that only one process sees can't be reached by the others.
      const options = ['--dir', disk, '--master', master.address, '--domain', `d${id}`, '--unix', 'none'];
      options.push('--log-size', '32M');
      roles.push((await startRoleOnSmallDisk(t, disk, '160m', 'daemon', ...options)).role);
    }
    const ashlar = async (...args: string[]) => {
      const finished = await runAshlar(...args, '--master', master.address);
      t.is(finished.code, 0, finished.stderr);
      return finished.stdout;
    };
    await ashlar('pool', 'create', 'default', '--pg-count', '16');
    await ashlar('image', 'create', 'disk', '--size', '1G');
    const gateway = await startRole(t, 'nbd', '--master', master.address, '--listen', '127.0.0.1:0');
    roles.push(gateway.role);

    const client = await NbdClient.open(gateway.address, 'disk');
    const written: number[] = [];
    let refused: NbdError | null = null;
    for (let block = 0; block < 100_000 && refused === null; block += 64) {
      const batch = Array.from({ length: 64 }, (_, i) => block + i);
      const results = await Promise.allSettled(
        batch.map((number) => client.write(number * BLOCK, stampedBlock(number, 1))),
      );
      results.forEach((result, i) => {
        if (result.status === 'fulfilled') written.push(batch[i]!);
        else refused = result.reason as NbdError;
      });
    }
    t.is((refused as NbdError | null)?.errno, ENOSPC);
    t.true(written.length * BLOCK > 32 * 2 ** 20, `${written.length} blocks fitted`);
    await client.flush();
    for (let i = 0; i < written.length; i += 97) {
      const number = written[i]!;
      t.deepEqual(await client.read(number * BLOCK, BLOCK), stampedBlock(number, 1), `block ${number}`);
    }
    await until('status says who is full', 5_000, async () => /daemon [12] is full/.test(await ashlar('status')));
    for (let at = 0; at < 32; at++) await client.request(Command.TRIM, 0, at * 2 ** 20, 2 ** 20, null, 0);
    await client.flush();
    await until(
      'writes are taken again',
      20_000,
      () =>
        client.write(0, stampedBlock(0, 2)).then(
          () => true,
          (error: NbdError) => {
            if (error.errno !== ENOSPC) throw error;
            return false;
          },
        ),
      200,
    );
    t.deepEqual(await client.read(0, BLOCK), stampedBlock(0, 2));
    const kept = written.filter((number) => number * BLOCK >= 32 * 2 ** 20);
    for (let i = 0; i < kept.length; i += 97)
      t.deepEqual(await client.read(kept[i]! * BLOCK, BLOCK), stampedBlock(kept[i]!, 1), `block ${kept[i]}`);
    await client.disconnect();
    for (const role of roles) t.false(role.hasEnded, role.stderr);
    await sleep(100);
    for (const role of roles.reverse()) {
      role.kill('SIGTERM');
      t.is((await role.ended).code, 0, role.stderr);
    }
  },
);
