"""The one-dimensional convolution of the lecture: a banded Toeplitz Jacobian that is never formed.

As everywhere in deep learning the kernel is not flipped: the sum is a correlation.
"""

import math
import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from vjplib.compat import auto_sharded, custom_vjp, is_symbolic, no_inline
from vjplib.jacobians import BandedToeplitz, Dense
from vjplib.precision import compute_dtype, upcast
from vjplib.rule import Case, Edge, Gain, Rule, Scaling
from vjplib.rules._arguments import as_array, by_rule
from vjplib.rules._cotangents import aval_token, like_primal, prepend_axes
from vjplib.rules.convolution.algorithms.dense import convolve, convolve_weight_grad
from vjplib.rules.convolution.algorithms.spatial import MAX_SUM_TERMS
from vjplib.rules.convolution.call import canonical, lax_convolution
from vjplib.rules.convolution.problem import Problem


def conv1d(
    x: Shaped[ArrayLike, "*batch n"] | Shaped[ArrayLike, "*batch n c_in"],
    h: Shaped[ArrayLike, " k"] | Shaped[ArrayLike, "k c_in c_out"],
    b: Shaped[ArrayLike, ""] | Shaped[ArrayLike, " c_out"] | None = None,
    stride: int = 1,
) -> Shaped[Array, "*batch m"] | Shaped[Array, "*batch m c_out"]:
    """y_i = sum_j h_j x_{s i + j - p} + b, x zero outside; dx is g convolved back with h, dh is x correlated with g.

    For k = 3 and stride 1 it is the lecture's y_i = h_1 x_{i-1} + h_2 x_i + h_3 x_{i+1}. The padding is that of
    `lax.conv_general_dilated` with `padding="SAME"`: p = (k - 1) // 2 at stride 1, so an even kernel reaches one
    element further to the right.

    Args:
        x: (..., n) for a single kernel, (..., n, c_in) for channels, any batch axes and dtype; lax computes integer and
            complex results.
        h: (k,), one kernel for all of x, or (k, c_in, c_out), with 1 <= k <= n.
        b: a bias, () or (c_out,), or None.
        stride: s, at least 1.

    Returns:
        (..., m) or (..., m, c_out) with m = ceil(n / s), of the dtype that the arguments promote to; half precision
        accumulates in float32. NaN and infinities of x reach the k outputs around them. NaN and infinities of h reach
        every output, even at the ends, where they multiply padding alone.

    Raises:
        TypeError: an argument is not an array of numbers, or stride is not an integer.
        ValueError: ranks or channels do not fit, k is 0 or larger than n, or stride is less than 1.

    Example:
        >>> conv1d(jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0, 1.0, 0.1])).tolist()
        [1.2000000476837158, 12.300000190734863, 23.0]

    Source:
        Example 4.2 of the lecture, Eq. 34 and 35; the backward is its Algorithm 4.
    """
    arrays = {"x": as_array("x", x), "h": as_array("h", h)} | ({} if b is None else {"b": as_array("b", b)})
    _check(**arrays, stride=stride)
    stride = operator.index(stride)
    return by_rule(lambda x, h, b=None: _conv1d(x, h, b, stride), partial(_lax_conv, stride=stride), **arrays)


@partial(custom_vjp, nondiff_argnames=("stride",))
def _conv1d(x, h, b, stride):
    return fwd(x, h, b, stride)[0]


