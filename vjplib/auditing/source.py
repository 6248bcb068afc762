"""Source: where a rule is defined and which line calls it, read from frames and code objects."""

import inspect
import os
import re
import sys
from functools import partial
from types import CellType
from typing import Any

import jax
import numpy as np

from vjplib.verification.avals import Aval

_JAX = os.path.dirname(jax.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_CHECKPOINT, _PALLAS = "ad_checkpoint.py", f"{os.sep}pallas{os.sep}"


def caller_of(own: set[Any]) -> tuple[str, bool, bool, bool]:
    """Return the line that calls a rule, and whether in jax.checkpoint, in a Pallas kernel, by its passes' own code."""
    caller, recomputed, in_pallas = "", False, False
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if frame.f_code in own:
            return caller, recomputed, in_pallas, True
        if path.startswith(_JAX):
            recomputed = recomputed or path.endswith(_CHECKPOINT)
            in_pallas = in_pallas or _PALLAS in path
        elif not caller and not path.startswith((_OURS + "auditing", _OURS + "compat")) and "contextlib" not in path:
            caller = f"{shortened(path)}:{frame.f_lineno}"
        frame = frame.f_back
    return caller, recomputed, in_pallas, False


def code_of(f: Any) -> Any:
    """Return the code of a function, a method or a partial, None for other callables."""
    while isinstance(f, partial):
        f = f.func
    return getattr(getattr(f, "__func__", f), "__code__", None)


def definition_of(primal: Any) -> tuple[str, str]:
    """Return a rule's name, and its file and line: those of the function that a decorator such as Equinox's wraps."""
    inner = primal.func if isinstance(primal, partial) else inspect.unwrap(primal)
    code = code_of(inner) or code_of(type(inner).__call__)
    source = f"{shortened(code.co_filename)}:{code.co_firstlineno}" if code else "unknown"
    # An empty cell has no contents to read, and equals another one.
    cells = [c.cell_contents for c in getattr(inner, "__closure__", None) or () if c != CellType()]
    held = [f for c in cells for f in (c, getattr(c, "fn", None)) if inspect.isfunction(f)]
    wrapped = {f.__code__: f for f in held if code is not None and f.__code__.co_filename != code.co_filename}
    if len(wrapped) == 1:
        code, inner = wrapped.popitem()
        source = f"{shortened(code.co_filename)}:{code.co_firstlineno}, wrapped at {source}"
    return getattr(inner, "__qualname__", type(primal).__name__).replace("<locals>.", ""), source


def shortened(path: str) -> str:
    """Return a path relative to the folder of packages or the working directory that it lies in.

    Example:
        >>> shortened("/usr/lib/python3/site-packages/flax/linen/fp8_ops.py")
        'flax/linen/fp8_ops.py'
    """
    path = re.sub(rf".*(site|dist)-packages{re.escape(os.sep)}", "", path)
    return path.removeprefix(f"{os.getcwd()}{os.sep}")


def key_of(static: Any) -> str:
    """Return the deduplication key of a static argument: its value, or where a function is written."""
    if callable(static) and not isinstance(static, type):
        inner = static.func if isinstance(static, partial) else static
        code = getattr(inspect.unwrap(inner), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else type(inner).__name__
    if isinstance(static, (Aval, bool, int, float, str, type(None), np.dtype)):
        return repr(static)
    return type(static).__name__
