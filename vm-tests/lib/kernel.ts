// A real Linux kernel as the client: user-mode Linux runs as a process, with its own nbd module, file systems and TCP.
//
//   test ── boots ──► linux.uml ── tap device ashN, 198.18.x.y/30 ── TCP ──► the server under test
//        ◄─ console lines ("step: …", "verdict 0") ─┘    └─ root file system: the host's own, read-only
//
// Every boot has its own tap device and /30 network, so boots can run side by side. The guest's script is plain sh with
// the few functions below; it fails on the first command that fails. Guest and test talk by console lines (step) and by
// files in the boot's directory (hostSays).

import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { Running, run, temporaryDirectory, whyNoPrograms } from './processes.ts';

export interface Verdict {
  /** 0: every command of the script succeeded. */
  exitCode: number;
  console: string;
  ms: number;
}

const NETLINK = join(import.meta.dirname, 'nbd-netlink.pl');
const MODULES = '/usr/lib/uml/modules';
const PROGRAMS = ['linux.uml', 'ip', 'nbd-client', 'insmod', 'mkfs.ext4', 'fsck.ext4', 'mkfs.xfs', 'xfs_repair'];

/** Why no kernel can be booted here, or null. Tests that need one are skipped by this name. */
export function whyNoKernel(): string | null {
  if (process.getuid?.() !== 0) return 'needs root (tap devices)';
  if (!existsSync('/dev/net/tun')) return 'needs /dev/net/tun';
  return whyNoPrograms(PROGRAMS);
}

/** Networks are taken from 198.18.0.0/15, which is set aside for tests between network devices (RFC 2544). */
const NETWORKS = 2 ** 15;

/** A tap device with a /30 of its own; the test's server listens on `hostAddress`. Removed after the test. */
export class Tap {
  readonly device: string;
  readonly hostAddress: string;
  readonly guestAddress: string;
  private constructor(index: number) {
    this.device = `ash${index}`;
    const network = index * 4;
    const base = `198.${18 + (network >> 16)}.${(network >> 8) & 255}`;
    this.hostAddress = `${base}.${(network & 255) + 1}`;
    this.guestAddress = `${base}.${(network & 255) + 2}`;
  }
  static async open(t: ExecutionContext): Promise<Tap> {
    for (let attempt = 0; attempt < 20; attempt++) {
      const tap = new Tap(Math.floor(Math.random() * NETWORKS));
      // The device's name is the lock: making one that exists fails.
      const made = await run('ip', ['tuntap', 'add', 'dev', tap.device, 'mode', 'tap']);
      if (made.code !== 0 && existsSync(`/sys/class/net/${tap.device}`)) continue;
      if (made.code !== 0) throw new Error(`can't make a tap device: ${made.stderr}`);
      t.teardown(() => run('ip', ['link', 'del', tap.device]).then(() => {}));
      for (const args of [
        ['addr', 'add', `${tap.hostAddress}/30`, 'dev', tap.device],
        ['link', 'set', tap.device, 'up'],
      ]) {
        const done = await run('ip', args);
        if (done.code !== 0) throw new Error(`ip ${args.join(' ')}: ${done.stderr}`);
      }
      return tap;
    }
    throw new Error('no free tap device in 20 attempts');
  }
}

/** A running guest. */
export class Guest {
  readonly ended: Promise<Verdict>;
  readonly #directory: string;
  readonly #process: Running;
  readonly #seen: string[] = [];
  #watch: (() => void) | null = null;

  constructor(directory: string, process: Running, timeoutMs: number) {
    this.#directory = directory;
    this.#process = process;
    const timer = setTimeout(() => {
      this.#seen.push(`(killed: no verdict within ${timeoutMs} ms)`);
      process.kill('SIGKILL');
    }, timeoutMs);
    process.onLine = (line) => {
      this.#seen.push(line);
      this.#watch?.();
    };
    this.ended = process.ended.then((finished) => {
      clearTimeout(timer);
      process.kill('SIGKILL'); // the kernel's helper processes share its group
      this.#watch?.();
      const verdict = this.#seen.map((line) => /^verdict (\d+)$/.exec(line)).find((match) => match !== null);
      return { exitCode: verdict ? Number(verdict[1]) : -1, console: this.#seen.join('\n'), ms: finished.ms };
    });
  }

  /** Waits for the guest's `step NAME`. Rejects, with the console, if the guest ends first. */
  step(name: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = (): boolean => {
        if (this.#seen.includes(`step: ${name}`)) resolve();
        else if (this.#process.hasEnded) reject(new Error(`the guest ended before step ${name}\n${this.console}`));
        else return false;
        this.#watch = null;
        return true;
      };
      if (!look()) this.#watch = look;
    });
  }
  /** Lets the guest's `host_says NAME` return. */
  say(name: string): void {
    writeFileSync(join(this.#directory, `said-${name}`), '');
  }
  get console(): string {
    return this.#seen.join('\n');
  }
}

/**
 * Boots a kernel that runs `script` (sh, -ex) and powers off.
 *
 * Functions in the guest: `attach ADDRESS PORT EXPORT` makes /dev/nbd0 (4 connections, 4 KiB blocks), `detach` takes it
 * away; `attach_patient` makes one that waits a minute for a lost server, and `reconnect` (same arguments) ends the
 * wait; `step NAME`, `host_says NAME`. /mnt and /run are empty memory file systems; everything else is read-only.
 */
export function bootKernel(
  t: ExecutionContext,
  tap: Tap,
  script: string,
  options: { timeoutMs: number; memory?: string },
): Guest {
  const directory = temporaryDirectory(t, 'guest');
  const init = join(directory, 'init');
  writeFileSync(init, initScript(directory, tap, script), { mode: 0o755 });
  const kernel = new Running(
    'linux.uml',
    [
      `mem=${options.memory ?? '384M'}`,
      'rootfstype=hostfs',
      'ro',
      `init=${init}`,
      `vec0:transport=tap,ifname=${tap.device},depth=128,gro=1`,
      'con=null',
      'con0=fd:0,fd:1',
      'quiet',
      'panic=-1',
      `uml_dir=${directory}/`,
      'umid=guest',
    ],
    { group: true },
  );
  t.teardown(() => kernel.end());
  return new Guest(directory, kernel, options.timeoutMs);
}

function initScript(directory: string, tap: Tap, script: string): string {
  const release = readdirSync(MODULES)[0];
  return `#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /mnt
ip link set lo up
ip addr add ${tap.guestAddress}/30 dev vec0 && ip link set vec0 up
insmod ${MODULES}/${release}/kernel/drivers/block/nbd.ko max_part=4 nbds_max=1

step() { { echo "step: $*"; } 2>/dev/null; }
host_says() { sh -c "until [ -e '${directory}/said-$1' ]; do sleep 0.05; done"; }
attach() { nbd-client "$1" "$2" /dev/nbd0 -N "$3" -b 4096 -C 4 -t 60; }
attach_patient() { perl ${NETLINK} connect 0 "$1" "$2" "$3" 4; }
reconnect() { perl ${NETLINK} reconnect 0 "$1" "$2" "$3" 4; }
detach() { nbd-client -d /dev/nbd0; echo 3 >/proc/sys/vm/drop_caches; }

( set -ex
${script}
) 2>&1
echo "verdict $?"
sync
echo o >/proc/sysrq-trigger
sleep 10
`;
}
