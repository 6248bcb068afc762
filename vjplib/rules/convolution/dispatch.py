"""Dispatch: the algorithm that computes each product of a convolution on CPU, chosen by its sizes; XLA's elsewhere."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from vjplib.compat import auto_sharded, is_symbolic, no_inline
from vjplib.precision import REAL, compute_dtype
from vjplib.rules._cotangents import like_primal
from vjplib.rules.convolution.algorithms import dense, depthwise, grouped, phased
from vjplib.rules.convolution.call import ConvCall
from vjplib.rules.convolution.problem import Problem

Product = Callable[[Problem, Array, Array], Array]


class Algorithm(NamedTuple):
    """One way to compute a product of the convolution."""

    name: str
    why: str  # it is used where it applies
    applies: Callable[[Problem], bool]
    run: Product | None  # of a problem and two canonical arrays; None for XLA's convolution
    nonfinite: str = ""  # where NaN and infinities reach further than what they are multiplied with


class Plan(NamedTuple):
    """The algorithm for each product of a convolution on CPU, and why; XLA's convolution is used elsewhere."""

    y: Algorithm  # the forward
    dx: Algorithm  # the cotangent of x
    dk: Algorithm  # the cotangent of the kernel

    def __str__(self) -> str:
        """Return a line for each product, and below it where NaN and infinities spread."""
        return "\n".join(
            f"{product}: {a.name} ({a.why})" + (f"\n    {a.nonfinite}" if a.nonfinite else "")
            for product, a in zip(self._fields, self, strict=True)
        )


PADDING = "an infinity in the kernel gives NaN where it multiplies padding"
GAPS = "NaN and infinities in x give NaN in outputs nearby, whose window has a gap there"
GROUPS = "NaN and infinities of a group give NaN in the other groups of its block, at the same positions"


def forward_of_problem(problem: Problem, x: Array, k: Array) -> Array:
    """Return y of a problem in canonical layout by the algorithm chosen on CPU."""
    return (forward_algorithm(problem).run or dense.convolve)(problem, x, k)


def weight_grad_of_problem(problem: Problem, x: Array, g: Array) -> Array:
    """Return dk of a problem in canonical layout by the algorithm chosen on CPU."""
    return (weight_grad_algorithm(problem).run or dense.convolve_weight_grad)(problem, x, g)


XLA = Algorithm("XLA's convolution", "no known algorithm is faster here", lambda problem: True, None)
SPRAWLING = XLA._replace(
    why="pads or dilations so large that x cannot be padded, and too many taps to multiply one by one",
    applies=lambda problem: problem.sprawls,
)
UNPADDED = Algorithm(
    "places alone",
    "pads or dilations so large that x cannot be padded: each tap multiplies only the elements it reaches",
    dense.unpadded_applies,
    dense.tap_products,
)
ONE_TAP = UNPADDED._replace(
    name="a matrix product",
    why="one tap: no window, all positions at once",
    applies=dense.one_tap_applies,
)
PATCHES = Algorithm(
    "a matrix product of patches",
    "windows that do not overlap: x cut into patches is already a matrix",
    dense.patches_apply,
    dense.patches,
    PADDING,
)
SLABS = Algorithm(
    "a convolution of fewer dimensions a tap",
    "XLA convolves two dimensions well and three slowly: the first is summed over, or part of the batch",
    dense.slabs_apply,
    dense.slabs,
    PADDING,
)

