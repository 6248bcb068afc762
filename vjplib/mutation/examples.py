"""Examples: right rules of a user's own, each with a call of it, and other calls of them drawn at random.

A module that ends in `EXAMPLES`, a tuple of them, is a target of `vjplib power`: its rules are verified at drawn calls,
and what is found is a false alarm. An example has no record, so the given call states what a fair call is: drawn arrays
keep the properties that `vjplib.verification.domain` finds in the given ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import is_key, x64
from vjplib.verification.api import at_call
from vjplib.verification.call import ByPosition, CallUnderTest, Leaves, attempt, combine, is_inexact, kind_of, unwrap
from vjplib.verification.domain import Draw, Sizes

NOISE = (0.5, 0.1)  # how far numbers are from the given ones, relative to them; the next where a property is lost
RESIZED = 0.5  # the share of axes that are given another size


class Example(NamedTuple):
    """A right rule and a call of it, as `vjplib.verify` takes them.

    Args:
        name: of the rule.
        fn: the rule.
        args: positional arguments.
        kwargs: keyword arguments.
        options: other arguments of `verify`; `claims` where not all hold, on purpose.
    """

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


def examples_in(module: ModuleType) -> tuple[Example, ...]:
    """Return the examples that a module ends in; none if it has no `EXAMPLES`.

    Raises:
        ValueError: `EXAMPLES` holds something else.
    """
    found = getattr(module, "EXAMPLES", ())
    if not isinstance(found, tuple) or not all(isinstance(example, Example) for example in found):
        raise ValueError(f"EXAMPLES of {module.__name__} must be a tuple of vjplib.mutation.Example, got {found!r:.60}")
    return found


def drawn_call(example: Example, rng: np.random.Generator) -> CallUnderTest:
    """Return a call of an example at drawn sizes, with its integers in another order.

    Some axes get another size, up to twice the given, where function and oracle accept it and the arrays keep their
    properties. None shrinks below half, and none at all where integers may index it.
    """
    given = _call(example, example.args, example.kwargs, rng)
    integers = len(jax.tree.leaves(given.args)) > len(given.differentiable)
    wanted = {}
    for name, n in given.sizes.items():
        m = int(rng.integers(n + 1 if integers else max(2, n // 2), 2 * n + 2))
        alone = given.resized({name: 2 * n}, static=_stating(given, {n: 2 * n})) or given.resized({name: n + 1})
        if rng.random() < RESIZED and alone is not None:  # else the axis belongs to another one
            wanted[name] = m
    new = {given.sizes[name]: m for name, m in wanted.items()}
    resized = given.resized(wanted, static=_stating(given, new)) or given
    leaves, tree = jax.tree.flatten(resized.args)
    leaves = [leaf if is_inexact(leaf) else _reordered(resized, i, leaf, rng) for i, leaf in enumerate(leaves)]
    stated: Any = example.options.get("domain")
    if isinstance(stated, Callable) and resized is not given:
        example = example._replace(options={**example.options, "domain": partial(_from_given_sizes, stated, new)})
    call = _call(example, *_as_given(resized, jax.tree.unflatten(tree, leaves)), rng)
    made = ", ".join(f"{n} made {m}" for n, m in new.items()) if resized is not given else ""
    return replace(call, case=made or "the given sizes")


def _from_given_sizes(draw: Draw, new: Mapping[int, int], rng: np.random.Generator, sizes: Mapping[int, int]) -> Any:
    """Draw arguments of a call at new sizes by a function that knows those of the given call."""
    return draw(rng, Sizes({n: sizes[m] for n, m in new.items()}))


def _call(example: Example, args: Any, kwargs: Mapping[str, Any], rng: np.random.Generator) -> CallUnderTest:
    options = {name: value for name, value in example.options.items() if name != "claims"}
    return replace(at_call(example.fn, args, kwargs, seed=int(rng.integers(2**31)), **options), hurried=True)


def _stating(call: CallUnderTest, sizes: Mapping[int, int]) -> dict[str, int]:
    """Return the static numbers that equal the size of an axis, and state it, as that becomes another one."""
    return {k: sizes[v] for k, v in call.static.items() if type(v) is int and v in sizes and v > 1}


def _as_given(call: CallUnderTest, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments as a user gives them: of one device, keywords by their names."""
    args = unwrap(jax.tree.map(lambda leaf: leaf[(0,) * len(call.axes)], args))
    keywords = call.fn.keywords if isinstance(call.fn, ByPosition) else ()
    count = len(args) - len(keywords)
    return args[:count], {**call.kwargs, **dict(zip(keywords, args[count:], strict=True))}


