// Options from a config file and the environment, damaged: values of the right type within their range, or one sentence
// that says what is wrong.

import test from 'ava';
import { Command } from 'commander';
import { fuzz } from '../../scripts/fuzz/fuzz.ts';
import { addOptions, type OptionSpec, optionsOf, UsageError } from './options.ts';

const SPECS = [
  { name: 'dir', kind: 'string', default: '/x', help: 'h' },
  { name: 'weight', kind: 'integer', default: 100, help: 'h' },
  { name: 'log-size', kind: 'size', default: 4096, help: 'h' },
  { name: 'out-after', kind: 'seconds', default: 600, help: 'h' },
  { name: 'quiet', kind: 'flag', help: 'h' },
  { name: 'images', kind: 'list', default: [], help: 'h' },
] as const satisfies readonly OptionSpec[];

const FULL = { dir: '/d', weight: 5, 'log-size': '1.5GiB', 'out-after': '10m', quiet: 'yes', images: ['a', 'b,c'] };

function areValues(values: ReturnType<typeof optionsOf<typeof SPECS>>): boolean {
  const { dir, weight, logSize, outAfter, quiet, images } = values;
  const right =
    typeof dir === 'string' &&
    Number.isSafeInteger(weight) &&
    weight >= 0 &&
    Number.isSafeInteger(logSize) &&
    logSize >= 0 &&
    Number.isFinite(outAfter) &&
    outAfter >= 0 &&
    typeof quiet === 'boolean' &&
    images.every((item) => typeof item === 'string' && item !== '');
  if (!right) throw new Error(`wrong values: ${JSON.stringify(values)}`);
  return true;
}
const isTyped = (error: unknown): boolean => error instanceof UsageError;

test('a config file', (t) => {
  const command = new Command('x');
  addOptions(command, SPECS);
  command.parse(['--config', 'f'], { from: 'user' });
  const samples = [FULL, { weight: 5, quiet: false }, { 'out-after': 0.5, images: 'x', 'log-size': 2 ** 40 }, {}];
  fuzz(t, {
    samples: samples.map((sample) => Buffer.from(JSON.stringify(sample))),
    capBytes: 0,
    decode: (input) => areValues(optionsOf(command, SPECS, {}, () => input.toString('utf8'))),
    isTyped,
  });
});

test('the environment', (t) => {
  const command = new Command('x');
  addOptions(command, SPECS);
  command.parse([], { from: 'user' });
  const names = ['DIR', 'WEIGHT', 'LOG_SIZE', 'OUT_AFTER', 'QUIET', 'IMAGES'].map((name) => `ASHLAR_${name}`);
  fuzz(t, {
    samples: ['/d', '5', '1.5GiB', '10m', '500ms', '0', 'a,b,,c', '18446744073709551616', `${'9'.repeat(400)}`].map(
      (text) => Buffer.from(text),
    ),
    capBytes: 0,
    decode(input, random) {
      const name = names[random(names.length)]!;
      return areValues(optionsOf(command, SPECS, { [name]: input.toString('latin1') }));
    },
    isTyped,
  });
});

test('a config value that has no text, and a time without end, are refused in words', (t) => {
  const command = new Command('x');
  addOptions(command, SPECS);
  command.parse(['--config', 'f'], { from: 'user' });
  const read = (text: string) => () => optionsOf(command, SPECS, {}, () => text);
  t.throws(read('{"quiet": {"toString": 1, "valueOf": 1}}'), { instanceOf: UsageError, message: /true or false/ });
  t.throws(read(`{"out-after": "${'9'.repeat(400)}"}`), { instanceOf: UsageError, message: /not a time/ });
});
