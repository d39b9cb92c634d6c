// What a conformance case works with: connections to the server under test in every stage, and the words in which it
// says what it expected.

import { encodeMetaRequest } from './client.ts';
import { BASE_ALLOCATION, Command, Option, type OptionReply, TransmissionFlag } from './constants.ts';
import { Conversation, type Duplex, type ExportAnswer, type OptionAnswer } from './conversation.ts';

export interface ConformanceTarget {
  /** A new connection, on which nothing has been said. */
  connect(): Promise<Duplex>;
  /** An export of at least CONFORMANCE_BYTES. If it is not read-only, its beginning is overwritten. */
  readonly exportName: string;
}

/** How much of the export, from its beginning, the suite uses. */
export const CONFORMANCE_BYTES = 1024 * 1024;

export interface ConformanceCase {
  /** The rule, and a letter: "5b". */
  readonly id: string;
  readonly level: 'MUST' | 'SHOULD';
  readonly title: string;
  /** Resolves if the server does it right; rejects with what it does instead, or with Skipped. */
  run(stage: Stage): Promise<void>;
}

/** The server does not offer what the case is about. */
export class Skipped extends Error {}

/** What one case works with: it makes connections and forgets none. */
export class Stage {
  readonly target: ConformanceTarget;
  readonly #open: Duplex[] = [];

  constructor(target: ConformanceTarget) {
    this.target = target;
  }
  get exportName(): string {
    return this.target.exportName;
  }

  /** A connection on which nothing has been said. */
  async connect(): Promise<Conversation> {
    const duplex = await this.target.connect();
    this.#open.push(duplex);
    return new Conversation(duplex);
  }

  /** A connection that may haggle. */
  async haggling(flags?: number): Promise<Conversation> {
    const peer = await this.connect();
    await peer.greet(flags);
    return peer;
  }

  /** A connection that may send requests. Structured replies, and with them contexts, are skipped if refused. */
  async ready(options: { structured?: boolean; context?: boolean } = {}): Promise<Ready> {
    const peer = await this.haggling();
    if ((options.structured ?? false) || (options.context ?? false))
      if (!(await peer.wantStructuredReplies())) throw new Skipped('the server has no structured replies');
    if (options.context ?? false) {
      const answers = await peer.option(Option.SET_META_CONTEXT, encodeMetaRequest(this.exportName, [BASE_ALLOCATION]));
      if (answers.length !== 2) throw new Skipped('the server has no base:allocation');
    }
    return new Ready(peer, await peer.go(this.exportName));
  }

  /** The server still serves: a new client reads a byte. */
  async stillServes(): Promise<void> {
    const { peer } = await this.ready();
    expect((await peer.ask({ command: Command.READ, lengthBytes: 1 })).error === 0, 'a new client can read');
  }

  close(): void {
    for (const duplex of this.#open) duplex.close();
  }
}

/** A connection in the transmission phase. */
export class Ready {
  readonly peer: Conversation;
  readonly export: ExportAnswer;
  constructor(peer: Conversation, answer: ExportAnswer) {
    this.peer = peer;
    this.export = answer;
  }
  has(flag: number): boolean {
    return (this.export.flags & flag) !== 0;
  }
  /** Skips the case unless the export offers this. */
  needs(flag: keyof typeof TransmissionFlag): void {
    if (!this.has(TransmissionFlag[flag])) throw new Skipped(`the export does not offer ${flag}`);
  }
  needsWriting(): void {
    if (this.has(TransmissionFlag.READ_ONLY)) throw new Skipped('the export is read-only');
  }
}

/** Fails the case with what should have been. */
export function expect(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Error(`expected: ${what}`);
}

export function expectAnswer(
  answers: readonly OptionAnswer[],
  type: (typeof OptionReply)[keyof typeof OptionReply],
): void {
  const last = answers.at(-1)!.type;
  expect(last === type, `the final answer 0x${type.toString(16)}, not 0x${last.toString(16)}`);
}
