// Plants a bug: loads every core once more, with a few words of the source changed, and nothing on disk touched.
//
//   run-seed.ts?planted=NAME is imported -> Node asks the hooks below for each module of the graph
//     resolve   modules of this repository keep the suffix of who imports them, so each bug has a graph of its own
//     load      the edits of that bug are made in the text that comes from disk
//
// So the product has no switch that could be left on, and the code with the bug is the product's but for those words.
// An edit whose words are not in the source exactly once is an error: whoever changes the code hears that a bug of the
// list no longer fits, instead of a simulation that finds nothing any more.

import assert from 'node:assert/strict';
import { registerHooks } from 'node:module';
import type { Outcome, RunOptions } from './run-seed.ts';

/** A few words of one source file, and what stands there instead. */
export interface Edit {
  /** Path from the root of the repository. */
  readonly file: string;
  readonly find: string;
  readonly replace: string;
}

/** The part of run-seed.ts that is wanted. */
export interface PlantedSimulation {
  runSeed(seed: number, options?: RunOptions): Promise<Outcome>;
}

const SUFFIX = '?planted=';
const ROOT = new URL('../../', import.meta.url).href;
const planted = new Map<string, readonly Edit[]>();
let hooked = false;

/** The simulation with the edits made. Throws Error if one of them does not fit its file, or its file is never loaded. */
export async function plant(name: string, edits: readonly Edit[]): Promise<PlantedSimulation> {
  assert(!planted.has(name), `${name} is planted already`);
  planted.set(name, edits);
  if (!hooked) hook();
  const made = new Set(edits.map((edit) => edit.file));
  loaded.set(name, made);
  const simulation = (await import(`./run-seed.ts${SUFFIX}${name}`)) as PlantedSimulation;
  assert(made.size === 0, `${name}: the simulation never loads ${[...made].join()}`);
  return simulation;
}

/** Per bug: files that are to be edited and were not loaded yet. */
const loaded = new Map<string, Set<string>>();

function hook(): void {
  hooked = true;
  registerHooks({
    resolve: (specifier, context, next) => {
      const resolved = next(specifier, context);
      const name = context.parentURL === undefined ? null : nameIn(context.parentURL);
      const ours = resolved.url.startsWith(ROOT) && !resolved.url.includes('/node_modules/');
      if (name === null || !ours || resolved.url.includes(SUFFIX)) return resolved;
      return { ...resolved, url: `${resolved.url}${SUFFIX}${name}` };
    },
    load: (url, context, next) => {
      const result = next(url, context);
      const name = nameIn(url);
      if (name === null) return result;
      const file = url.slice(ROOT.length, url.indexOf(SUFFIX));
      const edits = planted.get(name)!.filter((edit) => edit.file === file);
      if (edits.length === 0) return result;
      loaded.get(name)!.delete(file);
      let source = String(result.source);
      for (const edit of edits) {
        const found = source.split(edit.find).length - 1;
        if (found !== 1) throw new Error(`${name}: ${file} has ${found} times, not once: ${edit.find}`);
        source = source.replace(edit.find, () => edit.replace);
      }
      return { ...result, source };
    },
  });
}

function nameIn(url: string): string | null {
  const at = url.indexOf(SUFFIX);
  return at === -1 ? null : url.slice(at + SUFFIX.length);
}
