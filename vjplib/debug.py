"""Debug: checks the contract of a custom_vjp where a program traces it; the compiled program is not slower."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import CustomVJPPrimal

from vjplib.compat import CustomVJP, custom_vjp_of, replaced_custom_vjp_calls, require_passes
from vjplib.verification.avals import avals_of, cotangent_mismatches, output_mismatches
from vjplib.verification.call import combine, parameters


class ContractError(TypeError):
    """A pass of a custom_vjp returned another pytree, shape, dtype or weak type than its rule must."""


@partial(jax.tree_util.register_dataclass, data_fields=["residuals"], meta_fields=["arguments"])
@dataclass
class _Kept:
    """Residuals of a checked rule: its own, and the avals of its arguments as static data."""

    residuals: Any
    arguments: tuple[Any, ...]


def debug_rule(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a custom_vjp that computes what fn does, and raises while JAX traces it if fn breaks the contract.

    JAX lets a rule return cotangents of another dtype than the argument's, one array for a whole pytree, or outputs
    from the forward pass that are not the primal's. Here each is an error at the call, with the names of rule and
    argument. Only shapes and dtypes are checked, while JAX traces: the compiled program is that of fn.

    Args:
        fn: a `jax.custom_vjp`.

    Returns:
        A `jax.custom_vjp` of the same signature; `optimize_remat`, if fn has it, does not apply.

    Raises:
        ValueError: fn has no passes, because `defvjp` was not called.
        TypeError: fn is no custom_vjp. Called, a `ContractError`, which is a TypeError: the forward pass returns
            another tree, shape, dtype or weak type than the primal, or the backward another number of cotangents, tree,
            shape or dtype than the arguments'; None stands for zeros, and integers take None or float0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> @jax.custom_vjp
        ... def halve(x):
        ...     return x / 2
        >>> halve.defvjp(lambda x: (x / 2, None), lambda res, g: (g.astype(jnp.float16) / 2,))
        >>> jax.grad(halve)(1.0)
        Array(0.5, dtype=float16)
        >>> try:
        ...     jax.grad(debug_rule(halve))(1.0)
        ... except ContractError as error:
        ...     print(error)
        halve: the backward returns float16 of shape () for argument x, float32 of shape ()

    Source:
        JAX's contract of `jax.custom_vjp`, which JAX checks in part. `vjplib.verify` checks the same contract.
    """
    rule = custom_vjp_of(fn)
    if rule is None:
        raise TypeError(f"fn must be a jax.custom_vjp, got {fn!r}")
    require_passes(rule)
    checked = jax.custom_vjp(rule.primal, nondiff_argnums=tuple(sorted(rule.static)))

    def fwd(*args: Any) -> Any:
        bare = [_bare(a) for a in args] if rule.symbolic_zeros else list(args)
        y, residuals = rule.fwd(*args)
        moving = [i for i in range(len(bare)) if i not in rule.static]
        primal = lambda *values: rule.primal(*combine(bare, moving, values))  # noqa: E731
        _require_same_output(rule, jax.eval_shape(primal, *(bare[i] for i in moving)), y)
        return y, _Kept(residuals, tuple(avals_of(bare[i]) for i in moving))

    def bwd(*given: Any) -> Any:
        *nondiff, kept, g = given
        dxs = rule.bwd(*nondiff, kept.residuals, g)
        _require_cotangents(rule, kept.arguments, dxs)
        return dxs

    checked.defvjp(fwd, bwd, symbolic_zeros=rule.symbolic_zeros)
    return checked


@contextmanager
def debug_rules() -> Iterator[None]:
    """Context in which every custom_vjp that is called is checked as by `debug_rule`.

    Only programs traced inside are checked: JAX does not trace a function again that `jax.jit` compiled before. In the
    context the class `jax.custom_vjp` is patched, for all threads.

    Example:
        >>> import jax
        >>> from vjplib import relu
        >>> with debug_rules():
        ...     float(jax.grad(relu)(3.0))
        1.0
    """

    def call(original: Callable[..., Any], fn: Any, *args: Any, **kwargs: Any) -> Any:
        return original(debug_rule(fn), *args, **kwargs)

    with replaced_custom_vjp_calls(call):
        yield


def _require_same_output(rule: CustomVJP, primal: Any, forward: Any) -> None:
    for m in output_mismatches(primal, forward):
        where = f" at {m.path}" if m.path else ""
        raise ContractError(f"{rule.name}: the forward pass returns {m.given}{where}, the primal {m.wanted}")


def _require_cotangents(rule: CustomVJP, arguments: tuple[Any, ...], dxs: Any) -> None:
    if not isinstance(dxs, (tuple, list)) or len(dxs) != len(arguments):
        given = f"{len(dxs)}" if isinstance(dxs, (tuple, list)) else f"a {type(dxs).__name__}"
        raise ContractError(
            f"{rule.name}: the backward must return a tuple of {len(arguments)}, a cotangent for each argument that is "
            f"differentiated, and returns {given}"
        )
    names = parameters(rule.primal, len(arguments) + len(rule.static))
    moving = [name for i, name in enumerate(names) if i not in rule.static]
    for name, argument, dx in zip(moving, arguments, dxs, strict=True):
        for m in cotangent_mismatches(argument, dx):
            returns = f"{rule.name}: the backward returns {m.given} for argument {name}"
            if m.kind == "tree":
                raise ContractError(f"{returns}, which is {m.wanted}; JAX would copy it to each leaf")
            if m.kind == "integer":
                raise ContractError(f"{returns}, {m.wanted}; for integers and booleans it must be None or float0")
            if m.kind != "weak":
                strong = [replace(aval, weak=False) for aval in (m.given, m.wanted)]
                raise ContractError(f"{rule.name}: the backward returns {strong[0]} for argument {name}, {strong[1]}")


def _bare(argument: Any) -> Any:
    """Return an argument of a forward pass with symbolic zeros, without the mark on each leaf that is perturbed."""
    return jax.tree.map(lambda a: a.value if isinstance(a, CustomVJPPrimal) else a, argument)
