/**
 * Brings one part of the output from the node that made it into a file of the coordinator.
 *
 * Invariant: the file is complete and has the reported checksum, or an error is thrown.
 */
import { open } from 'node:fs/promises'
import { crc32 } from 'node:zlib'
import { QuorateError } from '../base/errors.js'
import { type FetchContext, requestBytes } from './fetch.js'
import { limits, Method, readRequest } from './protocol.js'

export interface PartSource {
  readonly address: string
  readonly jobId: string
  readonly taskId: number
  readonly attempt: number
  readonly length: number
  readonly checksum: number
}

const piecesUnderWay = 3

export async function collectPart(context: FetchContext, source: PartSource, path: string): Promise<void> {
  const { address, jobId, taskId, attempt, length, checksum } = source
  const file = await open(path, 'wx')
  try {
    let sum = 0
    const request = (offset: number): Promise<Uint8Array> => {
      const wanted = Math.min(limits.maxPieceBytes, length - offset)
      const item = { kind: 'reduce', taskId, attempt, segment: 0, part: 0, offset, length: wanted } as const
      const reply = requestBytes(context, address, Method.read, readRequest.encode({ jobId, items: [item] }), wanted)
      // Its error is seen when it is its turn, or not at all.
      reply.catch(() => {})
      return reply
    }
    const pieces: Promise<Uint8Array>[] = []
    let asked = 0
    for (let written = 0; written < length; ) {
      while (pieces.length < piecesUnderWay && asked < length) {
        pieces.push(request(asked))
        asked += limits.maxPieceBytes
      }
      const bytes = (await pieces.shift()) as Uint8Array
      sum = crc32(bytes, sum)
      await file.appendFile(bytes)
      written += bytes.length
    }
    if (sum !== checksum)
      throw new QuorateError('OUTPUT_LOST', `the output of reduce-${taskId} is damaged: its checksum is not the one reported`, true)
  } finally {
    await file.close()
  }
}
