// tells where time or memory went: a summary of .cpuprofile and .heapprofile files
//
//   scripts/bench profile FILE… [--top 25]
//
// `scripts/bench nbd --profile ROLE` records such files; so do node --cpu-prof and --heap-prof.

import { readFileSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type CpuProfile, type HeapProfile, summarise, summaryText } from './lib/profile-summary.ts';

const ROOT = realpathSync(join(import.meta.dirname, '..', '..'));
const USAGE = 'usage: scripts/bench profile FILE… [--top 25]';

function refuse(why: string): never {
  process.stderr.write(`bench profile: ${why}\n`);
  process.exit(2);
}

function parse() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: { top: { type: 'string', default: '25' }, help: { type: 'boolean', default: false } },
    });
  } catch (error) {
    refuse((error as Error).message);
  }
}

const { values, positionals } = parse();
if (values.help) {
  console.log(USAGE);
  process.exit(0);
}
if (positionals.length === 0) refuse(USAGE);
if (!/^[1-9]\d*$/.test(values.top)) refuse(`--top must be a whole number, not "${values.top}"`);
for (const path of positionals) {
  let profile: CpuProfile | HeapProfile;
  try {
    profile = JSON.parse(readFileSync(path, 'utf8')) as CpuProfile | HeapProfile;
  } catch (error) {
    refuse(`${path} can't be read as a profile: ${(error as Error).message}`);
  }
  if (!('nodes' in profile) && !('head' in profile)) refuse(`${path} is neither a CPU nor a heap profile`);
  if (positionals.length > 1) console.log(`${path}:`);
  console.log(summaryText(summarise([profile], ROOT), Number(values.top)));
}
