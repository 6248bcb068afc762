"""Gradient descent on a cost of one weight, as in the lecture's Fig. 1: lr = 0.5, every update printed and drawn.

The cost is the loss of the smallest network there is, tanh(w) for the input 1, against the target 0.6.

    python examples/gradient_descent.py [--steps 12] [--out gradient_descent.png]
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.console import Console
from rich.table import Table

from vjplib import squared_error, tanh
from vjplib.lecture import figures


def cost(w: Float[Array, ""]) -> Any:
    """(tanh(w) - 0.6)^2."""
    return squared_error(tanh(w), 0.6)


def descend(
    cost: Callable[..., Any], start: float, learning_rate: float, steps: int
) -> tuple[Float[np.ndarray, " steps+1"], Float[np.ndarray, " steps+1"]]:
    """Compute the weights after each update of `optax.sgd`, and the derivative of the cost at each.

    Raises:
        AssertionError: an update differs from Eq. 1, w - lr dl/dw, in any bit.
    """
    optimizer, derivative = optax.sgd(learning_rate), jax.grad(cost)
    w = jnp.asarray(start, jnp.float32)
    state, weights, slopes = optimizer.init(w), [w], [derivative(w)]
    for _ in range(steps):
        updates, state = optimizer.update(slopes[-1], state)
        weights.append(jnp.asarray(optax.apply_updates(weights[-1], updates)))
        assert weights[-1] == weights[-2] - learning_rate * slopes[-1]
        slopes.append(derivative(weights[-1]))
    return np.array(weights), np.array(slopes)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example with command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learning-rate", type=float, default=0.5, help="lr of Eq. 1 (default: %(default)s)")
    parser.add_argument("--start", type=float, default=-1.5, help="the first weight (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="number of updates (default: %(default)s)")
    parser.add_argument("--out", help="PNG file to draw the figure to")
    options = parser.parse_args(argv)

    weights, slopes = descend(cost, options.start, options.learning_rate, options.steps)
    table = Table(title=f"w <- w - {options.learning_rate:g} dl/dw")
    for heading in ("update", "w", "l(w)", "dl/dw"):
        table.add_column(heading, justify="right")
    for t, (w, slope) in enumerate(zip(weights, slopes, strict=True)):
        table.add_row(str(t), f"{w:.6f}", f"{float(cost(w)):.6f}", f"{slope:+.6f}")
    console = Console()
    console.print(table)
    if options.out:
        figures.save(figures.gradient_descent(cost, weights, options.learning_rate), options.out)
        console.print(f"Drawn: {options.out}")


if __name__ == "__main__":
    main()
