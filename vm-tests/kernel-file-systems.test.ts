// A real kernel mounts an image, and a storage daemon dies in the middle of the copy.

import anyTest from 'ava';
import { Cluster } from './lib/cluster.ts';
import { compareCopies } from './lib/copies.ts';
import { bootKernel, Tap, whyNoKernel } from './lib/kernel.ts';
import { sleep, temporaryDirectory, testUnless } from './lib/processes.ts';
import { makeTree } from './lib/tree.ts';

const test = testUnless(anyTest, whyNoKernel());

const FILE_SYSTEMS = [
  { name: 'ext4', make: 'mkfs.ext4 -q', check: 'fsck.ext4 -fn' },
  { name: 'xfs', make: 'mkfs.xfs -q', check: 'xfs_repair -n' },
];
const PORT = 10809;

for (const { name, make, check } of FILE_SYSTEMS)
  test(`${name} on a kernel's block device is whole, file by file, after a daemon was killed in the middle of a copy`, async (t) => {
    t.timeout(180_000);
    const tree = makeTree(temporaryDirectory(t, 'tree'), 3000, 7);
    const tap = await Tap.open(t);
    const cluster = await Cluster.start(t, { images: ['disk:2G'], nbd: `${tap.hostAddress}:${PORT}` });
    const attach = `attach ${tap.hostAddress} ${PORT} disk`;
    const guest = bootKernel(
      t,
      tap,
      `
${attach}
${make} /dev/nbd0
mkdir /mnt/disk
mount /dev/nbd0 /mnt/disk
mkdir /mnt/disk/tree
cd ${tree.root}
cp -r d? /mnt/disk/tree/
step half
sync &
cp -r d1? /mnt/disk/tree/
wait
sync
step copied
cd /
umount /mnt/disk
${check} /dev/nbd0
detach
host_says again
${attach}
mount -o ro /dev/nbd0 /mnt/disk
cd /mnt/disk/tree
sha256sum -c --quiet ${tree.manifest}
test "$(find . -type f | wc -l)" = ${tree.files}
cd /
umount /mnt/disk
detach
`,
      { timeoutMs: 120_000 },
    );
    await guest.step('half');
    const killed = await cluster.kill('daemon', 2);
    await sleep(1_000);
    await cluster.startAgain(killed);
    await guest.step('copied');
    guest.say('again');
    const verdict = await guest.ended;
    t.is(verdict.exitCode, 0, verdict.console);
    await cluster.untilClean();
    const compared = await compareCopies(cluster);
    t.deepEqual(compared.differences, []);
    t.true(compared.bytes > tree.bytes, `${compared.objects} objects were compared`);
  });
