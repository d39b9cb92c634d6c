// The oracle's process: an independent witness of what an NBD server promised. Imports nothing of the product.
//
//   node vm-tests/oracle/main.ts --state DIR --target HOST:PORT/EXPORT [--target …]   load until told otherwise
//   stdin   one command per line:  status | reset | audit | pause | resume | crash | stop
//   stdout  one JSON object per line: an answer per command, {"event":"violation"} when it happens, {"event":"result"}
//
// With --seconds it needs nobody: load for so long, an audit, the result. Exit code 0: no promise was broken.
// The state directory may be given again, to the same exports: it goes on with what they promised.

import { randomInt } from 'node:crypto';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { type Audit, Device } from './device.ts';

const { values } = parseArgs({
  options: {
    state: { type: 'string' },
    target: { type: 'string', multiple: true },
    blocks: { type: 'string', default: '4096' },
    connections: { type: 'string', default: '4' },
    depth: { type: 'string', default: '16' },
    rate: { type: 'string', default: '2000' },
    seed: { type: 'string', default: '1' },
    promise: { type: 'string', default: 'acked' },
    'answer-ms': { type: 'string', default: '20000' },
    seconds: { type: 'string', default: '0' },
  },
});
const targets = (values.target ?? []).map((text) => {
  const at = text.lastIndexOf('/');
  return { address: text.slice(0, at), exportName: text.slice(at + 1) };
});
const { promise } = values;
if (values.state === undefined || targets.length === 0 || (promise !== 'acked' && promise !== 'flushed')) {
  console.error('oracle: needs --state DIR, --target ADDRESS/EXPORT, and --promise acked or flushed');
  process.exit(2);
}
const directory = values.state;
mkdirSync(directory, { recursive: true });

const violations: string[] = [];
const say = (message: object): void => void process.stdout.write(`${JSON.stringify(message)}\n`);
const devices = await Promise.all(
  targets.map(async (target, i) => {
    const journalPath = join(directory, `${target.exportName}.journal`);
    const device = await Device.open(
      {
        target,
        journalPath,
        promise,
        blocks: Number(values.blocks),
        connections: Number(values.connections),
        depth: Number(values.depth),
        rate: Number(values.rate),
        seed: Number(values.seed) + i,
        answerMs: Number(values['answer-ms']),
      },
      !existsSync(journalPath),
      randomInt(1, 2 ** 32),
    );
    device.onViolation = report;
    return device;
  }),
);

function report(why: string): void {
  violations.push(why);
  if (violations.length <= 100) say({ event: 'violation', why });
}
async function audit(): Promise<Audit> {
  const audits = await Promise.all(devices.map((device) => device.audit()));
  const all = {
    blocks: audits.reduce((sum, { blocks }) => sum + blocks, 0),
    broken: audits.flatMap(({ broken }) => broken),
    unreadable: audits.flatMap(({ unreadable }) => unreadable),
  };
  all.broken.forEach(report);
  return all;
}
function status(): object {
  const times = devices.map((device) => device.times);
  return {
    gapMs: Math.max(...times.map(({ gapMs }) => gapMs)),
    slowestMs: Math.max(...times.map(({ slowestMs }) => slowestMs)),
    violations: violations.length,
    connections: devices.map((device) => device.connections),
    counts: Object.fromEntries(devices.map((device) => [device.name, device.counts])),
  };
}

const COMMANDS: Record<string, () => Promise<object>> = {
  status: async () => status(),
  audit,
  crash: async () => {
    for (const device of devices) await device.crash();
    return {};
  },
  pause: async () => {
    await Promise.all(devices.map((device) => device.pause()));
    return {};
  },
  reset: async () => {
    for (const device of devices) device.resetTimes();
    return {};
  },
  resume: async () => {
    for (const device of devices) device.resume();
    return {};
  },
};
async function end(): Promise<never> {
  await Promise.all(devices.map((device) => device.pause()));
  const result = { event: 'result', ...status(), broken: violations.slice(0, 100) };
  await Promise.all(devices.map((device) => device.stop()));
  say(result);
  process.exit(violations.length === 0 ? 0 : 1);
}

say({ event: 'ready', exports: devices.map((device) => device.name) });
if (Number(values.seconds) > 0) {
  for (const device of devices) device.resume();
  await new Promise((done) => setTimeout(done, Number(values.seconds) * 1000));
  say({ command: 'audit', ...(await audit()) });
  await end();
}
for await (const line of createInterface({ input: process.stdin })) {
  const command = line.trim();
  if (command === 'stop') break;
  const run = COMMANDS[command];
  if (run === undefined) say({ command, error: 'unknown command' });
  else say({ command, ...(await run()) });
}
await end();
