import test from 'ava';
import { seal, unseal } from './sealed.ts';

const KIND = { name: 'thing', format: 3 };
const VALUE = { text: 'ä\n', numbers: [1, 2.5, null] };

test('what was sealed comes back, and its first line says what it is', (t) => {
  const bytes = seal(KIND, VALUE);
  t.deepEqual(unseal(KIND, bytes), VALUE);
  t.regex(bytes.toString().split('\n')[0]!, /^ashlar thing 3 \d+ [0-9a-f]{64}$/);
});

test('a file cut at any byte, or with any one bit flipped, is refused', (t) => {
  const bytes = seal(KIND, VALUE);
  for (let length = 0; length < bytes.length; length++)
    t.throws(() => unseal(KIND, bytes.subarray(0, length)), { name: 'StorageError' }, `cut at ${length}`);
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const damaged = Buffer.from(bytes);
    damaged[bit >> 3]! ^= 1 << (bit & 7);
    t.throws(() => unseal(KIND, damaged), { name: 'StorageError' }, `bit ${bit}`);
  }
});

test('another kind and another format are told apart from damage', (t) => {
  const bytes = seal(KIND, VALUE);
  t.throws(() => unseal({ ...KIND, name: 'other' }, bytes), { code: 'UNSUPPORTED', message: /no other of Ashlar/ });
  t.throws(() => unseal({ ...KIND, format: 4 }, bytes), { code: 'UNSUPPORTED', message: /format 3.*reads 4/ });
});
