/** Lists that are sorted by keys: merging and searching. */

export function mergeSorted<Item>(left: readonly Item[], right: readonly Item[], keyOf: (item: Item) => string): readonly Item[] {
  if (left.length === 0) return right
  const merged: Item[] = new Array(left.length + right.length)
  let l = 0
  let r = 0
  for (let i = 0; i < merged.length; i++) {
    merged[i] = r >= right.length || (l < left.length && keyOf(left[l]!) < keyOf(right[r]!)) ? left[l++]! : right[r++]!
  }
  return merged
}

/** The position of the first item whose key is not less than `key`. */
export function lowerBound<Item>(items: readonly Item[], key: string, keyOf: (item: Item) => string): number {
  let low = 0
  let high = items.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (keyOf(items[middle]!) < key) low = middle + 1
    else high = middle
  }
  return low
}
