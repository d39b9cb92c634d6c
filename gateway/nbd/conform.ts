// Runs the conformance suite of nbd-protocol-ts against any NBD server.
//
//   node gateway/nbd/conform.ts HOST PORT [EXPORT]
//
// Overwrites the first mebibyte of the export unless it is read-only. Prints one line per case and the score; exits 0 if
// no MUST fails, 1 if one does, 2 if it was called wrongly.

import { runConformance } from '../nbd-protocol-ts/index.ts';
import { SocketDuplex } from './socket-duplex.ts';

const [host, port, exportName = ''] = process.argv.slice(2);
if (host === undefined || !/^\d+$/.test(port ?? '')) {
  console.error('usage: conform.ts HOST PORT [EXPORT]');
  process.exit(2);
}
const score = { pass: 0, fail: 0, skip: 0 };
let broken = false;
for await (const result of runConformance({ connect: () => SocketDuplex.connect(Number(port), host), exportName })) {
  score[result.outcome]++;
  if (result.outcome === 'fail' && result.level === 'MUST') broken = true;
  const detail = result.detail === '' ? '' : ` (${result.detail})`;
  console.log(
    `${result.outcome.padEnd(4)}  ${result.id.padEnd(3)}  ${result.level.padEnd(6)}  ${result.title}${detail}`,
  );
}
console.log(`${score.pass} passed, ${score.fail} failed, ${score.skip} skipped`);
process.exit(broken ? 1 : 0);
