// What a .cpuprofile or .heapprofile says, in a few lines: the functions that time (or allocated bytes) went to
// themselves, what they cost with all that they called, and the same by file.
//
// Of a CPU profile only the busy time counts: what Node waited in its event loop is told apart. "(program)" is work
// outside JavaScript that the profiler can't name, such as system calls of libuv; "(garbage collector)" is just that.

import { fileURLToPath } from 'node:url';

/** As the DevTools protocol has it; lines count from 0. */
interface CallFrame {
  functionName: string;
  url: string;
  lineNumber: number;
}
export interface CpuProfile {
  nodes: { id: number; callFrame: CallFrame; children?: number[] }[];
  startTime: number;
  endTime: number;
  samples: number[];
  timeDeltas: number[];
}
interface HeapNode {
  callFrame: CallFrame;
  selfSize: number;
  children: HeapNode[];
}
export interface HeapProfile {
  head: HeapNode;
}

export interface Cost {
  /** "onFrame cluster/daemon/inbound.ts:120", "writev ← flush cluster/world/sockets.ts:80" */
  name: string;
  self: number;
  /** With all that it called; a function that calls itself counts once. */
  total: number;
}
export interface Summary {
  unit: 'ms' | 'KiB';
  /** Wall time of a CPU profile in ms; null for memory. */
  elapsed: number | null;
  /** All self costs together: busy milliseconds, or KiB allocated. */
  busy: number;
  functions: Cost[];
  files: Cost[];
}

/**
 * Profiles of one kind, of one process or of several that do the same.
 * @param root paths below it are told without it
 */
export function summarise(profiles: readonly (CpuProfile | HeapProfile)[], root: string): Summary {
  const tally = new Tally(root);
  let elapsed: number | null = null;
  for (const profile of profiles)
    if ('nodes' in profile) {
      tallyCpu(profile, tally);
      elapsed = (elapsed ?? 0) + (profile.endTime - profile.startTime) / 1000;
    } else tallyHeap(profile.head, tally);
  return { unit: elapsed === null ? 'KiB' : 'ms', elapsed, ...tally.result() };
}

function tallyCpu(profile: CpuProfile, tally: Tally): void {
  const selfUs = new Map<number, number>();
  // timeDeltas[i] is the time before sample i: what ran then is sample i - 1.
  for (let i = 0; i + 1 < profile.samples.length; i++) {
    const id = profile.samples[i]!;
    selfUs.set(id, (selfUs.get(id) ?? 0) + Math.max(0, profile.timeDeltas[i + 1]!));
  }
  const byId = new Map(profile.nodes.map((node) => [node.id, node]));
  const walk = (id: number): void => {
    const { callFrame, children } = byId.get(id)!;
    if (callFrame.functionName === '(idle)') return;
    tally.enter(callFrame, (selfUs.get(id) ?? 0) / 1000);
    for (const child of children ?? []) walk(child);
    tally.leave();
  };
  walk(profile.nodes[0]!.id);
}

function tallyHeap(node: HeapNode, tally: Tally): void {
  tally.enter(node.callFrame, node.selfSize / 1024);
  for (const child of node.children) tallyHeap(child, tally);
  tally.leave();
}

/** Adds costs up along a walk through the tree of calls. */
class Tally {
  readonly #root: string;
  readonly #functions = new Map<string, Cost>();
  readonly #files = new Map<string, Cost>();
  /** Those being walked through, outermost first; `ours` is the nearest function of the product. */
  readonly #path: { inFunction: string; inFile: string; ours: string }[] = [];
  #busy = 0;

  constructor(root: string) {
    this.#root = root;
  }
  enter(frame: CallFrame, self: number): void {
    const inFile = fileOf(frame, this.#root);
    const callerOfOurs = this.#path.at(-1)?.ours ?? '';
    const isOurs = pathOf(frame).startsWith(`${this.#root}/`) && !frame.url.includes('/node_modules/');
    const place = placeOf(frame, inFile);
    // What is not the product's is told with who of the product wanted it.
    const inFunction = isOurs || callerOfOurs === '' ? place : `${place} ← ${callerOfOurs}`;
    this.#path.push({ inFunction, inFile, ours: isOurs ? place : callerOfOurs });
    this.#busy += self;
    if (self === 0) return;
    costOf(this.#functions, inFunction).self += self;
    costOf(this.#files, inFile).self += self;
    for (const each of new Set(this.#path.map((step) => step.inFunction))) costOf(this.#functions, each).total += self;
    for (const each of new Set(this.#path.map((step) => step.inFile))) costOf(this.#files, each).total += self;
  }
  leave(): void {
    this.#path.pop();
  }
  result(): Pick<Summary, 'busy' | 'functions' | 'files'> {
    const sorted = (costs: Map<string, Cost>) =>
      [...costs.values()].filter(({ name }) => name !== '(root)').sort((a, b) => b.self - a.self);
    return { busy: this.#busy, functions: sorted(this.#functions), files: sorted(this.#files) };
  }
}

function costOf(costs: Map<string, Cost>, name: string): Cost {
  const found = costs.get(name);
  if (found !== undefined) return found;
  const made = { name, self: 0, total: 0 };
  costs.set(name, made);
  return made;
}

function placeOf(frame: CallFrame, inFile: string): string {
  const name = frame.functionName === '' ? '(anonymous)' : frame.functionName;
  return frame.url === '' ? name : `${name} ${inFile}:${frame.lineNumber + 1}`;
}

function pathOf({ url }: CallFrame): string {
  return url.startsWith('file://') ? fileURLToPath(url) : url;
}

function fileOf(frame: CallFrame, root: string): string {
  if (frame.url === '') return frame.functionName.startsWith('(') ? frame.functionName : '(native)';
  const path = pathOf(frame);
  return path.startsWith(`${root}/`) ? path.slice(root.length + 1) : path;
}

/** Lines for people. @param top how many functions; a third as many files */
export function summaryText(summary: Summary, top: number): string {
  const { unit, elapsed, busy } = summary;
  const share =
    elapsed === null ? '' : ` of ${elapsed.toFixed(0)} ms (${((busy / elapsed) * 100).toFixed(0)} % of a core)`;
  const part = (cost: number) =>
    `${cost.toFixed(1).padStart(9)} ${((cost / (busy || 1)) * 100).toFixed(1).padStart(5)} %`;
  const line = ({ name, self, total }: Cost) => `${part(self)}  ${part(total)}  ${name}`;
  const heading = (what: string) =>
    `${`self ${unit}`.padStart(9)} ${''.padStart(7)}  ${`total ${unit}`.padStart(9)} ${''.padStart(7)}  ${what}`;
  return [
    `${unit === 'ms' ? 'busy' : 'allocated'} ${busy.toFixed(0)} ${unit}${share}`,
    heading('function'),
    ...summary.functions.slice(0, top).map(line),
    heading('file'),
    ...summary.files.slice(0, Math.ceil(top / 3)).map(line),
  ].join('\n');
}
