/** MapReduce in a few lines without any of the engine: what a job's output must be, byte for byte. And texts to run it on. */
import { fnv1a } from '../../src/base/bytes.js'
import type { InputRecord, JobKey } from '../../src/mapreduce/index.js'
import type { AnyJob } from '../../src/mapreduce/job.js'
import { SeededRandom } from '../../src/testing/seeded-random.js'

export interface Document {
  readonly key: string
  readonly text: string
}

/** The records that documents make: whole, or cut into lines. */
export function toRecords(documents: readonly Document[], cut: 'lines' | 'whole'): InputRecord[] {
  return documents.flatMap(({ key, text }) => {
    const record = (content: string, offset: number): InputRecord => ({
      key,
      keyBytes: Buffer.from(key),
      text: content,
      bytes: Buffer.from(content),
      offset,
    })
    if (cut === 'whole') return [record(text, 0)]
    const lines = text.split('\n')
    if (lines.at(-1) === '') lines.pop()
    let offset = 0
    return lines.map((line) => {
      const start = offset
      offset += Buffer.byteLength(line) + 1
      return record(line.replace(/\r$/, ''), start)
    })
  })
}

/** Runs a job over records, sequentially and all in memory. Gives the parts as `toFolder` writes them. */
export async function runSequentially(job: AnyJob, records: readonly InputRecord[], reducers: number, params: unknown = null): Promise<string[]> {
  const groups = new Map<string, { key: JobKey; values: unknown[] }>()
  const base = { params, taskId: 'sequential', attempt: 1, counter: () => ({ add: () => {} }) }
  for (const record of records) {
    const emit = (key: JobKey, value: unknown): void => {
      const own = typeof key === 'string' ? key : Buffer.from(key)
      const name = Buffer.from(own as string).toString('latin1')
      const group = groups.get(name)
      if (group === undefined) groups.set(name, { key: own, values: [value] })
      else group.values.push(value)
    }
    await job.map(record, { ...base, emit })
  }
  const parts: Buffer[][] = Array.from({ length: reducers }, () => [])
  for (const name of [...groups.keys()].sort()) {
    const { key, values } = groups.get(name) as { key: JobKey; values: unknown[] }
    const bytes = Buffer.from(name, 'latin1')
    const part = job.partition?.(key, reducers) ?? fnv1a(bytes) % reducers
    const emit = (outKey: JobKey, value: unknown): void => {
      const text = typeof value === 'string' ? value : JSON.stringify(value)
      const line = job.format?.(outKey, value) ?? Buffer.concat([Buffer.from(outKey as string), Buffer.from(` ${text}\n`)])
      parts[part]?.push(Buffer.from(line as string))
    }
    const result = await job.reduce(key, values, { ...base, emit })
    if (result !== undefined) emit(key, result)
  }
  return parts.map((lines) => Buffer.concat(lines).toString('utf8'))
}

const scripts = ['abcdefghijklmnopqrstuvwxyz', 'äöüßéèñçøå', 'αβγδεζηθικλμνξ', 'あいうえおかき漢字', '𐐀𐐁𐐂𐐃😀😁🚀', '\ue000\uf8ff\uffee']

/** Text as nobody would write it, but software meets it: several scripts, surrogates, CRLF, empty lines, a last line with or without end. */
export function makeText(random: SeededRandom, bytes: number, options: { readonly plain?: boolean } = {}): string {
  let text = ''
  const vocabulary = Array.from({ length: 400 }, () => {
    const script = options.plain || random.next() < 0.7 ? scripts[0] : scripts[Math.floor(random.next() * scripts.length)]
    const letters = [...(script as string)]
    return Array.from({ length: 1 + Math.floor(random.next() * 9) }, () => letters[Math.floor(random.next() * letters.length)]).join('')
  })
  let size = 0
  while (size < bytes) {
    // Frequent words and rare ones, as in language.
    const words = Array.from({ length: Math.floor(random.next() * 14) }, () => vocabulary[Math.floor(random.next() ** 3 * vocabulary.length)])
    const line = words.join(' ') + (options.plain || random.next() < 0.8 ? '\n' : '\r\n')
    text += line
    size += Buffer.byteLength(line)
  }
  return random.next() < 0.5 ? text : text.trimEnd()
}

export function makeDocuments(seed: number, count: number, bytes: number, options: { readonly plain?: boolean } = {}): Document[] {
  const random = new SeededRandom(seed, 'documents')
  return Array.from({ length: count }, (_, number) => ({ key: `pg-${String(number).padStart(3, '0')}.txt`, text: makeText(random, bytes, options) }))
}
