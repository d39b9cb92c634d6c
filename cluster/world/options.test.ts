import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { Command } from 'commander';
import {
  addOptions,
  type OptionSpec,
  type Options,
  optionsOf,
  parseSeconds,
  parseSize,
  UsageError,
} from './options.ts';

const SPECS = [
  { name: 'listen', kind: 'string', default: '127.0.0.1:0', help: 'address' },
  { name: 'out-after', kind: 'seconds', default: 600, help: 'time' },
  { name: 'log-size', kind: 'size', help: 'bytes' },
  { name: 'daemons', kind: 'integer', default: 3, help: 'how many' },
  { name: 'image', kind: 'list', default: ['vol0:10G'], help: 'images' },
  { name: 'read-only', kind: 'flag', help: 'no writes' },
] as const satisfies readonly OptionSpec[];

function read(argv: string[], environment: Record<string, string> = {}): Options<typeof SPECS> {
  const command = new Command('role').exitOverride().configureOutput({ writeErr: () => {} });
  addOptions(command, SPECS);
  command.parse(argv, { from: 'user' });
  return optionsOf(command, SPECS, environment);
}

const directory = mkdtempSync(join(tmpdir(), 'ashlar-options-'));
let configs = 0;
test.after.always(() => rmSync(directory, { recursive: true }));

function configFile(content: unknown): string {
  const path = join(directory, `config-${++configs}.json`);
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

test('without any source every option has its default, or nothing', (t) => {
  t.deepEqual(read([]), {
    listen: '127.0.0.1:0',
    outAfter: 600,
    logSize: undefined,
    daemons: 3,
    image: ['vol0:10G'],
    readOnly: false,
  });
});

test('a flag beats the environment, which beats the file, which beats the default', (t) => {
  const config = configFile({ listen: 'file', 'out-after': '1m', daemons: 7, 'read-only': true });
  const environment = { ASHLAR_LISTEN: 'environment', ASHLAR_OUT_AFTER: '2m' };
  const values = read(['--listen', 'flag', '--config', config], environment);
  t.is(values.listen, 'flag');
  t.is(values.outAfter, 120);
  t.is(values.daemons, 7);
  t.is(values.readOnly, true);
  t.deepEqual(values.image, ['vol0:10G']);
});

test('the config file itself may be named by the environment', (t) => {
  t.is(read([], { ASHLAR_CONFIG: configFile({ daemons: 9 }) }).daemons, 9);
});

test('a list flag given twice replaces the default with both', (t) => {
  t.deepEqual(read(['--image', 'a:1G', '--image', 'b:2G']).image, ['a:1G', 'b:2G']);
  t.deepEqual(read([], { ASHLAR_IMAGE: 'a:1G,b:2G' }).image, ['a:1G', 'b:2G']);
  t.deepEqual(read(['--config', configFile({ image: ['c:3G'] })]).image, ['c:3G']);
});

test('a flag can be switched off again by what comes first', (t) => {
  t.is(read(['--config', configFile({ 'read-only': true })], { ASHLAR_READ_ONLY: '0' }).readOnly, false);
});

test('an unknown key in the file is refused and named', (t) => {
  const config = configFile({ lisen: '127.0.0.1:1' });
  const error = t.throws(() => read(['--config', config]), { instanceOf: UsageError });
  t.regex(error!.message, /unknown key "lisen".*known are listen, out-after/);
});

test('a file that is missing, torn or no object is refused with its path', (t) => {
  for (const path of ['/nonexistent/ashlar.json', configFile('{"listen":'), configFile('[1]')]) {
    const error = t.throws(() => read(['--config', path]), { instanceOf: UsageError });
    t.true(error!.message.includes(path), error!.message);
  }
});

test('a wrong value says where it stands, what it is and what it should be', (t) => {
  const cases: [() => unknown, RegExp][] = [
    [() => read(['--daemons', 'many']), /^--daemons: must be a whole number.*"many"/],
    [() => read(['--daemons', '-1']), /^--daemons: must be a whole number/],
    [() => read([], { ASHLAR_LOG_SIZE: '10 parsecs' }), /^ASHLAR_LOG_SIZE: "10 parsecs" is not a size/],
    [
      () => read(['--config', configFile({ 'read-only': 'perhaps' })]),
      /^"read-only" in .*true or false, not "perhaps"/,
    ],
    [() => read(['--config', configFile({ listen: 5 })]), /^"listen" in .*must be text, not 5/],
  ];
  for (const [run, message] of cases) t.throws(run, { instanceOf: UsageError, message });
});

test('sizes are powers of 1024 and whole bytes', (t) => {
  t.is(parseSize('4096'), 4096);
  t.is(parseSize('64k'), 65_536);
  t.is(parseSize('1.5GiB'), 1.5 * 2 ** 30);
  t.is(parseSize('10G'), 10 * 2 ** 30);
  for (const bad of ['', 'G', '-1', '0.3', '1e3', '9999P', '10 G B'])
    t.throws(() => parseSize(bad), { instanceOf: UsageError });
});

test('times are seconds unless a unit follows', (t) => {
  t.deepEqual(['1.5', '30s', '500ms', '10m', '1h'].map(parseSeconds), [1.5, 30, 0.5, 600, 3600]);
  for (const bad of ['', 'soon', '-1s', '1d']) t.throws(() => parseSeconds(bad), { instanceOf: UsageError });
});

test('a role ends with exit code 2 and a sentence on stderr for any wrong option, with 0 for help', (t) => {
  const program = `
    import { parseOptions } from ${JSON.stringify(new URL('./options.ts', import.meta.url).href)};
    parseOptions('role', 'Does it.', [{ name: 'dir', kind: 'string', help: 'directory', required: true }], process.argv.slice(1));
    console.log('went on');`;
  const run = (...argv: string[]) =>
    spawnSync(process.execPath, ['--input-type=module', '-e', program, '--', ...argv], { encoding: 'utf8' });
  const missing = run();
  t.is(missing.status, 2);
  t.regex(missing.stderr, /^role: --dir is missing \(directory\): pass it, set ASHLAR_DIR/);
  const unknown = run('--dri', 'x');
  t.is(unknown.status, 2);
  t.regex(unknown.stderr, /unknown option '--dri'/);
  t.is(run('extra', '--dir', 'x').status, 2);
  const help = run('--help');
  t.is(help.status, 0);
  t.regex(help.stdout, /--dir <value>\s+directory \(required, env ASHLAR_DIR\)/);
  const fine = run('--dir', 'x');
  t.is(fine.stdout, 'went on\n');
});
