// A black-box conformance suite for NBD servers: cases as data, each named after the rule it checks, and a runner that
// talks to any server through connections that the caller makes.
//
// Rules 1 to 29 are those of the table in README.md; E1 to E.. are rows of its error table. A case opens its own
// connections, is given nothing by earlier ones, and may overwrite the beginning of the export (CONFORMANCE_BYTES).
// What a server does not offer is skipped, with the reason.

import { handshakeCases } from './conformance-handshake.ts';
import { type ConformanceCase, type ConformanceTarget, Skipped, Stage } from './conformance-stage.ts';
import { transmissionCases } from './conformance-transmission.ts';

export { CONFORMANCE_BYTES, type ConformanceCase, type ConformanceTarget } from './conformance-stage.ts';

export interface ConformanceResult {
  readonly id: string;
  readonly level: 'MUST' | 'SHOULD';
  readonly title: string;
  readonly outcome: 'pass' | 'fail' | 'skip';
  /** Why, unless it passed. */
  readonly detail: string;
}

export const conformanceCases: readonly ConformanceCase[] = [...handshakeCases, ...transmissionCases];

/** Runs the cases one after the other and yields each result as it is known. */
export async function* runConformance(
  target: ConformanceTarget,
  cases: readonly ConformanceCase[] = conformanceCases,
): AsyncGenerator<ConformanceResult> {
  for (const each of cases) {
    const stage = new Stage(target);
    const { id, level, title } = each;
    try {
      await each.run(stage);
      yield { id, level, title, outcome: 'pass', detail: '' };
    } catch (error) {
      const outcome = error instanceof Skipped ? 'skip' : 'fail';
      yield { id, level, title, outcome, detail: error instanceof Error ? error.message : String(error) };
    } finally {
      stage.close();
    }
  }
}
