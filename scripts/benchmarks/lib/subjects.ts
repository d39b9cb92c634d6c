// The two sides of a comparison: a cluster of `ashlar up` and nbdkit with its memory plugin, each serving one image of the
// same size over the same kind of socket.

import { readFileSync, realpathSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { basename, join } from 'node:path';
import { awaitFrom, BenchmarkError, Child, sleep } from './children.ts';
import { IMAGE_BYTES } from './jobs.ts';
import { readProcess } from './proc.ts';

const ROOT = realpathSync(join(import.meta.dirname, '..', '..', '..'));
const IMAGE_NAME = 'bench';
const START_MS = 60_000;
/** `ashlar up` itself gives every role 25 s to stop, one kind of role after the other. */
const STOP_MS = 80_000;

export type Transport = 'unix' | 'tcp';

export interface SubjectProcess {
  role: string;
  id: number;
  pid: number;
  /** Where its standard error goes; "" if unknown. */
  logPath: string;
}

export interface Subject {
  readonly title: string;
  readonly uri: string;
  /** Those that serve I/O now. Throws a BenchmarkError if one of them has died. */
  processes(): SubjectProcess[];
}

/** @param environment of all roles; @param upOptions further options of `ashlar up` */
export async function startCluster(options: {
  directory: string;
  transport: Transport;
  replicas: number;
  daemons: number;
  upOptions: readonly string[];
  environment: NodeJS.ProcessEnv;
}): Promise<Subject> {
  const { directory, transport } = options;
  const address = transport === 'tcp' ? ['--nbd', '127.0.0.1:0'] : ['--nbd', 'none'];
  const up = new Child(
    'ashlar up',
    join(ROOT, 'scripts', 'ashlar'),
    [
      ...['up', '--dir', directory, '--image', `${IMAGE_NAME}:${IMAGE_BYTES}`],
      ...[`--replicas=${options.replicas}`, `--daemons=${options.daemons}`],
      ...[...address, '--nbd-unix', join(directory, 'nbd.sock')],
      ...options.upOptions,
    ],
    { stopWithinMs: STOP_MS, environment: options.environment },
  );
  const ready = await awaitFrom(up, 'it was ready', START_MS, () => /^ready (\{.*\})$/m.exec(up.stdout));
  const { exports } = JSON.parse(ready[1]!) as { exports: { name: string; uri: string; unixUri: string }[] };
  const image = exports.find(({ name }) => name === IMAGE_NAME);
  if (image === undefined) throw new BenchmarkError(`ashlar up does not serve the image ${IMAGE_NAME}`);
  return {
    title: 'ashlar',
    uri: transport === 'tcp' ? image.uri : image.unixUri,
    processes: () => clusterProcesses(directory),
  };
}

interface TableEntry {
  role: string;
  id: number;
  pid: number | null;
  argv: string[];
}

function clusterProcesses(directory: string): SubjectProcess[] {
  const entries = JSON.parse(readFileSync(join(directory, 'processes.json'), 'utf8')) as TableEntry[];
  return entries.map(({ role, id, pid, argv }) => {
    // Log and status file of a role have the same name.
    const name = basename(argv[argv.indexOf('--status-file') + 1] ?? '', '.json');
    const logPath = join(directory, 'log', `${name}.log`);
    if (pid === null) throw new BenchmarkError(`${role} ${id} has died: its log is ${logPath}`);
    return { role, id, pid, logPath };
  });
}

/** @param directory for its unix socket, which is `name`.sock */
export async function startNbdkit(directory: string, name: string, transport: Transport): Promise<Subject> {
  const socket = join(directory, `${name}.sock`);
  const port = transport === 'tcp' ? await freePort() : 0;
  const listen = transport === 'tcp' ? ['--ipaddr=127.0.0.1', `--port=${port}`] : ['--unix', socket];
  const args = ['-f', '--exit-with-parent', ...listen, 'memory', String(IMAGE_BYTES)];
  const child = new Child('nbdkit', 'nbdkit', args, { stopWithinMs: 5_000 });
  const uri = transport === 'tcp' ? `nbd://127.0.0.1:${port}/` : `nbd+unix:///?socket=${encodeURIComponent(socket)}`;
  let answers = false;
  const knock = () => {
    const probe = transport === 'tcp' ? connect(port, '127.0.0.1') : connect(socket);
    probe.on('connect', () => {
      answers = true;
      probe.destroy();
    });
    probe.on('error', () => child.hasEnded || setTimeout(knock, 50));
  };
  knock();
  await awaitFrom(child, 'it answered', START_MS, () => (answers ? true : null));
  return {
    title: 'nbdkit',
    uri,
    processes: () => [{ role: 'nbdkit', id: 1, pid: child.pid, logPath: '' }],
  };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

const SETTLE_LOOK_MS = 250;
const SETTLE_MAX_MS = 10_000;
/** Less than this share of one core is rest. */
const SETTLED_SHARE = 0.08;

/** Waits until work in the background is done, so that it does not slow the other side down. False if it goes on. */
export async function settle(subject: Subject): Promise<boolean> {
  const pids = subject.processes().map(({ pid }) => pid);
  const spent = () => pids.reduce((sum, pid) => sum + (readProcess(pid)?.cpuMs ?? 0), 0);
  let before = spent();
  for (let waited = 0; waited < SETTLE_MAX_MS; waited += SETTLE_LOOK_MS) {
    await sleep(SETTLE_LOOK_MS);
    const now = spent();
    if (now - before <= SETTLED_SHARE * SETTLE_LOOK_MS) return true;
    before = now;
  }
  return false;
}
