"""Scaled dot-product attention, whose backward never holds the weights of all queries at once."""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.export import is_symbolic_dim
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from vjplib.compat import custom_vjp
from vjplib.precision import upcast
from vjplib.rule import Case, Edge, Gain, Input, Rule, Tail, random_mask
from vjplib.rules._arguments import as_array, as_floating
from vjplib.rules._cotangents import like_primal, unbroadcast
from vjplib.rules.softmax import reference_softmax, saturating

NAME = "dot_product_attention"  # of what policies of `jax.checkpoint` may keep
WHOLE = 1 << 20  # logits that are computed at once
MOST = 1 << 22  # logits of a block of queries, 16 MB in float32: larger temporaries cost fresh pages of memory
FEWEST_BLOCKS = 16
STRIPES = 8  # groups of blocks, each with as many keys as its queries may see
MANY = 1 << 25  # logits up to which half as many stripes take as little time, to compile half, and half the memory


def dot_product_attention(
    query: Float[ArrayLike, "... t n h"],
    key: Float[ArrayLike, "... s k h"],
    value: Float[ArrayLike, "... s k h"],
    bias: Float[ArrayLike, "..."] | None = None,
    mask: Bool[ArrayLike, "..."] | None = None,
    *,
    scale: Any = None,
    is_causal: bool = False,
    query_seq_lengths: Int[ArrayLike, " b"] | None = None,
    key_value_seq_lengths: Int[ArrayLike, " b"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
    return_residual: bool = False,
) -> Any:
    """softmax(scale Q K^T + bias) V for each head; its backward is the softmax's, P (dP - <P, dP>), block by block.

    Args:
        query: (b, t, n, h) or (t, n, h), floating: t queries of n heads.
        key: (b, s, k, h) or (s, k, h), of query's dtype: s keys of k heads. Each head of the keys belongs to n / k
            consecutive heads of the queries.
        value: of key's shape and dtype.
        bias: floating, broadcasts to (b, n, t, s): added to the logits. -inf leaves a key out.
        mask: booleans that broadcast to (b, n, t, s): the keys that each query attends to.
        scale: a number that multiplies Q K^T; None for 1 / sqrt(h).
        is_causal: whether query i attends to keys 0 to i only; keys beyond are not computed.
        query_seq_lengths: int32 (b,): the queries that count in each sequence; the results of the others are 0.
        key_value_seq_lengths: int32 (b,): the keys that count in each sequence.
        local_window_size: (left, right), or one number for both: query i attends to keys i - left to i + right only.
        implementation: None for this rule; "xla" and "cudnn" call `jax.nn.dot_product_attention` with its derivative.
        return_residual: whether to return the logarithms of the sums of exponentials too.

    Returns:
        An array of query's shape and dtype; with `return_residual` a pair of it and of (b, t, n) or (t, n), in the same
        dtype, -inf where no key counts, and not differentiated. A query that attends to no key gives 0, with cotangent
        0, where `jax.nn.dot_product_attention` gives the mean of all values. Exponentials are shifted by their largest
        logit, so none overflows. NaN and +inf among the logits that count make their query NaN. Under `jax.checkpoint`
        the policy `jax.checkpoint_policies.save_only_these_names("dot_product_attention")` keeps the result and two
        numbers a query, so that attention is not computed again.

    Raises:
        TypeError: an array is not floating, dtypes of query, key and value differ, mask is not boolean, or lengths are
            not integers.
        ValueError: shapes do not fit, n is no multiple of k, or local_window_size is not of numbers of at least 0.

    Example:
        >>> q = jnp.ones((1, 2, 1, 4))
        >>> v = jnp.arange(12.0).reshape(1, 3, 1, 4)
        >>> dot_product_attention(q, jnp.ones((1, 3, 1, 4)), v)[0, 0, 0].tolist()  # equal logits: the mean
        [4.0, 5.0, 6.0, 7.0]

    Source:
        Example 2.6 of the lecture, between two products of matrices (Eq. 12). The signature is that of
        `jax.nn.dot_product_attention`.
    """
    if implementation is not None:
        incumbent: Any = jax.nn.dot_product_attention  # its overloads know literals alone
        return incumbent(
            query,
            key,
            value,
            bias,
            mask,
            scale=scale,
            is_causal=is_causal,
            query_seq_lengths=query_seq_lengths,
            key_value_seq_lengths=key_value_seq_lengths,
            local_window_size=local_window_size,
            implementation=implementation,
            return_residual=return_residual,
        )
    given = as_floating("query", query)
    q, k, v = (_of_rank_4(name, a) for name, a in (("query", given), ("key", key), ("value", value)))
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"query, key and value must be of one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    (b, t, n, h), (_, s, heads, _) = q.shape, k.shape
    if k.shape != (b, s, heads, h) or v.shape != k.shape:
        wanted = "(b, t, n, h), (b, s, k, h) and (b, s, k, h)"
        raise ValueError(f"query, key and value must be of shapes {wanted}, got {q.shape}, {k.shape} and {v.shape}")
    if heads == 0 or n % heads:
        raise ValueError(f"query must have a multiple of key's heads, got {n} and {heads}")
    bias = None if bias is None else _broadcastable("bias", as_floating("bias", bias), (b, n, t, s))
    if mask is not None:
        mask = _broadcastable("mask", as_array("mask", mask), (b, n, t, s))
        if mask.dtype != jnp.bool_:
            raise TypeError(f"mask must be boolean, got {mask.dtype} of shape {mask.shape}")
    lengths = {"query_seq_lengths": query_seq_lengths, "key_value_seq_lengths": key_value_seq_lengths}
    counts = [None if a is None else _lengths(name, a, b) for name, a in lengths.items()]
    if scale is None:
        scale = 1 / math.sqrt(h) if h else 1.0
    if not isinstance(scale, (int, float, np.number)):  # an array: it has a derivative too
        q, scale = (q * scale).astype(q.dtype), 1.0
    options = _Options(float(scale), bool(is_causal), _window(local_window_size))
    y, lse = _attention(q, k, v, bias, mask, *counts, options)
    y = y.reshape(given.shape)
    return (y, lax.stop_gradient(lse).astype(y.dtype).reshape(given.shape[:-1])) if return_residual else y


class _Options(NamedTuple):
    scale: float
    causal: bool
    window: tuple[int, int] | None


def _of_rank_4(name: str, a: ArrayLike) -> jax.Array:
    array = as_floating(name, a)
    if array.ndim not in (3, 4):
        raise ValueError(f"{name} must be of rank 3 or 4, got shape {array.shape}")
    return array if array.ndim == 4 else array[None]


def _broadcastable(name: str, a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return an array with leading axes of size 1 up to rank 4."""
    array = jnp.expand_dims(a, tuple(range(4 - a.ndim))) if a.ndim < 4 else a
    if array.ndim != 4 or any(m not in (1, n) for m, n in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{name} must broadcast to (b, n, t, s), {shape}, got shape {a.shape}")
    return array


def _lengths(name: str, a: ArrayLike, b: int) -> jax.Array:
    array = as_array(name, a)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {array.dtype} of shape {array.shape}")
    if array.shape != (b,):
        raise ValueError(f"{name} must be of shape ({b},), got {array.shape}")
    return array


def _window(given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    pair = (given, given) if isinstance(given, int) else tuple(given)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 0 for n in pair):
        raise ValueError(f"local_window_size must be a number of at least 0, or two, got {given!r}")
    return pair


# ------------------------------------------------------------------------------------------------------------- blocks


class _Stripe(NamedTuple):
    """Consecutive blocks of queries, by their numbers, and the range of keys that any of them may see."""

    first: int
    blocks: int
    low: int
    high: int

    def keys(self, a: jax.Array, axis: int) -> jax.Array:
        """Return the part of an array that belongs to these keys, all of it where the axis is broadcast."""
        return a if a.shape[axis] == 1 else lax.slice_in_dim(a, self.low, self.high, axis=axis)

    def added(self, a: jax.Array, part: jax.Array, axis: int) -> jax.Array:
        """Return an array with a part added that belongs to these keys."""
        return lax.dynamic_update_slice_in_dim(a, self.keys(a, axis) + part, self.low, axis)


class _Plan(NamedTuple):
    """The blocks of a call: `blocks` times `rows` queries, in stripes."""

    rows: int
    blocks: int
    stripes: tuple[_Stripe, ...]

    def whole(self, a: jax.Array) -> jax.Array:
        """Return an array with axis 3, that of the queries, padded to whole blocks; not where it is broadcast."""
        missing = self.rows * self.blocks - a.shape[3]
        unchanged = self.blocks == 1 or missing == 0 or a.shape[3] == 1
        return a if unchanged else jnp.pad(a, [(0, missing if i == 3 else 0) for i in range(a.ndim)])

    def block(self, a: jax.Array, number: Any) -> jax.Array:
        """Return the queries of a block of a whole array."""
        if self.blocks == 1 or a.shape[3] == 1:
            return a
        return lax.dynamic_slice_in_dim(a, number * self.rows, self.rows, axis=3)

    def added(self, a: jax.Array, stripe: _Stripe, block: jax.Array, number: Any) -> jax.Array:
        """Return a whole array with a block of a stripe added, which is summed where the array has size 1."""
        before = self.block(stripe.keys(a, 4), number)
        row = number * self.rows if self.blocks > 1 and a.shape[3] > 1 else 0
        col = stripe.low if a.shape[4] > 1 else 0
        return lax.dynamic_update_slice(a, before + unbroadcast(block, before.shape), (0, 0, 0, row, col))

    def run(self, step: Callable[..., Any], stripe: _Stripe, sums: Any) -> tuple[Any, Any]:
        """Return the last sums, and the stacked results, of step(sums, number) for each block of a stripe."""
        if stripe.blocks == 1:
            sums, result = step(sums, stripe.first)
            return sums, jax.tree.map(lambda a: a[None], result)
        return lax.scan(step, sums, stripe.first + jnp.arange(stripe.blocks))

    def joined(self, parts: Sequence[jax.Array], t: Any) -> jax.Array:
        """Return an array whose axis 3 is that of the queries from the stacked blocks of each stripe."""
        if self.blocks == 1:
            return parts[0][0]
        a = jnp.moveaxis(jnp.concatenate(parts), 0, 3)
        return lax.slice_in_dim(a.reshape(*a.shape[:3], -1, *a.shape[5:]), 0, t, axis=3)


def _plan(query: jax.Array, key: jax.Array, options: _Options) -> _Plan:
    """Return blocks that bound the memory of a call; one block of all queries where that is small, or not known."""
    (b, t, n, _), s = query.shape, key.shape[1]
    if any(map(is_symbolic_dim, (b, t, n, s))) or b * n * t * s <= WHOLE:
        return _Plan(t, 1, (_Stripe(0, 1, 0, s),))
    rows = -(-t // min(t, max(FEWEST_BLOCKS, b * n * t * s // MOST)))
    count = -(-t // rows)
    groups = STRIPES if b * n * t * s > MANY else STRIPES // 2
    each = -(-count // groups) if options.causal or options.window is not None else count
    stripes = []
    for first in range(0, count, each):
        blocks = min(each, count - first)
        low, high = 0, s
        if options.causal:
            high = min(high, (first + blocks) * rows)
        if options.window is not None:
            left, right = options.window
            low, high = max(low, first * rows - left), min(high, (first + blocks) * rows + right)
        low = min(low, s - 1)  # one key at least, which no query may see
        stripes.append(_Stripe(first, blocks, low, max(low + 1, high)))
    return _Plan(rows, count, tuple(stripes))


def _grouped(a: jax.Array, heads: int) -> jax.Array:
    """Return (b, t, n, ...) as (b, k, g, t, ...)."""
    b, t, n = a.shape[:3]
    return jnp.moveaxis(a.reshape(b, t, heads, n // heads, *a.shape[3:]), 1, 3)


def _ungrouped(a: jax.Array) -> jax.Array:
    """Return (b, k, g, t, ...) as (b, t, n, ...)."""
    b, k, g, t = a.shape[:4]
    return jnp.moveaxis(a, 3, 1).reshape(b, t, k * g, *a.shape[4:])


class _Call(NamedTuple):
    """A call with heads as axes of the batch: queries (b, k, g, t, h), keys and values (b, k, s, h).

    The others are (b, k, g, t, s), with axes of size 1 where they are broadcast.
    """

    plan: _Plan
    q: jax.Array  # scaled
    k: jax.Array
    v: jax.Array
    bias: jax.Array | None
    mask: jax.Array | None
    query_lengths: jax.Array | None
    key_lengths: jax.Array | None
    options: _Options

    @classmethod
    def of(cls, query, key, value, bias, mask, query_lengths, key_lengths, options) -> "_Call":
        """Return the call of the arguments of the rule."""
        heads, plan = key.shape[2], _plan(query, key, options)

        def grid(a: jax.Array | None) -> jax.Array | None:
            if a is None:
                return None
            b, n, t, s = a.shape
            return plan.whole(a.reshape(b, 1 if n == 1 else heads, 1 if n == 1 else n // heads, t, s))

        by_query, by_key = (n if n is None else n[:, None, None, None, None] for n in (query_lengths, key_lengths))
        q = plan.whole(_grouped(options.scale * upcast(query), heads))
        k, v = (jnp.swapaxes(upcast(a), 1, 2) for a in (key, value))
        return cls(plan, q, k, v, grid(bias), grid(mask), by_query, by_key, options)

    def logits(self, q: jax.Array, k: jax.Array, stripe: _Stripe, number: Any) -> jax.Array:
        """Return the logits of a block, -inf where a query does not attend to a key."""
        x = jnp.einsum("bkgth,bksh->bkgts", q, k)
        if self.bias is not None:
            x = x + upcast(self.plan.block(stripe.keys(self.bias, 4), number))
        rows = number * self.plan.rows + lax.broadcasted_iota(jnp.int32, (1, 1, 1, *x.shape[3:]), 3)
        cols = stripe.low + lax.broadcasted_iota(jnp.int32, (1, 1, 1, *x.shape[3:]), 4)
        visible = []
        if self.mask is not None:
            visible.append(self.plan.block(stripe.keys(self.mask, 4), number))
        if self.options.causal:
            visible.append(cols <= rows)
        if self.options.window is not None:
            visible += [rows <= cols + self.options.window[0], cols <= rows + self.options.window[1]]
        visible += [at < n for at, n in ((rows, self.query_lengths), (cols, self.key_lengths)) if n is not None]
        return jnp.where(reduce(jnp.logical_and, visible), x, -jnp.inf) if visible else x


# --------------------------------------------------------------------------------------------------------------- rule


@partial(custom_vjp, nondiff_argnames=("options",))
def _attention(query, key, value, bias, mask, query_lengths, key_lengths, options):
    return fwd_attention(query, key, value, bias, mask, query_lengths, key_lengths, options)[0]


# Blocks of queries follow one another, each with all keys that it may see, so that no more logits exist at a time than
# those of a block. Of a block nothing is kept but the largest logit of each query and its sum of exponentials.
def fwd_attention(query, key, value, bias, mask, query_lengths, key_lengths, options):
    call = _Call.of(query, key, value, bias, mask, query_lengths, key_lengths, options)
    blocks = []
    for stripe in call.plan.stripes:
        k, v = stripe.keys(call.k, 2), stripe.keys(call.v, 2)

        def step(sums, number, k=k, v=v, stripe=stripe):
            x = call.logits(call.plan.block(call.q, number), k, stripe, number)
            shift = lax.stop_gradient(jnp.max(x, -1, keepdims=True))
            shift = jnp.where(shift == -jnp.inf, 0, shift)
            e = jnp.exp(x - shift)
            total = jnp.sum(e, -1, keepdims=True)
            y = jnp.einsum("bkgts,bksh->bkgth", e, v) / jnp.where(total == 0, 1, total)
            return sums, (y.astype(query.dtype), shift[..., 0], total[..., 0])

        blocks.append(call.plan.run(step, stripe, ())[1])
    y, shift, total = (call.plan.joined(parts, query.shape[1]) for parts in zip(*blocks, strict=True))
    y, shift, total = checkpoint_name((_ungrouped(y), shift, total), NAME)
    lse = _ungrouped(shift + jnp.log(total))
    return (y, lse), (query, key, value, bias, mask, query_lengths, key_lengths, shift, total)


# With X = scale Q K^T + B, P = softmax(X) along the keys, Y = P V and the cotangent g of Y:
#   g^T J_V = P^T g,   and that of P is d = g V^T
#   that of X is D = P (d - <P, d>), row by row the softmax's rule: its Jacobian is never formed
#   g^T J_Q = scale D K,   g^T J_K = scale D^T Q,   g^T J_B = D, summed where B was broadcast
# P is not kept but computed again in the same blocks, from X and the two numbers kept of each query, as exactly as it
# was: their logarithms added up would round where logits are large. Where one weight rounds to 1, <P, d> is taken off
# first and then once more, as in the softmax. A query that attends to no key has a sum of 0, and P = 0.
def bwd_attention(options, res, gs):
    query, key, value, bias, mask, query_lengths, key_lengths, shift, total = res
    call = _Call.of(query, key, value, bias, mask, query_lengths, key_lengths, options)
    plan = call.plan
    g, shift = plan.whole(_grouped(upcast(gs[0]), key.shape[2])), plan.whole(shift)
    inverse = plan.whole(jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total)))
    dqs, totals = [], tuple(map(jnp.zeros_like, (call.k, call.v, *([] if call.bias is None else [upcast(call.bias)]))))
    for stripe in plan.stripes:
        k, v = stripe.keys(call.k, 2), stripe.keys(call.v, 2)

        def step(sums, number, k=k, v=v, stripe=stripe):
            at, dy = plan.block(call.q, number), plan.block(g, number)
            e = jnp.exp(call.logits(at, k, stripe, number) - plan.block(shift, number)[..., None])
            p = e * plan.block(inverse, number)[..., None]
            dp = jnp.einsum("bkgth,bksh->bkgts", dy, v)
            dp = dp - jnp.sum(p * dp, -1, keepdims=True)
            dx = p * (dp - jnp.sum(p * dp, -1, keepdims=True))
            dk = stripe.added(sums[0], jnp.einsum("bkgts,bkgth->bksh", dx, at), 2)
            dv = stripe.added(sums[1], jnp.einsum("bkgts,bkgth->bksh", p, dy), 2)
            of_bias = [plan.added(a, stripe, dx, number) for a in sums[2:]]
            return (dk, dv, *of_bias), options.scale * jnp.einsum("bkgts,bksh->bkgth", dx, k)

        totals, dq = plan.run(step, stripe, totals)
        dqs.append(dq)
    dk, dv = totals[:2]
    dq = _ungrouped(plan.joined(dqs, query.shape[1]))
    return (
        like_primal(dq, query),
        like_primal(jnp.swapaxes(dk, 1, 2), key),
        like_primal(jnp.swapaxes(dv, 1, 2), value),
        None if bias is None else like_primal(totals[2][:, :, :, : bias.shape[2]].reshape(bias.shape), bias),
        None,
        None,
        None,
    )


_attention.defvjp(fwd_attention, bwd_attention)


def reference_dot_product_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    *,
    scale=None,
    is_causal=False,
    query_seq_lengths=None,
    key_value_seq_lengths=None,
    local_window_size=None,
):
    (b, t, n, h), s = query.shape, key.shape[1]
    repeated = (jnp.repeat(a, n // key.shape[2], axis=2) for a in (key, value))
    key, value = repeated
    x = jnp.einsum("btnh,bsnh->bnts", query, key) * (1 / math.sqrt(h) if scale is None else scale)
    x = x if bias is None else x + bias
    rows, cols = jnp.arange(t)[:, None], jnp.arange(s)
    visible = jnp.ones((b, 1, t, s), bool) if mask is None else jnp.broadcast_to(mask, (b, n, t, s))
    if is_causal:
        visible &= cols <= rows
    if (window := _window(local_window_size)) is not None:
        left, right = window
        visible &= (cols >= rows - left) & (cols <= rows + right)
    if query_seq_lengths is not None:
        visible &= rows < query_seq_lengths[:, None, None, None]
    if key_value_seq_lengths is not None:
        visible &= cols < key_value_seq_lengths[:, None, None, None]
    return jnp.einsum("bnts,bsnh->btnh", reference_softmax(x, -1, jnp.broadcast_to(visible, x.shape)), value)


# ------------------------------------------------------------------------------------------------------------- records


def _lengths_up_to(name):
    """Return a draw of lengths of sequences, of at least 1."""
    return lambda rng, shape, dims: rng.integers(1, dims[name] + 1, shape, dtype=np.int32)


def _tails(t):
    """Return a call of one query a sequence, with three keys and the logits of `saturating`, half of what q holds."""
    x, y, rest = saturating(t)
    unit = np.broadcast_to(np.eye(3, 4), (*t.shape, 3, 4))
    q = np.pad(2 * x, ((0, 0), (0, 1)))
    dx = y[:, :1] * np.where(np.eye(3)[0], rest, -y)
    g = np.broadcast_to(np.eye(4)[0], q.shape)
    dq, dk, dv = np.pad(dx / 2, ((0, 0), (0, 1))), dx[:, :, None] * q[:, None] / 2, y[:, :, None] * g[:, None]
    by_key = [a[:, :, None] for a in (unit, unit, dk, dv)]
    q, g, dq = (a[:, None, None] for a in (q, g, dq))
    return Tail((q, *by_key[:2]), g, (dq, *by_key[2:]))


_QKV = ("b t 4 h", "b s 4 h", "b s 4 h")
_SIZES = {"b": 2, "t": 5, "s": 7, "h": 3}
_LONG = {"b": 4, "t": 2048, "s": 2048, "h": 64}
_SHORT = Case(
    ("b t 8 h", "b s 8 h", "b s 8 h"),
    {"b": 1, "t": 1024, "s": 1024, "h": 64},
    {"is_causal": True},
    label="causal b=1 t=1024 s=1024 h=64",
)

RULES = (
    Rule(
        fn=dot_product_attention,
        reference=reference_dot_product_attention,
        baselines={"jax.nn.dot_product_attention": jax.nn.dot_product_attention},
        cases=(
            Case(_QKV, _SIZES),
            Case(("b t 4 h", "b s 2 h", "b s 2 h"), _SIZES, {"is_causal": True}),
            Case((*_QKV, "b 4 t s"), _SIZES),
            Case((*_QKV, "4 1 s"), _SIZES, {"scale": 0.3}),
            Case(_QKV, _SIZES, {"mask": Input("b 1 t s", random_mask)}),
            Case(_QKV, _SIZES, {"local_window_size": (1, 2)}),
            Case(
                _QKV,
                _SIZES,
                {
                    "query_seq_lengths": Input("b", _lengths_up_to("t")),
                    "key_value_seq_lengths": Input("b", _lengths_up_to("s")),
                },
            ),
        ),
        edges=(
            Edge(
                "large logits", (np.full((1, 1, 1, 2), 100.0), [[[[1.0, 2.0]], [[3.0, -1.0]]]], np.ones((1, 2, 1, 2)))
            ),
            Edge("ties", (np.ones((1, 2, 1, 2)), np.ones((1, 3, 1, 2)), np.arange(6.0).reshape(1, 3, 1, 2))),
            Edge(
                "a query that attends to no key",
                (np.ones((1, 2, 1, 2)), np.ones((1, 3, 1, 2)), np.arange(6.0).reshape(1, 3, 1, 2)),
                {"mask": np.array([[[[False] * 3, [True] * 3]]])},
            ),
            Edge(
                "a bias of -inf",
                (np.ones((1, 1, 1, 2)), np.ones((1, 2, 1, 2)), np.ones((1, 2, 1, 2)), [[[[0.0, -np.inf]]]]),
            ),
            Edge("no queries", (np.zeros((1, 0, 1, 2)), np.ones((1, 3, 1, 2)), np.ones((1, 3, 1, 2)))),
        ),
        bench=(
            Case(("b t 8 h", "b s 8 h", "b s 8 h"), _LONG),
            Case(("b t 8 h", "b s 8 h", "b s 8 h"), _LONG, {"is_causal": True}, label="causal b=4 t=2048 s=2048 h=64"),
        ),
        residual_bytes=lambda b, t, s, h: 4 * 4 * b * (t * h + 2 * s * h + 2 * t),
        whole_array=True,
        tails=_tails,
        reason="keeps its arguments and two numbers a query in place of the weights of all keys, which exist for a "
        "block of queries at a time",
        gains=(
            Gain("kept bytes", 0.046),
            Gain("scratch bytes", 0.1),
            Gain("kept bytes", 0.029, "causal b=4 t=2048 s=2048 h=64"),
            Gain("time", 0.8, _SHORT),
            Gain("error", 1e-4),
        ),
        source="Example 2.6",
    ),
)
