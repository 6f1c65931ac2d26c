/** A transport over UDP: the example of docs/writing-a-transport.md, kept here so that the conformance suite runs it. */
import { createSocket, type Socket } from 'node:dgram'
import type { Address, FrameHandler, Transport } from '../../src/index.js'

// begin of the example
export class UdpTransport implements Transport {
  // One frame is one datagram. Larger messages are the Messenger's business.
  readonly maxFrameBytes = 32 * 1024
  #address: Address
  #socket: Socket | null = null

  constructor(listen: Address) {
    this.#address = listen
  }

  get address(): Address {
    return this.#address
  }

  async open(onFrame: FrameHandler): Promise<void> {
    const [host = '', port = ''] = this.#address.split(':')
    const socket = createSocket('udp4')
    await new Promise<void>((resolve, reject) => {
      socket.once('error', reject)
      socket.bind(Number(port), host, resolve)
    })
    socket.on('error', () => {})
    socket.on('message', (frame, sender) => {
      try {
        onFrame(`${sender.address}:${sender.port}`, frame)
      } catch {
        // Not one of ours. There is no connection to close.
      }
    })
    this.#address = `${host}:${socket.address().port}`
    this.#socket = socket
  }

  send(to: Address, frame: Uint8Array): void {
    const [host = '', port = ''] = to.split(':')
    const socket = this.#socket
    if (socket === null || frame.length === 0 || frame.length > this.maxFrameBytes) return
    if (!/^[0-9.]+$/.test(host) || !(Number(port) > 0 && Number(port) < 65536)) return
    // The system sends at once or not at all; what it holds back meanwhile is bounded here.
    if (socket.getSendQueueSize() > 1024 * 1024) return
    socket.send(frame, Number(port), host, () => {})
  }

  async close(): Promise<void> {
    const socket = this.#socket
    this.#socket = null
    if (socket !== null) await new Promise<void>((resolve) => socket.close(resolve))
  }
}
// end of the example
