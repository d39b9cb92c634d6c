// What this side accepts from a peer it knows nothing about. Each number bounds memory or time that a stranger can
// take; the larger ones come from the protocol document.

import assert from 'node:assert/strict';

const KiB = 1024;
const MiB = 1024 * KiB;

/** Longest name, query or message: the protocol document's limit for strings. */
export const STRING_BYTES_MAX = 4 * KiB;
/** Longest option that is looked at: a name, and room for hundreds of metadata queries. Longer ones are drained. */
export const OPTION_BYTES_MAX = 64 * KiB;
/** Longest option that is drained and answered; a longer one is no haggling any more, and the connection ends. */
export const OPTION_DRAIN_MAX = 1 * MiB;
/** Options in one handshake. A client that walks a long list of exports uses a few for each connection. */
export const OPTIONS_MAX = 64;

/** Largest READ or WRITE unless an export says otherwise: the protocol's default, which no server may take for abuse. */
export const PAYLOAD_BYTES_MAX = 32 * MiB;
/** Largest WRITE that is read to its end only to refuse it; a larger one ends the connection. */
export const WRITE_DRAIN_MAX = 128 * MiB;

/** Longest text in an error chunk or an error reply to an option. */
export const MESSAGE_BYTES_MAX = 512;
/** How much of a client's string is shown in messages and log lines. */
export const SHOWN_CHARACTERS_MAX = 80;
/** Descriptors in one BLOCK_STATUS reply: the protocol document allows 2^20; 2^16 fill half a megabyte. */
export const DESCRIPTORS_MAX = 2 ** 16;

assert(STRING_BYTES_MAX * 2 + 64 <= OPTION_BYTES_MAX);
assert(OPTION_BYTES_MAX <= OPTION_DRAIN_MAX);
assert(PAYLOAD_BYTES_MAX <= WRITE_DRAIN_MAX);
assert(DESCRIPTORS_MAX <= 2 ** 20);
