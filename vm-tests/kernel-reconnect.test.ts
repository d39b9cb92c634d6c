// A real kernel goes on when the NBD gateway under its mounted file system is killed and started again.

import anyTest from 'ava';
import { Cluster } from './lib/cluster.ts';
import { bootKernel, Tap, whyNoKernel } from './lib/kernel.ts';
import { temporaryDirectory, testUnless } from './lib/processes.ts';
import { makeTree } from './lib/tree.ts';

const test = testUnless(anyTest, whyNoKernel());
const PORT = 10809;

test('a mounted ext4 goes on, without an error, through the death of its NBD gateway', async (t) => {
  t.timeout(150_000);
  const tree = makeTree(temporaryDirectory(t, 'tree'), 1500, 11);
  const tap = await Tap.open(t);
  const cluster = await Cluster.start(t, { images: ['disk:1G'], nbd: `${tap.hostAddress}:${PORT}` });
  const server = `${tap.hostAddress} ${PORT} disk`;
  const guest = bootKernel(
    t,
    tap,
    `
attach_patient ${server}
mkfs.ext4 -q -E nodiscard /dev/nbd0
mkdir /mnt/disk
mount -o errors=remount-ro /dev/nbd0 /mnt/disk
cd ${tree.root}
cp -r d? /mnt/disk/
sync
step half
( cp -r d1? /mnt/disk/; sync ) & copy=$!
host_says gateway-is-back
reconnect ${server}
wait $copy
cd /mnt/disk
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c --quiet ${tree.manifest}
cd /
umount /mnt/disk
fsck.ext4 -fn /dev/nbd0
detach
`,
    { timeoutMs: 120_000 },
  );
  await guest.step('half');
  const gateway = await cluster.kill('nbd');
  await cluster.startAgain(gateway);
  guest.say('gateway-is-back');
  const verdict = await guest.ended;
  t.is(verdict.exitCode, 0, verdict.console);
  t.notRegex(verdict.console, /I\/O error/);
});
