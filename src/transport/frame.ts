/**
 * The frame: what one node hands to the transport for one peer, and its codec (format: docs/wire-format.md).
 *
 *   magic u16 | version u8 | cluster id 8 bytes | node id length u8, node id | sections | CRC-32 u32 over all before it
 *   section: channel u8 | length varint | body
 *
 * Invariants: 1. a FrameBuilder never makes a frame larger than its limit; 2. a sealed frame is never written to again; 3. a FrameReader looks at
 * no section before magic, version, checksum and the outline of all sections are right; 4. it reads within the section only, and throws
 * CorruptionError instead of reading past it.
 */
import { crc32 } from 'node:zlib'
import { CorruptionError } from '../base/errors.js'

/** `Qu`, for quorate. */
export const frameMagic = 0x5175
export const protocolVersion = 1
export const clusterIdBytes = 8
export const maxNodeIdBytes = 64

const checksumBytes = 4
const fixedHeaderBytes = 2 + 1 + clusterIdBytes + 1
/** The smallest frame limit that an adapter may have: header, one chunk of useful size, checksum. */
export const minFrameBytes = 1024
const firstSlabBytes = 4096
const largestSlabBytes = 65536
const noSlab = Buffer.alloc(0)

/** Sections of the Messenger's own; those of the layers above begin at 16. Values are wire format. */
export const SystemChannel = { request: 1, reply: 2, errorReply: 3, cancel: 4, chunk: 5, chunkAck: 6, refused: 7 } as const

/** The bytes that every frame of a node begins with. */
export function encodeHeader(clusterId: Uint8Array, nodeId: string): Buffer {
  const id = Buffer.from(nodeId, 'utf8')
  const header = Buffer.alloc(fixedHeaderBytes + id.length)
  header.writeUInt16BE(frameMagic, 0)
  header[2] = protocolVersion
  header.set(clusterId, 3)
  header[3 + clusterIdBytes] = id.length
  header.set(id, fixedHeaderBytes)
  return header
}

/** The bytes that a varint takes. */
export function varintBytes(value: number): number {
  let bytes = 1
  for (let rest = value; rest > 0x7f; rest = Math.floor(rest / 128)) bytes++
  return bytes
}

/** What a section takes besides its body. */
function sectionOverheadBytes(bodyBytes: number): number {
  return 1 + varintBytes(bodyBytes)
}

/**
 * Builds the frames for one peer. Frames lie one behind the other in slabs, so that a frame costs neither an allocation nor a copy of its own.
 */
export class FrameBuilder {
  #header: Buffer
  readonly #maxBytes: number
  #slab = noSlab
  #start = 0
  #position = 0
  #slabBytes = firstSlabBytes / 2

  constructor(header: Buffer, maxBytes: number) {
    this.#header = header
    this.#maxBytes = maxBytes
  }

  /** Whether a frame has been begun. */
  get begun(): boolean {
    return this.#position !== this.#start
  }

  /** Header of the frames begun from now on. */
  set header(header: Buffer) {
    this.#header = header
  }

  /** The largest body that fits in a frame of its own. */
  get maxBodyBytes(): number {
    const room = this.#maxBytes - this.#header.length - checksumBytes
    return room - sectionOverheadBytes(room)
  }

