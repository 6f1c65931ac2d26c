/** One of the demo's three nodes, in a process of its own: what an application that embeds quorate does at its start. */
import { openNode } from 'quorate'
import { tcp } from 'quorate/transport/tcp'
import { childArgument, serve } from '../../scripts/child.js'

export interface NodeArgument {
  readonly id: string
  readonly location: string
  readonly nodes: readonly { readonly id: string; readonly address: string }[]
}

export interface ReplicaStatus {
  readonly group: number
  readonly role: string
  readonly term: number
}

const { id, location, nodes } = childArgument<NodeArgument>()
const node = await openNode({
  id,
  location,
  transport: tcp({ listen: nodes.find((each) => each.id === id)!.address }),
  bootstrap: { nodes, groups: 2 },
  jobs: {
    'word-count': new URL('../jobs/word-count.js', import.meta.url),
    'inverted-index': new URL('../jobs/inverted-index.js', import.meta.url),
  },
})

const status = (): ReplicaStatus[] => node.status().groups.map(({ group, role, term }) => ({ group, role, term }))

serve({ status }, () => node.close())
