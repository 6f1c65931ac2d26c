/** What a Messenger counts. Plain numbers that only rise, so that counting costs next to nothing. */
export class MessengerCounters {
  framesSent = 0
  bytesSent = 0
  messagesSent = 0
  framesReceived = 0
  bytesReceived = 0
  messagesReceived = 0
  /** Requests of this node. */
  requestsSent = 0
  /** Requests that got no reply in time. */
  requestsTimedOut = 0
  /** Requests of others that a handler was called for. */
  requestsHandled = 0
  /** Requests of others that came again while their handler ran. */
  requestsRepeated = 0
  /** Requests of others, or of this node, that were over a limit. */
  requestsOverloaded = 0
  /** Replies to nothing that waits: late, repeated, or of an earlier life of this node. */
  repliesIgnored = 0
  /** One-way messages that were not sent: not open, or over a bound. */
  messagesDropped = 0
  /** Chunks sent again because nothing was heard of them. */
  chunksResent = 0
  /** Messages in chunks that were given up by the sender. */
  bulkAbandoned = 0
  /** Messages in chunks that were refused or dropped by the receiver, over a bound or a time. */
  bulkDropped = 0
  /** Handlers that threw what is not a QuorateError. */
  handlerErrors = 0
  badChecksum = 0
  malformed = 0
  wrongProtocol = 0
  wrongCluster = 0
  wrongNode = 0
  unknownChannel = 0
  unknownMethod = 0
  /** Sections that need a cluster id and came without. */
  notOpen = 0
  /** Times that another node refused this one. */
  refusedByPeer = 0
}
