// `ashlar scrub …`: look for damage in copies, say what there is, put right what can be proven.

import type { Command } from 'commander';
import { type OptionSpec, UsageError } from '../../cluster/world/options.ts';
import type { ClusterStatus, Inconsistency, PgScrubStatus } from '../../proto/control.ts';
import { StorageError } from '../../proto/errors.ts';
import { type ImageId, indexOfPg, PG_COUNT_MAX, type PgId, POOL_ID_MAX, pgId, pgName } from '../../proto/ids.ts';
import { declareWithMaster, EXIT_FAILED, JSON_OPTION, type Master, print } from './command.ts';
import { Progress, sizeText, table } from './text.ts';

/** How often the master is asked while a command waits. */
const POLL_MS = 300;

const PG_OPTION = {
  name: 'pg',
  kind: 'string',
  default: '',
  help: 'only this placement group, such as 1.2a',
} as const satisfies OptionSpec;
const IMAGE_OPTION = {
  name: 'image',
  kind: 'string',
  default: '',
  help: 'only the objects of this image',
} as const satisfies OptionSpec;
const WAIT_OPTION = { name: 'wait', kind: 'flag', help: 'return when it is done' } as const satisfies OptionSpec;

export function addScrubCommands(program: Command): void {
  const scrub = program.command('scrub').description('compare and verify the copies of data, and repair them');
  declareWithMaster(
    scrub,
    'start',
    'order a scrub: of one PG, one image, or everything',
    [
      PG_OPTION,
      IMAGE_OPTION,
      { name: 'all', kind: 'flag', help: 'everything' },
      { name: 'deep', kind: 'flag', help: 'read and verify every block of every copy, not just compare checksums' },
      { name: 'report-only', kind: 'flag', help: 'with --deep: repair nothing, though there is a proven copy' },
      WAIT_OPTION,
      JSON_OPTION,
    ],
    async (master, { pg, image, all, deep, reportOnly, wait, json }) => {
      if (!all && pg === '' && image === '')
        throw new UsageError('what is to be scrubbed? Pass --pg, --image or --all');
      const scope = await scopeOf(master, pg, image);
      const { pgs } = await master.call('startScrub', { ...scope, deep, repair: deep && !reportOnly });
      if (!wait) return print(json, { pgs: pgs.map(pgName) }, `${deep ? 'deep ' : ''}scrub ordered: ${countOf(pgs)}`);
      await describe(master, json, await finished(master, pgs));
    },
  );
  declareWithMaster(
    scrub,
    'describe',
    'what is inconsistent: where, at which daemon, and why; and when each PG was scrubbed',
    [JSON_OPTION],
    async (master, { json }) => describe(master, json, (await master.call('scrubStatus', {})).pgs),
  );
  declareWithMaster(
    scrub,
    'fix',
    'repair what has a proven copy, in the PGs where something is known to be inconsistent, and say what has none',
    [PG_OPTION, IMAGE_OPTION, JSON_OPTION],
    async (master, { pg, image, json }) => {
      const scope = await scopeOf(master, pg, image);
      const known = (await master.call('scrubStatus', {})).pgs.filter(
        (status) => (scope.pg === 0 || status.pg === scope.pg) && inconsistenciesOf(status, scope.image).length > 0,
      );
      for (const status of known)
        await master.call('startScrub', { pg: status.pg, image: scope.image, deep: true, repair: true });
      const pgs = known.map((status) => status.pg);
      const after = await finished(master, pgs);
      const left = after.flatMap((status) => inconsistenciesOf(status, scope.image));
      const repaired = sum(after, 'repaired') - sum(known, 'repaired');
      print(
        json,
        { pgs: pgs.map(pgName), repaired, left: left.map(forJson) },
        fixText(pgs, repaired, left, await namesOf(master)),
      );
      if (left.length > 0) process.exitCode = EXIT_FAILED;
    },
  );
}

type Images = ReadonlyMap<ImageId, string>;

async function describe(master: Master, json: boolean, pgs: readonly PgScrubStatus[]): Promise<void> {
  const value = pgs.map((status) => ({
    ...status,
    pg: pgName(status.pg),
    inconsistencies: status.inconsistencies.map(forJson),
  }));
  print(json, value, scrubText(pgs, await namesOf(master)));
}

