import test from 'ava';
import { ImageModel } from './image-model.ts';

const UNIT_SECTORS = 8;
const READER = -1;

function newModel(): ImageModel {
  const model = new ImageModel(65_536, 4_096);
  model.firstSession();
  return model;
}
const seen = (stamp: number): Uint32Array => new Uint32Array(UNIT_SECTORS).fill(stamp);
function write(model: ImageModel, stamp: number, fua = false): void {
  model.acked(model.beginWrite(model.session, stamp, 0, UNIT_SECTORS), fua);
}
function read(model: ImageModel, stamp: number, session = model.session): void {
  model.endRead(model.beginRead(session, 0, UNIT_SECTORS), seen(stamp));
}

test('what an unflushed write of a dead session left after a power cut is open until the first read, and pinned by it', (t) => {
  for (const found of [1, 2]) {
    const model = newModel();
    write(model, 1, true);
    write(model, 2);
    model.onPowerCut();
    model.newSession();
    read(model, found);
    read(model, found);
    t.throws(() => read(model, 3 - found), { message: /was read as operation/ });
  }
});

test('a flushed write is no longer open: no power cut brings back what was before it', (t) => {
  const model = newModel();
  write(model, 1);
  write(model, 2);
  model.flushed(model.session, model.beginFlush(model.session));
  model.onPowerCut();
  model.newSession();
  t.throws(() => read(model, 1), { message: /was durable/ });
});

test("the living writer's own acked write is never open, flushed or not", (t) => {
  const model = newModel();
  write(model, 1, true);
  write(model, 2);
  model.onPowerCut();
  t.throws(() => read(model, 1), { message: /its own operation 2 was acked before/ });
  read(model, 2);
});

test('a power cut does not excuse what was not linearizable before it', (t) => {
  const model = newModel();
  write(model, 1);
  write(model, 2);
  // Allowed by the window, as nothing was flushed, but nobody's power was cut yet.
  read(model, 1, READER);
  model.onPowerCut();
  t.throws(() => model.judgeHistories(), { message: /not linearizable/ });
});
