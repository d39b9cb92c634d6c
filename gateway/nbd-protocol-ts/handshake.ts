// The server's side of fixed newstyle haggling, from the greeting to the moment when requests begin.
//
//   flags ──> header ──> data ──> (handled) ──> header ...
//               │  └───> drain ─> (refused) ──> header ...
//               ├──> opening ──> established        GO or EXPORT_NAME, once the host has opened the export
//               └──> ended                          ABORT, a peer that does not speak NBD, or a limit
//
// A pure push parser: bytes in through push(), bytes out through host.send(). It remembers at most one option's data
// (OPTION_BYTES_MAX), answers every option exactly once with a final reply, and drains what it refuses, so that one bad
// option never makes the next one unreadable. It opens nothing before GO, keeps no time (the host ends what takes too
// long), and has no TLS: STARTTLS is refused by policy.

import {
  BASE_ALLOCATION,
  BASE_ALLOCATION_ID,
  ClientFlag,
  Info,
  Magic,
  Option,
  OptionReply,
  Size,
  TransmissionFlag,
} from './constants.ts';
import { OPTION_BYTES_MAX, OPTION_DRAIN_MAX, OPTIONS_MAX } from './limits.ts';
import { readString, shown } from './numbers.ts';
import { type InfoRequest, type MetaRequest, parseInfoRequest, parseMetaRequest } from './option-data.ts';
import {
  blockSizeInfoReply,
  exportInfoReply,
  exportNameReply,
  greeting,
  metaContextReply,
  optionError,
  optionReply,
  serverReply,
  textInfoReply,
} from './option-replies.ts';

/** An export as its clients see it. */
export interface ExportTerms {
  /** The canonical name. */
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  /** TransmissionFlag bits that the export offers. HAS_FLAGS is added; SEND_DF only counts with structured replies. */
  readonly flags: number;
  readonly minimumBlockBytes: number;
  readonly preferredBlockBytes: number;
  readonly maximumPayloadBytes: number;
}

/** What both sides have agreed on when requests begin. */
export interface Negotiated {
  readonly terms: ExportTerms;
  /** TransmissionFlag bits as they were told to the client. */
  readonly flags: number;
  readonly structuredReplies: boolean;
  /** base:allocation is selected: BLOCK_STATUS may be asked. */
  readonly allocationContext: boolean;
}

export interface HandshakeHost {
  send(bytes: Buffer): void;
  /** Exports for LIST. */
  exports(): Iterable<ExportTerms>;
  /** The export of that name, "" being the default one; null if there is none. Opens nothing. */
  find(name: string): ExportTerms | null;
  /** Open it, then call opened() or refused(), at once or later. Until then push() takes nothing. */
  open(name: string): void;
  /** Requests begin with the bytes that push() did not take. */
  established(negotiated: Negotiated): void;
  /** The connection is to be closed after what was sent. @param reason null after ABORT, else what the peer did */
  ended(reason: string | null): void;
}

type State = 'flags' | 'header' | 'data' | 'drain' | 'opening' | 'established' | 'ended';

export class Handshake {
  #host: HandshakeHost;
  #state: State = 'flags';
  /** Where the bytes of the present flags, header or data are put together when a chunk ends inside them. */
  #partial: Buffer = Buffer.alloc(Size.OPTION_HEADER);
  #partialBytes = 0;
  #header: Buffer = this.#partial;
  #clientFlags = 0;
  #options = 0;
  #option = 0;
  #lengthBytes = 0;
  #drainBytes = 0;
  #structuredReplies = false;
  /** Name by which base:allocation was selected; null: it is not. Another name, even an alias, selects nothing. */
  #contextName: string | null = null;
  #shuttingDown = false;
  /** The INFO, GO or EXPORT_NAME that is being opened. */
  #wanted: InfoRequest = { name: '', infos: [] };

  constructor(host: HandshakeHost) {
    this.#host = host;
  }

  get state(): State {
    return this.#state;
  }

  /** Sends the greeting. */
  start(): void {
    this.#host.send(greeting());
  }

  /** From now on every option is answered with ERR_SHUTDOWN. */
  shutDown(): void {
    this.#shuttingDown = true;
  }

