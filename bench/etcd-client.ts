/**
 * The messages of etcd's API version 3 that the benchmark needs, and a connection to one member: Put and Range (linearizable, which is
 * etcd's default), with the few protobuf fields written and read by hand. No retry: a benchmark must see what happens.
 */
import { GrpcConnection } from './grpc-connection.js'

/** Field tags of the messages, `(number << 3) | wireType`; see etcd's `rpc.proto` and `kv.proto`. */
const tag = { putKey: 0x0a, putValue: 0x12, rangeKey: 0x0a, rangeResponseKeyValue: 0x12, keyValueValue: 0x2a } as const

function varintLength(value: number): number {
  return value < 0x80 ? 1 : value < 0x4000 ? 2 : value < 0x20_0000 ? 3 : 4
}

function writeVarint(buffer: Uint8Array, offset: number, value: number): number {
  let rest = value
  let position = offset
  while (rest >= 0x80) {
    buffer[position++] = (rest & 0x7f) | 0x80
    rest >>>= 7
  }
  buffer[position++] = rest
  return position
}

/** A gRPC message (no compression flag, four bytes of length) of `bytes` fields. */
function grpcMessage(...fields: readonly [number, Uint8Array][]): Buffer {
  let length = 0
  for (const [, bytes] of fields) length += 1 + varintLength(bytes.length) + bytes.length
  const frame = Buffer.allocUnsafe(5 + length)
  frame[0] = 0
  frame.writeUInt32BE(length, 1)
  let position = 5
  for (const [fieldTag, bytes] of fields) {
    frame[position++] = fieldTag
    position = writeVarint(frame, position, bytes.length)
    frame.set(bytes, position)
    position += bytes.length
  }
  return frame
}

/** The bytes of the first field with this tag; every other field is stepped over. */
function bytesField(message: Uint8Array, wanted: number): Uint8Array | undefined {
  let position = 0
  const readVarint = () => {
    let value = 0
    for (let shift = 0; ; shift += 7) {
      const byte = message[position++]
      if (byte === undefined) throw new Error('a protobuf message ends within a field')
      // Ids of etcd are 64 bits wide; only lengths matter here, so what overflows is of no interest.
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) return value
    }
  }
  while (position < message.length) {
    const fieldTag = readVarint()
    const wireType = fieldTag & 7
    if (wireType === 0) readVarint()
    else if (wireType === 2) {
      const length = readVarint()
      if (fieldTag === wanted) return message.subarray(position, position + length)
      position += length
    } else throw new Error(`unexpected protobuf wire type ${wireType}`)
  }
  return undefined
}

/** The methods, in the form that the connection keeps ready. */
const path = { put: '/etcdserverpb.KV/Put', range: '/etcdserverpb.KV/Range' } as const

/** One connection to one member of an etcd cluster. */
export class EtcdConnection {
  readonly #connection: GrpcConnection<keyof typeof path>

  private constructor(connection: GrpcConnection<keyof typeof path>) {
    this.#connection = connection
  }

  static async open(address: string): Promise<EtcdConnection> {
    return new EtcdConnection(await GrpcConnection.open(address, path))
  }

  close(): void {
    this.#connection.close()
  }

  async put(key: Uint8Array, value: Uint8Array): Promise<void> {
    await this.#connection.call('put', grpcMessage([tag.putKey, key], [tag.putValue, value]))
  }

  async get(key: Uint8Array): Promise<Uint8Array | undefined> {
    const reply = await this.#connection.call('range', grpcMessage([tag.rangeKey, key]))
    const keyValue = bytesField(reply, tag.rangeResponseKeyValue)
    return keyValue === undefined ? undefined : bytesField(keyValue, tag.keyValueValue)
  }
}
