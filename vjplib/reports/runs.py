"""Run: the reports of many functions with what they depend on, as JSON by a schema, written and read again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from vjplib.verification.report import Report

SCHEMA = 2
"""The number of the schema that files are written in; it rises when a reader of the former would misread them."""

_JSON: Mapping[Any, tuple[str, tuple[type, ...]]] = {
    str: ("a string", (str,)),
    int: ("an integer", (int,)),
    float: ("a number", (int, float, str)),
    tuple: ("a list", (list,)),
    Sequence: ("a list", (list,)),
}
"""How JSON holds values of these types; those of others are objects."""


@dataclass(frozen=True)
class Run:
    """What one run of the verifier found.

    Args:
        reports: the proof sheets, one a function.
        environment: what a figure depends on beside the code: versions, machine, date.
        effort: "quick", "standard" or "deep".
        seed: of all random numbers.
        claims: those that were asked for; None for all of the effort.

    Example:
        >>> from vjplib.verification import Finding
        >>> run = Run((Report("f", (Finding("contract", "pass", "as promised"),)),))
        >>> run.ok, Run.from_dict(run.to_dict()) == run
        (True, True)
    """

    reports: Sequence[Report]
    environment: Mapping[str, Any] = field(default_factory=dict)
    effort: str = "standard"
    seed: int = 0
    claims: Sequence[str] | None = None

    @property
    def ok(self) -> bool:
        """True if there is a function and all are verified."""
        return bool(self.reports) and all(r.ok for r in self.reports)

    def to_dict(self) -> dict[str, Any]:
        """Return the run by `schema.json`."""
        head = {"schema": SCHEMA, "environment": dict(self.environment), "effort": self.effort, "seed": self.seed}
        head["claims"] = None if self.claims is None else list(self.claims)
        return {**head, "ok": self.ok, "reports": [r.to_dict() for r in self.reports]}

    @classmethod
    def from_dict(cls, content: Any) -> "Run":
        """Return the run that `to_dict` wrote.

        Raises:
            ValueError: the content is of no run, or by another schema; the message says what is amiss.
        """
        if not isinstance(content, dict) or "reports" not in content:
            raise ValueError("must be an object with reports, as `vjplib verify --json` writes it")
        if content.get("schema") != SCHEMA:
            found = f"schema {content['schema']!r}" if "schema" in content else "no schema number"
            raise ValueError(f"must be by schema {SCHEMA}, has {found}; write it anew with `vjplib verify --json`")
        try:
            run = _read(cls, content, "run")
            if run.seed < 0:
                raise ValueError(f"seed must be an integer of at least 0, got {run.seed}")
        except KeyError as error:
            raise ValueError(f"must be by schema {SCHEMA}, lacks {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"must be by schema {SCHEMA}: {error}") from error
        return run


def _read(kind: Any, value: Any, name: str) -> Any:
    """Return a value of a type, of which JSON holds dataclasses as objects and numbers that are not finite as text."""
    options = get_args(kind)
    origin = get_origin(kind) or kind
    if origin is UnionType:  # of a type and None
        return None if value is None else _read(options[0], value, name)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{name}s must be among {', '.join(filter(None, options))}, got {value!r:.60}")
        return value
    words, kinds = _JSON.get(origin, ("an object", (dict,)))
    if name in ("claim", "claims") and origin is str and (type(value) not in kinds or not value):
        raise TypeError(f"claims must be names, got {value!r:.60}")
    if type(value) not in kinds:
        raise TypeError(f"{name} must be {words}, got {value!r:.60}")
    if is_dataclass(origin):
        return origin(**{f.name: _read(f.type, value[f.name], f.name) for f in fields(origin)})
    if list in kinds:
        return tuple(_read(options[0], item, name) for item in value)
    return float(value) if origin is float else value


def schema() -> dict[str, Any]:
    """Return the JSON schema of the files.

    Example:
        >>> schema()["properties"]["schema"]
        {'const': 2}
    """
    return json.loads(files("vjplib.reports").joinpath("schema.json").read_text(encoding="utf-8"))


def write_json(path: str | Path, run: Run) -> None:
    """Write a run as JSON by the schema."""
    Path(path).write_text(json.dumps(run.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read(path: str | Path) -> Run:
    """Return the run that a JSON file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no run, or one by another schema.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, and of UTF-8
        raise ValueError(f"{path} must be JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"{path} must be JSON as `vjplib verify --json` writes it, is nested too deep") from None
    try:
        return Run.from_dict(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
