"""Transforms: jit, vmap, scan, checkpoint, subsets of the arguments, reruns and NumPy arguments change nothing.

Everything is compared with the jitted pullback in float64, where a difference in rounding is far below any other.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import not_offered, x64
from vjplib.verification.call import CallUnderTest, Leaves, attempt, attempt_all
from vjplib.verification.claim import Claim, reduced
from vjplib.verification.explain.diagnose import passes_of, raised, refused_by_jax
from vjplib.verification.oracle import Pull, roundings
from vjplib.verification.report import Finding, describe_error, failed, noted, passed
from vjplib.verification.tolerance import HALF_THE_DIGITS, relative_gap

MOST_OUTPUTS = 3  # of which each is tried alone
NESTED = ((0, 1, 0), (1, 1, 0))  # which points stand in two nested batches: no two rows or columns are alike


class _Variant(NamedTuple):
    """A traceable function, its arguments, and what it must return; `part` if it takes a part of the derivative."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    expected: Any
    part: bool = False

    def run(self) -> Any:
        """Return what the function returns, without jit."""
        return self.f(*jax.tree.map(jnp.asarray, self.args))  # a callback under vmap does not take NumPy's


def check(subject: CallUnderTest, eager: bool = True) -> Iterator[Finding]:
    """Yield a finding for each transform.

    If `eager`, the pullback runs without jit too, on device arrays and on NumPy arrays, which is slow to start, for
    each operation is compiled alone; and checkpoint with everything saved is tried.
    """
    with x64():
        leaves = subject.leaves(np.float64)
        rng = np.random.default_rng((subject.seed, 3))
        others = tuple((a * rng.uniform(0.5, 1.0, a.shape)).astype(a.dtype) for a in leaves)
        host = [(leaves, subject.cotangents(leaves, 1)), (others, subject.cotangents(leaves, 2))]
        pairs = jax.tree.map(jnp.asarray, host)
        pull, truth = subject.pull(subject.call), [subject.pullback(*pair) for pair in pairs]
        if eager:
            for name, pair in (("NumPy arguments, not jitted", host[0]), ("not jitted", pairs[0])):
                result = attempt(lambda pair=pair: jax.device_get(pull(*pair)))
                plain = attempt(lambda pair=pair: subject.call(*pair[0])) if isinstance(result, Exception) else None
                if pair is host[0] and isinstance(plain, Exception) and type(plain) is type(result):
                    yield noted(f"{name}: raises {describe_error(plain)}; so does the function, undifferentiated")
                else:
                    yield _judged(subject, name, result, truth[0])
        yield _bitwise(truth[0], subject.pullback(*pairs[0]))
        yield from _together(subject, dict(_variants(subject, pull, pairs, truth, eager)))


def _variants(
    subject: CallUnderTest, pull: Pull, pairs: list[tuple[Leaves, Leaves]], truth: list[Any], policy: bool
) -> Iterator[tuple[str, _Variant]]:
    """Yield each transform by name."""
    (xs, gs), (other_xs, other_gs) = pairs
    both_gs, jitted, count = _stack(gs, other_gs), subject.pullback, len(xs)
    batched = [c for c in itertools.product((True, False), repeat=count) if any(c)]
    for choice in batched if count <= 3 else [batched[0], *batched[-count:]]:
        mixed = tuple(b if chosen else a for a, b, chosen in zip(xs, other_xs, choice, strict=True))
        axes = tuple(0 if chosen else None for chosen in choice)
        inputs = tuple(np.stack((a, b)) if c else a for a, b, c in zip(xs, other_xs, choice, strict=True))
        names = ", ".join(n for n, chosen in zip(subject.names, choice, strict=True) if chosen)
        expected = _stack(truth[0], jitted(mixed, other_gs))
        yield f"vmap over {names}", _Variant(jax.vmap(pull, in_axes=(axes, 0)), (inputs, both_gs), expected)
    nested = _nested(xs, other_xs), _nested(gs, other_gs)
    yield "two nested vmaps", _Variant(jax.vmap(jax.vmap(pull)), nested, _nested(*truth))
    # A batching rule of a custom rule's own may have a backward of its own, which mapping the pullback does not reach.
    both = _stack(xs, other_xs), both_gs
    yield "pullback of a vmap", _Variant(subject.pull(jax.vmap(subject.call)), both, _stack(*truth))
    expected = _stack(truth[0], jitted(xs, other_gs))
    yield "vmap over cotangents alone", _Variant(jax.vmap(pull, in_axes=(None, 0)), (xs, both_gs), expected)
    scanned = lambda x, g: jax.lax.map(lambda pair: pull(*pair), (x, g))  # noqa: E731
    yield "scan", _Variant(scanned, both, _stack(*truth))
    policies: dict[str, Any] = {"checkpoint": None}
    if policy and not subject.complex:  # JAX saves nothing complex under a policy: its reduce_precision refuses them
        policies["checkpoint, all saved"] = jax.checkpoint_policies.everything_saveable
    for label, chosen in policies.items():

        def again(xs: Leaves, gs: Leaves, policy: Any = chosen) -> Any:
            # A function of this trace alone: JAX keeps the program of one that it has met.
            return subject.pull(jax.checkpoint(lambda *ls: subject.call(*ls), policy=policy))(xs, gs)

        yield label, _Variant(again, (xs, gs), truth[0])
    for i, name in enumerate(subject.names) if count > 1 else ():

        def alone(xs: Leaves, gs: Leaves, i: int = i) -> Any:
            return jax.vjp(lambda x: subject.call(*xs[:i], x, *xs[i + 1 :]), xs[i])[1](gs)[0]

        yield f"gradient of {name} alone", _Variant(alone, (xs, gs), truth[0][1][i], part=True)
    for i in range(min(len(gs), MOST_OUTPUTS)) if len(gs) > 1 else ():
        only = tuple(g if j == i else jnp.zeros_like(g) for j, g in enumerate(gs))
        # The other outputs' cotangents are not zeros but absent.
        of_one = lambda xs, g, i=i: jax.vjp(lambda *ls: subject.call(*ls)[i], *xs)[1](g)  # noqa: E731
        yield f"output {i} alone", _Variant(of_one, (xs, gs[i]), jitted(xs, only)[1], part=True)


