"""The arguments of a function that `vjplib verify` is given by name: from a text, its module, or its annotations."""

import ast
import importlib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vjplib.rule import Rule

SIZES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31)  # of named dimensions: primes, which reveal a swapped axis
Call = tuple[tuple[Any, ...], dict[str, Any]]


class FunctionTarget(NamedTuple):
    """A function without a record, and what its arguments are made of: a worker process looks both up there.

    Args:
        target: `package.module:name`.
        text: the text of `--args`; None for the module's ARGS, or the annotations.
    """

    target: str
    text: str | None

    @property
    def name(self) -> str:
        """The function's name."""
        return self.target.rpartition(":")[2]

    def call(self, seed: int) -> tuple[Callable[..., Any], Call]:
        """Return the function, its positional and its keyword arguments.

        Raises:
            ValueError: there are no arguments, or they cannot be read; the message says how to give them.
        """
        fn, rng = function_named(self.target), np.random.default_rng(seed)
        assert fn is not None
        if self.text is not None:
            return fn, read(self.text, rng)
        given = getattr(importlib.import_module(self.target.rpartition(":")[0]), "ARGS", None)
        given = given() if callable(given) else given
        given = given.get(self.name) if isinstance(given, Mapping) else given
        given = given() if callable(given) else given
        if given is not None:
            if not isinstance(given, (tuple, list)):
                raise ValueError(f"ARGS must give a tuple of arguments for {self.name}, got {type(given).__name__}")
            return fn, (tuple(given), {})
        try:
            return fn, (from_annotations(fn, rng), {})
        except ValueError as error:
            raise ValueError(
                f"{self.target} is no record, and its arguments are not known ({error}): give --args 'normal(4, 16), "
                f"normal(16)', write ARGS = {{{self.name!r}: (...)}} in its module, or call vjplib.verify on it"
            ) from None


def function_named(target: str) -> Callable[..., Any] | None:
    """Return the function that `package.module:name` names, None if that is a record, or nothing that can be called."""
    path, _, name = target.rpartition(":")
    try:
        module = importlib.import_module(path) if path else None
        fn = attrgetter(name)(module)
    except (Exception, SystemExit):  # whatever the module raises: who looks for a record there says it
        return None
    records = getattr(module, "RULES", ())
    recorded = isinstance(records, tuple) and any(isinstance(r, Rule) and r.name == name for r in records)
    return fn if callable(fn) and not recorded else None


# --------------------------------------------------------------------------------------------------------------- a text


def read(text: str, rng: np.random.Generator) -> Call:
    """Return the arguments that a text describes: Python's literals, and arrays of drawn numbers.

    Args:
        text: such as `normal(4, 16), axis=-1`. Arrays are `normal`, `uniform` (from low=0 to high=1), `integers` (from
            0 to below=2), `booleans`, `zeros` and `ones`, of a shape and a `dtype`; `key(seed)` is a random key.
        rng: draws the numbers.

    Raises:
        ValueError: the text is not of that form.

    Example:
        >>> args, kwargs = read("normal(2, 3), {'w': ones(3, dtype=bfloat16)}, axis=-1", np.random.default_rng(0))
        >>> args[0].shape, args[1]["w"].dtype.name, kwargs
        ((2, 3), 'bfloat16', {'axis': -1})
    """
    try:
        called = ast.parse(f"_({text})", mode="eval").body
        assert isinstance(called, ast.Call)
        args = tuple(_value(node, rng) for node in called.args)
        return args, {str(k.arg): _value(k.value, rng) for k in called.keywords}
    except (SyntaxError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"arguments must read as 'normal(4, 16), axis=-1', got {text!r}: {error}") from None


