// Bytes written by hand in a test: hexadecimal digits with blanks, and text in single quotes.

/** hex("00 ff 'abc'") is the five bytes 00 ff 61 62 63. */
export function hex(text: string): Buffer {
  const parts: Buffer[] = [];
  for (const [index, piece] of text.split("'").entries()) {
    if (index % 2 === 1) {
      parts.push(Buffer.from(piece, 'utf8'));
      continue;
    }
    const digits = piece.replace(/\s/g, '');
    if (!/^([0-9a-f]{2})*$/.test(digits)) throw new Error(`not hexadecimal: ${piece}`);
    parts.push(Buffer.from(digits, 'hex'));
  }
  return Buffer.concat(parts);
}