def fwd(x, h, b, stride):
    given = [a for a in (x, h, b) if a is not None]
    x_up, h_up, *_ = _in_one_dtype(*given)
    by_copies = h.ndim == 1 and stride == 1
    y = _correlate(x_up, h_up, (h.size - 1) // 2) if by_copies else _convolve(x_up, h_up, stride)
    y = y if b is None else y + prepend_axes(upcast(b), y.ndim)
    return y.astype(jnp.result_type(*given)), (x, h, None if b is None else aval_token(b))


# y_i = sum_j h_j x_{s i + j - p}, so dy_i/dx_l = h_{l - s i + p}: at stride 1 a band of k diagonals, each constant (a
# Toeplitz matrix). Of its n^2 entries at most n k differ from zero, and they hold k numbers. With the products:
#   (g^T J_x)_l = sum_i g_i h_{l - s i + p}   the g_i spread s apart, correlated with h back to front
#   (g^T J_h)_j = sum_i g_i x_{s i + j - p}   x correlated with the g_i spread s apart
# and sums over the batch; with channels, sums over those that the output cotangent and the argument do not share.
# Algorithm 4 of the lecture is the first line at s = 1: O(n k) multiplications where the matrix takes O(n^2).
def bwd(stride, res, g):
    x, h, b_token = res
    x_up, h_up, g = _in_one_dtype(x, h, g)
    problem = _problem(_with_channels(x, h), _kernel(h), stride)
    if h.ndim == 1 and stride == 1:
        dx = _correlate(g, h_up[::-1], h.size // 2)
    else:
        reversed_h = problem.transposed_kernel(_kernel(h_up))
        dx = convolve(problem.transposed, _with_channels(g, h), reversed_h).reshape(x.shape)

    def h_cotangent(g, x):
        return convolve_weight_grad(problem, _with_channels(x, h), _with_channels(g, h)).reshape(h.shape)

    dh = auto_sharded(h_cotangent, jax.typeof(h))(g, x_up)
    return like_primal(dx, x), like_primal(dh, h), None if b_token is None else like_primal(g, b_token)


_conv1d.defvjp(fwd, bwd)


def _check(x, h, stride, b=None):
    if h.ndim not in (1, 3):
        raise ValueError(f"h must have shape (k,) or (k, c_in, c_out), got {h.shape}")
    if x.ndim < (1 if h.ndim == 1 else 2):
        raise ValueError(f"x must have shape {'(..., n)' if h.ndim == 1 else '(..., n, c_in)'}, got {x.shape}")
    if h.ndim == 3 and x.shape[-1] != h.shape[1]:
        raise ValueError(f"x (..., n, c_in) and h (k, c_in, c_out) must agree in c_in, got {x.shape}, {h.shape}")
    n, k = x.shape[-1 if h.ndim == 1 else -2], h.shape[0]
    if not is_symbolic(n, k) and not 1 <= k <= n:
        raise ValueError(f"h must have 1 <= k <= n taps, got k = {k} of h {h.shape} and n = {n} of x {x.shape}")
    if not hasattr(stride, "__index__"):
        raise TypeError(f"stride must be an integer, got {stride!r}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if b is not None and b.shape != h.shape[2:]:
        raise ValueError(f"b must have shape {h.shape[2:]}, one bias an output channel, got b {b.shape}, h {h.shape}")


def _in_one_dtype(*arrays):
    """Return the arrays in one compute dtype: XLA's convolution takes arrays of one dtype only."""
    dtype = compute_dtype(jnp.result_type(*arrays))
    return [a.astype(dtype) for a in arrays]


# ---------------------------------------------------------------------------- one kernel at stride 1, by shifted copies


def _correlate(x, h, low):
    """Return sum_j h_j x_{i + j - low} along the last axis, for every i of x, with x zero outside."""
    if is_symbolic(h.size) or h.size > MAX_SUM_TERMS:
        return _one_channel(x, h, low)
    default = auto_sharded(partial(_one_channel, low=low), jax.typeof(x))
    return lax.platform_dependent(x, h, cpu=partial(_by_taps, low=low), default=default)


def _taps(x, h, low):
    # Up to nine taps a separate pad for each is faster than slices of a shared one; beyond that it is slower.
    outer = [(0, 0, 0)] * (x.ndim - 1)
    zero = jnp.zeros((), x.dtype)
    k, n = h.size, x.shape[-1]
    if k <= 9:
        shifted = (lax.pad(x, zero, [*outer, (low - j, j - low, 0)]) for j in range(k))
    else:
        padded = lax.pad(x, zero, [*outer, (low, k - 1 - low, 0)])
        shifted = (lax.slice_in_dim(padded, j, j + n, axis=-1) for j in range(k))
    return sum(h[j] * x_j for j, x_j in enumerate(shifted))


def _one_channel(x, h, low):
    rows = x.reshape(math.prod(x.shape[:-1]), 1, x.shape[-1])
    padding = "SAME" if low == (h.size - 1) // 2 else "SAME_LOWER"
    return lax_convolution(rows, h[None, None, :], (1,), padding).reshape(x.shape)


_by_taps = no_inline(_taps, static_argnames=("low",))

# ------------------------------------------------ channels and strides, by convolutions of (batch, n, i) with (k, i, o)


def _with_channels(a, h):
    """Return a as (batch, n, channels), with one channel if h is a single kernel."""
    a = a[..., None] if h.ndim == 1 else a
    return a.reshape(math.prod(a.shape[:-2]), *a.shape[-2:])


def _kernel(h):
    return h[:, None, None] if h.ndim == 1 else h


def _convolve(x, h, stride):
    rows, kernel = _with_channels(x, h), _kernel(h)
    y = canonical(_problem(rows, kernel, stride), rows, kernel, "SAME")
    return y.reshape(*x.shape[: -1 if h.ndim == 1 else -2], y.shape[1], *h.shape[2:])


def _problem(x, h, stride):
    (batch, n, channels), (k, _, features) = x.shape, h.shape
    low, _ = lax.padtype_to_pads((n,), (k,), (stride,), "SAME")[0]
    return Problem(batch, (n,), channels, (k,), features, (stride,), (low,), (1,), (1,), 1, (-(-n // stride),))


# ------------------------------------------------------------------------------------ the lecture's two backward passes


def naive_vjp(h, g):
    """g^T J for a kernel h, (k,), and g, (n,), by the n x n matrix: the lecture's Algorithm 3, for comparison.

    Example:
        >>> h, g = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 0.0, 1.0])
        >>> bool((naive_vjp(h, g) == sparse_vjp(h, g)).all())
        True

    Source:
        Algorithm 3 of the lecture.
    """
    return g @ BandedToeplitz(h, g.size).dense()


def sparse_vjp(h, g):
    """g^T J for a kernel h, (k,), and g, (n,), in n k multiplications: the lecture's Algorithm 4, and this backward.

    Source:
        Algorithm 4 of the lecture.
    """
    return _correlate(g, h[::-1], h.size // 2)


def reference(x, h, b=None, stride=1):
    positions = x.shape[-1 if h.ndim == 1 else -2]
    k, (low, high) = h.shape[0], lax.padtype_to_pads((positions,), h.shape[:1], (stride,), "SAME")[0]
    rows = jnp.arange(-(-positions // stride)) * stride
    windows = rows[:, None] + jnp.arange(k)[None, :]
    if h.ndim == 1:
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(low, high)])
        y = jnp.einsum("...mk,k->...m", padded[..., windows], h)
    else:
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(low, high), (0, 0)])
        y = jnp.einsum("...mki,kio->...mo", padded[..., windows, :], h)
    return y if b is None else y + jnp.broadcast_to(b, y.shape)


def jacobian(x, h, b=None):
    k, n = h.size, x.size
    padded = jnp.pad(x, ((k - 1) // 2, k // 2))
    shifted = padded[jnp.arange(n)[:, None] + jnp.arange(k)[None, :]]
    return (BandedToeplitz(h, n), Dense(shifted), Dense(jnp.ones((n, 1), x.dtype)))[: 2 if b is None else 3]


def _lax_conv(x, h, b=None, stride=1):
    dtype = jnp.result_type(x, h)
    y = _convolve(x.astype(dtype), h.astype(dtype), stride)
    return y if b is None else y + b


def _convolve_by_jnp(x, h, b=None):
    y = jnp.convolve(x, h[::-1], mode="same")
    return y if b is None else y + b


def _fits(**dims):
    return dims["k"] <= dims["n"]


_CHANNELS = {"c": 2, "n": 11, "k": 3, "i": 5, "o": 7}
_ONE_KERNEL = Case(("k", "n"), {"k": 3, "n": 1024})

RULES = (
    Rule(
        fn=conv1d,
        reference=reference,
        baselines={"lax.conv_general_dilated": _lax_conv, "jnp.convolve": _convolve_by_jnp},
        cases=(
            Case(("n", "k"), {"n": 11, "k": 3}, fixed=("k",), valid=_fits),
            Case(("c n", "k", ""), {"c": 2, "n": 11, "k": 4}, fixed=("k",), valid=_fits),
            Case(("c n i", "k i o", "o"), _CHANNELS, fixed=("k",), valid=_fits),
            Case(("n i", "k i o"), {"n": 11, "k": 2, "i": 3, "o": 5}, valid=_fits, growth=False),
            Case(("c d n", "k"), {"c": 2, "d": 3, "n": 13, "k": 11}, valid=_fits, growth=False),
            Case(("c n i", "k i o"), _CHANNELS, {"stride": 2}, valid=_fits, growth=False),
            Case(("n", "k"), {"n": 139, "k": 131}, fixed=("n", "k"), growth=False),
            Case(("n", "k"), {"n": 12, "k": 5}, {"stride": 3}, valid=_fits, growth=False),
            Case(("n", "k"), {"n": 10, "k": 1}, {"stride": 4}, valid=_fits, growth=False),
        ),
        edges=(
            Edge("one tap", ([1.0, 2.0, 3.0], [2.0])),
            Edge("as many taps as elements", ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])),
            Edge("one element", ([3.0], [2.0])),
            Edge("zero kernel", ([1.0, 2.0, 3.0], [0.0, 0.0])),
            Edge("empty batch", (np.zeros((0, 4)), [1.0, 2.0, 3.0])),
        ),
        bench=(Case(("n", "k"), {"n": 1_000_000, "k": 3}), Case(("n", "k"), {"n": 1_000_000, "k": 15})),
        scaling={  # large enough to hide the cost of a call, and no array so large that fresh pages cost the most
            "Algorithm 3": Scaling(naive_vjp, _ONE_KERNEL, ("n", (1448, 2048, 2816))),
            "Algorithm 4": Scaling(sparse_vjp, _ONE_KERNEL, ("n", (2**20, 2**21, 2**22))),
        },
        residual_bytes=lambda n, k: 4 * (n + k),
        jacobian=jacobian,
        reason="the lecture's convolution; on CPU one kernel is a sum of shifted copies",
        gains=(Gain("time", 0.5),),
        lecture=True,
        source="Example 4.2",
    ),
)
