/**
 * An inverted index: for each word the documents that have it, sorted. A document is a record, its name the record's key: run it on whole values of the
 * store (`fromKv`) or whole files.
 *
 * `params.group` cuts a document's name to its first so many parts (`node_modules/p-queue/readme.md` with `group: 2` is `node_modules/p-queue`), to index
 * packages, say, instead of files.
 */
import { defineJob } from '../../src/mapreduce/index.js'

export interface IndexParams {
  readonly group?: number
}

const words = /\p{L}+/gu

export default defineJob<string, string, string[], IndexParams | null>({
  name: 'inverted-index',
  input: 'files',

  map({ key, text }, { emit, params }) {
    const group = params?.group
    const document = group === undefined ? key : key.split('/').slice(0, group).join('/')
    // Each word of a document once, however often it is there.
    const seen = new Set<string>()
    for (const word of text.toLowerCase().match(words) ?? []) seen.add(word)
    for (const word of seen) emit(word, document)
  },

  reduce(_word, documents) {
    return [...new Set(documents)].sort()
  },
})
