// The oracle bites: servers that break one promise each are found out, and good ones are not accused.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { sleep, temporaryDirectory, until } from '../lib/processes.ts';
import { BadServer, type Fault } from './bad-server.ts';
import { BLOCK, stampInto, verdictOf } from './stamps.ts';
import { Witness, type WitnessOptions } from './witness.ts';

async function witnessOf(
  t: ExecutionContext,
  fault: Fault,
  options: Partial<WitnessOptions> = {},
): Promise<{ server: BadServer; witness: Witness; again: () => Promise<Witness> }> {
  t.timeout(90_000);
  const server = new BadServer(fault);
  t.teardown(() => server.close());
  const address = await server.listen();
  const all: WitnessOptions = {
    state: join(temporaryDirectory(t, 'oracle'), 'state'),
    targets: [`${address}/a`, `${address}/b`],
    blocks: 512,
    ...options,
  };
  const start = () => Witness.start(all, (end) => t.teardown(end));
  return { server, witness: await start(), again: start };
}

/** What a live server does wrong while it is read. */
const LIVE: [Fault, RegExp][] = [
  ['acked write is dropped', /stale/],
  ['read is one write behind', /stale/],
  ['write is torn inside a block', /torn/],
  ['write goes one block too far', /data of block/],
  ['read returns the next block', /data of block/],
  ['read returns the other export', /data of another volume/],
  ['read flips a bit', /wrong checksum|not ours/],
  ['trim is ignored', /stale/],
];
for (const [fault, expected] of LIVE)
  test.serial(`a server is found out: ${fault}`, async (t) => {
    const { server, witness } = await witnessOf(t, fault);
    await witness.resume();
    const isFoundOut = async (): Promise<boolean> => {
      await sleep(200);
      await witness.audit();
      await witness.resume();
      return witness.violations.some((why) => expected.test(why));
    };
    await until(`a violation like ${expected}`, 60_000, isFoundOut);
    t.true(server.faults > 0);
    t.is(await witness.stop(), 1, 'it ends with failure');
  });

test.serial('a good server is not accused, not when its connections break either', async (t) => {
  const { server, witness } = await witnessOf(t, 'none', { depth: 32 });
  await witness.resume();
  for (let i = 0; i < 5; i++) {
    await sleep(300);
    server.breakConnections();
  }
  await sleep(300);
  const { blocks, broken, unreadable } = await witness.audit();
  t.is(blocks, 1_024);
  t.deepEqual([...broken, ...unreadable, ...witness.violations], []);
  const { counts } = await witness.status();
  t.true(counts.a!.losses > 0 && counts.a!.changes > 50, JSON.stringify(counts));
  t.is(await witness.stop(), 0);
});

test.serial('what a crash may take is allowed under --promise flushed, and only there', async (t) => {
  const crashed = async (promise: 'acked' | 'flushed'): Promise<string[]> => {
    const { server, witness } = await witnessOf(t, 'none', { promise });
    await witness.resume();
    await sleep(1_000);
    await witness.pause();
    server.crash();
    await witness.crash();
    for (let i = 0; i < 3; i++) await witness.audit();
    await witness.resume();
    await sleep(500);
    const { blocks, unreadable } = await witness.audit();
    t.is(blocks, 1_024);
    t.deepEqual(unreadable, []);
    await witness.stop();
    return witness.violations;
  };
  t.deepEqual(await crashed('flushed'), []);
  t.true((await crashed('acked')).length > 0, 'unflushed writes were gone');
});

const CRASHING: [Fault, RegExp][] = [
  ['flush does nothing', /stale/],
  ['multi-conn: a flush covers its own connection only', /stale/],
  ['unflushed writes come and go after a crash', /a change that a crash had undone/],
];
for (const [fault, expected] of CRASHING)
  test.serial(`a server is found out after a crash: ${fault}`, async (t) => {
    const { server, witness } = await witnessOf(t, fault, { promise: 'flushed' });
    await witness.resume();
    const isFoundOut = async (): Promise<boolean> => {
      await witness.resume();
      await sleep(500);
      await witness.pause();
      server.crash();
      await witness.crash();
      for (let i = 0; i < 4; i++) await witness.audit();
      return witness.violations.some((why) => expected.test(why));
    };
    await until(`a violation like ${expected}`, 60_000, isFoundOut);
    t.true(server.faults > 0);
    t.is(await witness.stop(), 1);
  });

test.serial('an oracle that was started again remembers what was promised before', async (t) => {
  const { server, witness, again } = await witnessOf(t, 'flush does nothing', { promise: 'flushed' });
  await witness.resume();
  await sleep(700);
  await witness.stop();
  const honest = await again();
  t.deepEqual((await honest.audit()).broken, []);
  await honest.stop();
  server.crash();
  const second = await again();
  const { broken } = await second.audit();
  t.true(broken.length > 0);
  t.regex(broken[0]!, /^[ab], block \d+: zeros is stale; expected \[\d+ \.\. \d+\]/);
  t.is(await second.stop(), 1);
});

test('every single byte of a block that changes is noticed', (t) => {
  const block = Buffer.alloc(BLOCK);
  stampInto(block, 7, 3, 9);
  t.deepEqual(verdictOf(block, 7, 3), { is: 'stamp', stamp: 9 });
  for (let at = 0; at < BLOCK; at++) {
    block[at]! ^= 1 << (at % 8);
    t.is(verdictOf(block, 7, 3).is, 'damage', `byte ${at}`);
    block[at]! ^= 1 << (at % 8);
  }
});

test("the oracle's program imports nothing of what it judges", (t) => {
  const own = readdirSync(import.meta.dirname).filter((name) => name.endsWith('.ts'));
  const seen = new Set<string>();
  const visit = (name: string): void => {
    if (seen.has(name)) return;
    seen.add(name);
    const text = readFileSync(join(import.meta.dirname, name), 'utf8');
    for (const [, specifier] of text.matchAll(/from '([^']+)'/g)) {
      if (specifier!.startsWith('node:')) continue;
      t.true(own.includes(specifier!.slice(2)), `${name} imports ${specifier}`);
      visit(specifier!.slice(2));
    }
  };
  visit('main.ts');
  t.true(seen.size >= 5);
});
