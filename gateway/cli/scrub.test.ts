import test from 'ava';
import type { PgScrubStatus } from '../../proto/control.ts';
import { pgId } from '../../proto/ids.ts';
import { fixText, parsePg, scrubText } from './scrub.ts';

const images = new Map([[3, 'vol0']]);
const pg = pgId(1, 0x2a);
const bad = { pg, image: 3, object: 7, offset: 8_192, length: 4_096, daemon: 2, why: 'checksum' };
const status: PgScrubStatus = {
  pg,
  ordered: false,
  deep: false,
  objectsDone: 0,
  objects: 0,
  lightAgoMs: 59_999,
  deepAgoMs: -1,
  repaired: 4,
  inconsistencies: [],
  more: 0,
};

test('what is inconsistent is told with its place, its daemon and why; and when each PG was scrubbed', (t) => {
  const running = { ...status, pg: pgId(1, 1), ordered: true, deep: true, objectsDone: 5, objects: 9 };
  const wrong = { ...status, inconsistencies: [bad], more: 3, deepAgoMs: 7_300_000 };
  t.deepEqual(scrubText([wrong, running], images).split('\n'), [
    'PG    IMAGE  OBJECT  OFFSET  LENGTH  DAEMON  WHY',
    '1.2a  vol0        7    8192  4 KiB        2  checksum',
    'and 3 more',
    '',
    'PG    STATE        LIGHT SCRUB  DEEP SCRUB  REPAIRED',
    '1.2a  -            59 s ago     2 h ago            4',
    '1.1   deep 5 of 9  59 s ago     -                  4',
  ]);
  t.regex(scrubText([status], images), /^no inconsistency is known\n/);
});

test('a fix says what it repaired and what it could not', (t) => {
  t.regex(fixText([], 0, [], images), /nothing is known .*--deep/);
  t.is(fixText([pg], 1, [], images), '1 PG scrubbed, 1 range repaired, nothing is inconsistent any more');
  t.regex(
    fixText([pg, 2], 0, [bad], images),
    /^2 PGs scrubbed, 0 ranges repaired; without a proven copy.*\n.*\n.*vol0/,
  );
});

test('a PG is named as it is shown, and nothing else is taken for one', (t) => {
  t.is(parsePg('1.2a'), pg);
  for (const text of ['1', '0.1', '256.0', '1.10000', '1.2A', '1.2a ', 'x.1'])
    t.throws(() => parsePg(text), { message: /--pg: .* is no placement group/ }, text);
});