def _reordered(call: CallUnderTest, i: int, leaf: Any, rng: np.random.Generator) -> Any:
    """Return integers, booleans or a random key in another order if they keep their properties; a key is another."""
    if is_key(leaf):
        return jax.random.fold_in(leaf, int(rng.integers(2**31)))
    leaf = np.asarray(leaf)
    new = rng.permutation(leaf.ravel()).reshape(leaf.shape)
    return new if call.domain is None or not call.domain.lost(i, new) else leaf


def redrawn(call: CallUnderTest, rng: np.random.Generator, dtype: Any, scale: float) -> tuple[Any, ...] | None:
    """Return the arguments with other floating numbers, of a dtype (their own for None), times scale.

    Each is a given number times one of its own; what is lost of an array's properties by that is restored. Where a
    property does not allow the scale, the array is not scaled. None where the dtype cannot hold a property.
    """
    assert call.domain is not None
    args = call.args if call.domain.draw is None else call.domain.redrawn(call.args, int(rng.integers(2**31)), {})
    leaves, tree = jax.tree.flatten(args)
    new: list[Any] = []
    for i in call.differentiable:
        leaf = np.asarray(leaves[i])
        made = [leaf] if call.domain.draw is not None else [*_near(call, i, leaf, rng), leaf]
        kind = kind_of(leaf.dtype, dtype)
        with np.errstate(over="ignore", under="ignore"):  # those that leave a dtype's range are not kept
            factors = (scale, 1.0) if call.domain.draw is None else (1.0,)  # what is drawn is all that may be
            scaled = [(a * factor).astype(kind) for factor in factors for a in made]
        kept = [a for a in scaled if _keeps(call, i, a)]
        if not kept:
            return None
        new.append(kept[0])
    return jax.tree.unflatten(tree, combine(leaves, call.differentiable, new))


def _near(call: CallUnderTest, i: int, leaf: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return arrays whose numbers are more or less near the given ones, with as many of its properties as can be."""
    assert call.domain is not None
    found = []
    for noise in NOISE:
        a = leaf.astype(kind_of(leaf.dtype, np.float64)) * rng.uniform(1 - noise, 1 + noise, leaf.shape)
        for p in call.domain.of(i):
            if p.axis is not None:
                a = np.sort(a, p.axis)
                a = np.flip(a, p.axis) if "decreasing" in p.name else a
            a = p.restored(a) if p.restored else a
        found.append(a)
    return found


def _keeps(call: CallUnderTest, i: int, a: np.ndarray) -> bool:
    assert call.domain is not None
    return bool(np.all(np.isfinite(a))) and (np.iscomplexobj(a) or not call.domain.lost(i, a))


def dtypes_of(call: CallUnderTest, among: tuple[str, ...]) -> list[Any]:
    """Return the dtypes that a call can be made in; None alone, for its own, if it has several or complex ones."""
    own: Leaves = call.cast()
    if len({a.dtype for a in own}) > 1 or call.complex:
        return [None]
    if call.dtypes is not None:
        return [jnp.dtype(dtype) for dtype in among if dtype in call.dtypes]
    found = []
    for dtype in map(jnp.dtype, among):
        with x64():
            leaves = call.cast(dtype)
            ran = attempt(lambda leaves=leaves: jax.eval_shape(call.pull(call.call), leaves, call.cotangents(leaves)))
        if not isinstance(ran, Exception) and all(dx.dtype == dtype for dx in ran[1]):
            found.append(dtype)
    return found or [None]
