// A client's side of a connection as a conversation: say this, hear that. For tests and the conformance suite, where
// being able to say what is wrong matters more than speed.
//
// Bytes go through a Duplex that the caller makes (a socket, a pipe, memory). The duplex keeps the time: a read() that
// takes too long must reject. A read() at the end of the stream must reject with StreamEnded.

import { type ClientRequest, encodeClientFlags, encodeInfoRequest, encodeOption, encodeRequest } from './client.ts';
import { Chunk, ChunkFlag, ClientFlag, Command, Info, Magic, Option, OptionReply, Size } from './constants.ts';
import { readU64 } from './numbers.ts';

export interface Duplex {
  write(bytes: Buffer): void;
  /** Exactly `bytes` bytes. */
  read(bytes: number): Promise<Buffer>;
  close(): void;
}

/** The server has closed the connection. */
export class StreamEnded extends Error {
  constructor() {
    super('the server closed the connection');
    this.name = 'StreamEnded';
  }
}

/** The server said something that the protocol does not allow. */
export class ProtocolError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'ProtocolError';
  }
}

export interface OptionAnswer {
  readonly type: number;
  readonly data: Buffer;
}

export interface ExportAnswer {
  readonly sizeBytes: number;
  readonly flags: number;
}

export interface ReplyChunk {
  readonly type: number;
  readonly flags: number;
  readonly payload: Buffer;
}

export interface Reply {
  readonly cookieHigh: number;
  readonly cookieLow: number;
  readonly error: number;
  /** Came as structured chunks. */
  readonly structured: boolean;
  /** Text of an error chunk. */
  readonly message: string;
  /** What a READ returned. */
  readonly data: Buffer;
  /** Descriptors of a BLOCK_STATUS. */
  readonly descriptors: readonly { lengthBytes: number; flags: number }[];
  readonly chunks: readonly ReplyChunk[];
}

interface Asked {
  readonly request: ClientRequest;
  readonly lengthBytes: number;
}

export class Conversation {
  readonly duplex: Duplex;
  structuredReplies = false;
  #nextCookie = 1;
  readonly #asked = new Map<string, Asked>();

  constructor(duplex: Duplex) {
    this.duplex = duplex;
  }

  /** Hears the greeting and sends the client's flags. Returns the handshake flags. */
  async greet(flags: number = ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES): Promise<number> {
    const greeting = await this.duplex.read(Size.GREETING);
    expectMagic(greeting, 0, Magic.GREETING_HIGH, Magic.GREETING_LOW, 'greeting');
    expectMagic(greeting, 8, Magic.OPTION_HIGH, Magic.OPTION_LOW, 'greeting');
    this.duplex.write(encodeClientFlags(flags));
    return greeting.readUInt16BE(16);
  }

  /** Asks an option and hears all answers up to the final one, which is the last of the list. */
  async option(option: number, data: Buffer | null = null): Promise<OptionAnswer[]> {
    this.duplex.write(encodeOption(option, data));
    return this.answers(option);
  }

  /** All answers to an option that has been sent. */
  async answers(option: number): Promise<OptionAnswer[]> {
    const answers: OptionAnswer[] = [];
    for (;;) {
      const header = await this.duplex.read(Size.OPTION_REPLY_HEADER);
      expectMagic(header, 0, Magic.OPTION_REPLY_HIGH, Magic.OPTION_REPLY_LOW, 'option reply');
      if (header.readUInt32BE(8) !== option)
        throw new ProtocolError(`an answer to option ${header.readUInt32BE(8)} instead of ${option}`);
      const type = header.readUInt32BE(12);
      const data = await this.duplex.read(header.readUInt32BE(16));
      answers.push({ type, data });
      if (type === OptionReply.ACK || type >= OptionReply.ERR_UNSUP) return answers;
    }
  }

  /** Negotiates structured replies, if the server has them. */
  async wantStructuredReplies(): Promise<boolean> {
    const answers = await this.option(Option.STRUCTURED_REPLY);
    this.structuredReplies = answers.at(-1)!.type === OptionReply.ACK;
    return this.structuredReplies;
  }