def _stack(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda *pair: np.stack(pair), tuple(a), tuple(b))


def _nested(a: Any, b: Any) -> Any:
    """Return two pytrees of arrays stacked along two new axes."""
    return jax.tree.map(
        lambda *pair: np.stack([np.stack([pair[i] for i in row]) for row in NESTED]), tuple(a), tuple(b)
    )


def _together(subject: CallUnderTest, variants: dict[str, _Variant]) -> Iterator[Finding]:
    """Yield the finding on each transform, all compiled as one program, of whose arguments XLA can fold nothing.

    A vmap that fails only over some of the arguments has a trap of its own.
    """
    program = lambda given: {name: variants[name].f(*args) for name, args in given.items()}  # noqa: E731
    results = attempt_all(
        lambda names: jax.device_get(subject.compiled(program)({name: variants[name].args for name in names})),
        {name: partial(jax.eval_shape, variant.run) for name, variant in variants.items()},
    )
    findings = {}
    for name, result in results.items():
        variant = variants[name]
        if isinstance(result, Exception) and refused_by_jax(variant.run, result):
            findings[name] = noted(f"{name}: raises {describe_error(result)}; so does JAX for any rule")
        else:
            findings[name] = _judged(subject, name, result, variant.expected, variant.part)
    whole = f"vmap over {', '.join(subject.names)}"
    for name, found in findings.items():
        partly = found.level == "fail" and not found.trap and name.startswith("vmap") and name != whole
        unbatched = partly and findings[whole].level == "pass"
        yield replace(found, trap="unbatched-residuals") if unbatched else found


def _judged(subject: CallUnderTest, name: str, result: Any, expected: Any, part: bool = False) -> Finding:
    """Return the finding on the result of a transform, or on what it raises."""
    if isinstance(result, Exception):
        if missing := not_offered(result):
            return noted(f"{name}: not offered: the primitive does not support {missing}")
        return failed("raises", f"{name}: raises {describe_error(result)}", trap=raised(subject, result))
    pairs = list(zip(*map(jax.tree.leaves, (result, expected)), strict=True))
    gap = max(relative_gap(r, o) for r, o in pairs)
    if gap > HALF_THE_DIGITS:  # it may be the rounding of terms that nearly cancel
        size = max(roundings(subject, *subject.point(np.float64, 1), own=True))
        gap = max(relative_gap(r, o, size) for r, o in pairs)
    ratio = subject.ratio(gap, elsewhere=True)
    if ratio > 1:
        message = f"{name}: differs from the plain pullback by {gap:.1e} of its size"
        trap = "symbolic-zeros" if part and any(rule.symbolic_zeros for rule in passes_of(subject)) else ""
        return failed("wrong_value", message, ratio=ratio, trap=trap)
    return passed(name, ratio=ratio)


def _bitwise(first: Any, second: Any) -> Finding:
    pairs = zip(*map(jax.tree.leaves, (first, second)), strict=True)
    if all(a.tobytes() == b.tobytes() for a, b in pairs):
        return passed("a rerun gives the same bits")
    message = "a rerun gives other bits: state or randomness is hidden in it"
    return failed("hidden_state", message, trap="hidden-state")


_jitted = partial(check, eager=False)

CLAIM = Claim(
    "transforms",
    check,
    alias="V4",
    quick=reduced(_jitted),
    further={"standard": _jitted},
    needs_oracle=False,
    cost=(11, 20),
)
