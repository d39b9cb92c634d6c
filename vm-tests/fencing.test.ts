// A gateway that was stopped (SIGSTOP, a paused virtual machine) while another took its image over wakes up full of
// requests: none of them may change anything.

import test from 'ava';
import { Cluster, startRole } from './lib/cluster.ts';
import { NbdClient } from './lib/nbd-client.ts';
import { sleep, until } from './lib/processes.ts';
import { BLOCK, generationOf, stampedBlock } from './lib/stamps.ts';

const BLOCKS = 512;
/** How long it sleeps after the other has taken over. */
const ASLEEP_MS = 2_000;

test('a stopped gateway that wakes up after another took the image over writes nothing, and says so', async (t) => {
  t.timeout(120_000);
  const cluster = await Cluster.start(t, { images: ['disk:64M'] });
  const sleeper = cluster.ready.nbd;
  const old = await NbdClient.open(sleeper.address, 'disk');
  t.teardown(() => old.destroy());
  const all = [...Array(BLOCKS).keys()];
  await Promise.all(all.map((number) => old.write(number * BLOCK, stampedBlock(number, 1))));
  await old.flush();

  // Writes of generation 2 are on their way when it is stopped; more arrive while it sleeps.
  let failed = 0;
  let acked = 0;
  const send = (generation: number): void => {
    for (const number of all)
      old.write(number * BLOCK, stampedBlock(number, generation)).then(
        () => {
          acked++;
        },
        () => {
          failed++;
        },
      );
  };
  send(2);
  await sleep(5);
  process.kill(sleeper.pid, 'SIGSTOP');
  t.teardown(() => process.kill(sleeper.pid, 'SIGCONT'));
  send(3);
  const ackedBefore = acked;

  const heir = await startRole(t, 'nbd', '--master', cluster.ready.master, '--listen', '127.0.0.1:0', '--take-over');
  const taken = await NbdClient.open(heir.address, 'disk');
  t.teardown(() => taken.destroy());
  const generations = async (): Promise<number[]> => {
    const bytes = await taken.read(0, BLOCKS * BLOCK);
    return all.map((number) => generationOf(bytes.subarray(number * BLOCK, (number + 1) * BLOCK), number));
  };
  const found = await generations();
  t.true(
    found.every((generation) => generation === 1 || generation === 2),
    'what had not left the sleeper is not there',
  );
  // The new owner writes every other block, and knows the rest.
  const mine = all.filter((number) => number % 2 === 0);
  await Promise.all(mine.map((number) => taken.write(number * BLOCK, stampedBlock(number, 9))));
  await taken.flush();
  const expected = found.map((generation, number) => (number % 2 === 0 ? 9 : generation));
  t.deepEqual(await generations(), expected);

  await sleep(ASLEEP_MS);
  process.kill(sleeper.pid, 'SIGCONT');
  await until('the old client has an answer to everything', 30_000, () => acked + failed === 2 * BLOCKS);
  t.true(failed >= BLOCKS, `${failed} of ${2 * BLOCKS} writes failed, ${ackedBefore} were acked before it slept`);
  await t.throwsAsync(old.write(0, stampedBlock(0, 4)));
  await sleep(1_000);
  t.deepEqual(await generations(), expected, 'nothing changed behind the back of the new owner');
  await taken.disconnect();
});
