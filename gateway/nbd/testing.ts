// What the gateway's tests share: a server on images in memory, and a connection to it that keeps the time.

import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { openClock } from '../../cluster/world/clock.ts';
import type { Log } from '../../proto/ports.ts';
import { type Duplex, StreamEnded } from '../nbd-protocol-ts/index.ts';
import { MemoryImageClient } from './memory-image.ts';
import { type NbdServer, type ServerLimits, startNbdServer } from './server.ts';

/** A reply that takes longer than this is a failed test. */
const READ_MS = 10_000;

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

/** A connection as the conformance suite wants it. */
export class SocketDuplex implements Duplex {
  readonly socket: Socket;
  #received: Buffer[] = [];
  #receivedBytes = 0;
  #ended = false;
  #wake: () => void = () => {};

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#received.push(chunk);
      this.#receivedBytes += chunk.length;
      this.#wake();
    });
    socket.on('end', () => this.#onEnd());
    socket.on('close', () => this.#onEnd());
    // The server may cut a connection: for the suite that is an end like any other.
    socket.on('error', () => this.#onEnd());
  }

  static async connect(port: number, host = '127.0.0.1'): Promise<SocketDuplex> {
    const socket = connect({ port, host, noDelay: true });
    await once(socket, 'connect');
    return new SocketDuplex(socket);
  }

  write(bytes: Buffer): void {
    this.socket.write(bytes);
  }

  async read(bytes: number): Promise<Buffer> {
    const late = Symbol('late');
    while (this.#receivedBytes < bytes) {
      if (this.#ended) throw new StreamEnded();
      let timer: NodeJS.Timeout | undefined;
      const woken = new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      const timeout = new Promise<symbol>((resolve) => {
        timer = setTimeout(() => resolve(late), READ_MS);
      });
      const outcome = await Promise.race([woken, timeout]);
      clearTimeout(timer);
      if (outcome === late) throw new Error(`no ${bytes} bytes within ${READ_MS} ms`);
    }
    const all = this.#received.length === 1 ? this.#received[0]! : Buffer.concat(this.#received);
    this.#received = all.length === bytes ? [] : [all.subarray(bytes)];
    this.#receivedBytes -= bytes;
    return all.subarray(0, bytes);
  }

  close(): void {
    this.socket.destroy();
  }

  #onEnd(): void {
    this.#ended = true;
    this.#wake();
  }
}
