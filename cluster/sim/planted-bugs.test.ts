// The harness must find bugs. Each of these is planted at the border of a daemon, by wrapping its store or network (those
// in the cores themselves: bugs.ts); within some seeds a judge must say what is wrong. Without a bug the same seeds pass (sim.test.ts).

import test from 'ava';
import { Flag, type Frame, newFrame, Op, replyTo } from '../../proto/frame.ts';
import type { Connection, ConnectionEvents, Network } from '../../proto/ports.ts';
import type { Done, ReadDone } from '../store/store.ts';
import type { Hooks } from './cluster-sim.ts';
import type { Plan } from './plan.ts';
import { type Outcome, runSeed } from './run-seed.ts';
import { storeWith } from './store-home.ts';

/** The first of `seeds` seeds that fails, or null. */
async function firstFailure(hooks: () => Hooks, seeds: number, plan: Partial<Plan> = {}): Promise<Outcome | null> {
  for (let seed = 1; seed <= seeds; seed++) {
    const stores = plan.store === undefined ? {} : { stores: [plan.store] };
    const outcome = await runSeed(seed, { hooks: hooks(), plan, ...stores });
    if (outcome.failure !== null) return outcome;
  }
  return null;
}

const SEEDS = 80;
const found = (title: string, hooks: () => Hooks, expected: RegExp, plan: Partial<Plan> = {}): void =>
  test.serial(title, async (t) => {
    t.timeout(120_000);
    const outcome = await firstFailure(hooks, SEEDS, plan);
    t.not(outcome, null, 'no seed found it');
    t.regex(outcome!.failure!.message, expected);
    t.log(`seed ${outcome!.seed}: ${outcome!.failure!.message}`);
  });

found(
  'a member that acks one write in fifty without storing it is found',
  () => {
    let appends = 0;
    return {
      wrapStore: (store, daemon) =>
        storeWith(store, {
          append: (entry, payload, checks, reserve, done: Done) => {
            if (daemon === 2 && payload !== null && ++appends % 50 === 0)
              store.append({ ...entry, op: 2 }, null, null, reserve, done);
            else store.append(entry, payload, checks, reserve, done);
          },
        }),
    };
  },
  /differs between members|acked before|objects|was durable|linearizable|torn|lacks|holds no data|fails its checksum/,
);

found(
  'a store that now and then serves what the block held before is found',
  () => {
    const old = new Map<string, { checks: Buffer | null; payload: Buffer | null }>();
    let reads = 0;
    return {
      wrapStore: (store) =>
        storeWith(store, {
          read: (image, object, order, offset, length, done: ReadDone) =>
            store.read(image, object, order, offset, length, (error, checks, payload) => {
              const key = `${object} ${offset} ${length}`;
              const before = old.get(key);
              old.set(key, { checks: checks && Buffer.from(checks), payload: payload && Buffer.from(payload) });
              if (before !== undefined && ++reads % 20 === 0) done(error, before.checks, before.payload);
              else done(error, checks, payload);
            }),
        }),
    };
  },
  /acked before|linearizable|was read as|was durable|differs between members/,
);

found(
  'a store that flips a bit of a block and of its checksum alike is found',
  () => {
    let reads = 0;
    return {
      wrapStore: (store) =>
        storeWith(store, {
          read: (image, object, order, offset, length, done: ReadDone) =>
            store.read(image, object, order, offset, length, (error, checks, payload) => {
              if (payload !== null && ++reads % 30 === 0) {
                // NO_DATA: readers take the block for a hole and don't look at the bytes.
                const sums = Buffer.from(checks!);
                sums.writeUInt32LE(0, 0);
                done(error, sums, payload);
              } else done(error, checks, payload);
            }),
        }),
    };
  },
  /acked before|linearizable|torn|was read as|was durable|differs between members/,
);

/** A network whose connections' outgoing frames may be answered at once instead of being sent. */
function ackingEarly(network: Network, wants: (frame: Frame) => boolean): Network {
  return {
    listen: (address, accept) => network.listen(address, accept),
    connect: (address, events: ConnectionEvents) => {
      const connection = network.connect(address, events);
      const early: Connection = {
        get events() {
          return connection.events;
        },
        set events(value) {
          connection.events = value;
        },
        get peer() {
          return connection.peer;
        },
        send: (frame) => {
          if (!wants(frame)) return connection.send(frame);
          const lost = newFrame(frame.op);
          Object.assign(lost, frame);
          events.onFrame(replyTo(frame, 0, frame.epoch));
        },
        close: () => connection.close(),
      };
      return early;
    },
  };
}

found(
  'a primary that acks one write in thirty before its members have it is found (canary)',
  () => {
    let writes = 0;
    return {
      wrapNetwork: (network, machine) =>
        machine.startsWith('d')
          ? ackingEarly(network, (frame) => frame.op === Op.REPLICATE && ++writes % 30 === 0)
          : network,
    };
  },
  /differs|acked before|lacks|logs end at|objects|linearizable|not within|inside|answered|was read as/,
);

found(
  'a writer whose fence the daemons do not check is found once another has taken the image',
  () => ({
    wrapNetwork: (network, machine) => (machine.startsWith('writer') ? withFence(network, 1_000_000) : network),
  }),
  /another writer had been here|linearizable|was read as|acked before/,
  { faults: ['take over'], faultEveryMs: 500 },
);

/** Sends every write with a fence that no other writer has reached: daemons can't tell that it is old. */
function withFence(network: Network, fence: number): Network {
  return {
    listen: (address, accept) => network.listen(address, accept),
    connect: (address, events) => {
      const connection = network.connect(address, events);
      const send = connection.send.bind(connection);
      connection.send = (frame) =>
        send((frame.flags & Flag.REPLY) === 0 && frame.fence > 0 ? { ...frame, fence } : frame);
      return connection;
    },
  };
}

found(
  'stores that say "synced" without syncing are found when all power is cut and the writer dies',
  () => ({
    wrapStore: (store) => storeWith(store, { sync: (done: Done) => store.space() && queued(done) }),
  }),
  /was durable|acked before|was read as|differs|corrupt|does not start|stops|not within/,
  { store: 'disk', faults: ['cut all power', 'crash writer'], faultEveryMs: 1_500, observer: false },
);

/** Calls back from the loop, as a store must; the store's own clock is out of reach here. */
function queued(done: Done): void {
  void Promise.resolve().then(() => done(null));
}

found(
  'a daemon that forgets that its copy was not complete is found',
  () => ({
    wrapStore: (store) => storeWith(store, { pgInfo: (pg) => ({ ...store.pgInfo(pg), complete: true }) }),
  }),
  /acked before|was durable|linearizable|was read as|differs|versions|lacks|objects/,
  { faults: ['crash daemon', 'partition'], faultEveryMs: 300, logEntriesMax: 5, depth: 16 },
);

found(
  'a daemon whose log forgets its newest entries in a crash is found',
  () => {
    const opened = new Set<number>();
    return {
      wrapStore: (store, daemon) => {
        if (opened.has(daemon))
          for (const pg of store.pgs()) {
            const { last, tail } = store.pgInfo(pg);
            const log = store.logAfter(pg, tail)!;
            if (log.length > 2 && last.seq % 2 === 0) store.truncateLog(pg, log.at(-3)!.version);
          }
        opened.add(daemon);
        return store;
      },
    };
  },
  /acked before|was durable|linearizable|was read as|differs|versions|lacks|objects|logs end/,
  { store: 'memory', replicas: 2, daemons: 3, faults: ['crash daemon'], faultEveryMs: 500 },
);
