// Objects that stand still while they are compared and repaired: no write begins, and those in flight have ended.
//
//   hold(key) -> writes in flight to the object commit; new ones wait here -> run -> release -> what waited is handled
//
// Between `run` and `release` every member that is complete has the same version of the object, so that copies can be
// compared and a block rewritten without losing a write that came in between. Reads go on meanwhile. Few objects are
// held at a time, each for a few disk reads; a list is enough. What serving.ts does for every write is one comparison.

import type { ObjectKey } from '../../proto/ids.ts';
import type { Request } from './request.ts';

interface Hold {
  readonly key: ObjectKey;
  readonly run: () => void;
  running: boolean;
  /** Writes that came since, in order. */
  readonly waiters: Request[];
}

export class ObjectHolds {
  /** In the order in which they were asked for. At most one per object runs. */
  readonly #holds: Hold[] = [];
  readonly #isQuiet: (key: ObjectKey) => boolean;
  readonly #handle: (request: Request) => void;

  /**
   * @param isQuiet no write to the object is in flight
   * @param handle takes a write that waited
   */
  constructor(isQuiet: (key: ObjectKey) => boolean, handle: (request: Request) => void) {
    this.#isQuiet = isQuiet;
    this.#handle = handle;
  }

  get any(): boolean {
    return this.#holds.length > 0;
  }

  /** Resolves with the function that lets the object go, when nothing changes it any more. */
  hold(key: ObjectKey): Promise<() => void> {
    return new Promise((resolve) => {
      const hold: Hold = {
        key,
        run: () => {
          hold.running = true;
          resolve(() => this.#release(hold));
        },
        running: false,
        waiters: [],
      };
      this.#holds.push(hold);
      this.quiet(key);
    });
  }

  /** Takes a write to an object that is held, or is about to be. */
  defer(key: ObjectKey, request: Request): boolean {
    const hold = this.#holds.find((one) => one.key === key);
    hold?.waiters.push(request);
    return hold !== undefined;
  }

  /** No write to the object may be in flight any more: its turn has perhaps come. */
  quiet(key: ObjectKey): void {
    const hold = this.#holds.find((one) => one.key === key);
    if (hold !== undefined && !hold.running && this.#isQuiet(key)) hold.run();
  }

  /** Lets all go on, for them to see that it is over; hands back the writes that waited. */
  end(): Request[] {
    const holds = this.#holds.splice(0);
    for (const hold of holds) if (!hold.running) hold.run();
    return holds.flatMap(({ waiters }) => waiters);
  }

  #release(hold: Hold): void {
    const at = this.#holds.indexOf(hold);
    if (at === -1) return; // ended meanwhile
    this.#holds.splice(at, 1);
    for (const request of hold.waiters) this.#handle(request);
    this.quiet(hold.key);
  }
}
