"""Contract: what JAX does not check. Shapes and dtypes alone are traced; nothing is computed.

JAX accepts a cotangent of another dtype than its argument's, copies one array to every leaf of a pytree argument, and
lets the forward pass return other shapes than the primal where nobody looks.
"""

import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from vjplib.compat import CustomVJP, bound_axes, holds_custom_vjp
from vjplib.verification.avals import Mismatch, aval_of, avals_of, broadcasts, cotangent_mismatches, output_mismatches
from vjplib.verification.call import CallUnderTest, Static, attempt, combine, is_inexact, parameters
from vjplib.verification.claim import Claim
from vjplib.verification.explain.diagnose import raised, rules_called
from vjplib.verification.report import Finding, describe_error, failed, finding, noted, passed

DTYPES = ("float32", "bfloat16", "float16")


def check(subject: CallUnderTest, dtypes: Sequence[str] = DTYPES) -> Iterator[Finding]:
    """Yield findings on the avals of the primal, of the forward pass and of the cotangents that the backward returns.

    The call is traced in its own dtypes and in `dtypes`.
    """
    yield from _nondiff(subject)
    yield from _avals(subject, None)
    if subject.dtypes is not None:
        dtypes = [dtype for dtype in dtypes if dtype in subject.dtypes]
    for dtype in dtypes[:1] if attempt(lambda: subject.complex) is True else dtypes:  # no complex has 16 bits
        given = subject.leaves()
        if any(own.dtype != leaf.dtype for own, leaf in zip(given, subject.cast(jnp.dtype(dtype)), strict=True)):
            yield from _avals(subject, jnp.dtype(dtype))
    program = attempt(lambda: jax.make_jaxpr(lambda ls: subject.whole(ls))(subject.leaves()))
    if not isinstance(program, Exception):  # which `_avals` has reported
        given = {id(leaf) for leaf in jax.tree.leaves((subject.args, dict(subject.kwargs)))}
        for c in program.consts:
            if np.size(c) > 1 and id(c) not in given and is_inexact(c):
                yield noted(
                    f"closes over an array, {aval_of(c)}: no gradient can reach it; make it an argument if one should"
                )
        if holds_custom_vjp(program):  # whose own cotangents count, before JAX converts them
            calls = rules_called(subject)
            for rule, args, kwargs in calls:
                with bound_axes(subject.axes):
                    found = list(_raw(subject, rule, args, kwargs))
                yield from found
            if not calls:
                message = "the backward of a custom_vjp inside jit was not seen as it is"
                yield noted(f"{message}, before JAX fits it to the arguments")


def _avals(subject: CallUnderTest, dtype: Any) -> Iterator[Finding]:
    at = "as called" if dtype is None else f"in {dtype}"
    leaves, own = subject.cast(dtype), subject.cast()
    try:
        primal = jax.eval_shape(lambda ls: subject.whole(ls), leaves)
    except Exception as refusal:  # functions raise what they like for arguments that they refuse
        level, trap = ("fail", raised(subject, refusal)) if dtype is None else ("note", "")
        yield finding(level, "raises", f"refuses to run {at}: {describe_error(refusal)}", trap=trap)
        return

    def pulled(leaves: Any) -> Any:
        y, back = jax.vjp(lambda *ls: subject.whole(ls), *leaves)
        return y, back(jax.tree.map(_cotangent_like, y))

    try:
        forward, dxs = jax.eval_shape(pulled, leaves)
    except Exception as error:  # whatever the passes raise is the finding
        if dtype is not None and (isinstance(error, NotImplementedError) or "does not accept dtype" in str(error)):
            yield noted(f"a function that the backward calls refuses to run {at}: {describe_error(error)}")
            return
        message, trap = f"forward and backward raise {at}: {describe_error(error)}", raised(subject, error)
        yield failed("raises", message, trap=trap)
        return
    wrong = False
    for m in output_mismatches(primal, forward):
        wrong = True
        # A Python number takes its neighbours' dtype: with the weak type the dtype may differ too.
        weak = m.kind in ("weak", "dtype") and m.given.weak != m.wanted.weak
        trap = "weak-type" if weak else "forward-is-not-the-primal"
        message = f"{at}, the forward pass returns {m.given} where the primal returns {m.wanted}"
        yield failed("wrong_aval", message, "output", trap=trap)
    mixed = len({a.dtype for a in own}) > 1
    for name, x, given, dx in zip(subject.names, leaves, own, dxs, strict=True):
        for m in cotangent_mismatches(avals_of(x), dx):
            if m.kind != "weak":
                message = f"{at}, the backward returns {m.given} for an argument of {m.wanted}"
                if m.kind == "dtype" and mixed and dtype is not None and m.given.dtype == given.dtype:
                    yield noted(f"{message}; as called, that is its dtype", f"cotangent of {name}")
                    continue
                wrong = True
                yield failed("wrong_aval", message, f"cotangent of {name}", trap=_trap_of_dtype(m))
    if not wrong:
        yield passed(f"shapes, dtypes and structure agree {at}")


