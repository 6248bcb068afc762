"""Random calls of lax.conv_general_dilated, over its whole argument space."""

from typing import Any

import jax
import numpy as np
from jax import lax

import vjplib
from vjplib.bench.sweep import accepted, unusual_pads

KINDS = {"dense": 0.3, "depthwise": 0.35, "grouped": 0.25, "batch": 0.1}


def random_call(rng, largest=8, kinds=KINDS, ndim=None) -> tuple[Any, Any, dict[str, Any]]:
    """Return shapes and keyword arguments of a call that lax accepts.

    Args:
        rng: draws them.
        largest: the largest spatial size.
        kinds: the probability of each kind of `KINDS`.
        ndim: the number of spatial dimensions, None for 0 to 3.
    """
    return accepted(lambda: _drawn(rng, largest, kinds, ndim))


def unusual_call(rng, largest=20) -> tuple[Any, Any, dict[str, Any]]:
    """Return a call that lax accepts, whose pads are one-sided, cropping or longer than the kernel reaches."""

    def drawn():
        lhs, rhs, kwargs = _drawn(rng, largest, KINDS, None)
        taps = [n for e, n in zip(kwargs["dimension_numbers"][1], rhs, strict=True) if e not in "IO"]
        return lhs, rhs, kwargs | {"padding": tuple(unusual_pads(rng, n) for n in taps)}

    return accepted(drawn)


def _drawn(rng, largest, kinds, ndim):
    ndim = int(rng.choice([0, 1, 2, 3], p=[0.05, 0.35, 0.4, 0.2])) if ndim is None else ndim

    def one(low, high):
        return int(rng.integers(low, high + 1))

    def each(low, high, usually=None):
        if usually is not None and rng.random() < 0.5:
            return (usually,) * ndim
        return tuple(one(low, high) for _ in range(ndim))

    feature_groups, batch_groups, depth, width = 1, 1, one(1, 4), one(1, 4)
    match rng.choice(list(kinds), p=list(kinds.values())):
        case "depthwise":
            feature_groups, depth, width = one(1, 5), 1, int(rng.choice([1, 1, 2, 3]))
        case "grouped":
            feature_groups = one(2, 4)
        case "batch":
            batch_groups = one(2, 3)
    size, kernel = each(1, largest), each(1, 4)
    lhs_dilation, rhs_dilation, strides = each(1, 3, 1), each(1, 3, 1), each(1, 3, 1)
    if rng.random() < 0.5 and max(lhs_dilation, default=1) == 1:
        padding = str(rng.choice(["SAME", "SAME_LOWER", "VALID"]))
    else:
        padding = tuple((one(-2, 4), one(-2, 4)) for _ in range(ndim))
    space = "".join(rng.permutation(list("HWD"[:ndim])))
    lhs_spec, rhs_spec, out_spec = ("".join(rng.permutation(list(e + "HWD"[:ndim]))) for e in ("NC", "IO", "NC"))
    if rng.random() < 0.5:
        lhs_spec, rhs_spec, out_spec = f"N{space}C", f"{space}IO", f"N{space}C"
    order = [e for e in rhs_spec if e not in "IO"]
    sizes = {"N": one(1, 3) * batch_groups, "C": depth * feature_groups} | dict(zip(order, size, strict=True))
    kernels = {"I": depth, "O": width * feature_groups * batch_groups} | dict(zip(order, kernel, strict=True))
    return (
        tuple(sizes[e] for e in lhs_spec),
        tuple(kernels[e] for e in rhs_spec),
        {
            "window_strides": strides,
            "padding": padding,
            "lhs_dilation": lhs_dilation if isinstance(padding, tuple) or rng.random() < 0.5 else None,
            "rhs_dilation": rhs_dilation if rng.random() < 0.8 else None,
            "dimension_numbers": (lhs_spec, rhs_spec, out_spec),
            "feature_group_count": feature_groups,
            "batch_group_count": batch_groups,
        },
    )


def differences(rng, lhs, rhs, kwargs, dtype: Any = np.float64):
    """Return how far y, dx and dk in a dtype lie from lax's in float64, as shares of the largest entry."""
    x, k = (rng.standard_normal(shape).astype(dtype) for shape in (lhs, rhs))
    y = jax.eval_shape(lambda x, k: lax.conv_general_dilated(x, k, **kwargs), x, k)
    g = np.cos(np.arange(y.size)).reshape(y.shape).astype(dtype)

    def products(convolution, x, k, g):
        y, back = jax.vjp(lambda x, k: convolution(x, k, **kwargs), x, k)
        return y, *back(g)

    # Everything is an argument: XLA folds what is constant, and by another convolution than the one it would run.
    @jax.jit
    def both(ours, theirs):
        return products(vjplib.conv_general_dilated, *ours), products(lax.conv_general_dilated, *theirs)

    with jax.enable_x64(True):
        ours, theirs = both((x, k, g), tuple(a.astype(np.float64) for a in (x, k, g)))
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, dtype) for a in theirs]
    pairs = [(np.asarray(a, np.float64), np.asarray(b)) for a, b in zip(ours, theirs, strict=True)]
    return [float(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 1e-300)) for a, b in pairs]
