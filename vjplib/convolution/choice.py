"""Choice: which formulation serves a convolution on CPU, decided by its sizes alone, in one table for each product."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from vjplib.convolution import depthwise
from vjplib.convolution.problem import Problem


class Formulation(NamedTuple):
    """One way to compute a product of the convolution.

    Args:
        name: what it does.
        why: why it is chosen where it applies.
        applies: whether it serves a problem well.
        run: takes the problem and two canonical arrays; returns the product. None where XLA's convolution serves.
    """

    name: str
    why: str
    applies: Callable[[Problem], bool]
    run: Callable[[Problem, jax.Array, jax.Array], jax.Array] | None


XLA = Formulation("XLA's convolution", "no formulation known is faster here", lambda problem: True, None)

OUTPUT: tuple[Formulation, ...] = (
    Formulation(
        "shifted copies",
        "one channel a group: XLA runs such groups one by one, shifted copies are sums over whole arrays",
        depthwise.taps_apply,
        depthwise.taps,
    ),
    Formulation(
        "shifted copies by phase",
        "one channel a group and a dilated input: each phase of y meets its own taps, no zero is multiplied",
        depthwise.phases_apply,
        depthwise.phases,
    ),
    XLA,
)
"""For y, and for dx, which is the y of the transposed problem: the first that applies is used."""

KERNEL: tuple[Formulation, ...] = (
    Formulation(
        "a product and a sum a tap",
        "one channel a group: each tap's gradient is the sum of one product of arrays",
        depthwise.kernel_applies,
        depthwise.kernel,
    ),
    XLA,
)
"""For dk: the first that applies is used."""


def output_formulation(problem: Problem) -> Formulation:
    """Returns what computes y of a problem on CPU."""
    return next(formulation for formulation in OUTPUT if formulation.applies(problem))


def kernel_formulation(problem: Problem) -> Formulation:
    """Returns what computes dk of a problem on CPU, with x and y in exchanged roles where only that serves."""
    direct = next(formulation for formulation in KERNEL if formulation.applies(problem))
    if direct is not XLA:
        return direct
    mirror = next(formulation for formulation in KERNEL if formulation.applies(problem.transposed))
    run = mirror.run
    if run is None:
        return XLA
    return mirror._replace(run=lambda p, x, g: p.transposed.transposed_kernel(run(p.transposed, g, x)))
