/**
 * Messages between two processes over loopback TCP: request and reply of 100 bytes with 1, 64 and 256 callers, through one-way channels and through
 * `request`, and bulk transfer. `node dist/bench/transport.js [--seconds 3] [--only MODE] [--json]`
 */
import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { systemRuntime } from '../src/base/runtime.js'
import { Channel, Messenger } from '../src/transport/messenger.js'
import { tcp } from '../src/transport/tcp.js'

const clusterId = Buffer.from('benchmrk')

interface Row {
  readonly mode: string
  readonly callers: number
  readonly perSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
  /** CPU of the asking process, the benchmark itself included: what stays comparable on a busy machine. */
  readonly cpuMicrosecondsPerCall: number
}

function makeMessenger(nodeId: string): Messenger {
  return new Messenger({ transport: tcp({ listen: '127.0.0.1:0' }), runtime: systemRuntime, clusterId, nodeId })
}

async function answer(): Promise<void> {
  const messenger = makeMessenger('answering')
  messenger.handle('echo', (_, payload) => payload)
  messenger.handle('echo-later', async (_, payload) => payload)
  messenger.handle('size', (_, payload) => Buffer.from(String(payload.length)))
  messenger.onMessage(Channel.kvRequest, (from, body) => messenger.send(from.address, Channel.kvReply, body))
  await messenger.open()
  process.on('disconnect', () => void messenger.close().then(() => process.exit()))
  process.send?.(messenger.address)
}

/** Keeps `callers` calls going for a time and says how they fared. */
async function measure(mode: string, callers: number, seconds: number, call: () => Promise<unknown>): Promise<Row> {
  const timesMs: number[] = []
  let until = 0
  let counting = false
  const caller = async (): Promise<void> => {
    while (performance.now() < until) {
      const startMs = performance.now()
      await call()
      if (counting) timesMs.push(performance.now() - startMs)
    }
  }
  const run = async (runSeconds: number, count: boolean): Promise<number> => {
    counting = count
    const startMs = performance.now()
    until = startMs + runSeconds * 1000
    await Promise.all(Array.from({ length: callers }, caller))
    return (performance.now() - startMs) / 1000
  }
  await run(Math.min(1, seconds), false)
  const cpu = process.cpuUsage()
  const took = await run(seconds, true)
  const { user, system } = process.cpuUsage(cpu)
  timesMs.sort((one, other) => one - other)
  const at = (part: number): number => timesMs[Math.min(timesMs.length - 1, Math.floor(timesMs.length * part))] ?? 0
  const perSecond = Math.round(timesMs.length / took)
  return { mode, callers, perSecond, p50Ms: at(0.5), p99Ms: at(0.99), cpuMicrosecondsPerCall: (user + system) / timesMs.length }
}

function startAnswering(): Promise<[ChildProcess, string]> {
  const child = fork(fileURLToPath(import.meta.url), ['--answer'], { execArgv: [] })
  return new Promise((resolve, reject) => {
    child.once('message', (address) => resolve([child, String(address)]))
    child.once('error', reject)
  })
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { answer: { type: 'boolean' }, seconds: { type: 'string', default: '3' }, json: { type: 'boolean' }, only: { type: 'string' } },
  })
  if (values.answer) {
    await answer()
    return
  }
  const seconds = Number(values.seconds)
  const [child, peer] = await startAnswering()
  const messenger = makeMessenger('asking')
  const waiting = new Map<number, () => void>()
  let nextId = 1
  messenger.onMessage(Channel.kvReply, (_, body) => {
    const id = Buffer.from(body.buffer, body.byteOffset, 4).readUInt32BE(0)
    const done = waiting.get(id)
    waiting.delete(id)
    done?.()
  })
  await messenger.open()
  const payload = Buffer.alloc(100, 7)
  const megabyte = Buffer.alloc(1024 * 1024, 7)
  const modes: Record<string, () => Promise<unknown>> = {
    channel: () =>
      new Promise<void>((resolve) => {
        const id = nextId++
        waiting.set(id, resolve)
        payload.writeUInt32BE(id, 0)
        messenger.send(peer, Channel.kvRequest, payload)
      }),
    request: () => messenger.request(peer, 'echo', payload),
    'request-async': () => messenger.request(peer, 'echo-later', payload),
  }
  const rows: Row[] = []
  const show = (row: Row, unit: string): void => {
    rows.push(row)
    const rate = `${String(row.perSecond).padStart(8)} ${unit}/s`
    const times = `p50 ${row.p50Ms.toFixed(3)} ms  p99 ${row.p99Ms.toFixed(3)} ms  ${row.cpuMicrosecondsPerCall.toFixed(2)} µs CPU`
    if (!values.json) console.log(`${row.mode.padEnd(14)} ${String(row.callers).padStart(4)} callers ${rate}  ${times}`)
  }
  for (const [mode, call] of Object.entries(modes)) {
    if (values.only !== undefined && values.only !== mode) continue
    for (const callers of [1, 64, 256]) show(await measure(mode, callers, seconds, call), 'calls')
  }
  if (values.only === undefined || values.only === 'bulk')
    for (const callers of [1, 4])
      show(await measure('bulk', callers, seconds, () => messenger.request(peer, 'size', megabyte, { lane: 'bulk' })), 'MiB')
  if (values.json) console.log(JSON.stringify({ rows }))
  await messenger.close()
  child.disconnect()
}

await main()
