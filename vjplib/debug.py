"""Debug: the contract of a custom_vjp, held where the rule is traced in a running program, and free once compiled."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vjplib.compat import CustomVJP, custom_vjp_of, replaced_custom_vjp_calls, require_passes, symbolic_zero_aval


class ContractError(TypeError):
    """A pass of a custom_vjp returned what its rule may not: another tree, shape, dtype or weak type."""


class _Aval(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any
    weak: bool

    def __str__(self) -> str:
        return f"{'weak ' if self.weak else ''}{self.dtype} of shape {self.shape}"


@jax.tree_util.register_pytree_node_class
class _Kept:
    """What is kept for the backward: the rule's residuals, and what its arguments looked like, which has no leaves."""

    def __init__(self, residuals: Any, arguments: tuple[Any, ...]) -> None:
        self.residuals, self.arguments = residuals, arguments

    def tree_flatten(self) -> tuple[tuple[Any], tuple[Any, ...]]:
        return (self.residuals,), self.arguments

    @classmethod
    def tree_unflatten(cls, arguments: tuple[Any, ...], leaves: tuple[Any]) -> "_Kept":
        return cls(leaves[0], arguments)


def debug_rule(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a custom_vjp that computes what fn does, and raises as it is traced where fn breaks the contract.

    JAX lets a rule return cotangents of another dtype than the argument's, one array for a whole pytree, or outputs
    from the forward pass that are not the primal's. Here each is an error at the call that meets it, with the names of
    rule and argument. Shapes and dtypes alone are looked at, while JAX traces: the compiled program is that of fn.

    Args:
        fn: a `jax.custom_vjp`.

    Returns:
        A `jax.custom_vjp` of the same signature; `optimize_remat`, if fn has it, does not apply.

    Raises:
        ValueError: fn has no passes yet, for want of `defvjp`.
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
        JAX's own contract of `jax.custom_vjp`, of which it checks a part. `vjplib.verify` examines the same.
    """
    rule = custom_vjp_of(fn)
    if rule is None:
        raise TypeError(f"fn must be a jax.custom_vjp, got {fn!r}")
    require_passes(rule)
    checked = jax.custom_vjp(rule.primal, nondiff_argnums=tuple(sorted(rule.static)))

    def fwd(*args: Any) -> Any:
        bare = [_bare(a) for a in args] if rule.symbolic_zeros else list(args)
        y, residuals = rule.fwd(*args)
        _require_same_output(rule, bare, y)
        return y, _Kept(residuals, tuple(_avals(a) for i, a in enumerate(bare) if i not in rule.static))

    def bwd(*given: Any) -> Any:
        *nondiff, kept, g = given
        dxs = rule.bwd(*nondiff, kept.residuals, g)
        _require_cotangents(rule, kept.arguments, dxs)
        return dxs

    checked.defvjp(fwd, bwd, symbolic_zeros=rule.symbolic_zeros)
    return checked


@contextmanager
def debug_rules() -> Iterator[None]:
    """In this context every custom_vjp that is called is as `debug_rule` makes it.

    That holds for whatever is traced inside: a function that `jax.jit` compiled before is not traced again, and so not
    looked at. For the time of the context the class `jax.custom_vjp` is patched, for all threads.

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


def _require_same_output(rule: CustomVJP, args: list[Any], y: Any) -> None:
    static = {i: a for i, a in enumerate(args) if i in rule.static}
    moving = [a for i, a in enumerate(args) if i not in static]

    def primal(*values: Any) -> Any:
        rest = iter(values)
        return rule.primal(*(static[i] if i in static else next(rest) for i in range(len(args))))

    expected = jax.eval_shape(primal, *moving)
    if jax.tree.structure(y) != jax.tree.structure(expected):
        raise ContractError(
            f"{rule.name}: the forward pass returns {jax.tree.structure(y)}, the primal {jax.tree.structure(expected)}"
        )
    for (path, a), b in zip(jax.tree.leaves_with_path(y), jax.tree.leaves(expected), strict=True):
        if _aval(a) != _aval(b):
            where = "" if not path else f" at {jax.tree_util.keystr(path)}"
            raise ContractError(f"{rule.name}: the forward pass returns {_aval(a)}{where}, the primal {_aval(b)}")


def _require_cotangents(rule: CustomVJP, arguments: tuple[Any, ...], dxs: Any) -> None:
    names = [name for i, name in enumerate(inspect.signature(rule.primal).parameters) if i not in rule.static]
    if not isinstance(dxs, (tuple, list)) or len(dxs) != len(arguments):
        given = f"{len(dxs)}" if isinstance(dxs, (tuple, list)) else f"a {type(dxs).__name__}"
        raise ContractError(
            f"{rule.name}: the backward must return a tuple of {len(arguments)}, a cotangent for each argument that is "
            f"differentiated, and returns {given}"
        )
    for i, ((tree, avals), dx) in enumerate(zip(arguments, dxs, strict=True)):
        name = f"argument {names[min(i, len(names) - 1)]}" if names else f"argument {i}"
        if dx is None:
            continue
        leaves, given = jax.tree.flatten(dx, is_leaf=lambda a: a is None)
        if given != tree:
            raise ContractError(
                f"{rule.name}: the backward returns {given} for {name}, which is {tree}; JAX would copy it to each leaf"
            )
        for x, a in zip(avals, leaves, strict=True):
            _require_cotangent(rule, name, x, a)


def _require_cotangent(rule: CustomVJP, name: str, x: _Aval, dx: Any) -> None:
    if dx is None:
        return
    given = _aval(dx)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        if given.dtype != jax.dtypes.float0:
            raise ContractError(
                f"{rule.name}: the backward returns {given} for {name}, {x}; for integers and booleans it must be "
                "None or float0"
            )
    elif given[:2] != x[:2]:
        shown, wanted = given._replace(weak=False), x._replace(weak=False)
        raise ContractError(f"{rule.name}: the backward returns {shown} for {name}, {wanted}")


def _avals(tree: Any) -> tuple[Any, tuple[_Aval, ...]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(_aval, leaves))


def _aval(a: Any) -> _Aval:
    a = symbolic_zero_aval(a)
    if not hasattr(a, "shape"):  # a Python number
        a = jax.typeof(a)
    weak = getattr(a, "weak_type", False)
    return _Aval(tuple(a.shape), a.dtype, bool(weak))


def _bare(argument: Any) -> Any:
    """Returns an argument that a forward pass with symbolic zeros gets, without the mark of what is perturbed."""
    marked = lambda a: hasattr(a, "perturbed") and hasattr(a, "value")  # noqa: E731
    return jax.tree.map(lambda a: a.value if marked(a) else a, argument, is_leaf=marked)
