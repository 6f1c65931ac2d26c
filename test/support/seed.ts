/** A fresh seed for a random test; `SEED=…` in the environment repeats a run. Every failure prints its seed. */
export function newSeed(): number {
  const given = process.env['SEED']
  return given === undefined ? Math.floor(Math.random() * 0x1_0000_0000) : Number(given)
}
