// `ashlar status` and `ashlar health`: what a person looks at first.

import type { Command } from 'commander';
import type { ClusterStatus } from '../../proto/control.ts';
import { declareWithMaster, JSON_OPTION, print } from './command.ts';
import { daemonTable } from './daemons.ts';
import { aboutText, bar, sizeText, table } from './text.ts';

/** Exit codes of `ashlar health`; 3, the master can't be reached, is every command's. */
const HEALTH_EXIT = { clean: 0, degraded: 1, blocked: 2 } as const;

type Recovery = ClusterStatus['recovery'];

export function addStatusCommands(program: Command): void {
  declareWithMaster(
    program,
    'status',
    'what the cluster is doing, and what waits for whom',
    [JSON_OPTION],
    async (master, { json }) => {
      const status = await master.call('status', {});
      print(json, status, statusText(status));
    },
  );
  declareWithMaster(
    program,
    'health',
    'exit code 0: every PG active and clean; 1: degraded or recovering; 2: some I/O is blocked; 3: no master',
    [JSON_OPTION],
    async (master, { json }) => {
      const { health, reasons, recovery } = await master.call('status', {});
      print(json, { health, reasons, recovery }, [health, ...reasons.map((reason) => `  ${reason}`)].join('\n'));
      process.exitCode = HEALTH_EXIT[health];
    },
  );
}

export function statusText(status: ClusterStatus): string {
  const up = status.daemons.filter((daemon) => daemon.up).length;
  const states = Object.entries(status.pgStates).map(([state, count]) => `${count} ${state}`);
  const lines = [
    `cluster  ${status.clusterId}, map epoch ${status.epoch}`,
    `health   ${status.health}`,
    ...status.reasons.map((reason) => `           ${reason}`),
    `daemons  ${up} of ${status.daemons.length} up`,
    `PGs      ${states.length === 0 ? 'none' : states.join(', ')}`,
    `objects  ${status.objects}, ${sizeText(status.bytes)} in one copy`,
  ];
  if (status.missing > 0) {
    const made = status.missingPeak - status.missing;
    lines.push(`recovery ${bar(made, status.missingPeak)} ${made} of ${status.missingPeak} object copies`);
    lines.push(`         ${recoveryText(status.recovery)}`);
    if (status.pools.length > 1) lines.push(...status.recovery.pools.flatMap((pool) => poolRecoveryText(status, pool)));
  }
  lines.push('', daemonTable(status.daemons));
  if (status.images.length > 0) lines.push('', imageTable(status));
  return lines.join('\n');
}

/** "1.5 GiB to go at 80 MB/s, about 20 s; 12 copies degraded, 3 misplaced" */
function recoveryText({ missingBytes, bytesPerSecond, secondsLeft, degraded, misplaced }: Recovery): string {
  const speed = secondsLeft < 0 ? 'waiting' : `at ${(bytesPerSecond / 1e6).toFixed(1)} MB/s, ${aboutText(secondsLeft)}`;
  return `${sizeText(missingBytes)} to go, ${speed}; ${degraded} copies degraded, ${misplaced} misplaced`;
}

function poolRecoveryText({ pools }: ClusterStatus, of: Recovery['pools'][number]): string[] {
  if (of.degraded + of.misplaced === 0) return [];
  const name = pools.find((pool) => pool.id === of.pool)?.name ?? String(of.pool);
  return [
    `         pool ${name}: ${sizeText(of.missingBytes)} to go; ${of.degraded} degraded, ${of.misplaced} misplaced`,
  ];
}

export function imageTable({ images, pools }: Pick<ClusterStatus, 'images' | 'pools'>): string {
  return table(
    ['IMAGE', 'SIZE', 'POOL', 'OBJECT SIZE', 'STATE', 'WRITER'],
    images.map((image) => [
      image.name,
      sizeText(image.sizeBytes),
      pools.find((pool) => pool.id === image.pool)?.name ?? String(image.pool),
      sizeText(2 ** image.order),
      image.state,
      image.owner === '' ? '-' : image.owner,
    ]),
  );
}
