/** Counts words. A word is a run of letters, of any alphabet; upper and lower case are the same. */
import { defineJob } from '../../src/mapreduce/index.js'

const words = /\p{L}+/gu

export default defineJob<string, number>({
  name: 'word-count',

  map({ text }, { emit }) {
    for (const word of text.toLowerCase().match(words) ?? []) emit(word, 1)
  },

  // Counts are added up where they arise: a word travels once for each piece of input, not once for each time it is there.
  combine: (left, right) => left + right,

  reduce(_word, counts) {
    let total = 0
    for (const count of counts) total += count
    return total
  },
})
