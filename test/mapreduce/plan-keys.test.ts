/** How the keys of the store are divided into ranges for map tasks. */
import { expect } from 'chai'
import { afterPrefix, keyToBytes } from '../../src/mapreduce/plan-keys.js'

describe('ranges of keys', () => {
  it('finds the least key after a prefix, and leaves the prefix as it is', () => {
    // A key given as text becomes a Buffer, whose `slice` shares its bytes.
    const prefix = keyToBytes('docs/')
    expect(Buffer.from(afterPrefix(prefix)!).toString()).to.equal('docs0')
    expect(Buffer.from(prefix).toString()).to.equal('docs/')
    expect(afterPrefix(Buffer.of(1, 0xff, 0xff))).to.deep.equal(Uint8Array.of(2))
    expect(afterPrefix(Buffer.of(0xff))).to.equal(undefined)
  })
})
