/** How splits are cut into records. */
import { expect } from 'chai'
import fc from 'fast-check'
import { CorruptionError } from '../../src/base/errors.js'
import { entryHeader, RecordReader } from '../../src/mapreduce/entries.js'
import type { InputRecord } from '../../src/mapreduce/index.js'
import { toRecords } from './sequential.js'

interface Entry {
  readonly key: string
  readonly offset: number
  readonly content: Uint8Array
}

function makeSplit(entries: readonly Entry[]): Uint8Array {
  return Buffer.concat(entries.flatMap(({ key, offset, content }) => [entryHeader(Buffer.from(key), offset, content.length), content]))
}

async function read(split: Uint8Array, records: 'lines' | 'whole'): Promise<InputRecord[]> {
  const all: InputRecord[] = []
  await new RecordReader(split, records).each((record) => {
    all.push(record)
  })
  return all
}

const plain = ({ key, text, offset, bytes }: InputRecord): unknown => ({ key, text, offset, bytes: Buffer.from(bytes).toString('latin1') })

describe('records of a split', () => {
  for (const text of [
    '',
    'a',
    'a\n',
    '\n',
    '\n\n',
    'a\r\n\r\nb\r\n',
    'é\nß',
    '😀\r\n😀',
    'a\nb\nc',
    `${'x'.repeat(300_000)}\n${'é'.repeat(200_000)}\nlast`,
    `${'line\n'.repeat(200_000)}`,
  ]) {
    it(`cuts ${JSON.stringify(text.slice(0, 20))} (${text.length} characters) into lines`, async () => {
      const split = makeSplit([
        { key: 'one', offset: 0, content: Buffer.from(text) },
        { key: 'two', offset: 7, content: Buffer.from('end') },
      ])
      const expected = [
        ...toRecords([{ key: 'one', text }], 'lines'),
        ...toRecords([{ key: 'two', text: 'end' }], 'lines').map((record) => ({ ...record, offset: 7 })),
      ]
      expect((await read(split, 'lines')).map(plain)).to.deep.equal(expected.map(plain))
    })
  }

  it('gives entries whole, with their keys', async () => {
    const split = makeSplit([
      { key: 'ключ', offset: 0, content: Buffer.from('a\nb') },
      { key: '', offset: 0, content: Buffer.from('') },
    ])
    expect((await read(split, 'whole')).map(({ key, text }) => [key, text])).to.deep.equal([
      ['ключ', 'a\nb'],
      ['', ''],
    ])
  })

  it('reads invalid UTF-8 as U+FFFD and keeps the bytes', async () => {
    const [first, second] = await read(makeSplit([{ key: 'k', offset: 0, content: Buffer.from([0x61, 0xff, 0x0a, 0xc3]) }]), 'lines')
    expect([first?.text, second?.text]).to.deep.equal(['a\ufffd', '\ufffd'])
    expect([...(first?.bytes ?? [])]).to.deep.equal([0x61, 0xff])
    expect(second?.offset).to.equal(3)
  })

  it('waits for asynchronous maps, one record after the other', async () => {
    let running = 0
    const split = makeSplit([{ key: 'k', offset: 0, content: Buffer.from('a\nb\nc\n') }])
    await new RecordReader(split, 'lines').each(async () => {
      expect(++running).to.equal(1)
      await new Promise((resolve) => setImmediate(resolve))
      running--
    })
  })

  it('cuts any text as the reference does (random)', async () => {
    const text = fc.array(fc.constantFrom('\n', '\r\n', 'a', 'bc', 'é', '😀', ' ', '\u2028'), { maxLength: 60 }).map((parts) => parts.join(''))
    await fc.assert(
      fc.asyncProperty(text, async (content) => {
        const split = makeSplit([{ key: 'k', offset: 0, content: Buffer.from(content) }])
        expect((await read(split, 'lines')).map(plain)).to.deep.equal(toRecords([{ key: 'k', text: content }], 'lines').map(plain))
      }),
      { numRuns: 500 },
    )
  })

  it('hazard E1.34: refuses splits that are cut short or lie about lengths', async () => {
    const split = makeSplit([{ key: 'key', offset: 5, content: Buffer.from('content') }])
    for (let length = 1; length < split.length; length++) {
      const error = await read(split.subarray(0, length), 'whole').catch((thrown) => thrown)
      expect(error, `${length} bytes`).to.be.instanceOf(CorruptionError)
    }
  })
})
