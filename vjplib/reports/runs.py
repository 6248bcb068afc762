"""Run: the reports of many functions with what they depend on, as JSON by a schema, written and read again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from vjplib.verification.report import Code, Explanation, Finding, Kind, Level, Place, Report

KINDS = get_args(Kind)
SCHEMA = 2
"""The number of the schema that files are written in; it rises when a reader of the former would misread them."""


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
            reports = tuple(map(_report, content["reports"]))
            claims = None if content["claims"] is None else tuple(map(_claim, content["claims"]))
            seed = content["seed"]
            if type(seed) is not int or seed < 0:
                raise TypeError(f"seed must be an integer of at least 0, got {seed!r:.60}")
            return cls(reports, dict(content["environment"]), _text(content, "effort"), seed, claims)
        except KeyError as error:
            raise ValueError(f"must be by schema {SCHEMA}, lacks {error}") from error
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"must be by schema {SCHEMA}: {error}") from error


def _claim(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"claims must be names, got {name!r:.60}")
    return name


def _explanation(content: Any) -> Explanation | None:
    if content is None:
        return None
    if content["kind"] not in KINDS:
        raise ValueError(f"kinds must be among {', '.join(KINDS[1:])}, got {content['kind']!r:.60}")
    factor, words = content["factor"], ("meaning", "term", "operand", "reason", "counterexample")
    return Explanation(
        content["kind"],
        tuple(map(str, content["cotangents"])),
        tuple(map(_place, content["places"])),
        None if factor is None else float(factor),
        unexplained=float(content["unexplained"]),
        **{key: _text(content, key) for key in words},
    )


def _place(content: Any) -> Place:
    line = content["line"]
    if type(line) is not int:
        raise TypeError(f"line must be an integer, got {line!r:.60}")
    return Place(line=line, **{key: _text(content, key) for key in ("primitive", "file", "function", "source")})


def _text(content: Mapping[str, Any], key: str) -> str:
    if not isinstance(content[key], str):
        raise TypeError(f"{key} must be a string, got {content[key]!r:.60}")
    return content[key]


def _report(content: Mapping[str, Any]) -> Report:
    seconds = content["seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds must be a number, got {seconds!r:.60}")
    return Report(_text(content, "name"), tuple(map(_finding, content["findings"])), float(seconds))


def _finding(content: Mapping[str, Any]) -> Finding:
    if content["level"] not in get_args(Level):
        raise ValueError(f"levels must be among {', '.join(get_args(Level))}, got {content['level']!r:.60}")
    if content["code"] not in get_args(Code):
        raise ValueError(f"codes must be among {', '.join(get_args(Code)[1:])}, got {content['code']!r:.60}")
    ratio, index = content["ratio"], content["index"]
    if index is not None and not (isinstance(index, list) and all(type(i) is int for i in index)):
        raise TypeError(f"index must be a list of integers, got {index!r:.60}")
    return Finding(
        _claim(content["claim"]),
        content["level"],
        _text(content, "message"),
        _text(content, "argument"),
        None if ratio is None else float(ratio),  # what is not finite is written as a string
        None if index is None else tuple(index),
        _text(content, "case"),
        _text(content, "trap"),
        _text(content, "counterexample"),
        content["code"],
        _explanation(content["explanation"]),
        dict(content["data"]),
    )


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
