// The conformance suite of nbd-protocol-ts against the gateway, over real sockets: every case must pass, and the only
// ones skipped are those named here.

import test, { type ExecutionContext } from 'ava';
import { conformanceCases, runConformance } from '../nbd-protocol-ts/index.ts';
import { serve } from './testing.ts';

const MiB = 2 ** 20;

async function outcomes(t: ExecutionContext, readOnly: boolean): Promise<Map<string, string>> {
  const { connect } = await serve(t, { disk: 16 * MiB + 513 }, { readOnly });
  const results = new Map<string, string>();
  for await (const result of runConformance({ connect, exportName: 'disk' })) {
    results.set(result.id, result.outcome);
    if (result.outcome === 'fail') t.fail(`${result.id} ${result.title}: ${result.detail}`);
  }
  t.is(results.size, conformanceCases.length, 'every case has an id of its own and a result');
  return results;
}
const skipped = (results: Map<string, string>): string[] =>
  [...results].filter(([, outcome]) => outcome === 'skip').map(([id]) => id);

test('a writable export conforms in every case but the one about read-only exports', async (t) => {
  t.deepEqual(skipped(await outcomes(t, false)), ['E10']);
});

test('a read-only export conforms, and only what needs writing is skipped', async (t) => {
  const results = await outcomes(t, true);
  t.is(results.get('E10'), 'pass');
  t.deepEqual(
    skipped(results).sort(),
    ['12a', '12b', '16a', '19b', '21c', '22a', '23a', '24a', '26b', 'E5', 'E6', 'E7', 'E11'].sort(),
  );
});
