// While events run, every way past the ports throws: a core that asks the real clock, draws real random numbers or
// waits for Node's loop would make a seed mean something else each time. scripts/architecture.test.ts finds such calls in the
// text of the cores; this finds them in whatever the cores call.
//
// The tripwire is armed only inside withTripwire(), which does not wait for anything, so the rest of the process (the
// test runner) never sees it.

/** Names on globalThis and what to do about them: [owner, property]. */
const FORBIDDEN: readonly (readonly [object, string])[] = [
  [Date, 'now'],
  [performance, 'now'],
  [Math, 'random'],
  [globalThis, 'setTimeout'],
  [globalThis, 'setInterval'],
  [globalThis, 'setImmediate'],
  [globalThis, 'queueMicrotask'],
  [process, 'nextTick'],
  [process, 'hrtime'],
  [crypto, 'getRandomValues'],
  [crypto, 'randomUUID'],
];

const traps = FORBIDDEN.map(([owner, property]) => ({
  owner,
  property,
  own: Object.getOwnPropertyDescriptor(owner, property),
  trap: {
    configurable: true,
    writable: true,
    value: (): never => {
      throw new Error(`a core called ${property} past its ports`);
    },
  } satisfies PropertyDescriptor,
}));

/** Runs `act` with every forbidden function replaced by one that throws. */
export function withTripwire<T>(act: () => T): T {
  for (const { owner, property, trap } of traps) Object.defineProperty(owner, property, trap);
  try {
    return act();
  } finally {
    for (const { owner, property, own } of traps) {
      if (own === undefined) Reflect.deleteProperty(owner, property);
      else Object.defineProperty(owner, property, own);
    }
  }
}
