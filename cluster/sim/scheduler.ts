// The simulation's time: one heap of events, one event at a time, on one thread.
//
// Events are ordered by (time, insertion number). The loop takes the first, moves virtual time to it, runs it, then
// drains all microtasks: promises that the cores use settle before the next event, as they do in Node's loop. Time
// jumps over idle stretches, so that minutes of cluster life take a fraction of a second.
//
// A Machine is a computer of the cluster; an Incarnation is one life of the process on it. What an incarnation
// scheduled never runs after it ended: a crashed daemon's timers, callbacks and promises can't touch the world any
// more. A paused machine's events wait, in order, for its resumption.
//
// Every event enters a rolling digest (FNV-1a). Two runs of a seed with different digests mean that something outside
// the seed had a say, which is a defect of its own.

import assert from 'node:assert/strict';
import { setFlagsFromString } from 'node:v8';
import type { Clock, Timer } from '../../proto/ports.ts';
import type { SimRandom } from './random.ts';
import { withTripwire } from './tripwire.ts';

// Kept here because the tripwire takes the global one away while events run.
const yieldToNode = setImmediate;

/** Runs all microtasks now; only works outside of any microtask, hence from a setImmediate callback. */
const drainMicrotasks = ((): (() => void) => {
  setFlagsFromString('--allow-natives-syntax');
  const drain = new Function('%PerformMicrotaskCheckpoint()') as () => void;
  setFlagsFromString('--no-allow-natives-syntax');
  return drain;
})();

/** Events between two returns to Node's loop, where unhandled rejections come to light. */
const EVENTS_PER_TURN = 2_000;
/** How much later than asked a timer may fire: schedules that differ by less than this are all explored. */
const TIMER_JITTER_MS = 0.5;

export interface TraceEntry {
  readonly time: number;
  readonly node: string;
  readonly kind: string;
  readonly detail: number;
}

export class Scheduler {
  /** Virtual milliseconds since the start. */
  now = 0;
  events = 0;
  /** First thing that went wrong in an event: an assertion in a core, or a checker's verdict. Stops the run. */
  failure: Error | null = null;
  /** Times that each thing worth counting happened: faults fired, rare paths taken. */
  readonly probes = new Map<string, number>();
  /** Was this process right to die of what it threw? Then the one who says so has ended it. */
  isExpected: ((owner: Incarnation, error: Error) => boolean) | null = null;
  /** Sees every event and note as it comes; the trace keeps only the last ones. */
  tracer: ((entry: TraceEntry) => void) | null = null;
  readonly #random: SimRandom;
  readonly #heap = new EventHeap();
  readonly #trace: TraceEntry[] = [];
  readonly #traceLimit: number;
  #traceNext = 0;
  #inserted = 0;
  #digest = 0x811c9dc5;

  constructor(random: SimRandom, traceLimit = 400) {
    this.#random = random;
    this.#traceLimit = traceLimit;
  }

