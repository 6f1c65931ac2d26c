/** The program that workplace.test.ts runs: starts one child of each kind, tells their process ids, and ends as it is told to. Also the child itself. */
import { strict as assert } from 'node:assert'
import { existsSync } from 'node:fs'
import { note, serve } from '../../scripts/child.js'
import { Workplace } from '../../scripts/workplace.js'

async function main(mode: string): Promise<void> {
  const workplace = new Workplace('quorate-workplace-test')
  const notes: unknown[] = []
  const child = await workplace.fork('child', new URL(import.meta.url), { argument: 'child', onNote: (message) => notes.push(message) })
  const foreign = workplace.spawn('foreign', process.execPath, [
    '-e',
    'require("fs").writeFileSync("pid", String(process.pid)); setInterval(() => {}, 1000)',
  ])
  const pids = [await child.ask<number>('pid'), await child.ask<number>('pidIn', workplace.folder)]
  console.log(JSON.stringify({ folder: workplace.folder, pids }))
  switch (mode) {
    case 'close':
      await workplace.close()
      return
    case 'throw':
      throw new Error('as told')
    case 'commands':
      assert.deepEqual(await child.ask('echo', { bytes: new Uint8Array([1, 2]) }), { bytes: new Uint8Array([1, 2]) })
      await assert.rejects(child.ask('fail'), /in process child: .*as told/)
      assert.deepEqual(notes, ['echoing'])
      await foreign.stop()
      await child.kill()
      await assert.rejects(child.ask('echo'), /has ended/)
      await workplace.close()
      assert.equal(existsSync(workplace.folder), false)
      return
    default:
      setInterval(() => {}, 1000)
  }
}

/** Waits until the foreign program has written its process id. */
async function pidIn(folder: string): Promise<number> {
  const { readFile } = await import('node:fs/promises')
  for (;;) {
    const text = await readFile(`${folder}/pid`, 'utf8').catch(() => '')
    if (text !== '') return Number(text)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

if (process.argv[2] === '"child"') {
  // Like a node's sockets, this keeps the child alive until it is told to end.
  setInterval(() => {}, 1000)
  const echo = (value: unknown) => {
    note('echoing')
    return value
  }
  const fail = () => {
    throw new Error('as told')
  }
  serve({ pid: () => process.pid, pidIn, echo, fail }, async () => {})
} else await main(process.argv[2]!)