FORWARD: tuple[Algorithm, ...] = (
    UNPADDED,
    SPRAWLING,
    ONE_TAP,
    PATCHES,
    Algorithm(
        "a matrix product for all of y",
        "x has one spatial position: each output uses at most one tap",
        dense.single_position_applies,
        dense.single_position,
        GAPS,
    ),
    Algorithm(
        "multiples of one channel",
        "one channel: a sum of multiples of x, in a single pass over y",
        dense.multiples_apply,
        dense.multiples,
        PADDING,
    ),
    Algorithm(
        "all phases as features",
        "a dilated input, on which XLA is slow: one undilated convolution computes every phase of y",
        phased.phases_apply,
        phased.phases,
        f"{PADDING}; {GAPS}",
    ),
    Algorithm(
        "shifted copies",
        "one channel a group: XLA runs the groups one by one; shifted copies are sums over whole arrays",
        depthwise.shifted_copies_apply,
        depthwise.shifted_copies,
        PADDING,
    ),
    Algorithm(
        "shifted copies by phase",
        "one channel a group and a dilated input: each phase of y uses its own taps, no zero is multiplied",
        depthwise.copies_by_phase_apply,
        depthwise.copies_by_phase,
        f"{PADDING}; {GAPS}",
    ),
    Algorithm(
        "a column a tap",
        "one feature: one matrix product of x and all taps, whose columns are then shifted and added",
        dense.columns_apply,
        dense.columns,
    ),
    Algorithm(
        "planes of columns",
        "few features: one matrix product of x and all taps, whose planes are then shifted and added",
        dense.planes_apply,
        dense.planes,
    ),
    SLABS,
    Algorithm(
        "shifted copies of each channel of a group",
        "few channels and taps a group: one sum reads the window of each output, no product with other groups",
        grouped.lanes_apply,
        grouped.lanes,
        PADDING,
    ),
    Algorithm(
        "dense convolutions of blocks of groups",
        "XLA runs groups one by one: a block of 32 features, zero between its groups, runs at full speed",
        grouped.blocks_apply,
        functools.partial(grouped.blocks, forward_of_problem),
        f"{PADDING}; {GROUPS}",
    ),
    XLA,
)
"""For y, and for dx, which is the y of the transposed problem: the first that applies is used."""

WEIGHT_GRAD: tuple[Algorithm, ...] = (
    UNPADDED._replace(run=dense.tap_products_weight_grad),
    SPRAWLING,
    ONE_TAP._replace(run=dense.tap_products_weight_grad),
    PATCHES._replace(run=dense.patches_weight_grad, nonfinite=""),
    Algorithm(
        "a row a tap",
        "one channel, and three dimensions or many features: the elements that a tap reads are a row of a matrix",
        dense.rows_weight_grad_apply,
        dense.rows_weight_grad,
    ),
    Algorithm(
        "a matrix product a row of the kernel",
        "a number of features for which XLA is slow: the taps of a kernel row are channels of one matrix product",
        dense.bands_weight_grad_apply,
        dense.bands_weight_grad,
    ),
    Algorithm(
        "a product and a sum a tap",
        "one channel a group: the gradient of each tap is the sum of one product of arrays",
        depthwise.weight_grad_applies,
        depthwise.weight_grad,
    ),
    SLABS._replace(applies=dense.slabs_weight_grad_apply, run=dense.slabs_weight_grad, nonfinite=""),
    Algorithm(
        "a product and a sum a tap and channel of a group",
        "few channels a group: less is read than matrix products between all groups would multiply",
        grouped.lanes_weight_grad_apply,
        grouped.lanes_weight_grad,
    ),
    Algorithm(
        "dense gradients of blocks of groups",
        "XLA runs groups one by one, a hundred times slower; of a block's gradient the part within groups is kept",
        grouped.blocks_apply,
        functools.partial(grouped.blocks_weight_grad, weight_grad_of_problem),
    ),
    XLA,
)
"""For dk: the first that applies is used."""

EXCHANGED = Algorithm(
    "x and y in exchanged roles",
    "x dilated: the transposed convolution has a stride instead, and XLA is fast at its kernel's gradient",
    dense.exchanged_weight_grad_applies,
    dense.exchanged_weight_grad,
)
"""For dk if no entry of `WEIGHT_GRAD` applies to the problem or to its transpose."""


TYPICAL_BATCH = 32  # assumed where it is symbolic under `jax.export`; each algorithm computes any batch


def _sized(problem: Problem) -> Problem:
    return replace(problem, batch=TYPICAL_BATCH) if is_symbolic(problem.batch) else problem


