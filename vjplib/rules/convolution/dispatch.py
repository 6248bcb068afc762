"""Choice: which formulation serves a convolution on CPU, decided by its sizes alone, in one table for each product."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax

from vjplib.compat import is_symbolic
from vjplib.rules.convolution.algorithms import dense, depthwise, grouped, phased
from vjplib.rules.convolution.problem import Problem


class Formulation(NamedTuple):
    """One way to compute a product of the convolution.

    Args:
        name: what it does.
        why: why it is chosen where it applies.
        applies: whether it serves a problem well.
        run: takes the problem and two canonical arrays; returns the product. None where XLA's convolution serves.
        nonfinite: where NaN and infinities reach further than what they are multiplied with; empty for nowhere.
    """

    name: str
    why: str
    applies: Callable[[Problem], bool]
    run: Callable[[Problem, jax.Array, jax.Array], jax.Array] | None
    nonfinite: str = ""


PADDING = "an infinite number in the kernel gives NaN where it meets padding"
GAPS = "NaN and infinities in x give NaN at places nearby, whose window has a gap there"
GROUPS = "NaN and infinities of a group give NaN in the other groups of its block, at the same places"


def output(problem: Problem, x: jax.Array, k: jax.Array) -> jax.Array:
    """Returns y of a problem in canonical form by the formulation that serves it on CPU."""
    return (output_formulation(problem).run or dense.convolved)(problem, x, k)


def kernel(problem: Problem, x: jax.Array, g: jax.Array) -> jax.Array:
    """Returns dk of a problem in canonical form by the formulation that serves it on CPU."""
    return (kernel_formulation(problem).run or dense.kernel_convolved)(problem, x, g)


XLA = Formulation("XLA's convolution", "no formulation known is faster here", lambda problem: True, None)

SPRAWLING = XLA._replace(
    why="pads or dilations so large that x cannot be padded, and too many taps to multiply each alone",
    applies=lambda problem: problem.sprawls,
)

OUTPUT: tuple[Formulation, ...] = (
    Formulation(
        "places alone",
        "pads or dilations so large that x cannot be padded: the places that each tap reaches are multiplied alone",
        dense.places_apply,
        dense.places,
    ),
    SPRAWLING,
    Formulation("a matrix product", "one tap: no window, all places at once", dense.product_applies, dense.taps),
    Formulation(
        "a matrix product of patches",
        "windows that do not overlap: x cut up is a matrix already",
        dense.patches_apply,
        dense.patches,
        PADDING,
    ),
    Formulation(
        "a matrix product for all of y",
        "x has one place: each place of y meets one tap at most",
        dense.place_applies,
        dense.place,
        GAPS,
    ),
    Formulation(
        "multiples of one channel",
        "one channel: a sum of multiples of x, in a single pass over y",
        dense.multiples_apply,
        dense.multiples,
        PADDING,
    ),
    Formulation(
        "all phases as features",
        "a dilated input of which XLA makes little: one undilated convolution gives every phase of y",
        phased.apply,
        phased.phases,
        f"{PADDING}; {GAPS}",
    ),
    Formulation(
        "shifted copies",
        "one channel a group: XLA runs such groups one by one, shifted copies are sums over whole arrays",
        depthwise.taps_apply,
        depthwise.taps,
        PADDING,
    ),
    Formulation(
        "shifted copies by phase",
        "one channel a group and a dilated input: each phase of y meets its own taps, no zero is multiplied",
        depthwise.phases_apply,
        depthwise.phases,
        f"{PADDING}; {GAPS}",
    ),
    Formulation(
        "a column a tap",
        "one feature: a matrix product gives what each place of x sends to each tap, shifted sums the rest",
        dense.columns_apply,
        dense.columns,
    ),
    Formulation(
        "planes of columns",
        "few features: a matrix product gives what each place of x sends to each tap, shifted sums of planes the rest",
        dense.planes_apply,
        dense.planes,
    ),
    Formulation(
        "a convolution of fewer dimensions a tap",
        "XLA convolves two dimensions well and three slowly: the first is summed over, or part of the batch",
        dense.slabs_apply,
        dense.slabs,
        PADDING,
    ),
    Formulation(
        "shifted copies of each channel of a group",
        "few channels and taps a group: one sum reads each place of y's neighbourhood, no product with other groups",
        grouped.lanes_apply,
        grouped.lanes,
        PADDING,
    ),
    Formulation(
        "dense convolutions of blocks of groups",
        "XLA runs groups one by one: a block of 32 features, zero between its groups, runs at full speed",
        grouped.blocks_apply,
        grouped.blocks(output),
        f"{PADDING}; {GROUPS}",
    ),
    XLA,
)
"""For y, and for dx, which is the y of the transposed problem: the first that applies is used."""

KERNEL: tuple[Formulation, ...] = (
    Formulation(
        "places alone",
        "pads or dilations so large that x cannot be padded: the places that each tap reaches are multiplied alone",
        dense.places_apply,
        dense.kernel_places,
    ),
    SPRAWLING,
    Formulation("a matrix product", "one tap: no window, all places at once", dense.product_applies, dense.kernel_taps),
    Formulation(
        "a matrix product of patches",
        "windows that do not overlap: x cut up is a matrix already",
        dense.patches_apply,
        dense.kernel_patches,
    ),
    Formulation(
        "a row a tap",
        "one channel, and three dimensions or many features: what each tap meets is a row of a matrix, copied whole",
        dense.rows_apply,
        dense.kernel_rows,
    ),
    Formulation(
        "a matrix product a row of the kernel",
        "a number of features for which XLA's way is slow: the taps of a row, side by side as channels, meet y at once",
        dense.kernel_bands_apply,
        dense.kernel_bands,
    ),
    Formulation(
        "a product and a sum a tap",
        "one channel a group: each tap's gradient is the sum of one product of arrays",
        depthwise.kernel_applies,
        depthwise.kernel,
    ),
    Formulation(
        "a convolution of fewer dimensions a tap",
        "XLA convolves two dimensions well and three slowly: the first is summed over, or part of the batch",
        dense.kernel_slabs_apply,
        dense.kernel_slabs,
    ),
    Formulation(
        "a product and a sum a tap and channel of a group",
        "few channels a group: less is read than matrix products between all groups would multiply",
        grouped.kernel_lanes_apply,
        grouped.kernel_lanes,
    ),
    Formulation(
        "dense gradients of blocks of groups",
        "XLA runs groups one by one, a hundred times slower: of the gradient of a block those within groups are kept",
        grouped.blocks_apply,
        grouped.kernel_blocks(kernel),
    ),
    XLA,
)
"""For dk: the first that applies is used."""

EXCHANGED = Formulation(
    "x and y in exchanged roles",
    "x dilated: the transposed convolution strides instead, and XLA is fast at its kernel's gradient",
    dense.exchange_applies,
    dense.kernel_exchanged,
)
"""For dk where none of these applies, nor any to the transposed problem."""


TYPICAL_BATCH = 32
"""What a choice takes a batch for whose size `jax.export` does not know yet; each formulation serves any batch."""


def _sized(problem: Problem) -> Problem:
    return replace(problem, batch=TYPICAL_BATCH) if is_symbolic(problem.batch) else problem


def output_formulation(problem: Problem) -> Formulation:
    """Returns what computes y of a problem on CPU."""
    problem = _sized(problem)
    return next(formulation for formulation in OUTPUT if formulation.applies(problem))


def kernel_formulation(problem: Problem) -> Formulation:
    """Returns what computes dk of a problem on CPU, with x and y in exchanged roles where only that serves."""
    problem = _sized(problem)
    direct = next(formulation for formulation in KERNEL if formulation.applies(problem))
    if direct is not XLA:
        return direct
    mirror = next(formulation for formulation in KERNEL if formulation.applies(problem.transposed))
    run = mirror.run
    if run is None:
        return EXCHANGED if EXCHANGED.applies(problem) else XLA
    return mirror._replace(run=lambda p, x, g: p.transposed.transposed_kernel(run(p.transposed, g, x)))
