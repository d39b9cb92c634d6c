// Messages of the control plane, damaged on the wire. The library that decodes them may refuse with any error (the call
// then fails, nothing else does); what it takes must be applied or refused as map updates are.

import test from 'ava';
import { applyUpdate, fullUpdate, type MapUpdate, type StorageMap } from '../../proto/map.ts';
import { joinUpdates } from '../../proto/map-updates.ts';
import { fuzz } from '../../scripts/fuzz/fuzz.ts';
import { rpcOf } from './grpc-proto.ts';

const MAP: StorageMap = {
  clusterId: 'c',
  epoch: 9,
  daemons: new Map(
    [1, 2].map((id) => [
      id,
      {
        id,
        uuid: `u${id}`,
        bootId: `b${id}`,
        address: `127.0.0.1:${id}`,
        unixAddress: '',
        host: 'h',
        domain: 'd',
        weight: 1.5,
        up: true,
        in: true,
      },
    ]),
  ),
  pools: new Map([[1, { id: 1, name: 'p', pgCount: 1, replicas: 2, minSize: 1, durability: 'sync' }]]),
  pgs: new Map([[65_536, { pg: 65_536, acting: [1, 2], since: 8, waitFor: [2], lastActive: 7 }]]),
  images: new Map([
    [
      1,
      {
        id: 1,
        name: 'vol',
        pool: 1,
        sizeBytes: 2 ** 40,
        order: 20,
        stripeUnit: 2 ** 20,
        stripeCount: 1,
        fence: 3,
        state: 'ready',
      },
    ],
  ]),
};
const UPDATE: MapUpdate = { ...fullUpdate(MAP), from: 9, to: 10, pools: [], images: [], removedImages: [1] };

class Refused extends Error {}
const isTyped = (error: unknown): boolean => error instanceof Refused;
function decodedBy<T>(decode: (bytes: Buffer) => object, bytes: Buffer): T {
  try {
    return decode(bytes) as T;
  } catch (error) {
    throw new Refused('the library refuses it', { cause: error });
  }
}

test('map updates, applied to no map and to one that they may follow, and joined', (t) => {
  const { responseSerialize, responseDeserialize } = rpcOf('subscribe');
  fuzz(t, {
    samples: [fullUpdate(MAP), UPDATE].map((update) => responseSerialize(update)),
    capBytes: 0,
    isTyped,
    decode(input) {
      const update = decodedBy<MapUpdate>(responseDeserialize, Buffer.from(input));
      for (const base of [null, MAP])
        try {
          const map = applyUpdate(base, update);
          if (map !== base && map.epoch !== update.to) throw new TypeError('applied, but of another epoch');
        } catch (error) {
          if (!/does not follow|expected c/.test((error as Error).message)) throw error;
        }
      const before: MapUpdate = { ...fullUpdate(MAP), clusterId: update.clusterId, to: update.from };
      const joined = joinUpdates(before, update);
      const oneByOne = applyUpdate(applyUpdate(null, before), { ...update, to: Math.max(update.to, update.from + 1) });
      if (applyUpdate(null, joined).pgs.size !== oneByOne.pgs.size) throw new TypeError('joined differs from applied');
      return true;
    },
  });
});

test('requests', (t) => {
  const requests = {
    register: {
      clusterId: 'c',
      uuid: 'u',
      bootId: 'b',
      address: '127.0.0.1:1',
      unixAddress: '',
      host: 'h',
      domain: 'd',
      weight: 1,
      newestEpoch: 4,
    },
    testify: {
      clusterId: 'c',
      uuid: 'u',
      id: 1,
      bootId: 'b',
      newestEpoch: 4,
      map: fullUpdate(MAP),
      activated: [{ pg: 65_536, since: 3 }],
      pgs: [{ pg: 65_536, les: 3, complete: true, lastSince: 2 }],
      sessionMost: 7,
      imageMost: 8,
    },
    createImage: { name: 'vol', pool: 'p', sizeBytes: 2 ** 40, order: 20, stripeUnit: 2 ** 20, stripeCount: 1 },
    activate: { id: 1, bootId: 'b', pgs: [{ pg: 65_536, since: 3 }] },
  } as const;
  const codecs = (Object.keys(requests) as (keyof typeof requests)[]).map(rpcOf);
  fuzz(t, {
    samples: codecs.map(({ requestSerialize }, at) => requestSerialize(Object.values(requests)[at]!)),
    capBytes: 0,
    isTyped,
    decode(input, random) {
      const { requestDeserialize } = codecs[random(codecs.length)]!;
      try {
        return decodedBy<object>(requestDeserialize, Buffer.from(input)) !== null;
      } catch (error) {
        if (error instanceof Refused) return false;
        throw error;
      }
    },
  });
});
