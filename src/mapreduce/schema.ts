/**
 * Shapes of messages: what a payload must be, as values that check it. A message travels as a MessagePack array of its fields in the order of its
 * shape, so that there are no names to repeat, to miss or to smuggle in.
 *
 * Invariants: 1. what `decode` returns has exactly the declared shape: every integer in its range, every text, list and byte string within its bound; 2. what
 * does not is refused with CorruptionError `MALFORMED`, before anything is done with it.
 */
import { decode, encode } from '@msgpack/msgpack'
import { CorruptionError } from '../base/errors.js'
import { scanMessagePack } from './msgpack-scan.js'

/** Turns a value to what travels, and checks what came. */
export interface Shape<T> {
  toWire(value: T): unknown
  fromWire(wire: unknown, path: string): T
}

/** The type that a shape describes. */
export type Shaped<S> = S extends Shape<infer T> ? T : never

function refuse(path: string, expected: string): never {
  throw new CorruptionError(`malformed message: ${path} is not ${expected}`, 'MALFORMED')
}

const plain = <T>(fromWire: (wire: unknown, path: string) => T): Shape<T> => ({ toWire: (value) => value, fromWire })

/** A whole number in a range, at most 2^53-1. */
export const integer = (min = 0, max = Number.MAX_SAFE_INTEGER): Shape<number> =>
  plain((wire, path) => {
    if (typeof wire !== 'number' || !Number.isSafeInteger(wire) || wire < min || wire > max) refuse(path, `a whole number from ${min} to ${max}`)
    return wire
  })

/** Any finite number. */
export const finite: Shape<number> = plain((wire, path) => {
  if (typeof wire !== 'number' || !Number.isFinite(wire)) refuse(path, 'a finite number')
  return wire
})

export const flag: Shape<boolean> = plain((wire, path) => {
  if (typeof wire !== 'boolean') refuse(path, 'true or false')
  return wire
})

/** Text of at most so many UTF-16 units, optionally of a pattern. */
export const text = (maxLength: number, pattern?: RegExp): Shape<string> =>
  plain((wire, path) => {
    if (typeof wire !== 'string' || wire.length > maxLength || pattern?.test(wire) === false) refuse(path, `text of at most ${maxLength}`)
    return wire
  })

/** A byte string of at most so many bytes. */
export const bytes = (maxBytes: number): Shape<Uint8Array> =>
  plain((wire, path) => {
    if (!(wire instanceof Uint8Array) || wire.length > maxBytes) refuse(path, `at most ${maxBytes} bytes`)
    return wire
  })

/** One of some texts; travels as its place among them. */
export const choice = <const T extends readonly string[]>(...options: T): Shape<T[number]> => ({
  toWire: (value) => options.indexOf(value),
  fromWire: (wire, path) => options[integer(0, options.length - 1).fromWire(wire, path)] as T[number],
})

export const list = <T>(of: Shape<T>, maxLength: number): Shape<readonly T[]> => ({
  toWire: (values) => values.map((value) => of.toWire(value)),
  fromWire: (wire, path) => {
    if (!Array.isArray(wire) || wire.length > maxLength) refuse(path, `a list of at most ${maxLength}`)
    return wire.map((item, index) => of.fromWire(item, `${path}[${index}]`))
  },
})

/** A value or undefined, which travels as nil. */
export const optional = <T>(of: Shape<T>): Shape<T | undefined> => ({
  toWire: (value) => (value === undefined ? null : of.toWire(value)),
  fromWire: (wire, path) => (wire === null ? undefined : of.fromWire(wire, path)),
})

/** Fields in a fixed order. */
export const fields = <T extends Record<string, Shape<unknown>>>(shapes: T): Shape<{ readonly [K in keyof T]: Shaped<T[K]> }> => {
  const entries = Object.entries(shapes)
  return {
    toWire: (value) => entries.map(([name, shape]) => shape.toWire(value[name as keyof T])),
    fromWire: (wire, path) => {
      if (!Array.isArray(wire) || wire.length !== entries.length) refuse(path, `a list of ${entries.length} fields`)
      return Object.fromEntries(entries.map(([name, shape], index) => [name, shape.fromWire(wire[index], `${path}.${name}`)])) as {
        readonly [K in keyof T]: Shaped<T[K]>
      }
    },
  }
}

/** One of several kinds of messages, each with its own fields; `kind` tells which. */
export const variants = <T extends Record<string, Shape<object>>>(
  shapes: T,
): Shape<{ readonly [K in keyof T]: { readonly kind: K } & Shaped<T[K]> }[keyof T]> => {
  type Any = { readonly [K in keyof T]: { readonly kind: K } & Shaped<T[K]> }[keyof T]
  const kinds = Object.keys(shapes)
  return {
    toWire: (value) => [kinds.indexOf(value.kind as string), (shapes[value.kind] as Shape<object>).toWire(value)],
    fromWire: (wire, path) => {
      if (!Array.isArray(wire) || wire.length !== 2) refuse(path, 'a kind with its fields')
      const kind = kinds[integer(0, kinds.length - 1).fromWire(wire[0], `${path}.kind`)] as string
      return { kind, ...(shapes[kind] as Shape<object>).fromWire(wire[1], `${path}.${kind}`) } as Any
    },
  }
}

/** A message: its shape and how many elements it may have. */
export class Message<T> {
  readonly #shape: Shape<T>
  readonly #name: string
  readonly #maxElements: number

  constructor(name: string, shape: Shape<T>, maxElements = 1000) {
    this.#name = name
    this.#shape = shape
    this.#maxElements = maxElements
  }

  encode(value: T): Uint8Array {
    return encode(this.#shape.toWire(value))
  }

  /** @throws CorruptionError `MALFORMED` */
  decode(payload: Uint8Array): T {
    scanMessagePack(payload, { maxDepth: 8, maxElements: this.#maxElements, allowMaps: false })
    let wire: unknown
    try {
      wire = decode(payload)
    } catch (cause) {
      throw new CorruptionError(`malformed message: ${this.#name}`, 'MALFORMED', { cause })
    }
    return this.#shape.fromWire(wire, this.#name)
  }
}
