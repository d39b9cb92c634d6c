// What the gateway's tests share: a server on images in memory, and a log that remembers.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { openClock } from '../../cluster/world/clock.ts';
import type { Log } from '../../proto/ports.ts';
import { MemoryImageClient } from './memory-image.ts';
import { type NbdServer, type ServerLimits, startNbdServer } from './server.ts';
import { SocketDuplex } from './socket-duplex.ts';

export interface LogLine {
  readonly level: 'debug' | 'info' | 'warn' | 'error';
  readonly message: string;
  readonly fields: Record<string, unknown>;
}

export class RecordedLog implements Log {
  readonly lines: LogLine[] = [];
  debug(message: string, fields: Record<string, unknown> = {}): void {
    this.lines.push({ level: 'debug', message, fields });
  }
  info(message: string, fields: Record<string, unknown> = {}): void {
    this.lines.push({ level: 'info', message, fields });
  }
  warn(message: string, fields: Record<string, unknown> = {}): void {
    this.lines.push({ level: 'warn', message, fields });
  }
  error(message: string, fields: Record<string, unknown> = {}): void {
    this.lines.push({ level: 'error', message, fields });
  }
  /** Lines of these levels, as text. */
  at(...levels: LogLine['level'][]): string[] {
    return this.lines.filter(({ level }) => levels.includes(level)).map(({ message }) => message);
  }
}

export interface TestServer {
  readonly client: MemoryImageClient;
  readonly server: NbdServer;
  readonly log: RecordedLog;
  readonly directory: string;
  readonly unixPath: string;
  readonly host: string;
  readonly port: number;
  /** For the clients of libnbd and QEMU. */
  uri(exportName: string): string;
  connect(): Promise<SocketDuplex>;
}

/** A server on TCP and on a unix socket, which ends with the test. */
export async function serve(
  t: ExecutionContext,
  images: Record<string, number>,
  options: { readOnly?: boolean; takeOver?: boolean; limits?: Partial<ServerLimits> } = {},
): Promise<TestServer> {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-test-'));
  const unixPath = join(directory, 'nbd.sock');
  const client = new MemoryImageClient();
  for (const [name, sizeBytes] of Object.entries(images)) client.add(name, sizeBytes);
  const log = new RecordedLog();
  const server = await startNbdServer({
    client,
    listen: { host: '127.0.0.1', port: 0 },
    unixPath,
    takeOver: options.takeOver ?? false,
    readOnly: options.readOnly ?? false,
    log,
    clock: openClock(),
    limits: options.limits ?? {},
  });
  t.teardown(async () => {
    await server.close();
    rmSync(directory, { recursive: true });
  });
  const port = Number(server.address!.split(':')[1]);
  return {
    client,
    server,
    log,
    directory,
    unixPath,
    host: '127.0.0.1',
    port,
    uri: (exportName) => `nbd+unix:///${exportName}?socket=${unixPath}`,
    connect: () => SocketDuplex.connect(port),
  };
}
