import test from 'ava';
import { type FioJob, parse, resultOf } from './fio.ts';

const direction = (total: number) => ({
  iops: total / 2,
  bw_bytes: (total * 4096) / 2,
  total_ios: total,
  runtime: 2000,
  clat_ns: { percentile: { '1.000000': 1_000, '50.000000': 20_000, '99.000000': 90_500 } },
});
const job: FioJob = {
  error: 0,
  job_runtime: 2000,
  usr_cpu: 10,
  sys_cpu: 30,
  read: direction(0),
  write: direction(1000),
  sync: { lat_ns: { percentile: { '50.000000': 3_000, '99.000000': 4_000 } } },
};

test('JSON of a write job with flushes becomes rates, latencies and CPU of the run that ended just now', (t) => {
  const stdout = `fio: connected to NBD server\n${JSON.stringify({ jobs: [job] })}`;
  t.deepEqual(resultOf(parse(stdout), 5_000), {
    iops: 500,
    bytesPerSecond: 2_048_000,
    p50Us: 20,
    p99Us: 90.5,
    flushP50Us: 3,
    flushP99Us: 4,
    cpuUsPerIo: 800, // 40 % of 2 s for 1000 requests
    fromMs: 3_000,
    untilMs: 4_950,
  });
});

test('a job with an I/O error, without requests or without JSON is refused with the reason', (t) => {
  t.throws(() => parse(JSON.stringify({ jobs: [{ ...job, error: 5 }] })), { message: /errno 5/ });
  t.throws(() => resultOf({ ...job, write: direction(0) }, 0), { message: /no request/ });
  t.throws(() => parse('fio: connected to NBD server\n'), { message: /no JSON/ });
});
