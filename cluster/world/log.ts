// The Log port by pino: one JSON object per line on stderr.
//
// Lines are written synchronously: what a process said before it was killed is on record. Nothing on the data path logs
// per request, so this costs nothing that matters.

import { destination, pino, stdSerializers } from 'pino';
import type { Log } from '../../proto/ports.ts';
import { UsageError } from './options.ts';

const LEVELS = ['debug', 'info', 'warn', 'error', 'silent'];
const STDERR = 2;

/**
 * @param role "master", "daemon", "nbd": a field of every line
 * @param level debug, info, warn, error or silent. Throws UsageError for another word.
 */
export function openLog(role: string, level: string): Log {
  if (!LEVELS.includes(level)) throw new UsageError(`--log-level: must be one of ${LEVELS.join(', ')}, not "${level}"`);
  const sink = pino(
    {
      level,
      base: { role, pid: process.pid },
      serializers: { error: stdSerializers.err },
      formatters: { level: (label) => ({ level: label }) },
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
    },
    destination({ fd: STDERR, sync: true }),
  );
  return {
    debug: (message, fields) => sink.debug(fields ?? {}, message),
    info: (message, fields) => sink.info(fields ?? {}, message),
    warn: (message, fields) => sink.warn(fields ?? {}, message),
    error: (message, fields) => sink.error(fields ?? {}, message),
  };
}
