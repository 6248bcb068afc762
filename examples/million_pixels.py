"""Differentiate the lecture's network l = f(g(h(x))) at a million pixels, and print the cost of the other order.

h is a convolution with a kernel of three, g a softmax, whose Jacobian has no zero entry, and f the squared error to a
target image. This is the network of Example 4.1 (Eq. 31 to 33) with the layers of Examples 4.2 and 2.6.

    python examples/million_pixels.py [--n 1000000]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from vjplib import conv1d, softmax, squared_error
from vjplib.jacobians import (
    BandedToeplitz,
    Chain,
    Dense,
    DiagonalMinusLowRank,
    Jacobian,
    backward_order,
    forward_order,
)

RUNNABLE = 2**28  # the forward order also runs if it needs at most this many bytes


def network(x: Float[Array, " n"], kernel: Float[Array, " k"], target: Float[Array, " n"]) -> Float[Array, ""]:
    """l(x) = f(g(h(x))), made of rules."""
    return jnp.sum(squared_error(softmax(conv1d(x, kernel)), target))


def factors(
    x: Float[Array, " n"], kernel: Float[Array, " k"], target: Float[Array, " n"]
) -> tuple[Jacobian, Jacobian, Jacobian]:
    """f', g' and h', each at the input of its layer."""
    y: Any = softmax(conv1d(x, kernel))
    row = 2 * (y - target)
    return Dense(row[None, :]), DiagonalMinusLowRank(y, y[:, None], y[:, None]), BandedToeplitz(kernel, x.size)


class Run(NamedTuple):
    """One computation of the gradient: its result, time and memory."""

    gradient: np.ndarray
    compile_seconds: float
    run_seconds: float
    program_bytes: int


class Report(NamedTuple):
    """The runs by name, and the cost of both orders of Eq. 33."""

    runs: dict[str, Run]
    backward: Chain
    forward: Chain


def measure(gradient: Callable[..., Float[Array, " n"]], args: tuple[Any, ...], repeats: int = 9) -> Run:
    """Compile the function, run it, and return the median time and the bytes that the compiled program needs."""
    start = time.perf_counter()
    compiled = jax.jit(gradient).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    value, seconds = compiled(*args), []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    memory: Any = compiled.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return Run(np.asarray(value), compile_seconds, float(np.median(seconds)), needed - memory.alias_size_in_bytes)


def differentiate(n: int) -> Report:
    """Differentiate the network at n pixels by each method that fits in memory.

    Raises:
        AssertionError: two methods disagree.
    """
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.standard_normal(n), jnp.float32)
    target = softmax(jnp.asarray(rng.standard_normal(n), jnp.float32))
    args = pixels, jnp.array([0.25, 0.5, 0.25]), target

    def along(order: Callable[[Sequence[Jacobian]], Chain]) -> Callable[..., Float[Array, " n"]]:
        return lambda *args: order(factors(*args)).jacobian.dense()[0]

    # Counted from shapes alone, without computing the products.
    backward, forward = (
        jax.eval_shape(lambda *args, order=order: order(factors(*args)), *args)
        for order in (backward_order, forward_order)
    )
    methods = {"jax.grad of the rules": jax.grad(network), "(f' g') h', Eq. 33a": along(backward_order)}
    if forward.peak_bytes <= RUNNABLE:
        methods["f' (g' h'), Eq. 33b"] = along(forward_order)
    runs = {name: measure(method, args) for name, method in methods.items()}

    expected, *others = (run.gradient for run in runs.values())
    for gradient in others:
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    return Report(runs, backward, forward)


def tables(n: int, report: Report) -> tuple[Table, Table]:
    """Make the tables of measurements and of the cost of both orders."""
    measured = Table(title=f"l = f(g(h(x))) at n = {n:,} pixels, on {jax.devices()[0].device_kind}")
    for heading in ("gradient by", "compile", "one gradient", "memory of the program"):
        measured.add_column(heading, justify="left" if heading == "gradient by" else "right")
    for name, run in report.runs.items():
        times = f"{run.compile_seconds:.2f} s", f"{1e3 * run.run_seconds:.2f} ms"
        measured.add_row(name, *times, decimal(run.program_bytes))

    orders = Table(title="The two orders of Eq. 33, counted from shapes")
    for heading in ("", "(f' g') h'", "f' (g' h')"):
        orders.add_column(heading, justify="right" if heading else "left")
    chains = report.backward, report.forward
    orders.add_row("multiplications", *(f"{c.multiplications:.2e}" for c in chains))
    orders.add_row("largest product", *(decimal(max(s.nbytes for s in c.steps)) for c in chains))
    orders.add_row("factors and products held", *(decimal(c.peak_bytes) for c in chains))
    return measured, orders


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demonstration with command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000, help="number of pixels (default: %(default)s)")
    n = parser.parse_args(argv).n
    report = differentiate(n)
    console = Console()
    console.print(*tables(n, report), sep="\n")
    largest = report.forward.steps[0].nbytes
    console.print(f"All gradients agree. In float32 the {n:,} x {n:,} product g' h' alone takes {decimal(largest)}.")
    console.print(f"At one byte an entry, as the lecture counts, it would be {decimal(n**2)}.")


if __name__ == "__main__":
    main()
