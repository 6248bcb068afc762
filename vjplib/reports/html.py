"""One page of HTML for a run, complete in itself: nothing is fetched, and names stay text whatever they hold."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from vjplib.reports import plots
from vjplib.reports.changes import Change, changes
from vjplib.reports.runs import Run
from vjplib.verification.causes import causes, details, heading
from vjplib.verification.explain.traps import TRAPS, anchor
from vjplib.verification.registry import present
from vjplib.verification.report import SIGNS, Finding, Report

_ORDER = {"fail": 0, "skipped": 1, "doubt": 2, "note": 3, "pass": 4, None: 5}
_WORDS = {"fail": "failures", "doubt": "doubts", "skipped": "undecided", "note": "notes", "pass": "shown"}
_FEW = 4
_KINDS = {"failure": "new failure", "bytes": "bytes grown", "error": "error grown"}  # the others as they are called


def write_html(path: str | Path, run: Run, against: Run | None = None) -> None:
    """Write the run as a page, with what changed since the run that it is compared with, if there is one."""
    Path(path).write_text("\n".join(_page(run, against)) + "\n", encoding="utf-8", errors="backslashreplace")


def _e(value: object) -> str:
    """Return a value as HTML text; characters that no page may hold are escaped visibly."""
    text = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in str(value))
    return escape(text)


def _asset(name: str) -> str:
    return files("vjplib.reports").joinpath(name).read_text(encoding="utf-8")


def _page(run: Run, against: Run | None) -> Iterator[str]:
    script = _asset("page.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    verified = f"{sum(r.ok for r in run.reports)} of {len(run.reports)} rules verified"
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f'<title>{verified}</title><link rel="icon" href="data:,">'
    yield f"<style>{_asset('page.css')}</style></head><body>"
    yield f'<header><h1 class="{"pass" if run.ok else "fail"}">{verified}</h1>'
    facts = {"effort": run.effort, "seed": run.seed, **run.environment}
    yield '<p class="facts">' + " ".join(f"<span>{_e(k)} <b>{_e(v)}</b></span>" for k, v in facts.items()) + "</p>"
    yield "</header><main>"
    if against is not None:
        yield from _changes(changes(against, run), against)
    yield from _table(run)
    if figure := plots.overview(run.reports):
        yield "<section><h2>Errors against float64</h2><p>One point for each rule, array and dtype; below the line the"
        yield f"rule errs less than autodiff of its reference does.</p>{figure}</section>"
    yield f"</main><script>{script}</script></body></html>"


def _changes(changed: Sequence[Change], against: Run) -> Iterator[str]:
    then = ", ".join(
        f"{_e(k)} {_e(against.environment[k])}" for k in ("date", "jax", "vjplib") if k in against.environment
    )
    regressions = sum(c.regression for c in changed)
    yield f'<section id="changes"><h2>Changes: {regressions} regressions, {len(changed) - regressions} others</h2>'
    yield f"<p>Against a run of effort {_e(against.effort)}, seed {against.seed}{': ' + then if then else ''}.</p>"
    yield "<ul>"
    for c in changed:
        yield f'<li class="{"fail" if c.regression else c.kind}"><b>{_KINDS.get(c.kind, c.kind)}</b> {_e(c)}</li>'
    yield "</ul></section>"


def _table(run: Run) -> Iterator[str]:
    claims = present(run.reports)
    yield '<section><form id="filter" role="search"><label>Filter <input id="text" type="search" size="28"'
    yield 'placeholder="rule, argument, words" autocomplete="off"></label>'
    yield '<label>Level <select id="level"><option value="">all</option>'
    for level, words in _WORDS.items():
        yield f'<option value="{level}">{words}</option>'
    yield '</select></label><output id="count"></output></form>'
    yield '<div class="wide"><table id="rules"><thead><tr>'
    for key, words in (("rule", "rule"), *((claim, _e(claim)) for claim in claims), ("seconds", "s")):
        yield f'<th scope="col" data-key="{key}"><button type="button">{words}</button></th>'
    yield "</tr></thead>"
    for i, report in enumerate(run.reports):
        yield from _rows(i, report, claims)
    yield "</table></div></section>"


def _rows(i: int, report: Report, claims: Sequence[str]) -> Iterator[str]:
    levels = {f.level for f in report.findings}
    yield f'<tbody data-levels="{" ".join(sorted(levels))}"><tr class="head">'
    yield f'<th scope="row" data-sort="{_e(report.name.lower())}">'
    state = "pass" if report.ok else "fail"
    controls = f'aria-expanded="false" aria-controls="d{i}"'
    yield f'<button type="button" class="{state}" {controls}>{_e(report.name)}</button></th>'
    for claim in claims:
        level, sign = report.level(claim), "-"
        if level is not None:
            sign = f'<button type="button" data-claim="{claim}" aria-controls="d{i}">{SIGNS[level]}</button>'
        yield f'<td data-sort="{_ORDER[level]}" class="{level or "none"}">{sign}</td>'
    yield f'<td data-sort="{report.seconds:.3f}" class="number">{report.seconds:.1f}</td></tr>'
    yield f'<tr class="details" id="d{i}" hidden><td colspan="{len(claims) + 2}">'
    if not report.ok and not report.failures:
        yield '<p class="fail">No claim was decided, so nothing is proved.</p>'
    for cause in causes(report):
        yield f'<div class="cause"><p class="fail">{_e(heading(cause))}</p><ul>'
        yield from (f"<li>{_e(line)}</li>" for line in details(cause))
        yield "</ul>"
        if cause.counterexample:
            yield f"<p>Reproduce:</p><pre>{_e(cause.counterexample)}</pre>"
        yield "</div>"
    for claim in claims:
        if report.level(claim):
            yield from _claim(claim, [f for f in report.findings if f.claim == claim])
    yield "</td></tr></tbody>"


def _claim(claim: str, findings: Sequence[Finding]) -> Iterator[str]:
    yield f'<section data-claim="{claim}"><h3>{_e(claim)}</h3>'
    if drawn := "".join(_figures(findings)):
        yield f'<div class="figures">{drawn}</div>'
    others = [f for f in findings if f.level != "pass"]
    shown = [f for f in findings if f.level == "pass"]
    yield "<ul>"
    yield from _items(sorted(others, key=lambda f: _ORDER[f.level]))
    folded = len(shown) > _FEW
    if folded:
        yield f"<li><details><summary>{len(shown)} shown</summary><ul>"
    yield from _items(shown)
    yield "</ul></details></li></ul></section>" if folded else "</ul></section>"


def _items(findings: Sequence[Finding]) -> Iterator[str]:
    for f in findings:
        where = " ".join(f"<i>{_e(part)}</i>" for part in (f.case, f.argument) if part)
        yield f'<li data-level="{f.level}"><b class="{f.level}">{SIGNS[f.level]}</b> {where} {_e(f.message)}'
        if f.ratio is not None:
            worst = f", worst at {_e(f.index)}" if f.index is not None else ""
            yield f'<span class="ratio">{f.ratio:.3g} x the tolerance{worst}</span>'
        if f.trap in TRAPS:
            trap = TRAPS[f.trap]
            yield f'<p class="trap">Trap: {_e(trap.words)}. Remedy: {_e(trap.remedy)}. See {anchor(f.trap)}</p>'
        yield "</li>"


def _figures(findings: Sequence[Finding]) -> Iterator[str]:
    measured = [f for f in findings if "arrays" in f.data]
    for case in dict.fromkeys(f.case for f in measured):
        key = '<span class="ours">rule</span> <span class="theirs">autodiff</span>'
        figure = plots.accuracy([f for f in measured if f.case == case])
        yield f"<figure>{figure}<figcaption>error against float64, by size: {key} {_e(case)}</figcaption></figure>"
    for f in findings:
        if "sizes" in f.data:
            key = '<span class="ours">rule</span>'
            key += ' <span class="theirs">autodiff of the reference</span>' if "autodiff" in f.data else ""
            yield f"<figure>{plots.growth(f.data)}<figcaption>{key}</figcaption></figure>"
        if "remainder" in f.data and (figure := plots.taylor(f.data, f"remainder by step, {f.argument}")):
            key = '<span class="ours">measured</span> <span class="theirs">as its square</span>'
            yield f"<figure>{figure}<figcaption>{key}</figcaption></figure>"
        if jacobian := f.data.get("jacobian"):
            of, shown = jacobian["of"], [len(jacobian["rows"]), max(map(len, jacobian["rows"]))]
            part = "" if of == shown else f", the first {shown[0]} x {shown[1]} of {of[0]} x {of[1]}"
            wrong = ', <span class="wrong">wrong</span>' if jacobian.get("wrong") else ""
            title = f"dy/d{f.argument.removeprefix('cotangent of ')}{part}"
            key = f'<span class="plus">above 0</span> <span class="minus">below 0</span>{wrong}'
            yield f"<figure>{plots.jacobian(jacobian, title)}<figcaption>{_e(title)}: {key}</figcaption></figure>"
