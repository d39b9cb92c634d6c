// Sealed files (saved maps, backups), damaged: refused, and never with anything but a typed error.

import { createHash } from 'node:crypto';
import test from 'ava';
import { fuzz } from '../scripts/fuzz/fuzz.ts';
import { seal, unseal } from './sealed.ts';

const KIND = { name: 'thing', format: 1 };

test('as they come, and with a first line that is right for what follows', (t) => {
  fuzz(t, {
    samples: [seal(KIND, {}), seal(KIND, { epoch: 5, pairs: [{ key: '/a', value: '{"id":1}' }] }), seal(KIND, null)],
    capBytes: 0,
    share: 0.2,
    decode(input, random) {
      let bytes = input;
      const line = input.indexOf(10);
      if (random(2) === 0 && line > 0) {
        const body = input.subarray(line + 1);
        const digest = createHash('sha256').update(body).digest('hex');
        bytes = Buffer.concat([Buffer.from(`ashlar thing 1 ${body.length} ${digest}\n`), body]);
      }
      unseal(KIND, bytes);
      return true;
    },
  });
});
