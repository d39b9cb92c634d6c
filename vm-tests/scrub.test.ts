// Files of one daemon are damaged at rest, in every way that disks and people know: nothing wrong is ever read, scrub
// finds what is bad, and repairs all of it from the other copies.

import { closeSync, copyFileSync, openSync, readSync, statSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { type MasterLink, openControlLink } from '../cluster/world/grpc-link.ts';
import type { ClusterStatus, PgScrubStatus } from '../proto/control.ts';
import { Cluster } from './lib/cluster.ts';
import { compareCopies } from './lib/copies.ts';
import { NbdClient } from './lib/nbd-client.ts';
import { temporaryDirectory, until } from './lib/processes.ts';
import { BLOCK, generationOf, stampedBlock } from './lib/stamps.ts';

const BLOCKS = 4_096;
const CHUNK_BLOCKS = 256;
/** The daemon whose disk is bad. */
const BAD = 2;

class World {
  readonly cluster: Cluster;
  readonly client: NbdClient;
  readonly generation = new Uint32Array(BLOCKS);
  readonly #master: MasterLink;

  constructor(cluster: Cluster, client: NbdClient, master: MasterLink) {
    this.cluster = cluster;
    this.client = client;
    this.#master = master;
  }

  get dataFile(): string {
    return join(this.cluster.daemonDirectories()[BAD - 1]!, 'data-20');
  }

  /** Writes `count` blocks from `first` on in one request. */
  async write(first: number, count: number): Promise<void> {
    const blocks: Buffer[] = [];
    for (let block = first; block < first + count; block++) blocks.push(stampedBlock(block, ++this.generation[block]!));
    await this.client.write(first * BLOCK, Buffer.concat(blocks));
  }

  /** Stops the daemon in order, so that everything is where it belongs in its files; damages them; starts it again. */
  async damage(how: () => void): Promise<void> {
    const entry = this.cluster.process('daemon', BAD);
    process.kill(entry.pid!, 'SIGTERM');
    await until('the daemon has stopped', 20_000, () => this.cluster.process('daemon', BAD).pid !== entry.pid, 20);
    how();
    await this.cluster.startAgain(entry);
    await until('all is clean', 30_000, async () => (await this.status()).health === 'clean', 50);
  }

  /** Blocks that don't read as they were written. */
  async wrong(): Promise<number[]> {
    const wrong: number[] = [];
    for (let first = 0; first < BLOCKS; first += CHUNK_BLOCKS) {
      const bytes = await this.client.read(first * BLOCK, CHUNK_BLOCKS * BLOCK);
      for (let i = 0; i < CHUNK_BLOCKS; i++) {
        const found = generationOf(bytes.subarray(i * BLOCK, (i + 1) * BLOCK), first + i);
        if (found !== this.generation[first + i]) wrong.push(first + i);
      }
    }
    return wrong;
  }

  /** Deep scrub of everything: what stays bad, and how much was repaired. */
  async scrub(repair: boolean): Promise<{ bad: string[]; repaired: number }> {
    const before = await this.#known();
    await this.#master.call('startScrub', { pg: 0, image: 0, deep: true, repair });
    await until('the scrub is done', 60_000, async () => (await this.#known()).every(({ ordered }) => !ordered), 50);
    const after = await this.#known();
    // A daemon that was started again counts from 0.
    const repairs = after.map((pg, i) => {
      const earlier = before[i]!.repaired;
      return pg.repaired >= earlier ? pg.repaired - earlier : pg.repaired;
    });
    return {
      bad: after.flatMap(({ inconsistencies }) => inconsistencies.map(({ daemon, why }) => `daemon ${daemon}: ${why}`)),
      repaired: repairs.reduce((sum, one) => sum + one, 0),
    };
  }
  async status(): Promise<ClusterStatus> {
    return this.#master.call('status', {});
  }
  async #known(): Promise<PgScrubStatus[]> {
    return (await this.#master.call('scrubStatus', {})).pgs;
  }
}

/** Overwrites places of a file that hold something: `change` gets what stands there. */
function edit(file: string, everyBytes: number, lengthBytes: number, change: (bytes: Buffer) => void): number {
  const descriptor = openSync(file, 'r+');
  const bytes = Buffer.alloc(lengthBytes);
  let edited = 0;
  for (let at = 0; at + lengthBytes <= statSync(file).size; at += everyBytes) {
    readSync(descriptor, bytes, 0, lengthBytes, at);
    if (bytes.every((byte) => byte === 0)) continue;
    change(bytes);
    writeSync(descriptor, bytes, 0, lengthBytes, at);
    edited++;
  }
  closeSync(descriptor);
  return edited;
}

async function start(t: ExecutionContext): Promise<World> {
  t.timeout(120_000);
  const cluster = await Cluster.start(t, { images: ['disk:64M'] });
  const master = openControlLink(cluster.ready.master);
  t.teardown(() => master.close());
  const world = new World(cluster, await NbdClient.open(cluster.ready.nbd.address, 'disk'), master);
  for (let first = 0; first < BLOCKS; first += CHUNK_BLOCKS) await world.write(first, CHUNK_BLOCKS);
  await world.client.flush();
  return world;
}

test.serial(
  'one daemon’s files are damaged in every way: every read is right, and scrub fixes all; what is bad in both copies is an error, named, until it is written again; copies end byte-equal',
  async (t) => {
    const world = await start(t);
    const { cluster } = world;
    const older = join(temporaryDirectory(t, 'older'), 'data-20');

    let edited = 0;
    const damages: [string, 'first' | 'later', () => void][] = [
      [
        'bits flipped',
        'first',
        () => {
          copyFileSync(world.dataFile, older);
          edited = edit(world.dataFile, 37 * BLOCK, BLOCK, (bytes) => {
            bytes[1_000]! ^= 0x10;
          });
        },
      ],
      [
        'pages zeroed and the end cut off',
        'later',
        () => {
          edited = edit(world.dataFile, 41 * BLOCK, 3 * BLOCK, (bytes) => bytes.fill(0));
          truncateSync(world.dataFile, statSync(world.dataFile).size - 2 ** 20 - 12_345);
        },
      ],
      ['an older copy put back', 'first', () => copyFileSync(older, world.dataFile)],
    ];
    for (const [what, reads, how] of damages) {
      for (let block = 5; block < BLOCKS; block += 61) await world.write(block, 1);
      await world.client.flush();
      edited = 1;
      await world.damage(how);
      t.true(edited > 0, what);
      if (what === 'bits flipped') {
        const found = await world.scrub(false);
        t.true(found.bad.length > 3, 'a deep scrub finds what no read has mended');
        t.deepEqual([...new Set(found.bad)], [`daemon ${BAD}: checksum`]);
        t.is((await world.status()).health, 'degraded');
        t.regex(await cluster.ashlarWell('scrub', 'fix'), /PGs scrubbed, \d+ ranges repaired, nothing is inconsistent/);
      }
      if (reads === 'first') t.deepEqual(await world.wrong(), [], `${what}: every read is right`);
      const { bad, repaired } = await world.scrub(true);
      t.deepEqual(bad, [], what);
      if (reads === 'later') t.true(repaired > 0, `${what}: a scrub repairs it`);
      if (reads === 'later') t.deepEqual(await world.wrong(), [], `${what}: and all is as it was`);
    }
    t.deepEqual(await world.scrub(false), { bad: [], repaired: 0 });
    t.is((await world.status()).health, 'clean');

    // And now what no copy can prove.
    const place = JSON.parse(await cluster.ashlarWell('map', 'disk', '--offset', '5M', '--json'));
    await world.client.disconnect();
    await cluster.stop();
    // Wherever the object's third block stands: its content names it.
    const wanted = stampedBlock((5 * 2 ** 20) / BLOCK + 3, 1);
    for (const { id } of place.acting) {
      const file = join(cluster.daemonDirectories()[id - 1]!, 'data-20');
      const spoiled = edit(file, BLOCK, BLOCK, (bytes) => {
        if (bytes.equals(wanted)) bytes[0]! ^= 1;
      });
      t.true(spoiled > 0);
    }
    await cluster.again();
    const again = await NbdClient.open(cluster.ready.nbd.address, 'disk');
    const at = 5 * 2 ** 20 + 3 * BLOCK;
    await t.throwsAsync(again.read(at, BLOCK), { message: /NBD error 5/ });
    t.is(generationOf(await again.read(at + BLOCK, BLOCK), at / BLOCK + 1), 1, 'its neighbour is well');
    const scrubbed = await cluster.ashlar('scrub', 'start', '--image', 'disk', '--deep', '--wait');
    t.regex(scrubbed.stdout, /disk +5 +12288 +4 KiB +\d +no proven copy/);
    t.regex(await cluster.ashlarWell('scrub', 'describe'), /no proven copy(.*\n)+.*REPAIRED/);
    const fix = await cluster.ashlar('scrub', 'fix');
    t.is(fix.code, 1);
    t.regex(fix.stdout, /1 PG scrubbed, 0 ranges repaired; without a proven copy/);
    t.deepEqual((await cluster.status()).reasons, ['1 inconsistent object: see ashlar scrub describe']);
    await again.write(at, stampedBlock(at / BLOCK, 2));
    t.is(generationOf(await again.read(at, BLOCK), at / BLOCK), 2);
    const well = await cluster.ashlarWell('scrub', 'fix', '--image', 'disk');
    t.regex(well, /1 PG scrubbed, 0 ranges repaired, nothing is inconsistent any more/);
    await again.disconnect();
    const compared = await compareCopies(cluster);
    t.deepEqual(compared.differences, []);
    t.true(compared.objects >= 16);
  },
);
