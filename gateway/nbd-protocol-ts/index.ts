// The public face of the package: the NBD protocol as a pure codec, and a conformance suite for servers.

export * from './client.ts';
export * from './conformance.ts';
export * from './constants.ts';
export * from './conversation.ts';
export {
  type ExportTerms,
  Handshake,
  type HandshakeHost,
  type Negotiated,
} from './handshake.ts';
export * from './limits.ts';
export { readU64, shown, writeU64 } from './numbers.ts';
export { messageBytes } from './option-replies.ts';
export * from './refusal.ts';
export * from './replies.ts';
export * from './request-decoder.ts';
