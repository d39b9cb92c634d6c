// A member's answers to scrub and repair: what it holds, and whether it can read it. It changes nothing.
//
//   PG_READ    a range as it stands, checksums from the index: the primary judges
//   PG_SCRUB   (object, version, digest) of all objects of the PG, several frames
//   PG_VERIFY  reads a range and names the blocks that fail

import { payloadPool } from '../../proto/buffer-pool.ts';
import { StorageError, wireStatus } from '../../proto/errors.ts';
import { Flag, Op, replyTo } from '../../proto/frame.ts';
import { BLOCK_BYTES } from '../../proto/limits.ts';
import type { Daemon } from './daemon.ts';
import { digestOf, type Range, verifyOwn } from './repair-verify.ts';
import { type Request, refuse } from './request.ts';
import { DIGESTS_MAX, encodeDigests } from './scrub-messages.ts';

export function answerScrub(daemon: Daemon, request: Request): void {
  const { image, object, order, offset, length } = request.frame;
  const range = { image, object, order, offset, length };
  if (request.frame.op === Op.PG_SCRUB) return answerDigests(daemon, request);
  const answer = request.frame.op === Op.PG_READ ? answerRead : answerVerify;
  answer(daemon, request, range).catch((error: unknown) => {
    if (!(error instanceof StorageError)) throw error;
    refuse(request, error.code, daemon.epoch);
  });
}

async function answerRead(daemon: Daemon, request: Request, range: Range): Promise<void> {
  const { checks, payload } = await verifyOwn(daemon.store, range);
  const reply = replyTo(request.frame, wireStatus('OK'), daemon.epoch);
  const version = daemon.store.objectVersion(range.image, range.object);
  reply.since = version.since;
  reply.pgSeq = version.seq;
  reply.meta = checks;
  reply.payload = payload;
  reply.givePayload = true;
  request.from.send(reply);
}

async function answerVerify(daemon: Daemon, request: Request, range: Range): Promise<void> {
  const { payload, bad } = await verifyOwn(daemon.store, range);
  payloadPool.give(payload);
  const reply = replyTo(request.frame, wireStatus('OK'), daemon.epoch);
  reply.meta = Buffer.alloc(bad.length * 4);
  bad.forEach((block, i) => {
    reply.meta!.writeUInt32LE(range.offset / BLOCK_BYTES + block, i * 4);
  });
  request.from.send(reply);
}

function answerDigests(daemon: Daemon, request: Request): void {
  const { store } = daemon;
  const objects = [...store.objects(request.frame.pg)];
  for (let at = 0; at === 0 || at < objects.length; at += DIGESTS_MAX) {
    const page = objects.slice(at, at + DIGESTS_MAX);
    const reply = replyTo(request.frame, wireStatus('OK'), daemon.epoch);
    reply.meta = encodeDigests(page.map((info) => ({ ...info, digest: digestOf(store, info.image, info.object) })));
    if (at + DIGESTS_MAX >= objects.length) reply.flags |= Flag.LAST;
    request.from.send(reply);
  }
}
