/** A process that writes to a local store as fast as it can and tells what was acknowledged, until it is killed. */
import { openLocal } from '../../src/index.js'

const [location, first] = process.argv.slice(2) as [string, string]
const { kv } = await openLocal({ location })
process.on('disconnect', () => process.exit(0))
process.send!('open')
let next = Number(first)
/** Each writer puts keys of its own and counts up one that all share. */
async function write(): Promise<void> {
  for (;;) {
    const at = next++
    await kv.put(`key-${at}`, `value ${at}`)
    process.send!(at)
  }
}
await Promise.all(Array.from({ length: 16 }, () => write()))