def _trap_of_dtype(mismatch: Mismatch) -> str:
    if mismatch.kind == "shape":
        return ""
    parts = [jnp.issubdtype(aval.dtype, jnp.complexfloating) for aval in (mismatch.given, mismatch.wanted)]
    if parts[0] != parts[1]:
        return "real-and-complex"
    return "weak-type" if mismatch.given.weak else "cotangent-dtype"


def _cotangent_like(y: Any) -> Any:
    shape, dtype = jnp.shape(y), jnp.result_type(y)
    return jnp.ones(shape, dtype) if is_inexact(y) else np.zeros(shape, jax.dtypes.float0)


def _nondiff(subject: CallUnderTest) -> Iterator[Finding]:
    """Traces the arrays that stand in places named by nondiff_argnums, as jit would."""
    for i, argument in enumerate(subject.args):
        value = argument.value if isinstance(argument, Static) else None
        if not isinstance(value, (jax.Array, np.ndarray)):
            continue

        def run(traced: Any, i: int = i) -> Any:
            args = list(subject.rebuild(subject.leaves()))
            return subject.fn(*args[:i], traced, *args[i + 1 :], **subject.kwargs)

        try:
            jax.eval_shape(run, value)
        except jax.errors.UnexpectedTracerError as error:
            message = f"argument {i} is an array that cannot be traced: {describe_error(error)}"
            yield failed("raises", message, trap="array-in-nondiff")


def _raw(subject: CallUnderTest, rule: CustomVJP, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Finding]:
    bound = inspect.signature(rule.primal).bind(*args, **kwargs)
    bound.apply_defaults()
    values = list(bound.args)
    names = parameters(rule.primal, len(values))

    def struct(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a), weak_type=bool(getattr(a, "weak_type", False)))

    avals = [v if i in rule.static else jax.tree.map(struct, v) for i, v in enumerate(values)]
    nondiff = [v for i, v in enumerate(avals) if i in rule.static]
    moving = [i for i in range(len(avals)) if i not in rule.static]

    def passes(alone: int | None, *differentiable: Any) -> Any:
        marked = [
            jax.tree.map(lambda a: CustomVJPPrimal(a, True), v) if rule.symbolic_zeros else v for v in differentiable
        ]
        y, res = rule.fwd(*combine(avals, moving, marked))
        ys, tree = jax.tree.flatten(y)
        gs = [
            SymbolicZero(jax.typeof(a).to_tangent_aval())
            if rule.symbolic_zeros and ((alone is not None and i != alone) or not is_inexact(a))
            else _cotangent_like(a)
            for i, a in enumerate(ys)
        ]
        dxs = tuple(rule.bwd(*nondiff, res, jax.tree.unflatten(tree, gs)))
        return y, jax.tree.map(lambda a: jnp.zeros_like(struct(a)) if isinstance(a, SymbolicZero) else a, dxs)

    def backward(alone: int | None) -> Any:
        return jax.eval_shape(lambda *moved: passes(alone, *moved), *(avals[i] for i in moving))

    try:
        y, cotangents = backward(None)
    except Exception as error:  # whatever the passes raise is the finding
        message, trap = f"{rule.name}'s passes raise: {describe_error(error)}", raised(subject, error)
        yield failed("passes_raise", message, trap=trap)
        return
    for i, dx in zip(moving, cotangents, strict=False):
        yield from _raw_cotangent(f"{rule.name}'s {names[i]}", avals[i], dx)
    leaves = jax.tree.leaves(y)
    for alone in range(len(leaves)) if rule.symbolic_zeros and len(leaves) > 1 else ():
        try:
            if is_inexact(leaves[alone]):
                backward(alone)
        except Exception as error:  # whatever the backward raises is the finding
            message = (
                f"{rule.name}'s backward raises where only output {alone} has a cotangent: {describe_error(error)}"
            )
            yield failed("raises", message, trap="symbolic-zeros")


def _raw_cotangent(name: str, x: Any, dx: Any) -> Iterator[Finding]:
    if dx is None and any(map(is_inexact, jax.tree.leaves(x))):
        yield noted("the backward returns None, a zero cotangent", name)
    for m in cotangent_mismatches(avals_of(x), dx):
        returns = f"the backward returns {m.given}"
        if m.kind == "tree":
            message = f"{returns} for {m.wanted}: JAX copies it to each leaf"
            yield failed("wrong_aval", message, name, trap="one-array-for-a-tree")
        elif m.kind == "integer":
            message = f"{returns} for an argument of {m.wanted.dtype}: it must be None or float0"
            yield failed("wrong_aval", message, name, trap="integers")
        elif m.kind == "shape" and broadcasts(m.wanted.shape, m.given.shape):
            message = f"{returns} for an argument of shape {m.wanted.shape}"
            yield failed("wrong_aval", message, name, trap="broadcast-not-summed")
        elif m.kind == "weak":
            message = f"{returns}: JAX compiles a function of it again that it has compiled for the argument"
            yield noted(message, name, trap="weak-type")


CLAIM = Claim(
    "contract",
    check,
    alias="V1",
    quick=check,
    further={"quick": partial(check, dtypes=()), "standard": check},
    needs_oracle=False,
    traces_only=True,
    cost=(4, 3),
)
