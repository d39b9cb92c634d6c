// The seven jobs that block stores are compared by, and the part of nbdkit's speed that each should reach.
//
// nbdkit with its memory plugin has no network behind it, no disk and one copy: what it does is what NBD and the client
// cost. A store that keeps two copies in other processes can't reach it; the targets say how near is good.

export interface Job {
  /** What --jobs takes. */
  name: string;
  title: string;
  /** What is told of it: requests per second, or MiB per second. */
  unit: 'IOPS' | 'MiB/s';
  fioOptions: readonly string[];
  /** Median ratio to nbdkit memory that is wanted, at least. */
  target: number;
}

export const IMAGE_BYTES = 2 ** 30;

export const JOBS: readonly Job[] = [
  job('write-1m', 'sequential write 1 MiB, depth 16', 'MiB/s', 0.2, 'write', '1M', 16),
  job('read-1m', 'sequential read 1 MiB, depth 16', 'MiB/s', 0.3, 'read', '1M', 16),
  job('randread-q1', 'random read 4 KiB, depth 1', 'IOPS', 0.25, 'randread', '4k', 1),
  job('randwrite-q1', 'random write 4 KiB, depth 1', 'IOPS', 0.15, 'randwrite', '4k', 1),
  job('randread-q32', 'random read 4 KiB, depth 32', 'IOPS', 0.6, 'randread', '4k', 32),
  job('randwrite-q32', 'random write 4 KiB, depth 32', 'IOPS', 0.12, 'randwrite', '4k', 32),
  job('flush-q1', 'random write 4 KiB, depth 1, flush after each', 'IOPS', 0.06, 'randwrite', '4k', 1, '--fsync=1'),
];

/** Fills an image once, and makes it durable. */
export const PREFILL: readonly string[] = ['--rw=write', '--bs=1M', '--iodepth=16', '--end_fsync=1'];

function job(
  name: string,
  title: string,
  unit: Job['unit'],
  target: number,
  rw: string,
  blockSize: string,
  depth: number,
  ...more: string[]
): Job {
  return {
    name,
    title,
    unit,
    target,
    fioOptions: [`--rw=${rw}`, `--bs=${blockSize}`, `--iodepth=${depth}`, ...more],
  };
}

/** The jobs of "name,name", in the order of JOBS. Throws an Error that names what there is. */
export function jobsNamed(names: string): Job[] {
  const wanted = names.split(',').map((name) => name.trim());
  for (const name of wanted)
    if (!JOBS.some((candidate) => candidate.name === name))
      throw new Error(`--jobs: there is no job "${name}": choose from ${JOBS.map((each) => each.name).join(', ')}`);
  return JOBS.filter((candidate) => wanted.includes(candidate.name));
}
