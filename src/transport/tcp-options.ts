/** Options of the TCP transport, the limits that follow from them, and addresses. */
import { InvalidArgumentError } from '../base/errors.js'
import type { Runtime } from '../base/runtime.js'
import type { ConnectionLimits, TcpRefusal } from './tcp-connection.js'
import type { Address } from './transport.js'

export interface TcpOptions {
  /** `host:port` to listen on; port 0 takes any. Without it this end only dials, and is answered over its own connections. */
  readonly listen?: string | undefined
  /** The address that peers use, when it differs from `listen` (a wildcard host, a mapped port). */
  readonly advertise?: string | undefined
  /** Allows to listen beyond loopback without any authentication: every process that reaches the port can join, read and write. Default false. */
  readonly insecureAllowRemote?: boolean | undefined
  /** Largest frame sent or received. Default 1 MiB. */
  readonly maxFrameBytes?: number | undefined
  /** Bytes waiting for one peer; what is over is dropped. Default 32 MiB. */
  readonly maxQueueBytes?: number | undefined
  /** Connections accepted in all. Default 1024. */
  readonly maxConnections?: number | undefined
  /** Connections accepted from one host. Default 512. */
  readonly maxConnectionsPerHost?: number | undefined
  /** Connections accepted that have not said hello; the oldest makes room for the next. Default 64. */
  readonly maxHalfOpenConnections?: number | undefined
  /** From the start of a connection to its hello, dialling included. Default 5000. */
  readonly handshakeTimeoutMs?: number | undefined
  /** From the first byte of a frame to its last. Default 10 000. */
  readonly frameTimeoutMs?: number | undefined
  /** An open connection is closed when nothing arrived, or nothing of ours was taken, for so long. Default 10 000. */
  readonly silenceTimeoutMs?: number | undefined
  /** A silent dialled connection is asked for a sign of life so often. Default 2000. */
  readonly pingIntervalMs?: number | undefined
  /** Told why a connection was closed, with the peer's address or, before its hello, its socket's. */
  readonly onRefused?: ((kind: TcpRefusal, remote: string, detail: string) => void) | undefined
  /** Default: the real one. */
  readonly runtime?: Runtime | undefined
}

/** The limits of a connection, with the defaults filled in. */
export function connectionLimits(options: TcpOptions): ConnectionLimits {
  const maxFrameBytes = options.maxFrameBytes ?? 1024 * 1024
  if (!(maxFrameBytes >= 1024 && maxFrameBytes <= 0x7fffffff))
    throw new InvalidArgumentError(`maxFrameBytes is from 1024 to 2^31-1, got ${maxFrameBytes}`)
  return {
    maxFrameBytes,
    // Room for one frame at least, or nothing would ever leave.
    maxQueueBytes: Math.max(maxFrameBytes + 4, options.maxQueueBytes ?? 32 * 1024 * 1024),
    handshakeTimeoutMs: options.handshakeTimeoutMs ?? 5000,
    frameTimeoutMs: options.frameTimeoutMs ?? 10_000,
    silenceTimeoutMs: options.silenceTimeoutMs ?? 10_000,
    pingIntervalMs: options.pingIntervalMs ?? 2000,
  }
}

/** Where an end listens, after the checks that need no network; null for one that only dials. */
export function listenTarget(options: TcpOptions): { host: string; port: number } | null {
  if (options.listen === undefined) return null
  const target = parseAddress(options.listen)
  const { host } = target
  if (!isLoopback(host) && options.insecureAllowRemote !== true)
    throw new InvalidArgumentError(
      `refusing to listen on ${host}: whoever reaches the port could join, read and write. Set insecureAllowRemote for a network that you trust`,
      'INSECURE_LISTEN',
    )
  if (options.advertise !== undefined) parseAddress(options.advertise)
  else if (host === '0.0.0.0' || host === '::')
    throw new InvalidArgumentError(`listening on ${host} needs advertise: the address that peers can dial`)
  return target
}

export function parseAddress(address: Address): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.%]+)\]|([^[\]:\s]+)):([0-9]{1,5})$/.exec(address)
  const host = match?.[1] ?? match?.[2]
  const port = Number(match?.[3])
  if (host === undefined || address.length > 255 || port > 65535) throw new InvalidArgumentError(`an address is host:port, got '${address}'`)
  return { host, port }
}

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.[0-9]{1,3}){3}$/.test(host)
}