  /** Begins a section whose body of exactly `bodyBytes` the caller writes next. False when the begun frame has no room for it: seal it first. */
  begin(channel: number, bodyBytes: number): boolean {
    const frameBytes = this.#position - this.#start || this.#header.length
    const needed = frameBytes + sectionOverheadBytes(bodyBytes) + bodyBytes + checksumBytes
    if (needed > this.#maxBytes) return false
    if (this.#start + needed > this.#slab.length) this.#moveToNewSlab(needed)
    if (this.#position === this.#start) {
      this.#slab.set(this.#header, this.#start)
      this.#position += this.#header.length
    }
    this.#slab[this.#position++] = channel
    this.varint(bodyBytes)
    return true
  }

  #moveToNewSlab(needed: number): void {
    this.#slabBytes = Math.min(this.#slabBytes * 2, largestSlabBytes)
    const slab = Buffer.allocUnsafeSlow(Math.max(this.#slabBytes, needed > this.#slabBytes / 2 ? needed * 2 : 0))
    if (this.#position !== this.#start) slab.set(this.#slab.subarray(this.#start, this.#position), 0)
    this.#position -= this.#start
    this.#start = 0
    this.#slab = slab
  }

  u8(value: number): void {
    this.#slab[this.#position++] = value
  }

  u32(value: number): void {
    this.#position = this.#slab.writeUInt32BE(value, this.#position)
  }

  varint(value: number): void {
    let rest = value
    while (rest > 0x7f) {
      this.#slab[this.#position++] = (rest % 128) | 0x80
      rest = Math.floor(rest / 128)
    }
    this.#slab[this.#position++] = rest
  }

  raw(bytes: Uint8Array): void {
    this.#slab.set(bytes, this.#position)
    this.#position += bytes.length
  }

  /** Ends the begun frame and hands it over. */
  seal(): Buffer {
    const sum = crc32(this.#slab.subarray(this.#start, this.#position))
    const end = this.#slab.writeUInt32BE(sum, this.#position)
    const frame = this.#slab.subarray(this.#start, end)
    this.#start = end
    this.#position = end
    return frame
  }
}

/** Why a frame was refused before any of its sections was looked at. */
export type FrameProblem = 'malformed' | 'wrong-protocol' | 'bad-checksum'

function u32At(bytes: Uint8Array, at: number): number {
  return (bytes[at] as number) * 0x1000000 + (((bytes[at + 1] as number) << 16) | ((bytes[at + 2] as number) << 8) | (bytes[at + 3] as number))
}

/** Walks the sections of one received frame. */
export class FrameReader {
  readonly #frame: Uint8Array
  #position = 0
  /** The end of the section that is being read. */
  #sectionEnd = 0
  #end = 0
  /** Where the sections begin. */
  #sections = 0
  /** The channel of the current section. */
  channel = 0

  constructor(frame: Uint8Array) {
    this.#frame = frame
  }

  /** Reads a body that stands alone, because it came in chunks. */
  static ofBody(body: Uint8Array): FrameReader {
    const reader = new FrameReader(body)
    reader.#sectionEnd = body.length
    reader.#end = body.length
    return reader
  }

  /** Checks everything that can be checked without knowing channels; null when the frame is sound. Must come first. */
  check(): FrameProblem | null {
    const frame = this.#frame
    const end = frame.length - checksumBytes
    if (end < fixedHeaderBytes) return 'malformed'
    if (((frame[0] as number) << 8) + (frame[1] as number) !== frameMagic) return 'malformed'
    if (frame[2] !== protocolVersion) return 'wrong-protocol'
    if (crc32(frame.subarray(0, end)) !== u32At(frame, end)) return 'bad-checksum'
    const idBytes = frame[fixedHeaderBytes - 1] as number
    if (idBytes === 0 || idBytes > maxNodeIdBytes || fixedHeaderBytes + idBytes > end) return 'malformed'
    this.#sections = fixedHeaderBytes + idBytes
    this.#end = end
    this.rewind()
    try {
      while (this.next());
    } catch {
      return 'malformed'
    }
    this.rewind()
    return null
  }

  rewind(): void {
    this.#position = this.#sections
    this.#sectionEnd = this.#sections
  }

  get clusterId(): Uint8Array {
    return this.#frame.subarray(3, 3 + clusterIdBytes)
  }

  get nodeIdBytes(): Uint8Array {
    return this.#frame.subarray(fixedHeaderBytes, this.#sections)
  }

  /** Whether the frame begins with exactly this header: the usual case, checked without making anything. */
  startsWith(header: Uint8Array): boolean {
    if (header.length !== this.#sections) return false
    for (let at = 2; at < header.length; at++) if (header[at] !== this.#frame[at]) return false
    return true
  }

  /** Goes to the next section; false when there is none. */
  next(): boolean {
    this.#position = this.#sectionEnd
    if (this.#position === this.#end) return false
    this.#sectionEnd = this.#end
    this.channel = this.u8()
    const length = this.varint()
    if (length > this.#end - this.#position) throw new CorruptionError('section ends beyond its frame', 'MALFORMED')
    this.#sectionEnd = this.#position + length
    return true
  }

  get remaining(): number {
    return this.#sectionEnd - this.#position
  }

  #need(bytes: number): number {
    const at = this.#position
    if (bytes > this.#sectionEnd - at) throw new CorruptionError('section ends early', 'MALFORMED')
    this.#position = at + bytes
    return at
  }

  u8(): number {
    return this.#frame[this.#need(1)] as number
  }

  u32(): number {
    return u32At(this.#frame, this.#need(4))
  }

  varint(): number {
    const first = this.u8()
    if (first < 0x80) return first
    let result = first & 0x7f
    let scale = 128
    for (let count = 1; count < 8; count++) {
      const byte = this.u8()
      result += (byte & 0x7f) * scale
      if (byte < 0x80) {
        if (byte === 0 || result > Number.MAX_SAFE_INTEGER) break
        return result
      }
      scale *= 128
    }
    throw new CorruptionError('integer out of range or not in its shortest form', 'MALFORMED')
  }

  /** Length-prefixed text of one byte a character; no other is used in the Messenger's own sections. */
  latin1(maxBytes: number): string {
    const length = this.varint()
    if (length > maxBytes) throw new CorruptionError('text too long', 'MALFORMED')
    const at = this.#need(length)
    const frame = this.#frame
    return (Buffer.isBuffer(frame) ? frame : Buffer.from(frame.buffer, frame.byteOffset, frame.length)).toString('latin1', at, at + length)
  }

  utf8(maxBytes: number): string {
    const length = this.varint()
    if (length > maxBytes) throw new CorruptionError('text too long', 'MALFORMED')
    const at = this.#need(length)
    return Buffer.from(this.#frame.buffer, this.#frame.byteOffset + at, length).toString('utf8')
  }

  /** All that is left of the section, as a view. */
  rest(): Uint8Array {
    const at = this.#position
    this.#position = this.#sectionEnd
    return this.#frame.subarray(at, this.#sectionEnd)
  }

  /** Refuses bytes left over in the section. */
  end(): void {
    if (this.#position !== this.#sectionEnd) throw new CorruptionError('bytes left over in a section', 'MALFORMED')
  }
}