def forward_algorithm(problem: Problem) -> Algorithm:
    """Return the algorithm for y of a problem on CPU."""
    problem = _sized(problem)
    return next(algorithm for algorithm in FORWARD if algorithm.applies(problem))


def weight_grad_algorithm(problem: Problem) -> Algorithm:
    """Return the algorithm for dk of a problem on CPU, with x and y exchanged if one applies only so."""
    problem = _sized(problem)
    direct = next(algorithm for algorithm in WEIGHT_GRAD if algorithm.applies(problem))
    if direct is not XLA:
        return direct
    mirror = next(algorithm for algorithm in WEIGHT_GRAD if algorithm.applies(problem.transposed))
    if (run := mirror.run) is None:
        return EXCHANGED if EXCHANGED.applies(problem) else XLA
    return mirror._replace(run=lambda p, x, g: p.transposed.transposed_kernel(run(p.transposed, g, x)))


@functools.lru_cache(maxsize=4096)
def plan(call: ConvCall) -> Plan:
    """Return the algorithm for each product of a call on CPU."""
    if call.dtype not in REAL or call.out_sharding is not None or call.empty or not call.known:
        return Plan(XLA, XLA, XLA)
    problem = call.problem
    return Plan(forward_algorithm(problem), forward_algorithm(problem.transposed), weight_grad_algorithm(problem))


# ------------------------------------------------------------------------ the three products of a call, on any platform


@functools.partial(jax.jit, static_argnames="call")
def forward(x: Array, k: Array, call: ConvCall) -> Array:
    """Return y of a call."""
    run = plan(call).y.run

    def on_cpu(x: Array, k: Array) -> Array:
        y = _in_one_dtype(run, call.problem, call.out_dtype(x))(call.x_to_canonical(x), call.k_to_canonical(k))
        return call.y_from_canonical(y)

    return by_platform(run and on_cpu, call, x, k)


@functools.partial(jax.jit, static_argnames="call")
def input_grad(g: Array, k: Array, x: Array, call: ConvCall) -> Array:
    """Return dx of a call; only the shape and dtype of x are used."""
    run = plan(call).dx.run

    def on_cpu(g: Array, k: Array, x: Array) -> Array:
        problem = call.problem
        k = problem.transposed_kernel(call.k_to_canonical(k))
        dx = _in_one_dtype(run, problem.transposed, x.dtype)(call.y_to_canonical(g), k)
        return like_primal(call.x_from_canonical(dx), x)

    return by_platform(run and on_cpu, call.input_grad, g, k, x)


@functools.partial(jax.jit, static_argnames="call")
def weight_grad(g: Array, x: Array, k: Array, call: ConvCall) -> Array:
    """Return dk of a call; only the shape and dtype of k are used."""
    run = plan(call).dk.run

    def on_cpu(g: Array, x: Array, k: Array) -> Array:
        dk = _in_one_dtype(run, call.problem, k.dtype)(call.x_to_canonical(x), call.y_to_canonical(g))
        return like_primal(call.k_from_canonical(dk), k)

    return by_platform(run and on_cpu, call.weight_grad, g, x, k)


def by_platform(on_cpu: Callable[..., Array] | None, default: Callable[..., Array], *arrays: Array) -> Array:
    """Return a product of arrays: on CPU by `on_cpu` unless that is None, elsewhere by `default`."""
    if on_cpu is None:
        return default(*arrays)
    on_devices = auto_sharded(on_cpu, jax.eval_shape(default, *arrays))
    return lax.platform_dependent(*arrays, cpu=on_devices, default=default)


def _in_one_dtype(run: Any, problem: Problem, dtype: Any) -> Callable[..., Array]:
    """Return an algorithm as a separate call, computed in float32 or wider and rounded to dtype at the end."""

    def rounded(*arrays: Array) -> Array:
        computing = compute_dtype(jnp.result_type(*arrays, dtype))
        return run(problem, *(a.astype(computing) for a in arrays)).astype(dtype)

    return no_inline(rounded)
