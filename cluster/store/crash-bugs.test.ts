// The enumeration of crash states must find bugs. Each of these is planted for one test, in the disk that the store
// sees or by replacing one method of the engine; some state must fail, and the log says how many it took. Without a bug the same
// stories pass (crash-states.test.ts). Serial: what is planted is there for everyone in the process.

import test from 'ava';
import type { Disk, DiskFile } from '../../proto/ports.ts';
import { Checkpointer } from './checkpoint.ts';
import { Content } from './content.ts';
import { crashRun, STORM } from './crash-run.ts';
import { StoreLog } from './log.ts';
import { Redo } from './redo.ts';
import type { Snapshot } from './snapshot.ts';
import type { Done } from './store.ts';
import { STORIES } from './stories.ts';

type Method = (...given: unknown[]) => unknown;

interface Bug {
  wrap?: (disk: Disk) => Disk;
  /** Methods of the engine, private ones too, and what stands in their place while the test runs. */
  methods?: [prototype: object, name: string, make: (original: Method) => Method][];
}

/** A disk that says of some files that it has synced them, and has not. */
function lying(disk: Disk, skips: (name: string, blocking: boolean) => boolean): Disk {
  const open = (name: string, create: boolean): DiskFile => {
    const file = disk.open(name, create);
    return withMethods(file, {
      sync: (done) => (skips(name, false) ? file.readLater(Buffer.alloc(0), 0, done) : file.sync(done)),
      syncNow: () => (skips(name, true) ? undefined : file.syncNow()),
    });
  };
  return withMethods(disk, { open });
}

function withMethods<T extends object>(target: T, replaced: Partial<T>): T {
  return new Proxy(target, {
    get: (_, name) => {
      const value: unknown = Reflect.get(replaced, name) ?? Reflect.get(target, name);
      return typeof value === 'function' ? (value as Method).bind(target) : value;
    },
  });
}

const STORMS = 3;

async function untilFound(bug: Bug): Promise<{ states: number; failure: string } | null> {
  const undo = (bug.methods ?? []).map(([prototype, name, make]) => {
    const original = Reflect.get(prototype, name) as Method;
    Reflect.set(prototype, name, make(original));
    return () => Reflect.set(prototype, name, original);
  });
  try {
    let states = 0;
    const seeds = Array.from({ length: STORMS }, (_, i) => [STORM, i + 1] as const);
    for (const [story, seed] of [...STORIES.map((story) => [story, 0] as const), ...seeds]) {
      const run = await crashRun(story, seed, bug.wrap);
      states += run.states.size;
      if (run.failure !== null) return { states, failure: `${story.title}: ${run.failure}` };
    }
    return null;
  } finally {
    for (const each of undo) each();
  }
}

const found = (title: string, bug: Bug): void =>
  test.serial(title, async (t) => {
    const failure = await untilFound(bug);
    t.not(failure, null, 'no state failed');
    t.log(`state ${failure?.states}: ${failure?.failure}`);
  });

const lies = (skips: (name: string, blocking: boolean) => boolean): Bug => ({ wrap: (disk) => lying(disk, skips) });

found(
  'a log that is not synced is found',
  lies((name) => name.startsWith('log-')),
);
found(
  'a log that a start does not sync is found',
  lies((name, blocking) => name.startsWith('log-') && blocking),
);
found(
  'data files that are not synced are found',
  lies((name) => name.startsWith('data-')),
);
found(
  'metadata that is not synced before its checkpoint is in force is found',
  lies((name) => name.startsWith('meta-')),
);
found(
  'a checkpoint that counts before it is synced is found',
  lies((name) => name.startsWith('checkpoint.')),
);
found('names of new files that are not synced are found', {
  wrap: (disk) => withMethods(disk, { syncDirectory: () => {} }),
});
found('a flush that is answered before the log is synced is found', {
  methods: [
    [
      StoreLog.prototype,
      'sync',
      (original) =>
        function (this: StoreLog, done) {
          original.call(this, () => {});
          (done as Done)(null);
        },
    ],
  ],
});
found('direct writes that the next sync does not include are found', {
  methods: [[StoreLog.prototype, 'wrote', () => () => {}]],
});
found('a checkpoint that copies before redo can know its records as durable is found', {
  methods: [[StoreLog.prototype, 'writeMark', () => () => {}]],
});
found('a torn batch that is taken for whole is found', {
  methods: [[Redo.prototype, 'isWhole', () => () => true]],
});
found('a slot that is used again before its checkpoint is found', {
  methods: [
    [
      Content.prototype,
      'apply',
      (original) =>
        function (this: Content, ...given) {
          original.apply(this, given);
          for (const slot of this.retired) slot.file.giveBack(slot);
          this.retired.clear();
        },
    ],
  ],
});
found('a hole written directly while the checkpoint still knows it as data is found', {
  methods: [[Content.prototype, 'isClean', () => () => true]],
});
found('a log that goes round over what no checkpoint has saved is found', {
  methods: [
    [
      StoreLog.prototype,
      'setLimits',
      (original) =>
        function (this: StoreLog) {
          original.call(this, Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY);
        },
    ],
    [Checkpointer.prototype, 'consider', () => () => {}],
  ],
});
found('metadata written over the copy that counts is found', {
  methods: [
    [
      Checkpointer.prototype,
      'commit',
      (original) =>
        function (this: Checkpointer, next) {
          const { saved } = Reflect.get(this, 'snapshot') as Snapshot;
          original.call(this, next);
          for (const slot of saved) slot.side = slot.side === 0 ? 1 : 0;
        },
    ],
  ],
});
