import { createServer } from 'node:net';
import test from 'ava';
import { UsageError } from '../../cluster/world/options.ts';
import { checkFree, choosePort, splitAddress } from './addresses.ts';

test('addresses are host and port, IPv6 in brackets; anything else is refused with the option that gave it', (t) => {
  t.deepEqual(splitAddress('127.0.0.1:10809', '--nbd'), { host: '127.0.0.1', port: 10809 });
  t.deepEqual(splitAddress('[::1]:0', '--nbd'), { host: '::1', port: 0 });
  t.deepEqual(splitAddress('disks.example:7', '--nbd'), { host: 'disks.example', port: 7 });
  for (const bad of ['', 'host', ':1', 'host:', 'host:65536', '::1:5', 'host:port', 'a:1:2'])
    t.throws(() => splitAddress(bad, '--nbd'), { instanceOf: UsageError, message: /^--nbd: / }, bad);
});

test('a port in use is found out before anything starts, and never chosen', async (t) => {
  const port = await choosePort('127.0.0.1', new Set());
  t.true(port >= 20_000 && port < 32_000);
  await checkFree(`127.0.0.1:${port}`, '--nbd');
  const server = createServer().listen(port, '127.0.0.1');
  await new Promise((listening) => server.once('listening', listening));
  const error = await t.throwsAsync(checkFree(`127.0.0.1:${port}`, '--nbd'), { instanceOf: UsageError });
  t.is(error!.message, `--nbd: 127.0.0.1:${port} is in use by another program: stop it, or choose another port`);
  await new Promise((closed) => server.close(closed));
  await t.throwsAsync(checkFree('192.0.2.1:80', '--nbd'), { message: /nobody can listen on 192\.0\.2\.1:80/ });
});
