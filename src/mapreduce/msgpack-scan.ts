/**
 * A look over MessagePack bytes from outside before they are decoded: the decoder has no bound of its own on depth or number of elements, and takes
 * extension types and repeated keys.
 *
 * Invariant: what passes is one value, whole, with nothing behind it, no deeper and with no more elements than allowed, without extension types.
 */
import { CorruptionError } from '../base/errors.js'

export interface ScanLimits {
  readonly maxDepth: number
  /** Values in all, those inside others included. */
  readonly maxElements: number
  /** Whether maps may occur. Fixed messages have none, and so no repeated or surprising keys. */
  readonly allowMaps: boolean
}

function refuse(why: string): never {
  throw new CorruptionError(`malformed MessagePack: ${why}`, 'MALFORMED')
}

/** Refuses bytes that are not one plain value within the limits. @throws CorruptionError `MALFORMED` */
export function scanMessagePack(bytes: Uint8Array, limits: ScanLimits): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const end = bytes.length
  /** How many values are still to come at each depth. */
  const open: number[] = [1]
  let elements = 0
  let at = 0
  const take = (count: number): number => {
    if (count > end - at) refuse('it ends early')
    const start = at
    at += count
    return start
  }
  const length = (width: 1 | 2 | 4): number => {
    const start = take(width)
    return width === 1 ? view.getUint8(start) : width === 2 ? view.getUint16(start) : view.getUint32(start)
  }
  const enter = (count: number): void => {
    // Each element takes a byte at least.
    if (count > end - at) refuse('more elements are announced than it has bytes')
    if (count === 0) return
    if (open.length > limits.maxDepth) refuse(`deeper than ${limits.maxDepth}`)
    open.push(count)
  }
  const map = (count: number): void => {
    if (!limits.allowMaps) refuse('a map where none belongs')
    enter(count * 2)
  }
  while (open.length > 0) {
    const left = open[open.length - 1] as number
    if (left === 0) {
      open.pop()
      continue
    }
    open[open.length - 1] = left - 1
    if (++elements > limits.maxElements) refuse(`more than ${limits.maxElements} elements`)
    const head = view.getUint8(take(1))
    if (head <= 0x7f || head >= 0xe0) continue
    if (head <= 0x8f) map(head & 0x0f)
    else if (head <= 0x9f) enter(head & 0x0f)
    else if (head <= 0xbf) take(head & 0x1f)
    else {
      switch (head) {
        case 0xc0:
        case 0xc2:
        case 0xc3:
          break
        case 0xc4:
        case 0xd9:
          take(length(1))
          break
        case 0xc5:
        case 0xda:
          take(length(2))
          break
        case 0xc6:
        case 0xdb:
          take(length(4))
          break
        case 0xca:
          take(4)
          break
        case 0xcb:
        case 0xcf:
        case 0xd3:
          take(8)
          break
        case 0xcc:
        case 0xd0:
          take(1)
          break
        case 0xcd:
        case 0xd1:
          take(2)
          break
        case 0xce:
        case 0xd2:
          take(4)
          break
        case 0xdc:
          enter(length(2))
          break
        case 0xdd:
          enter(length(4))
          break
        case 0xde:
          map(length(2))
          break
        case 0xdf:
          map(length(4))
          break
        default:
          refuse(`type ${head.toString(16)} does not belong here`)
      }
    }
  }
  if (at !== end) refuse(`${end - at} bytes too many`)
}
