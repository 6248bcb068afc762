"""Pages of the rules, each written from the rule's record and its file, so that nothing is written twice.

    python -m vjplib.lecture.rule_pages DIRECTORY [RULE ...]

writes a Markdown page for each rule, and an index. RULE is an argument of `vjplib.rule.find`; by default, the rules are
those of the library.
"""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from doctest import DocTestParser
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.errors import InconclusiveDimensionOperation

from vjplib.compat import recorded_custom_vjps
from vjplib.rule import Case, Edge, Input, Rule, find, second_derivatives
from vjplib.rule import rules as own_rules

# Characters in formulas that Markdown would read as the start of emphasis, of a tag or of a link.
_MARKUP = re.compile(r"(?<!\w)_(?=\S)|\*(?=\S)|<(?=[A-Za-z/!?])|(?<=\])\(")


def page(rule: Rule) -> str:
    """Return the Markdown page of a rule: what it computes, how its backward is derived, and what is verified.

    The docstring gives formula, arguments and example; the comment directly above each backward gives the derivation;
    the record gives the rest. The backwards are those of each `jax.custom_vjp` that the first case calls, if they are
    defined in the folder of the public function.

    Args:
        rule: a record, of this library or any other.

    Raises:
        OSError: the public function has no source, such as a function typed at a prompt.

    Example:
        >>> from vjplib.rule import find
        >>> text = page(find("softmax")[0])
        >>> text.splitlines()[0], "g^T J = g * y - (sum_i g_i y_i) y = y * (g - <g, y>)" in text
        ('# softmax', True)
    """
    return "\n\n".join(_blocks(rule)) + "\n"


def pages(rules: Iterable[Rule]) -> dict[str, str]:
    """Return the text of each page by its file name: one page per rule, and `index.md` with a line on each.

    Args:
        rules: the records.

    Raises:
        ValueError: two rules share a name.

    Example:
        >>> from vjplib.rule import find
        >>> list(pages(find("vjplib.rules.products")))
        ['multiply.md', 'prod.md', 'index.md']
    """
    rules = tuple(rules)
    names = Counter(rule.name for rule in rules)
    if twice := [name for name, number in names.items() if number > 1]:
        raise ValueError(f"rules must have distinct names, got {twice[0]} twice")
    return {**{f"{rule.name}.md": page(rule) for rule in rules}, "index.md": _index(rules)}


def write_pages(directory: str | Path, rules: Iterable[Rule] | None = None) -> list[Path]:
    """Write the pages into a directory, and return their paths.

    Args:
        directory: made if it does not exist; files of the same names are overwritten, others stay.
        rules: the records; None for the library's own.

    Raises:
        ValueError: two rules share a name.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    texts = pages(own_rules() if rules is None else rules)
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [directory / name for name in texts]


# ------------------------------------------------------------------------------------------------------------- the page


def _blocks(rule: Rule) -> Iterator[str]:
    formula, _, rest = (inspect.getdoc(rule.fn) or "").partition("\n")
    sections = _sections(rest)
    before, source = sections.pop("", ""), sections.pop("Source", "")
    yield f"# {rule.name}"
    if formula:
        yield _prose(formula)
    yield _fence("python", _signature(rule.fn))
    if before:
        yield _prose(before)
    if rule.reason:
        yield f"**Why it exists:** {_prose(rule.reason)}."
    if rule.gains:
        claimed = "\n".join(f"- {_prose(text)}" for text in rule.claimed())
        yield f"Claimed gains, which `vjplib bench --reasons` measures:\n\n{claimed}"
    for title, text in sections.items():
        yield f"## {title}"
        yield _section(rule.fn, title, text)
    for bwd in _backwards(rule):
        yield "## Derivation"
        if comment := inspect.getcomments(bwd):
            yield _derivation(comment)
        yield "The backward that implements it:" if comment else "The backward:"
        yield _fence("python", inspect.getsource(bwd))
    if rule.jacobian is not None:
        yield "## Jacobian"
        yield "For one vector, with respect to each argument, as objects of `vjplib.jacobians`:"
        yield _shown(rule, rule.jacobian)
    yield "## Reference"
    yield "The same function in plain JAX. Its automatic derivative in float64 is what the backward must equal:"
    yield _shown(rule, rule.reference)
    yield from _verified(rule)
    if source or rule.source:
        yield "## Source"
        yield _prose(source or f"{rule.source}.")


def _backwards(rule: Rule) -> list[Callable[..., Any]]:
    """Return the distinct backwards of the first case that are defined in the folder of the rule's file."""
    call = rule.cases[0].call(np.random.default_rng(0))
    with recorded_custom_vjps() as calls:
        jax.eval_shape(lambda: rule.fn(*call.args, **call.kwargs))
    backwards = dict.fromkeys(inspect.unwrap(vjp.bwd) for vjp, _, _ in calls if vjp.bwd)
    return [bwd for bwd in backwards if _file(bwd).parent == _file(rule.fn).parent]


