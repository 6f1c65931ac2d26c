/**
 * Where a job's records come from, as the caller says it: files and folders, keys of the store, or a list. What these become, splits, is
 * the business of the plan-*.ts files.
 */
import { InvalidArgumentError } from '../base/errors.js'
import type { KeyLike } from '../engine/kv.js'

/** An item of a list: its content, or a content with a key of its own instead of its position. */
export type InputItem = string | Uint8Array | { readonly key: string; readonly value: string | Uint8Array }

export type JobInput =
  | { readonly kind: 'files'; readonly paths: readonly string[] }
  | { readonly kind: 'kv'; readonly prefix: KeyLike }
  | { readonly kind: 'items'; readonly items: Iterable<InputItem> | AsyncIterable<InputItem> }

/**
 * Files, and all files below folders, in byte order of their paths. Only the node that starts the job opens them; the others get their bytes from it.
 * Symbolic links inside folders are passed over, so that no cycle can be walked. A record is a line, or a whole file when the job says `input: 'files'`.
 */
export function fromFiles(paths: string | readonly string[]): JobInput {
  const list = typeof paths === 'string' ? [paths] : [...paths]
  if (list.length === 0 || list.some((path) => typeof path !== 'string' || path === '')) {
    throw new InvalidArgumentError('fromFiles needs at least one path, and none may be empty')
  }
  return { kind: 'files', paths: list }
}

/**
 * All keys of the store with a prefix, each with its value as a record. Every task scans its own range of keys, at the node that it runs on. A key that is
 * written while the job runs may be seen before or after the write.
 */
export function fromKv(options: { readonly prefix: KeyLike }): JobInput {
  return { kind: 'kv', prefix: options.prefix }
}

/** A list, or anything that can be iterated, also asynchronously. It is written to a temporary file first, so that a task can run again. */
export function fromItems(items: Iterable<InputItem> | AsyncIterable<InputItem>): JobInput {
  return { kind: 'items', items }
}
