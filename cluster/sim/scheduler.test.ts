import test from 'ava';
import { SimRandom } from './random.ts';
import { Scheduler } from './scheduler.ts';

const scheduler = (): Scheduler => new Scheduler(new SimRandom(1));
const never = (): boolean => false;

test('events run by time, and at one time in the order of their insertion', async (t) => {
  const world = scheduler();
  const seen: string[] = [];
  world.after(5, 'x', () => seen.push('five'));
  world.after(1, 'x', () => seen.push('one a'));
  world.after(1, 'x', () => seen.push('one b'));
  world.after(0, 'x', () => world.after(0.5, 'x', () => seen.push('half')));
  t.is(await world.run(never, 1e9), 'idle');
  t.deepEqual(seen, ['half', 'one a', 'one b', 'five']);
  t.is(world.now, 5);
});

test('the heap gives 5,000 random times back in order', async (t) => {
  const world = scheduler();
  const random = new SimRandom(4);
  const seen: number[] = [];
  for (let i = 0; i < 5_000; i++) {
    const time = random.below(1_000);
    world.after(time, 'x', () => seen.push(time));
  }
  await world.run(never, 1e9);
  t.is(seen.length, 5_000);
  t.deepEqual(
    seen,
    [...seen].sort((a, b) => a - b),
  );
});

test('promises settle before the next event, however long their chain', async (t) => {
  const world = scheduler();
  const seen: string[] = [];
  const chain = async (): Promise<void> => {
    for (let i = 0; i < 50; i++) await null;
    seen.push('chain');
  };
  world.after(1, 'x', () => void chain());
  world.after(1, 'x', () => seen.push('next'));
  await world.run(never, 1e9);
  t.deepEqual(seen, ['chain', 'next']);
});

test('a crashed process runs nothing any more, and the next one on the machine is not disturbed', async (t) => {
  const world = scheduler();
  const machine = world.machine('daemon');
  const seen: string[] = [];
  const first = machine.boot();
  first.after(10, () => seen.push('zombie'));
  first.soon(() => seen.push('soon'));
  world.after(5, 'crash', () => {
    machine.end('crash');
    machine.boot().after(10, () => seen.push('second life'));
  });
  await world.run(never, 1e9);
  t.deepEqual(seen, ['soon', 'second life']);
});

test("a paused machine's events wait and keep their order, those of others go on", async (t) => {
  const world = scheduler();
  const machine = world.machine('slow');
  const life = machine.boot();
  const seen: string[] = [];
  world.schedule(3, life, 'x', 0, () => seen.push('second'));
  world.schedule(2, life, 'x', 0, () => seen.push('first'));
  world.after(4, 'x', () => seen.push('other'));
  machine.pause(100);
  machine.pause(1);
  await world.run(never, 1e9);
  t.deepEqual(seen, ['other', 'first', 'second']);
  t.is(world.now, 100);
});

test('cancelled timers do not fire, the time limit stops a run, and a thrown error is its verdict', async (t) => {
  const world = scheduler();
  const life = world.machine('m').boot();
  life.after(1, () => t.fail('cancelled')).cancel();
  world.after(500, 'x', () => {
    throw new Error('boom');
  });
  t.is(await world.run(never, 100), 'late');
  t.is(world.now, 100);
  t.is(await world.run(never, 1_000), 'failed');
  t.regex(world.failure!.message, /boom/);
});

test('the digest is the same for the same run and another for another', async (t) => {
  const digest = async (seed: number): Promise<string> => {
    const world = new Scheduler(new SimRandom(seed));
    const life = world.machine('m').boot();
    let left = 100;
    const again = (): void => {
      if (left-- > 0) life.after(1, again);
    };
    again();
    await world.run(never, 1e9);
    return world.digest;
  };
  t.is(await digest(1), await digest(1));
  t.not(await digest(1), await digest(2));
});

for (const [name, call] of [
  ['Date.now', () => Date.now()],
  ['Math.random', () => Math.random()],
  ['setTimeout', () => setTimeout(() => {}, 1)],
  ['setImmediate', () => setImmediate(() => {})],
  ['queueMicrotask', () => queueMicrotask(() => {})],
  ['process.nextTick', () => process.nextTick(() => {})],
  ['performance.now', () => performance.now()],
  ['crypto.randomUUID', () => crypto.randomUUID()],
] as const)
  test(`a core that calls ${name} fails the run, and afterwards the call works again`, async (t) => {
    const world = scheduler();
    world.after(1, 'x', call);
    t.is(await world.run(never, 10), 'failed');
    t.regex(world.failure!.message, /past its ports/);
    t.notThrows(call);
  });