  /** GO, which must succeed. */
  async go(name: string, infos: readonly number[] = []): Promise<ExportAnswer> {
    const answers = await this.option(Option.GO, encodeInfoRequest(name, infos));
    const last = answers.at(-1)!;
    if (last.type !== OptionReply.ACK)
      throw new ProtocolError(`GO was refused: 0x${last.type.toString(16)} ${last.data.toString('utf8')}`);
    return exportOf(answers);
  }

  /** Sends a request under a cookie of its own unless it has one. Returns the cookie as text. */
  send(request: ClientRequest): string {
    const withCookie = request.cookieLow === undefined ? { ...request, cookieLow: this.#nextCookie++ } : request;
    const cookie = cookieText(withCookie.cookieHigh ?? 0, withCookie.cookieLow!);
    this.#asked.set(cookie, { request, lengthBytes: request.lengthBytes ?? request.payload?.length ?? 0 });
    this.duplex.write(encodeRequest(withCookie));
    return cookie;
  }

  /** One request and its reply, when nothing else is in flight. */
  async ask(request: ClientRequest): Promise<Reply> {
    const cookie = this.send(request);
    const reply = await this.reply();
    if (cookieText(reply.cookieHigh, reply.cookieLow) !== cookie)
      throw new ProtocolError('the reply to another request');
    return reply;
  }

  /** The next whole reply. Chunks of several replies must not be mixed: this client has no place to sort them. */
  async reply(): Promise<Reply> {
    const head = await this.duplex.read(Size.SIMPLE_REPLY);
    const magic = head.readUInt32BE(0);
    if (magic === Magic.SIMPLE_REPLY) return this.#simpleReply(head);
    if (magic === Magic.STRUCTURED_REPLY) return this.#structuredReply(head);
    throw new ProtocolError(`a reply that begins with 0x${magic.toString(16)}`);
  }

  /** Resolves when the server closes without another word. */
  async ended(): Promise<void> {
    try {
      const byte = await this.duplex.read(1);
      throw new ProtocolError(`0x${byte.toString('hex')} instead of the end of the connection`);
    } catch (error) {
      if (!(error instanceof StreamEnded)) throw error;
    }
  }

  async #simpleReply(head: Buffer): Promise<Reply> {
    const error = head.readUInt32BE(4);
    const asked = this.#takeAsked(head);
    if (this.structuredReplies && asked.request.command === Command.READ)
      throw new ProtocolError('a simple reply to READ after structured replies were negotiated');
    const hasData = asked.request.command === Command.READ && error === 0;
    const data = await this.duplex.read(hasData ? asked.lengthBytes : 0);
    return {
      cookieHigh: head.readUInt32BE(8),
      cookieLow: head.readUInt32BE(12),
      error,
      structured: false,
      message: '',
      data,
      descriptors: [],
      chunks: [],
    };
  }

  async #structuredReply(head: Buffer): Promise<Reply> {
    if (!this.structuredReplies) throw new ProtocolError('a structured reply that nobody has negotiated');
    const cookieHigh = head.readUInt32BE(8);
    const cookieLow = head.readUInt32BE(12);
    const gathered = new Gathered(this.#takeAsked(head));
    for (;;) {
      if (
        head.readUInt32BE(0) !== Magic.STRUCTURED_REPLY ||
        head.readUInt32BE(8) !== cookieHigh ||
        head.readUInt32BE(12) !== cookieLow
      )
        throw new ProtocolError('chunks of another reply in between');
      const payload = await this.duplex.read((await this.duplex.read(4)).readUInt32BE(0));
      const chunk = { flags: head.readUInt16BE(4), type: head.readUInt16BE(6), payload };
      gathered.add(chunk);
      if ((chunk.flags & ChunkFlag.DONE) !== 0) break;
      head = await this.duplex.read(Size.SIMPLE_REPLY);
    }
    return gathered.reply(cookieHigh, cookieLow);
  }

  #takeAsked(head: Buffer): Asked {
    const cookie = cookieText(head.readUInt32BE(8), head.readUInt32BE(12));
    const asked = this.#asked.get(cookie);
    if (asked === undefined) throw new ProtocolError(`a reply to cookie ${cookie}, which is not in flight`);
    this.#asked.delete(cookie);
    return asked;
  }
}