  get digest(): string {
    return (this.#digest >>> 0).toString(16).padStart(8, '0');
  }

  machine(name: string, host = name): Machine {
    return new Machine(this, name, host);
  }

  /** Runs `run` after `ms`, whatever happens to any machine. */
  after(ms: number, kind: string, run: () => void): ScheduledEvent {
    return this.schedule(this.now + ms, null, kind, 0, run);
  }

  /** @param owner the life during which this may run, or null for the world itself */
  schedule(time: number, owner: Incarnation | null, kind: string, detail: number, run: () => void): ScheduledEvent {
    assert(time >= this.now, `${kind} scheduled in the past`);
    const event = { time, order: this.#inserted++, owner, kind, detail, run, cancelled: false };
    this.#heap.push(event);
    return event;
  }

  /** Runs an event, whose time has passed, as soon as possible, after what is already due. */
  again(event: ScheduledEvent): void {
    event.time = this.now;
    event.order = this.#inserted++;
    this.#heap.push(event);
  }

  probe(name: string): void {
    this.probes.set(name, (this.probes.get(name) ?? 0) + 1);
  }

  /** Extra delay of a timer. Now and then it is long, as when a busy loop delays everything. */
  timerJitter(): number {
    return this.#random.chance(0.002) ? this.#random.unit() * 40 : this.#random.unit() * TIMER_JITTER_MS;
  }

  fail(error: Error): void {
    this.failure ??= error;
  }

  /** Adds to the digest what an event did beyond its being run. */
  mix(value: number): void {
    this.#digest = Math.imul(this.#digest ^ (value | 0), 0x01000193);
  }

  /** Puts a line into the trace without any effect. */
  note(node: string, kind: string, detail = 0): void {
    const entry = { time: this.now, node, kind, detail };
    this.tracer?.(entry);
    if (this.#trace.length < this.#traceLimit) this.#trace.push(entry);
    else this.#trace[this.#traceNext % this.#traceLimit] = entry;
    this.#traceNext++;
  }

  /** The last events, oldest first. */
  trace(): TraceEntry[] {
    const split = this.#trace.length < this.#traceLimit ? 0 : this.#traceNext % this.#traceLimit;
    return [...this.#trace.slice(split), ...this.#trace.slice(0, split)];
  }

  /**
   * Runs events until `done()` holds, nothing is left, something failed, or virtual time passes `limitMs` from now.
   * Resolves with why it stopped.
   */
  run(done: () => boolean, limitMs: number): Promise<'done' | 'idle' | 'late' | 'failed'> {
    const deadline = this.now + limitMs;
    return new Promise((resolve) => {
      const turn = (): void => {
        const stopped = withTripwire(() => this.#turn(done, deadline));
        if (stopped === null) yieldToNode(turn);
        else resolve(stopped);
      };
      yieldToNode(turn);
    });
  }

  #turn(done: () => boolean, deadline: number): 'done' | 'idle' | 'late' | 'failed' | null {
    drainMicrotasks();
    for (let i = 0; i < EVENTS_PER_TURN; i++) {
      if (this.failure !== null) return 'failed';
      if (done()) return 'done';
      const next = this.#heap.peek();
      if (next === undefined) return 'idle';
      if (next.time > deadline) {
        this.now = deadline;
        return 'late';
      }
      this.#heap.pop();
      this.#runEvent(next);
    }
    return null;
  }

  #runEvent(event: ScheduledEvent): void {
    if (event.cancelled) return;
    const { owner } = event;
    if (owner !== null) {
      if (!owner.alive) return;
      if (owner.machine.holds(event)) return;
    }
    this.now = event.time;
    this.events++;
    this.mix(event.time * 1024);
    this.mix(event.detail);
    for (let i = 0; i < event.kind.length; i++) this.mix(event.kind.charCodeAt(i));
    if (owner !== null) this.mix(owner.machine.nameHash);
    this.note(owner === null ? '' : owner.name, event.kind, event.detail);
    try {
      event.run();
      drainMicrotasks();
    } catch (error) {
      if (owner !== null && this.isExpected?.(owner, error as Error) === true) return;
      this.fail(new Error(`${owner?.name ?? 'world'}: ${event.kind}: ${String(error)}`, { cause: error }));
    }
  }
}

export interface ScheduledEvent {
  time: number;
  order: number;
  readonly owner: Incarnation | null;
  readonly kind: string;
  readonly detail: number;
  readonly run: () => void;
  cancelled: boolean;
}

/** A computer: it outlives the processes on it. */
export class Machine {
  readonly scheduler: Scheduler;
  readonly name: string;
  /** Machines of the same host share unix sockets. */
  readonly host: string;
  readonly nameHash: number;
  /** How fast its clock runs: 1.05 gains 5 %. */
  clockRate = 1;
  /** The process that runs now, or the last one that did. */
  incarnation: Incarnation | null = null;
  /** Events that came while the machine was paused, in order; null: it is not. */
  #held: ScheduledEvent[] | null = null;
  #boots = 0;
  readonly #onBoot: (() => void)[] = [];
  readonly #onEnd: ((incarnation: Incarnation, how: 'crash' | 'powerCut') => void)[] = [];

  constructor(scheduler: Scheduler, name: string, host: string) {
    this.scheduler = scheduler;
    this.name = name;
    this.host = host;
    this.nameHash = [...name].reduce((h, c) => Math.imul(h ^ c.charCodeAt(0), 0x01000193), 0x811c9dc5);
  }

  get up(): boolean {
    return this.incarnation?.alive === true;
  }

  /** Starts a process. */
  boot(): Incarnation {
    assert(!this.up, `${this.name} runs already`);
    for (const tell of this.#onBoot) tell();
    this.incarnation = new Incarnation(this, ++this.#boots);
    return this.incarnation;
  }

  /** Ends the process: by a signal (its host goes on), or because the host lost its power. */
  end(how: 'crash' | 'powerCut'): void {
    const ended = this.incarnation;
    assert(ended?.alive);
    ended.alive = false;
    this.#held = null;
    for (const tell of this.#onEnd) tell(ended, how);
  }

  /** Stops the machine for a while: SIGSTOP, a stalled virtual machine. What happens to it meanwhile waits, in order. */
  pause(ms: number): void {
    if (this.#held !== null) return;
    const held: ScheduledEvent[] = [];
    this.#held = held;
    this.scheduler.after(ms, 'resume', () => {
      if (this.#held === held) this.resume();
    });
  }

  resume(): void {
    const held = this.#held ?? [];
    this.#held = null;
    for (const event of held) this.scheduler.again(event);
  }

  /** Keeps the event if the machine is paused. */
  holds(event: ScheduledEvent): boolean {
    this.#held?.push(event);
    return this.#held !== null;
  }

  /** Called before a process starts: the host has power, and its kernel runs. */
  onBoot(tell: () => void): void {
    this.#onBoot.push(tell);
  }

  /** Network, disk and control learn of the end of a process here; in the order in which they asked. */
  onEnd(tell: (incarnation: Incarnation, how: 'crash' | 'powerCut') => void): void {
    this.#onEnd.push(tell);
  }
}

/** One life of a process: its clock, and the owner of everything that it schedules. */
export class Incarnation implements Clock {
  readonly machine: Machine;
  readonly number: number;
  alive = true;

  constructor(machine: Machine, number: number) {
    this.machine = machine;
    this.number = number;
  }

  get name(): string {
    return `${this.machine.name}#${this.number}`;
  }

  now(): number {
    return this.machine.scheduler.now * this.machine.clockRate;
  }

  after(ms: number, fire: () => void): Timer {
    const { scheduler } = this.machine;
    assert(ms >= 0 && Number.isFinite(ms), `timer of ${ms} ms`);
    const event = scheduler.schedule(
      scheduler.now + ms / this.machine.clockRate + scheduler.timerJitter(),
      this,
      'timer',
      0,
      fire,
    );
    return {
      cancel: (): void => {
        event.cancelled = true;
      },
    };
  }

  soon(run: () => void): void {
    const { scheduler } = this.machine;
    scheduler.schedule(scheduler.now, this, 'soon', 0, run);
  }
}

/** Binary min-heap by (time, order). */
class EventHeap {
  readonly #events: ScheduledEvent[] = [];

  peek(): ScheduledEvent | undefined {
    return this.#events[0];
  }

  push(event: ScheduledEvent): void {
    const events = this.#events;
    let at = events.length;
    events.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(event, events[parent]!)) break;
      events[at] = events[parent]!;
      at = parent;
    }
    events[at] = event;
  }

  pop(): void {
    const events = this.#events;
    const last = events.pop()!;
    if (events.length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= events.length) break;
      if (child + 1 < events.length && before(events[child + 1]!, events[child]!)) child++;
      if (!before(events[child]!, last)) break;
      events[at] = events[child]!;
      at = child;
    }
    events[at] = last;
  }
}

const before = (a: ScheduledEvent, b: ScheduledEvent): boolean =>
  a.time !== b.time ? a.time < b.time : a.order < b.order;
