/** The demo's text: nothing is dropped silently, nothing is cut within a word, and the same files give the same documents. */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect } from 'chai'
import { type Corpus, gatherDocumentation, gatherPaths } from '../../examples/demo/corpus.js'

const maxDocumentBytes = 512 * 1024

describe('the text of the demo', () => {
  let folder: string

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'quorate-corpus-'))
  })
  afterEach(() => rmSync(folder, { recursive: true, force: true }))

  function write(name: string, content: string | Uint8Array): string {
    const path = join(folder, name)
    mkdirSync(join(path, '..'), { recursive: true })
    writeFileSync(path, content)
    return path
  }

  function joined({ documents }: Corpus): string {
    return Buffer.concat(documents.map(({ value }) => value)).toString()
  }

  it('takes Markdown, licences and declarations of installed packages, and nothing else', async () => {
    for (const name of ['one/README.md', 'one/LICENSE', 'one/index.d.ts', '@two/three/licence.txt', '@two/three/a.d.mts']) write(name, name)
    for (const name of ['one/index.js', 'one/package.json', '.bin/tool.md']) write(name, name)
    const { documents, files, skipped } = await gatherDocumentation(folder)
    expect(documents.map(({ key }) => key)).to.deep.equal([
      '@two/three/a.d.mts',
      '@two/three/licence.txt',
      'one/LICENSE',
      'one/README.md',
      'one/index.d.ts',
    ])
    expect([files, skipped]).to.deep.equal([5, []])
  })

  it('cuts a large file after line ends into parts below the limit, and loses no byte', async () => {
    const text = Array.from({ length: 60_000 }, (_, line) => `line number ${line} of many\n`).join('')
    const path = write('large.txt', text)
    const corpus = await gatherPaths([path])
    expect(corpus.documents.length).to.equal(Math.ceil(text.length / maxDocumentBytes))
    for (const { value } of corpus.documents) {
      expect(value.length).to.be.at.most(maxDocumentBytes)
      expect(value.at(-1)).to.equal(0x0a)
    }
    expect(joined(corpus)).to.equal(text)
    expect(corpus.cut).to.deep.equal([path])
    expect(new Set(corpus.documents.map(({ key }) => key)).size).to.equal(corpus.documents.length)
  })

  it('cuts a file of one long line at blanks, and one without blanks where it must', async () => {
    const words = 'word '.repeat(300_000)
    const corpus = await gatherPaths([write('line.txt', words)])
    for (const { value } of corpus.documents) expect(Buffer.from(value).toString()).to.match(/^(?:word )+$/)
    expect(joined(corpus)).to.equal(words)
    const solid = 'x'.repeat(maxDocumentBytes * 2 + 1)
    expect(joined(await gatherPaths([write('solid.txt', solid)]))).to.equal(solid)
  })

  it('names what it skips, takes a file once, and goes into no node_modules and nothing hidden', async () => {
    const text = write('folder/a.txt', 'some text')
    write('folder/picture', new Uint8Array([137, 80, 0, 1]))
    write('folder/empty', '')
    write('folder/node_modules/b.txt', 'text')
    write('folder/.git/c.txt', 'text')
    symlinkSync(text, join(folder, 'folder/again.txt'))
    const { documents, skipped } = await gatherPaths([join(folder, 'folder'), text])
    expect(documents.length).to.equal(1)
    expect(skipped.map((line) => line.replace(`${folder}/`, ''))).to.deep.equal(['folder/empty (empty)', 'folder/picture (not text)'])
  })

  it('refuses when there is no text at all', async () => {
    let failure: unknown
    await gatherPaths([folder]).catch((error: unknown) => {
      failure = error
    })
    expect(String(failure)).to.include('There is no text')
  })
})
