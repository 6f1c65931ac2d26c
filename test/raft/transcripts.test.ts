/** The transcripts (test/raft/transcripts/*.txt): what they say is what happens. `REWRITE=1` writes down what happens now. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'
import { Transcript } from './support/transcript.js'

const folder = fileURLToPath(new URL('../../../test/raft/transcripts/', import.meta.url))

describe('raft transcripts', () => {
  for (const name of readdirSync(folder).sort()) {
    if (!name.endsWith('.txt')) continue
    it(name.slice(0, -4), () => {
      const text = readFileSync(join(folder, name), 'utf8')
      const now = Transcript.run(text)
      if (process.env['REWRITE'] === '1') writeFileSync(join(folder, name), now)
      else expect(now).to.equal(text)
    })
  }
})
