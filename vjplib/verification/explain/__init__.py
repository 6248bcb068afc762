"""Why a failure failed: known traps, the equation at fault, a small counterexample, a picture of the Jacobian."""
