/** An invariant that does not hold: the simulation stops at the first. */
export class InvariantViolation extends Error {
  readonly invariant: string

  constructor(invariant: string, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'InvariantViolation'
    this.invariant = invariant
  }
}