def _shown(rule: Rule, fn: Any) -> str:
    """Return a function's source if it is in the rule's file, else its qualified name."""
    if _file(fn) == _file(rule.fn):
        return _fence("python", inspect.getsource(inspect.unwrap(fn)))
    return _fence("python", f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', repr(fn))}".lstrip("."))


def _verified(rule: Rule) -> Iterator[str]:
    yield "## What is verified"
    yield _fence("sh", f"vjplib verify {rule.fn.__module__}:{rule.name}")
    yield "At these calls; with `--deep`, at random sizes too:"
    yield _table(("arguments", "sizes", "keywords"), (_case_row(rule, case) for case in rule.cases))
    if rule.edges:
        yield "At these edges:"
        yield _table(("edge", "call"), ((_cell(edge.name), f"`{_edge_call(rule, edge)}`") for edge in rule.edges))
    if rule.residual_bytes is not None:
        yield f"Residuals between forward and backward, in float32 at the first call: {_residuals(rule)}."
    yield f"Second derivatives are {_second_derivatives(rule)}, which is verified too."
    if rule.baselines:
        names = ", ".join(f"`{name}`" for name in rule.baselines)
        yield f"Compared, in residual bytes and in time, with JAX's derivative of {names}."


def _second_derivatives(rule: Rule) -> str:
    offered = second_derivatives(rule.order_two)
    words = {mode: "supported" if offer else "refused" for mode, offer in offered.items()}
    if len(set(words.values())) == 1:
        return words["reverse"]
    return " and ".join(f"{word} {mode} over reverse" for mode, word in words.items())


def _case_row(rule: Rule, case: Case) -> tuple[str, str, str]:
    given = zip(inspect.signature(rule.fn).parameters, case.shapes, strict=False)
    arguments = ", ".join(f"`{name}` {_shape(shape)}" for name, shape in given)
    sizes = ", ".join(f"{name} = {n}" for name, n in case.dims.items())
    keywords = (f"`{k}` {_shape(v.shape)}" if isinstance(v, Input) else f"`{k}={v!r}`" for k, v in case.kwargs.items())
    return arguments, sizes, ", ".join(keywords)


def _shape(shape: str | None) -> str:
    return "None" if shape is None else str(tuple(shape.split())).replace("'", "")


def _edge_call(rule: Rule, edge: Edge) -> str:
    def value(a: Any) -> str:
        if not isinstance(a, (np.ndarray, jax.Array)):
            return repr(a)
        return repr(a.tolist()) if a.size else f"empty {a.shape}"

    given = [value(a) for a in edge.args] + [f"{k}={value(v)}" for k, v in edge.kwargs.items()]
    return f"{rule.name}({', '.join(given)})"


def _residuals(rule: Rule) -> str:
    assert rule.residual_bytes is not None
    dims = rule.cases[0].dims
    number = f"{rule.residual_bytes(**dims):,}"
    try:
        symbols = jax.export.symbolic_shape(", ".join(dims))
        formula = str(rule.residual_bytes(**dict(zip(dims, symbols, strict=True))))
    except InconclusiveDimensionOperation:  # the function compares sizes, so that there is no single formula
        return f"{number} bytes"
    return f"`{formula}` bytes, here {number}" if dims else f"{number} bytes"


# ------------------------------------------------------------------------------------------------------ from the source


def _file(fn: Callable[..., Any]) -> Path:
    try:
        return Path(inspect.getsourcefile(inspect.unwrap(fn)) or "")
    except TypeError:  # neither a function nor a wrapper of a function
        return Path()


def _signature(fn: Callable[..., Any]) -> str:
    """Return the source of a function's signature, from its def to its colon."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(fn)))
    node = next((n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)), None)
    if node is None:  # Python 3.13 finds wrong source for a function made from a string
        raise OSError(f"could not get source code of {fn.__name__}")
    lines = source.splitlines()[node.lineno - 1 : max(node.lineno, node.body[0].lineno - 1)]
    return "\n".join(lines).removesuffix(":")


def _derivation(comment: str) -> str:
    """Return a comment as prose, with its indented lines as formulas."""
    lines = (line.lstrip().removeprefix("#").removeprefix(" ") for line in comment.splitlines())
    parts = groupby(lines, key=lambda line: line.startswith("  "))
    texts = ((formula, "\n".join(part)) for formula, part in parts)
    return "\n\n".join(_fence("text", textwrap.dedent(text)) if formula else _prose(text) for formula, text in texts)


def _sections(doc: str) -> dict[str, str]:
    """Return the sections of a Google docstring by title; the text before the first section has the title ""."""
    before, *titled = re.split(r"^(\w+):$", doc, flags=re.MULTILINE)
    texts = zip(titled[::2], titled[1::2], strict=True)
    return {"": before.strip(), **{title: textwrap.dedent(text).strip() for title, text in texts}}


def _section(fn: Callable[..., Any], title: str, text: str) -> str:
    if ">>> " in text:
        # doctest ignores fences, so that a blank line must end the expected output of the last statement.
        return _fence("python", "\n".join([*_imports(fn, text), text, "\n"]))
    if title in ("Args", "Raises"):  # a list, whose items begin with a name
        text = re.sub(r"^(\S.*?):\s*", r"- `\1`: ", re.sub(r"^ +", "  ", text, flags=re.M), flags=re.M)
    return _prose(text)


def _imports(fn: Callable[..., Any], example: str) -> list[str]:
    """Return import statements for the names that an example takes from the function's module."""
    scope = getattr(inspect.unwrap(fn), "__globals__", {})
    trees = (ast.parse(e.source) for e in DocTestParser().get_examples(example))
    names = {n.id for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    modules, others = [], []
    for name in sorted(names & scope.keys()):
        value = scope[name]
        if isinstance(value, ModuleType):
            modules.append(f">>> import {value.__name__}" + ("" if value.__name__ == name else f" as {name}"))
        else:  # from the package if it offers the name, else from the defining module
            homes = fn.__module__.partition(".")[0], getattr(value, "__module__", "")
            offering = (home for home in homes if getattr(sys.modules.get(home), name, None) is value)
            others.append(f">>> from {next(offering, fn.__module__)} import {name}")
    return modules + others


# ------------------------------------------------------------------------------------------------------------- Markdown


def _prose(text: str) -> str:
    """Escape text so that Markdown sees no markup but code between backticks."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else _MARKUP.sub(r"\\\g<0>", p) for p in pieces)


def _fence(language: str, code: str) -> str:
    return f"```{language}\n{code.removesuffix(chr(10))}\n```"


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _index(rules: Sequence[Rule]) -> str:
    rows = ((f"[{rule.name}]({rule.name}.md)", _cell(_formula(rule)), _cell(rule.reason)) for rule in rules)
    table = _table(("rule", "formula", "why it exists"), rows)
    tree = _fence("{toctree}", "\n".join([":hidden:\n", *(rule.name for rule in rules)]))
    about = "`vjplib.lecture.rule_pages` writes each page from the record and the file of its rule."
    return "\n\n".join(["# Rules", about, table, tree]) + "\n"


def _formula(rule: Rule) -> str:
    return (inspect.getdoc(rule.fn) or "").partition("\n")[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Write pages, as the command line says."""
    does = "Write a Markdown page for each rule."
    parser = argparse.ArgumentParser("python -m vjplib.lecture.rule_pages", description=does)
    parser.add_argument("directory", type=Path, help="where to write them")
    parser.add_argument("targets", nargs="*", help="a rule, package.module or package.module:name; all of ours if none")
    options = parser.parse_args(argv)
    rules = [rule for target in options.targets for rule in find(target)]
    for path in write_pages(options.directory, rules if options.targets else None):
        print(path)


if __name__ == "__main__":
    main()