def _value(node: ast.expr, rng: np.random.Generator) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in _DRAWN:
            options = {str(k.arg): k.value for k in node.keywords}
            dtype = options.pop("dtype", None)
            literal = {k: ast.literal_eval(v) for k, v in options.items()}
            made = _DRAWN[name](rng, *map(ast.literal_eval, node.args), **literal)
            if dtype is None:
                return made
            return made.astype(jnp.dtype(dtype.id if isinstance(dtype, ast.Name) else ast.literal_eval(dtype)))
        case ast.Call(func=ast.Name(id=name)):
            raise ValueError(f"{name} must be one of {', '.join(_DRAWN)}")
        case ast.Tuple(elts=elements):
            return tuple(_value(e, rng) for e in elements)
        case ast.List(elts=elements):
            return [_value(e, rng) for e in elements]
        case ast.Dict(keys=keys, values=values):
            return {ast.literal_eval(k): _value(v, rng) for k, v in zip(keys, values, strict=True) if k is not None}
    return ast.literal_eval(node)


def _uniform(rng: np.random.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Any:
    return rng.uniform(low, high, shape).astype(np.float32)


def _integers(rng: np.random.Generator, *shape: int, below: int = 2) -> Any:
    return rng.integers(0, below, shape, dtype=np.int32)


_DRAWN: dict[str, Callable[..., Any]] = {
    "normal": lambda rng, *shape: np.asarray(rng.standard_normal(shape), np.float32),
    "uniform": _uniform,
    "integers": _integers,
    "booleans": lambda rng, *shape: np.asarray(rng.random(shape) < 0.5),
    "zeros": lambda rng, *shape: np.zeros(shape, np.float32),
    "ones": lambda rng, *shape: np.ones(shape, np.float32),
    "key": lambda rng, seed=0: jax.random.key(seed),
}


# ---------------------------------------------------------------------------------------------------------- annotations


def from_annotations(fn: Callable[..., Any], rng: np.random.Generator) -> tuple[Any, ...]:
    """Return arguments of the shapes and dtypes that jaxtyping's annotations name, as far as there are no defaults.

    Raises:
        ValueError: a parameter has neither a default nor an annotation of an array of known rank.

    Example:
        >>> from jaxtyping import Array, Float, Int
        >>> def loss(x: Float[Array, "b n"], labels: Int[Array, "b"], scale=1.0): ...
        >>> [a.shape for a in from_annotations(loss, np.random.default_rng(0))]
        [(3, 5), (3,)]
    """
    sizes, unused, args = {}, itertools.cycle(SIZES), []
    for name, parameter in inspect.signature(fn).parameters.items():
        if parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
            break
        dimensions = getattr(parameter.annotation, "dim_str", None)
        if dimensions is None or parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise ValueError(f"{name} has no annotation of jaxtyping, as in Float[Array, 'b n']")
        shape = []
        for dimension in dimensions.split():
            if dimension == "..." or dimension.startswith("*"):
                continue
            if not (dimension.isdigit() or dimension.lstrip("#_").isidentifier() or dimension == "_"):
                raise ValueError(f"{name} has the dimension {dimension!r}, which is no name and no number")
            known = int(dimension) if dimension.isdigit() else sizes.get(dimension.lstrip("#"))
            shape.append(sizes.setdefault(dimension.lstrip("#"), next(unused)) if known is None else known)
        args.append(_of_dtypes(name, parameter.annotation.dtypes, tuple(shape), rng))
    return tuple(args)


def _of_dtypes(name: str, dtypes: Sequence[str], shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    for dtype, draw in (("float32", "normal"), ("int32", "integers"), ("bool", "booleans"), ("bool_", "booleans")):
        if not isinstance(dtypes, (list, tuple)) or dtype in dtypes:  # any dtype at all
            return _DRAWN[draw](rng, *shape)
    found = next((d for d in dtypes if "float" in d), None)
    if found is None:
        raise ValueError(f"{name} is of a dtype that is not drawn: {', '.join(dtypes)}")
    return _DRAWN["normal"](rng, *shape).astype(jnp.dtype(found))
