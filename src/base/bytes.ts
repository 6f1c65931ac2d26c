/** Bytes and hashes used by more than one layer. */

/** FNV-1a, 32 bits, of bytes: places keys in shards. */
export function fnv1a(bytes: Uint8Array, start = 0, end = bytes.length): number {
  let hash = 0x811c9dc5
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193)
  return hash >>> 0
}

/** Bytes of a string (UTF-8) or the bytes themselves. */
export function toBytes(value: string | Uint8Array): Uint8Array {
  return typeof value === 'string' ? Buffer.from(value, 'utf8') : value
}

/** A Buffer over the same memory: comparing and slicing Buffers is cheap. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** Bytes as a string of one UTF-16 unit a byte: compares like the bytes and is a fast Map key. */
export function toLatin1(bytes: Uint8Array): string {
  return asBuffer(bytes).toString('latin1')
}

/** The inverse of `toLatin1`. */
export function fromLatin1(text: string): Buffer {
  return Buffer.from(text, 'latin1')
}
