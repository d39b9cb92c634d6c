// Both backends pass the one conformance suite.

import type { Clock } from '../../proto/ports.ts';
import { type Bench, conformance } from './conformance.ts';
import { createMemoryStore } from './memory-store.ts';

const clock: Clock = {
  now: () => performance.now(),
  after: (ms, fire) => {
    const timer = setTimeout(fire, ms);
    return { cancel: () => clearTimeout(timer) };
  },
  soon: (run) => void setImmediate(run),
};

conformance('memory store', async () => {
  const bench: Bench = { store: createMemoryStore(clock), reopen: async () => {} };
  return bench;
});
