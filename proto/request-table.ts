// Requests in flight on one connection, by the number that their answers carry.
//
// Numbers only go up, so that an answer that comes after its request was given up finds nobody. The table is a ring of
// slots indexed by the low bits of the number; a number whose slot is still taken by an old request is left out. A Map
// would do, but its tables are made anew every few dozen entries and keep alive whatever they held (BENCHMARKS.md).

const SLOTS_FIRST = 64;
const NUMBER_MAX = 2 ** 32 - 1;

export class RequestTable<Handler> {
  #handlers: (Handler | null)[] = new Array(SLOTS_FIRST).fill(null);
  #numbers: number[] = new Array(SLOTS_FIRST).fill(0);
  #last = 0;
  #size = 0;

  /** Requests in flight. */
  get size(): number {
    return this.#size;
  }

  /** Gives the request its number: 1 to 2^32 - 1, not that of any other request in flight. */
  add(handler: Handler): number {
    if (this.#size * 2 >= this.#handlers.length) this.#grow();
    const mask = this.#handlers.length - 1;
    do this.#last = this.#last === NUMBER_MAX ? 1 : this.#last + 1;
    while (this.#handlers[this.#last & mask] !== null);
    this.#handlers[this.#last & mask] = handler;
    this.#numbers[this.#last & mask] = this.#last;
    this.#size += 1;
    return this.#last;
  }

  /** Who waits for the answer to this request; null: nobody any more. */
  get(number: number): Handler | null {
    const slot = number & (this.#handlers.length - 1);
    return this.#numbers[slot] === number ? this.#handlers[slot]! : null;
  }

  /** It is answered, or given up. */
  delete(number: number): void {
    if (this.get(number) === null) return;
    this.#handlers[number & (this.#handlers.length - 1)] = null;
    this.#size -= 1;
  }

  /** All that wait, oldest first, as they are now. */
  values(): Handler[] {
    const slots: number[] = [];
    for (let slot = 0; slot < this.#handlers.length; slot++) if (this.#handlers[slot] !== null) slots.push(slot);
    // Older ones are further behind the last number, also after the numbers have begun anew.
    const age = (slot: number): number => (this.#last - this.#numbers[slot]!) >>> 0;
    return slots.sort((a, b) => age(b) - age(a)).map((slot) => this.#handlers[slot]!);
  }

  clear(): void {
    this.#handlers.fill(null);
    this.#size = 0;
  }

  #grow(): void {
    const handlers = this.#handlers;
    const numbers = this.#numbers;
    const length = handlers.length * 2;
    this.#handlers = new Array(length).fill(null);
    this.#numbers = new Array(length).fill(0);
    for (let slot = 0; slot < handlers.length; slot++) {
      if (handlers[slot] === null) continue;
      const place = numbers[slot]! & (length - 1);
      this.#handlers[place] = handlers[slot]!;
      this.#numbers[place] = numbers[slot]!;
    }
  }
}
