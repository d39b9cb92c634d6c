// A client's connection over TCP, as the conversations and the conformance suite of nbd-protocol-ts want it: it gives
// exactly the bytes asked for, tells the end of the stream from silence, and does not wait for ever.

import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { type Duplex, StreamEnded } from '../nbd-protocol-ts/index.ts';

/** A server that is silent for longer has failed. */
const READ_MS = 10_000;

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