/** For people: what is wrong first, then when each PG was scrubbed. */
export function scrubText(pgs: readonly PgScrubStatus[], images: Images): string {
  const wrong = pgs.flatMap(({ inconsistencies }) => inconsistencies);
  const more = sum(pgs, 'more');
  const lines = [
    wrong.length === 0 ? 'no inconsistency is known' : inconsistencyTable(wrong, images),
    ...(more > 0 ? [`and ${more} more`] : []),
    '',
    table(
      ['PG', 'STATE', 'LIGHT SCRUB', 'DEEP SCRUB', 'REPAIRED'],
      pgs.map((status) => [
        pgName(status.pg),
        stateText(status),
        agoText(status.lightAgoMs),
        agoText(status.deepAgoMs),
        status.repaired,
      ]),
    ),
  ];
  return lines.join('\n');
}

export function fixText(
  pgs: readonly PgId[],
  repaired: number,
  left: readonly Inconsistency[],
  images: Images,
): string {
  if (pgs.length === 0) return 'nothing is known to be inconsistent: to look, run ashlar scrub start --all --deep';
  const done = `${countOf(pgs)} scrubbed, ${repaired} range${repaired === 1 ? '' : 's'} repaired`;
  if (left.length === 0) return `${done}, nothing is inconsistent any more`;
  return [
    `${done}; without a proven copy, or not to be judged:`,
    inconsistencyTable(left, images),
    'Such a block reads as an I/O error until it is written again or a daemon with a good copy is back.',
  ].join('\n');
}

const inconsistencyTable = (wrong: readonly Inconsistency[], images: Images): string =>
  table(
    ['PG', 'IMAGE', 'OBJECT', 'OFFSET', 'LENGTH', 'DAEMON', 'WHY'],
    wrong.map(({ pg, image, object, offset, length, daemon, why }) => [
      pgName(pg),
      images.get(image) ?? String(image),
      object,
      offset,
      sizeText(length),
      daemon,
      why,
    ]),
  );

const forJson = (one: Inconsistency) => ({ ...one, pg: pgName(one.pg) });

const stateText = ({ ordered, deep, objects, objectsDone }: PgScrubStatus): string =>
  !ordered ? '-' : objects === 0 ? 'ordered' : `${deep ? 'deep ' : ''}${objectsDone} of ${objects}`;

/** "-", "40 s ago", "5 min ago", "3 h ago", "12 d ago". */
function agoText(ms: number): string {
  if (ms === -1) return '-';
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 86_400 ? `${Math.floor(seconds / 3_600)} h ago` : `${Math.floor(seconds / 86_400)} d ago`;
}

const countOf = (pgs: readonly PgId[]): string => `${pgs.length} PG${pgs.length === 1 ? '' : 's'}`;

const sum = (pgs: readonly PgScrubStatus[], field: 'repaired' | 'more'): number =>
  pgs.reduce((total, status) => total + status[field], 0);

const inconsistenciesOf = ({ inconsistencies }: PgScrubStatus, image: ImageId): Inconsistency[] =>
  inconsistencies.filter((one) => image === 0 || one.image === image);

const namesOf = async (master: Master): Promise<Images> =>
  new Map((await master.call('status', {})).images.map(({ id, name }) => [id, name]));

async function scopeOf(master: Master, pg: string, image: string): Promise<{ pg: PgId; image: ImageId }> {
  const status: ClusterStatus = await master.call('status', {});
  const entry = status.images.find(({ name }) => name === image);
  if (image !== '' && entry === undefined)
    throw new StorageError('NOT_FOUND', `there is no image "${image}": see ashlar image ls`);
  return { pg: pg === '' ? 0 : parsePg(pg), image: entry?.id ?? 0 };
}

/** "1.2a" as a PG's number. Throws UsageError. */
export function parsePg(text: string): PgId {
  const [, pool, index] = /^(\d{1,3})\.([0-9a-f]{1,4})$/.exec(text) ?? [];
  const id =
    pool === undefined || Number(pool) < 1 || Number(pool) > POOL_ID_MAX
      ? 0
      : pgId(Number(pool), Number.parseInt(index!, 16));
  if (id === 0 || indexOfPg(id) >= PG_COUNT_MAX)
    throw new UsageError(`--pg: "${text}" is no placement group; they are named like 1.2a`);
  return id;
}

/** Waits until nothing is ordered any more in these PGs; what is known about them then. */
async function finished(master: Master, pgs: readonly PgId[]): Promise<PgScrubStatus[]> {
  const wanted = new Set(pgs);
  const progress = new Progress('scrub');
  for (;;) {
    const all = (await master.call('scrubStatus', {})).pgs.filter(({ pg }) => wanted.has(pg));
    const done = all.filter(({ ordered }) => !ordered).length;
    if (pgs.length > 0) progress.show(done, all.length);
    if (done === all.length) return all;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}
