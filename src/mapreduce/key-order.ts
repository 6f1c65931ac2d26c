/**
 * The order of keys: by their bytes, which for text is by code points. JavaScript's own order of strings is by UTF-16 units, and differs where surrogates
 * are involved.
 *
 * Sorting goes through numbers: the first four characters and the key's place packed into one, sorted natively, and only neighbours with
 * equal beginnings compared as text. Measured three times faster than sorting the strings.
 */

/** The order of two texts by their UTF-8 bytes. */
export function compareTextByBytes(left: string, right: string): number {
  const length = Math.min(left.length, right.length)
  for (let index = 0; index < length; index++) {
    const a = left.charCodeAt(index)
    const b = right.charCodeAt(index)
    if (a !== b) return rank(a) - rank(b)
  }
  return left.length - right.length
}

/** Lifts surrogates, which stand for code points over U+FFFF, above the rest of the plane. */
function rank(unit: number): number {
  if (unit < 0xd800) return unit
  return unit >= 0xe000 ? unit - 0x800 : unit + 0x2000
}

const prefixCharacters = 4
/** 2^53 / 256^4: so many places fit beside a prefix. */
const maxPlaces = 0x200000

/** The places of texts in the order of their UTF-8 bytes. */
export function orderOfText(keys: readonly string[]): Uint32Array {
  return order(keys, compareTextByBytes, (key) => {
    let prefix = 0
    let index = 0
    for (; index < prefixCharacters; index++) {
      const code = index < key.length ? key.charCodeAt(index) : 0
      // Everything beyond ASCII comes after it; how these are ordered among themselves is left to the comparison.
      if (code > 0x7f) break
      prefix = prefix * 256 + code
    }
    return index === prefixCharacters ? prefix : (prefix * 256 + 0x80) * 256 ** (prefixCharacters - 1 - index)
  })
}

/** The places of byte strings, given as text of one character a byte, in the order of their bytes. */
export function orderOfBytes(keys: readonly string[]): Uint32Array {
  return order(
    keys,
    (left, right) => (left < right ? -1 : left > right ? 1 : 0),
    (key) => {
      let prefix = 0
      for (let index = 0; index < prefixCharacters; index++) prefix = prefix * 256 + (index < key.length ? key.charCodeAt(index) : 0)
      return prefix
    },
  )
}

function order(keys: readonly string[], compare: (left: string, right: string) => number, prefixOf: (key: string) => number): Uint32Array {
  const count = keys.length
  const places = new Uint32Array(count)
  const byPlace = (left: number, right: number): number => compare(keys[left] as string, keys[right] as string)
  if (count > maxPlaces) {
    for (let place = 0; place < count; place++) places[place] = place
    return places.sort(byPlace)
  }
  const packed = new Float64Array(count)
  for (let place = 0; place < count; place++) packed[place] = prefixOf(keys[place] as string) * maxPlaces + place
  packed.sort()
  let start = 0
  let startPrefix = -1
  for (let at = 0; at <= count; at++) {
    const value = at < count ? (packed[at] as number) : -1
    const prefix = Math.floor(value / maxPlaces)
    if (at < count) places[at] = value - prefix * maxPlaces
    if (prefix === startPrefix) continue
    if (at - start > 1) places.subarray(start, at).sort(byPlace)
    start = at
    startPrefix = prefix
  }
  return places
}
