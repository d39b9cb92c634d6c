// An image changes hands while daemons are cut off together with its old owner, told in virtual time.

import test from 'ava';
import { flush, read, Story, write } from '../sim/story.ts';

const code = (error: unknown): string => (error as { code?: string }).code ?? String(error);
/** How it ended, once it has. */
function ending(promise: Promise<unknown>): { how: string } {
  const end = { how: 'open' };
  promise.then(
    () => {
      end.how = 'acked';
    },
    (error: unknown) => {
      end.how = code(error);
    },
  );
  return end;
}

test('a primary cut off with the old owner: what it is sent after the takeover is never acked, and leaves no trace', async (t) => {
  const story = await Story.begin();
  const { cluster } = story;
  const old = await story.open('old', false);
  await story.settled(write(old.image, 0, 1), 'a write');
  await story.settled(flush(old.image), 'a flush');
  const { machine } = story.primary;
  const others = cluster.daemons.map((sim) => sim.machine).filter((other) => other !== machine);
  story.cut(machine, cluster.masterMachine, ...others);
  story.cut(old.machine, cluster.masterMachine, ...others);
  const heir = await story.open('heir', false);
  t.is(await story.settled(read(heir.image, 0), 'the new owner reads'), 1);
  const late = ending(write(old.image, 0, 2));
  await story.settled(write(heir.image, 4096, 3), 'the new owner writes');
  await story.idle(2_000);
  t.is(late.how, 'open');
  story.heal();
  await story.until(() => late.how !== 'open', 'the old owner hears of it');
  t.is(late.how, 'FENCED');
  t.is(await story.settled(read(heir.image, 0), 'the new owner reads again'), 1);
  await story.untilClean();
  t.is(await story.settled(read(heir.image, 0), 'and again'), 1);
});

test('all members cut off with the old owner: the new one waits for them, and from its first answer on nothing changes', async (t) => {
  const story = await Story.begin();
  const { cluster } = story;
  const old = await story.open('old', false);
  await story.settled(write(old.image, 0, 1), 'a write');
  await story.settled(flush(old.image), 'a flush');
  const members = story.pg.acting.map((id) => story.daemon(id).machine);
  const others = cluster.daemons.map((sim) => sim.machine).filter((other) => !members.includes(other));
  for (const lone of [...members, old.machine]) story.cut(lone, cluster.masterMachine, ...others);
  await story.until(() => story.pg.waitFor.length > 0 || story.pg.acting.length === 0, 'the master misses them');
  const heir = await story.open('heir', false);
  for (const member of members) story.cut(heir.machine, member);
  let found = 0;
  const reading = read(heir.image, 0).then((byte) => {
    found = byte;
  });
  await story.settled(write(old.image, 0, 2), 'a write that its new owner has not heard of yet');
  await story.idle(3_000);
  t.is(found, 0, 'the new owner waits');
  // The old owner writes one value after the other, until it is told.
  let acked = 2;
  let told = '';
  const next = (): void => {
    write(old.image, 0, acked + 1).then(
      () => {
        acked += 1;
        next();
      },
      (error: unknown) => {
        told = code(error);
      },
    );
  };
  next();
  await story.until(() => acked > 20, 'it goes on');
  story.heal();
  await story.settled(reading, 'its first answer');
  await story.until(() => told !== '', 'the old owner hears of it');
  t.is(told, 'FENCED');
  t.true(
    found === (acked & 255) || found === ((acked + 1) & 255),
    `it found ${found}, ${acked} was the last to be acked`,
  );
  await story.untilClean();
  t.is(await story.settled(read(heir.image, 0), 'it reads again'), found);
});
