import test from 'ava';
import { JOBS } from './jobs.ts';
import { nbdOptions, UsageError } from './nbd-options.ts';

test('without options all seven jobs run three times for 8 s on 3 daemons with 2 replicas', (t) => {
  const options = nbdOptions([]);
  t.deepEqual([...options.jobs], [...JOBS]);
  t.like(options, { seconds: 8, rounds: 3, replicas: 2, daemons: 3, transport: 'unix', profile: null, directory: '' });
});

test('what follows -- goes to ashlar up as it is, and nowhere else', (t) => {
  const options = nbdOptions(['--jobs', 'flush-q1,write-1m', '--tcp', '--', '--durability', 'sync', '--rounds']);
  t.deepEqual(options.upOptions, ['--durability', 'sync', '--rounds']);
  t.deepEqual(
    options.jobs.map(({ name }) => name),
    ['write-1m', 'flush-q1'],
  );
  t.is(options.transport, 'tcp');
  t.is(options.rounds, 3);
});

test('a wrong option is refused with a sentence that names it', (t) => {
  const refused: [string[], RegExp][] = [
    [['--seconds', '0'], /--seconds must be a whole number of at least 1, not "0"/],
    [['--rounds', '1.5'], /--rounds/],
    [['--jobs', 'sideways'], /no job "sideways": choose from write-1m/],
    [['--replicas', '4'], /--replicas 4 needs/],
    [['--unix', '--tcp'], /exclude each other/],
    [['--profile', 'mason'], /no role "mason": choose from master, daemon, nbd/],
    [['--profile', 'daemon', '--profile-kind', 'gold'], /cpu or allocations/],
    [['--colour'], /colour/],
  ];
  for (const [args, message] of refused) {
    const error = t.throws(() => nbdOptions(args), { instanceOf: UsageError, message })!;
    t.is((error as UsageError).exitCode, 2);
  }
});