  /**
   * Takes what the peer sent. Returns how many bytes it took: fewer than all while an export is being opened (push the
   * rest again after opened() or refused()), after `established` and after `ended`.
   */
  push(chunk: Buffer): number {
    let at = 0;
    for (;;) {
      switch (this.#state) {
        case 'flags':
          if (chunk.length === at) return at;
          at = this.#collect(chunk, at, Size.CLIENT_FLAGS);
          if (this.#partialBytes < Size.CLIENT_FLAGS) return at;
          this.#partialBytes = 0;
          this.#onFlags(this.#partial.readUInt32BE(0));
          break;
        case 'header':
          if (chunk.length === at) return at;
          at = this.#collect(chunk, at, Size.OPTION_HEADER);
          if (this.#partialBytes < Size.OPTION_HEADER) return at;
          this.#partialBytes = 0;
          this.#onHeader(this.#partial);
          break;
        case 'data':
          if (this.#partialBytes === 0 && chunk.length - at >= this.#lengthBytes) {
            const end = at + this.#lengthBytes;
            this.#onOption(chunk.subarray(at, end));
            at = end;
            break;
          }
          if (chunk.length === at) return at;
          if (this.#partialBytes === 0) this.#partial = Buffer.allocUnsafe(this.#lengthBytes);
          at = this.#collect(chunk, at, this.#lengthBytes);
          if (this.#partialBytes < this.#lengthBytes) return at;
          this.#onCollected();
          break;
        case 'drain': {
          const taken = Math.min(chunk.length - at, this.#drainBytes);
          at += taken;
          this.#drainBytes -= taken;
          if (this.#drainBytes > 0) return at;
          this.#onDrained();
          break;
        }
        default:
          return at;
      }
    }
  }

  /** The host has opened what open() asked for. */
  opened(terms: ExportTerms): void {
    if (this.#state !== 'opening') return;
    const flags = this.#flagsOf(terms);
    if (this.#option === Option.EXPORT_NAME) {
      const zeroes = (this.#clientFlags & ClientFlag.NO_ZEROES) === 0;
      this.#host.send(exportNameReply(terms.sizeBytes, flags, zeroes));
    } else {
      this.#sendInfos(terms, this.#wanted);
    }
    this.#state = 'established';
    this.#host.established({
      terms,
      flags,
      structuredReplies: this.#structuredReplies,
      allocationContext: this.#contextName === this.#wanted.name,
    });
  }

  /** The host could not open it. @param type one of OptionReply.ERR_* */
  refused(type: number, message: string): void {
    if (this.#state !== 'opening') return;
    this.#state = 'header';
    if (this.#option === Option.EXPORT_NAME) this.#end(`EXPORT_NAME ${shown(this.#wanted.name)}: ${message}`);
    else this.#refuse(type, message);
  }

  #collect(chunk: Buffer, at: number, needBytes: number): number {
    const taken = Math.min(chunk.length - at, needBytes - this.#partialBytes);
    chunk.copy(this.#partial, this.#partialBytes, at, at + taken);
    this.#partialBytes += taken;
    return at + taken;
  }

  #onCollected(): void {
    const data = this.#partial;
    this.#partial = this.#header;
    this.#partialBytes = 0;
    this.#onOption(data);
  }

  #onFlags(flags: number): void {
    const unknown = flags & ~(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES);
    if (unknown !== 0) return this.#end(`unknown client flags 0x${(unknown >>> 0).toString(16)}`);
    this.#clientFlags = flags;
    this.#state = 'header';
  }

  #onHeader(header: Buffer): void {
    if (header.readUInt32BE(0) !== Magic.OPTION_HIGH || header.readUInt32BE(4) !== Magic.OPTION_LOW)
      return this.#end('no option where one must begin');
    this.#option = header.readUInt32BE(8);
    this.#lengthBytes = header.readUInt32BE(12);
    this.#options++;
    if (this.#options > OPTIONS_MAX) return this.#end(`more than ${OPTIONS_MAX} options`);
    if (this.#lengthBytes > OPTION_DRAIN_MAX) return this.#end(`an option of ${this.#lengthBytes} bytes`);
    const fixed = (this.#clientFlags & ClientFlag.FIXED_NEWSTYLE) !== 0;
    if (!fixed && this.#option !== Option.EXPORT_NAME)
      return this.#end(`option ${this.#option} from a client without fixed newstyle`);
    if (this.#takesData() && this.#lengthBytes <= OPTION_BYTES_MAX) {
      this.#state = 'data';
      return;
    }
    this.#drainBytes = this.#lengthBytes;
    this.#state = 'drain';
  }

  /** Options whose data is looked at; of all others only the length matters. */
  #takesData(): boolean {
    switch (this.#option) {
      case Option.EXPORT_NAME:
      case Option.INFO:
      case Option.GO:
      case Option.LIST_META_CONTEXT:
      case Option.SET_META_CONTEXT:
        return true;
      default:
        return false;
    }
  }

  /** All of an option without data, or with data that is not wanted, is behind us. */
  #onDrained(): void {
    this.#state = 'header';
    if (this.#option === Option.ABORT) {
      this.#ack();
      return this.#end(null);
    }
    if (this.#takesData()) {
      if (this.#option === Option.SET_META_CONTEXT) this.#contextName = null;
      if (this.#option === Option.EXPORT_NAME) return this.#end(`EXPORT_NAME of ${this.#lengthBytes} bytes`);
      return this.#refuse(OptionReply.ERR_TOO_BIG, `an option of ${this.#lengthBytes} bytes`);
    }
    if (this.#shuttingDown) return this.#refuse(OptionReply.ERR_SHUTDOWN, 'the server is shutting down');
    switch (this.#option) {
      case Option.LIST:
        return this.#onList();
      case Option.STARTTLS:
        if (this.#refuseData()) return;
        return this.#refuse(OptionReply.ERR_POLICY, 'this server has no TLS');
      case Option.STRUCTURED_REPLY:
        return this.#onStructuredReply();
      default:
        return this.#refuse(OptionReply.ERR_UNSUP, `option ${this.#option} is not known here`);
    }
  }

  /** The data of one of the options of takesData() is whole. */
  #onOption(data: Buffer): void {
    this.#state = 'header';
    if (this.#option === Option.EXPORT_NAME) return this.#onExportName(data);
    if (this.#shuttingDown) return this.#refuse(OptionReply.ERR_SHUTDOWN, 'the server is shutting down');
    if (this.#option === Option.INFO || this.#option === Option.GO) return this.#onInfo(data);
    return this.#onMetaContext(data);
  }

  #onExportName(data: Buffer): void {
    const name = readString(data, 0, data.length);
    if (name === null) return this.#end('EXPORT_NAME with a name that is no string');
    if (this.#shuttingDown) return this.#end('EXPORT_NAME while shutting down');
    if (this.#host.find(name) === null) return this.#end(`EXPORT_NAME of the unknown export ${shown(name)}`);
    this.#open({ name, infos: [] });
  }

  #onList(): void {
    if (this.#refuseData()) return;
    for (const terms of this.#host.exports()) this.#host.send(serverReply(this.#option, terms.name, terms.description));
    this.#ack();
  }

  #onStructuredReply(): void {
    if (this.#refuseData()) return;
    if (this.#structuredReplies)
      return this.#refuse(OptionReply.ERR_INVALID, 'structured replies are negotiated already');
    this.#structuredReplies = true;
    this.#ack();
  }

  #onInfo(data: Buffer): void {
    const request = parseInfoRequest(data);
    if (typeof request === 'string') return this.#refuse(OptionReply.ERR_INVALID, request);
    const terms = this.#host.find(request.name);
    if (terms === null) return this.#refuse(OptionReply.ERR_UNKNOWN, `no export named ${shown(request.name)}`);
    if (this.#option === Option.GO) return this.#open(request);
    this.#sendInfos(terms, request);
  }

  #open(request: InfoRequest): void {
    this.#wanted = request;
    this.#state = 'opening';
    this.#host.open(request.name);
  }

  #sendInfos(terms: ExportTerms, request: InfoRequest): void {
    const option = this.#option;
    this.#host.send(exportInfoReply(option, terms.sizeBytes, this.#flagsOf(terms)));
    const { infos } = request;
    if (infos.includes(Info.NAME)) this.#host.send(textInfoReply(option, Info.NAME, terms.name));
    if (infos.includes(Info.DESCRIPTION) && terms.description !== '')
      this.#host.send(textInfoReply(option, Info.DESCRIPTION, terms.description));
    if (infos.includes(Info.BLOCK_SIZE)) {
      const { minimumBlockBytes, preferredBlockBytes, maximumPayloadBytes } = terms;
      this.#host.send(blockSizeInfoReply(option, minimumBlockBytes, preferredBlockBytes, maximumPayloadBytes));
    }
    this.#ack();
  }

  #onMetaContext(data: Buffer): void {
    const set = this.#option === Option.SET_META_CONTEXT;
    // Every SET replaces what was selected before, even if it fails.
    if (set) this.#contextName = null;
    const request = parseMetaRequest(data);
    if (typeof request === 'string') return this.#refuse(OptionReply.ERR_INVALID, request);
    if (!this.#structuredReplies)
      return this.#refuse(OptionReply.ERR_INVALID, 'metadata contexts need structured replies: negotiate them first');
    if (this.#host.find(request.name) === null)
      return this.#refuse(OptionReply.ERR_UNKNOWN, `no export named ${shown(request.name)}`);
    if (set ? setSelects(request) : listShows(request)) {
      if (set) this.#contextName = request.name;
      this.#host.send(metaContextReply(this.#option, set ? BASE_ALLOCATION_ID : 0, BASE_ALLOCATION));
    }
    this.#ack();
  }

  #flagsOf(terms: ExportTerms): number {
    const flags = terms.flags | TransmissionFlag.HAS_FLAGS;
    return this.#structuredReplies ? flags : flags & ~TransmissionFlag.SEND_DF;
  }

  /** Refuses an option that must have no data but has; it is drained already. */
  #refuseData(): boolean {
    if (this.#lengthBytes === 0) return false;
    this.#refuse(OptionReply.ERR_INVALID, `option ${this.#option} takes no data`);
    return true;
  }

  #ack(): void {
    this.#host.send(optionReply(this.#option, OptionReply.ACK, null));
  }
  #refuse(type: number, message: string): void {
    this.#host.send(optionError(this.#option, type, message));
  }
  #end(reason: string | null): void {
    this.#state = 'ended';
    this.#host.ended(reason);
  }
}

/** SET takes full names only; what it does not know it passes over. */
const setSelects = (request: MetaRequest): boolean => request.queries.includes(BASE_ALLOCATION);
/** LIST without queries shows everything, and knows the wildcard of a whole namespace. */
const listShows = (request: MetaRequest): boolean =>
  request.queries.length === 0 || request.queries.includes('base:') || request.queries.includes(BASE_ALLOCATION);
