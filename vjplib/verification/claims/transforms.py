"""Transforms: jit, vmap, scan, checkpoint, subsets of the arguments, reruns and NumPy arguments change nothing.

Everything is compared with the eager pullback in float64, where a difference in rounding is far below any other.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest, Leaves
from vjplib.verification.claim import Claim
from vjplib.verification.explain.diagnose import raised, refused_by_jax, takes_symbolic_zeros
from vjplib.verification.oracle import roundings
from vjplib.verification.report import Finding, describe_error, failed, finding, noted, passed
from vjplib.verification.tolerance import HALF_THE_DIGITS, relative_gap

MOST_OUTPUTS = 3  # of which each is tried alone
Pull = Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]


def check(subject: CallUnderTest, eager: bool = True) -> Iterator[Finding]:
    """Yields a finding for each transform.

    Args:
        subject: what to examine.
        eager: whether to run without jit too, on device arrays and on NumPy arrays; slow to start, each operation being
            compiled alone. If so, checkpoint with all saved is tried too.
    """
    with x64():
        leaves = subject.leaves(np.float64)
        host = [(leaves, subject.cotangents(leaves, 1)), (_changed(leaves, subject), subject.cotangents(leaves, 2))]
        pairs = jax.tree.map(jnp.asarray, host)
        pull = subject.pull(subject.call)
        jitted = subject.pullback
        truth = [jitted(*pair) for pair in pairs]
        if eager:
            yield _report(subject, "NumPy arguments, not jitted", lambda: pull(*host[0]), truth[0])
            yield _report(subject, "not jitted", lambda: pull(*pairs[0]), truth[0])
        yield _bitwise(subject, jitted, pairs[0])
        yield from _together(subject, dict(_variants(subject, pull, jitted, pairs, truth, eager)))


def _changed(leaves: Leaves, subject: CallUnderTest) -> Leaves:
    rng = np.random.default_rng((subject.seed, 3))
    return tuple(a * rng.uniform(0.5, 1.0, a.shape) for a in leaves)


def _host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def _variants(
    subject: CallUnderTest, pull: Pull, jitted: Pull, pairs: list[tuple[Leaves, Leaves]], truth: list[Any], policy: bool
) -> Iterator[tuple[str, tuple[Callable[[], Any], Any]]]:
    """Yields each transform by name: a traceable function of nothing, and what it must return."""
    (xs, gs), (other_xs, other_gs) = pairs
    both_gs = _stack(gs, other_gs)
    count = len(xs)
    batched = [c for c in itertools.product((True, False), repeat=count) if any(c)]
    for choice in batched if count <= 3 else [batched[0], *batched[-count:]]:
        mixed = tuple(b if chosen else a for a, b, chosen in zip(xs, other_xs, choice, strict=True))
        axes = tuple(0 if chosen else None for chosen in choice)
        inputs = tuple(np.stack((a, b)) if c else a for a, b, c in zip(xs, other_xs, choice, strict=True))
        names = ", ".join(n for n, chosen in zip(subject.names, choice, strict=True) if chosen)
        expected = _both(truth[0], jitted(mixed, other_gs))
        yield f"vmap over {names}", (_lazily(jax.vmap(pull, in_axes=(axes, 0)), inputs, both_gs), expected)
    expected = _both(truth[0], jitted(xs, other_gs))
    yield "vmap over cotangents alone", (_lazily(jax.vmap(pull, in_axes=(None, 0)), xs, both_gs), expected)
    scanned = _lazily(lambda x, g: jax.lax.map(lambda pair: pull(*pair), (x, g)), _stack(xs, other_xs), both_gs)
    yield "scan", (scanned, _both(*truth))
    policies: dict[str, Any] = {"checkpoint": None}
    if policy and not subject.complex:  # JAX saves nothing complex under a policy: its reduce_precision refuses them
        policies["checkpoint, all saved"] = jax.checkpoint_policies.everything_saveable
    for label, chosen in policies.items():
        again = jax.checkpoint(subject.call, policy=chosen)
        yield label, (_lazily(subject.pull(again), xs, gs), truth[0])
    if count > 1:
        for i, name in enumerate(subject.names):
            yield f"gradient of {name} alone", (_lazily(_alone(subject, xs, i), gs), truth[0][1][i])
    for i in range(min(len(gs), MOST_OUTPUTS)) if len(gs) > 1 else ():
        only = tuple(g if j == i else jnp.zeros_like(g) for j, g in enumerate(gs))
        yield f"output {i} alone", (_lazily(_of_output(subject, xs, i), gs[i]), jitted(xs, only)[1])


def _stack(a: Leaves, b: Leaves) -> Leaves:
    return tuple(np.stack(pair) for pair in zip(a, b, strict=True))


def _both(first: Any, second: Any) -> Any:
    return jax.tree.map(lambda a, b: np.stack((a, b)), first, second)


def _lazily(f: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    there = jax.tree.map(jnp.asarray, args)  # a callback under vmap does not take NumPy's as constants
    return lambda: f(*there)


def _alone(subject: CallUnderTest, xs: Leaves, i: int) -> Callable[[Leaves], Any]:
    def run(gs: Leaves) -> Any:
        _, back = jax.vjp(lambda x: subject.call(*xs[:i], x, *xs[i + 1 :]), xs[i])
        return back(tuple(gs))[0]

    return run


def _of_output(subject: CallUnderTest, xs: Leaves, i: int) -> Callable[[Any], Leaves]:
    """Returns the pullback of one output, the others' cotangents not being zeros but absent."""
    return lambda g: jax.vjp(lambda *ls: subject.call(*ls)[i], *xs)[1](g)


