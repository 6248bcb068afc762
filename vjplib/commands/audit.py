"""vjplib audit: verifies every custom rule of a program, at the inputs that the program calls it with."""

import argparse
import importlib.util
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vjplib.commands.common import (
    Command,
    add_effort,
    add_formats,
    count,
    must_differ,
    progress,
    seconds,
    seed,
    write_json,
)


def add(command: Command) -> None:
    """Add the command."""
    audit = command("audit", _audit, "verify every custom rule that a program calls; exit 1 if one fails")
    audit.add_argument(
        "target",
        nargs="?",
        metavar="FILE.py:FUNCTION",
        help="function to audit; called with the module's ARGS (a tuple, or a function returning one) if defined",
    )
    add_effort(
        audit,
        quick="examine one call of each rule, at two shapes at most, and do not locate bugs",
        deep="examine more calls and shapes; also transforms, second derivatives and edges, as notes only",
    )
    audit.add_argument("--steps", type=count, default=1, metavar="N", help="call the function N times (default 1)")
    audit.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the sampled calls (default 0)")
    audit.add_argument("--time-limit", type=seconds, metavar="S", help="time limit of one rule in seconds (default 60)")
    audit.add_argument(
        "--by-design",
        action="append",
        default=[],
        metavar="RULE=REASON",
        help="rule whose derivative differs from autodiff's on purpose: a note, not a failure",
    )
    audit.add_argument(
        "-v", "--verbose", action="store_true", help="print where passing rules stand too, and the notes of all rules"
    )
    add_formats(audit, json="JSON", markdown="Markdown")
    audit.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        dest="script",
        metavar="SCRIPT.py",
        help="script to run and audit, followed by its arguments; options of the audit come before --run",
    )


def _audit(parsed: argparse.Namespace) -> int:
    from vjplib.auditing import SECONDS, examined, watching

    if (parsed.target is None) == (not parsed.script):
        parsed.error("one of FILE.py:FUNCTION and --run SCRIPT.py must be given")
    must_differ(parsed, "json", "markdown")
    reasons = dict(_reason(parsed, text) for text in parsed.by_design)
    console = Console(highlight=False)
    program = _script(parsed) if parsed.script else _function(parsed)
    name = parsed.script[0] if parsed.script else parsed.target
    with watching(parsed.seed, keep=8 if parsed.effort == "deep" else 3) as watch:
        raised = _raised(program, bool(parsed.script))
    sys.stdout.flush()
    report = examined(
        watch,
        name=name,
        effort=parsed.effort or "standard",
        seconds=parsed.time_limit or SECONDS,
        by_design=reasons,
        raised=raised,
        progress=lambda groups: progress(groups, console, lambda g: g.name),
    )
    if parsed.json:
        write_json(parsed.json, report.to_dict())
    if parsed.markdown:
        parsed.markdown.write_text(report.to_markdown() + "\n", encoding="utf-8", errors="backslashreplace")
    report.print(console, parsed.verbose)
    return 0 if report.ok else 1


def _reason(parsed: argparse.Namespace, text: str) -> tuple[str, str]:
    name, equals, reason = text.partition("=")
    if not (name and equals and reason):
        parsed.error(f"--by-design must be RULE=REASON, got {text}")
    return name, reason


def _function(parsed: Any) -> Callable[[], None]:
    """Return a function that calls FILE.py:FUNCTION in each step."""
    file, colon, name = parsed.target.rpartition(":")
    path = Path(file)
    if not colon or not path.is_file():
        parsed.error(f"target must be FILE.py:FUNCTION with a file that exists, got {parsed.target}")
    sys.path.insert(0, str(path.resolve().parent))
    sys.argv = [str(path)]  # some packages read the options of the program from here
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        return parsed.error(f"target must name a Python file, got {file}")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        args = getattr(module, "ARGS", ())
        args = args() if callable(args) else args
    except (Exception, SystemExit) as error:  # whatever the user's module raises while it is imported
        sys.modules.pop(path.stem, None)
        return parsed.error(f"{file} cannot be imported: {type(error).__name__}: {error}")
    fn = getattr(module, name, None)
    if not callable(fn):
        return parsed.error(f"{file} must hold a function {name}")
    if not isinstance(args, (tuple, list)):
        parsed.error(f"ARGS of {file} must be a tuple of arguments, got {type(args).__name__}")
    call: Callable[[], Any] = partial(fn, *args)

    def run() -> None:
        import jax

        for _ in range(parsed.steps):
            jax.block_until_ready(call())

    return run


def _script(parsed: argparse.Namespace) -> Callable[[], None]:
    """Return a function that runs the script as the main program."""
    path = Path(parsed.script[0])
    if not path.is_file():
        parsed.error(f"--run must be followed by a script that exists, got {path}")

    def run() -> None:
        sys.argv = list(parsed.script)
        sys.path.insert(0, str(path.resolve().parent))
        runpy.run_path(str(path), run_name="__main__")

    return run


def _raised(program: Callable[[], None], may_exit: bool) -> str:
    """Return the message of what a program raises, and print the traceback, the program's own frames only."""
    from vjplib.verification.report import describe_error

    try:
        program()
        return ""
    except SystemExit as leave:  # a script may end so with status 0; a function must return
        return "" if may_exit and not leave.code else f"SystemExit: status {leave.code or 0}"
    except Exception as raised:  # the calls until then are examined
        error = raised
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((folder, "<frozen"))]
    print("".join(traceback.format_list(frames)), describe_error(error), sep="", file=sys.stderr)
    return describe_error(error)