/** The chunks of one structured reply, checked as they come. */
class Gathered {
  readonly #asked: Asked;
  readonly #chunks: ReplyChunk[] = [];
  readonly #data: Buffer;
  #covered = 0;
  #error = 0;
  #message = '';
  readonly #descriptors: { lengthBytes: number; flags: number }[] = [];

  constructor(asked: Asked) {
    this.#asked = asked;
    this.#data = Buffer.alloc(asked.request.command === Command.READ ? asked.lengthBytes : 0);
  }

  add(chunk: ReplyChunk): void {
    this.#chunks.push(chunk);
    const { payload } = chunk;
    switch (chunk.type) {
      case Chunk.NONE:
        if ((chunk.flags & ChunkFlag.DONE) === 0 || payload.length !== 0)
          throw new ProtocolError('a NONE chunk that is more');
        break;
      case Chunk.OFFSET_DATA:
        if (payload.length < 9) throw new ProtocolError('an OFFSET_DATA chunk without data');
        this.#content(readU64(payload, 0), payload.subarray(8));
        break;
      case Chunk.OFFSET_HOLE:
        if (payload.length !== 12 || payload.readUInt32BE(8) === 0)
          throw new ProtocolError('a malformed OFFSET_HOLE chunk');
        this.#content(readU64(payload, 0), Buffer.alloc(payload.readUInt32BE(8)));
        break;
      case Chunk.BLOCK_STATUS:
        if (payload.length < 12 || payload.length % 8 !== 4) throw new ProtocolError('a malformed BLOCK_STATUS chunk');
        for (let at = 4; at < payload.length; at += 8)
          this.#descriptors.push({ lengthBytes: payload.readUInt32BE(at), flags: payload.readUInt32BE(at + 4) });
        break;
      case Chunk.ERROR:
      case Chunk.ERROR_OFFSET: {
        const textBytes = payload.length < 6 ? -1 : payload.readUInt16BE(4);
        if (payload.length !== 6 + textBytes + (chunk.type === Chunk.ERROR ? 0 : 8))
          throw new ProtocolError('a malformed error chunk');
        this.#error = payload.readUInt32BE(0);
        this.#message = payload.toString('utf8', 6, 6 + textBytes);
        if (this.#error === 0) throw new ProtocolError('an error chunk with error 0');
        break;
      }
      default:
        throw new ProtocolError(`a chunk of the unknown type ${chunk.type}`);
    }
  }

  #content(offset: number, bytes: Buffer): void {
    if (this.#asked.request.command !== Command.READ) throw new ProtocolError('content for what is no READ');
    const at = offset - (this.#asked.request.offset ?? 0);
    if (at < 0 || at + bytes.length > this.#data.length) throw new ProtocolError('content outside the request');
    bytes.copy(this.#data, at);
    this.#covered += bytes.length;
  }

  reply(cookieHigh: number, cookieLow: number): Reply {
    if (this.#error === 0 && this.#covered !== this.#data.length)
      throw new ProtocolError(`${this.#covered} bytes of content for a READ of ${this.#data.length}`);
    return {
      cookieHigh,
      cookieLow,
      error: this.#error,
      structured: true,
      message: this.#message,
      data: this.#data,
      descriptors: this.#descriptors,
      chunks: this.#chunks,
    };
  }
}

/** The mandatory EXPORT information among the answers to INFO or GO. */
export function exportOf(answers: readonly OptionAnswer[]): ExportAnswer {
  const info = infoOf(answers, Info.EXPORT);
  if (info === null || info.length !== 12) throw new ProtocolError('no export information, or a malformed one');
  return { sizeBytes: readU64(info, 2), flags: info.readUInt16BE(10) };
}

/** Data of the first information of this type, its type included; null: none came. */
export function infoOf(answers: readonly OptionAnswer[], info: number): Buffer | null {
  const found = answers.find(
    ({ type, data }) => type === OptionReply.INFO && data.length >= 2 && data.readUInt16BE(0) === info,
  );
  return found?.data ?? null;
}

const cookieText = (high: number, low: number): string => `${high.toString(16)}:${low.toString(16)}`;

function expectMagic(bytes: Buffer, at: number, high: number, low: number, where: string): void {
  if (bytes.readUInt32BE(at) !== high || bytes.readUInt32BE(at + 4) !== low)
    throw new ProtocolError(`${where}: wrong magic 0x${bytes.toString('hex', at, at + 8)}`);
}