def _together(subject: CallUnderTest, variants: dict[str, tuple[Callable[[], Any], Any]]) -> Iterator[Finding]:
    """Yields the finding on each transform; one that fails only where part of the call is batched is told apart."""
    findings = dict(_each(subject, variants))
    whole = f"vmap over {', '.join(subject.names)}"
    for name, found in findings.items():
        partly = found.level == "fail" and not found.trap and name.startswith("vmap") and name != whole
        unbatched = partly and findings[whole].level == "pass"
        yield replace(found, trap="unbatched-residuals") if unbatched else found


def _each(subject: CallUnderTest, variants: dict[str, tuple[Callable[[], Any], Any]]) -> Iterator[tuple[str, Finding]]:
    """Compiles all transforms as one program; one that cannot be traced is reported and left out."""
    traced = {}
    for name, (run, expected) in variants.items():
        try:
            jax.eval_shape(run)
            traced[name] = (run, expected)
        except Exception as error:  # whatever the rule raises under a transform is the finding
            if refused_by_jax(run, error):
                message = f"{name}: raises {describe_error(error)}; so does JAX whatever the rule"
                yield name, noted(message)
            else:
                yield name, _raises(subject, name, error)
    try:
        results = _host(subject.compiled(lambda: {name: run() for name, (run, _) in traced.items()})())
        runs = {name: (lambda result=result: result) for name, result in results.items()}
    except Exception:  # one of them raises as it runs: each alone, then, to know which
        runs = {name: subject.compiled(run) for name, (run, _) in traced.items()}
    for name, run in runs.items():
        yield name, _report(subject, name, run, traced[name][1])


def _raises(subject: CallUnderTest, name: str, error: Exception) -> Finding:
    trap = raised(subject, error)
    return failed("raises", f"{name}: raises {describe_error(error)}", trap=trap)


def _report(subject: CallUnderTest, name: str, run: Callable[[], Any], expected: Any) -> Finding:
    try:
        result = _host(run())
    except Exception as error:  # whatever the rule raises under a transform is the finding
        return _raises(subject, name, error)
    pairs = list(zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True))
    gap = max(relative_gap(r, o) for r, o in pairs)
    if gap > HALF_THE_DIGITS:  # it may be the rounding of what nearly cancels
        leaves = subject.leaves(np.float64)
        size = max(roundings(subject, leaves, subject.cotangents(leaves, 1), subject.pullback))
        gap = max(relative_gap(r, o, size) for r, o in pairs)
    digits = subject.digits(gap)
    if gap > digits:
        message = f"{name}: differs from the plain pullback by {gap:.1e} of its size"
        trap = "symbolic-zeros" if name in _alone_names(subject) and takes_symbolic_zeros(subject) else ""
        return failed("wrong_value", message, ratio=gap / digits, trap=trap)
    return passed(name, ratio=gap / digits)


def _alone_names(subject: CallUnderTest) -> set[str]:
    return {f"gradient of {name} alone" for name in subject.names} | {f"output {i} alone" for i in range(MOST_OUTPUTS)}


def _bitwise(subject: CallUnderTest, jitted: Pull, pair: tuple[Leaves, Leaves]) -> Finding:
    first, second = (jax.tree.leaves(jitted(*pair)) for _ in range(2))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
    message = "a rerun gives the same bits" if same else "a rerun gives other bits: state or randomness is hidden in it"
    return finding("pass" if same else "fail", "hidden_state", message, trap="" if same else "hidden-state")


_jitted = partial(check, eager=False)

CLAIM = Claim(
    "transforms", check, alias="V4", quick=_jitted, further={"standard": _jitted}, needs_oracle=False, cost=(11, 20)
)
