/**
 * The hello: the first bytes of each TCP connection, one each way, before any frame.
 *
 *   magic `QRTP` | version u8 | flags u8 (1: anonymous) | incarnation 8 bytes | address length u8, address
 *
 * Invariants: 1. before a hello is complete nothing else is looked at and at most `maxHelloBytes` are kept; 2. the first byte that cannot belong to a hello ends it.
 */

export const helloVersion = 1
const magic = Buffer.from('QRTP', 'latin1')
const addressAt = magic.length + 1 + 1 + 8 + 1
export const maxHelloBytes = addressAt + 255
const anonymousFlag = 1

export interface Hello {
  readonly version: number
  readonly anonymous: boolean
  /** Drawn anew at each start of an end. */
  readonly incarnation: Uint8Array
  readonly address: string
}

export function encodeHello(hello: Hello): Buffer {
  const address = Buffer.from(hello.address, 'latin1')
  const bytes = Buffer.alloc(addressAt + address.length)
  magic.copy(bytes)
  bytes[4] = hello.version
  bytes[5] = hello.anonymous ? anonymousFlag : 0
  bytes.set(hello.incarnation, 6)
  bytes[14] = address.length
  address.copy(bytes, addressAt)
  return bytes
}

/** The hello at the head of the bytes and where it ends; null when more is needed; throws when these bytes can be no hello. */
export function decodeHello(bytes: Buffer): { hello: Hello; end: number } | null {
  for (let at = 0; at < Math.min(bytes.length, magic.length); at++) if (bytes[at] !== magic[at]) throw new RangeError('no quorate hello')
  const version = bytes[4]
  if (version === undefined) return null
  const flags = bytes[5] ?? 0
  // Another version may mean anything by the rest.
  if (version !== helloVersion) return { hello: { version, anonymous: false, incarnation: new Uint8Array(8), address: '' }, end: bytes.length }
  if (flags > anonymousFlag) throw new RangeError('unknown flags in hello')
  const addressBytes = bytes[14]
  if (addressBytes === undefined) return null
  if (addressBytes === 0) throw new RangeError('hello without an address')
  const end = addressAt + addressBytes
  if (bytes.length < end) return null
  const address = bytes.toString('latin1', addressAt, end)
  const anonymous = flags === anonymousFlag
  if (!/^[!-~]+$/.test(address) || anonymous !== address.startsWith('anonymous-')) throw new RangeError('impossible address in hello')
  return { hello: { version, anonymous, incarnation: Uint8Array.from(bytes.subarray(6, 14)), address }, end }
}
