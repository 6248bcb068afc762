"""Plots of a run as SVG: errors beside autodiff's, growth, Jacobians. They take their colours from the page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from vjplib.verification.report import Finding, Report


class Axis(NamedTuple):
    """A logarithmic axis from the power of ten `low` to `high`, on the page from `start` to `end`."""

    low: int
    high: int
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the position of a number; one below the axis's start lies at the start."""
        exponent = math.log10(value) if value > 0 else self.low
        exponent = min(max(exponent, self.low), self.high)
        return self.start + (self.end - self.start) * (exponent - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> Iterator[tuple[float, str]]:
        """Yield position and label of at most this many powers of ten."""
        step = max(1, math.ceil((self.high - self.low) / most))
        for exponent in range(self.low, self.high + 1, step):
            yield self.at(10.0**exponent), f"1e{exponent}"


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Return an axis that holds all positive finite values.

    Example:
        >>> axis([3.0, 250.0], 0, 100)
        Axis(low=0, high=3, start=0, end=100)
    """
    exponents = [math.log10(v) for v in values if v > 0 and math.isfinite(v)] or [0.0]
    low = math.floor(min(exponents))
    return Axis(low, max(math.ceil(max(exponents)), low + 1), start, end)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _grid(x: Axis, y: Axis, most: int) -> list[str]:
    vertical = [_line(at, y.end, at, y.start, "grid") + _text(at, y.start + 15, t, "middle") for at, t in x.ticks(most)]
    return vertical + [
        _line(x.start, at, x.end, at, "grid") + _text(x.start - 6, at + 4, t, "end") for at, t in y.ticks(most)
    ]


def _dot(x: float, y: float, kind: str, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{kind}"><title>{escape(title)}</title></circle>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


class _Point(NamedTuple):
    name: str
    rule: float
    autodiff: float

    @property
    def label(self) -> str:
        return f"{self.name}: {self.rule:.2g}, autodiff {self.autodiff:.2g}"


def _points(findings: Sequence[Finding]) -> list[_Point]:
    """Return the errors that the claim on accuracy measured, one per array and dtype."""
    found = [
        _Point(f"{f.data['dtype']} {a['name']}", float(a["rule"]), float(a["autodiff"]))
        for f in findings
        for a in f.data.get("arrays", ())
        if "dtype" in f.data
    ]
    return [p for p in found if math.isfinite(p.rule) and math.isfinite(p.autodiff)]


def accuracy(findings: Sequence[Finding]) -> str:
    """Return a plot of each array's error against float64, beside autodiff's; "" where no finding measured one."""
    points = _points(findings)
    if not points:
        return ""
    left = 12 + 6.4 * max(len(p.name) for p in points)
    width, top, row = left + 300, 8, 17
    bottom = top + row * len(points)
    scale = axis([e for p in points for e in (p.rule, p.autodiff)], left, width - 30)
    parts = [_line(x, top, x, bottom, "grid") + _text(x, bottom + 14, label, "middle") for x, label in scale.ticks()]
    for i, p in enumerate(points):
        y = top + row * (i + 0.5)
        parts.append(_text(left - 10, y + 4, p.name, "end"))
        parts.append(_line(scale.at(p.rule), y, scale.at(p.autodiff), y, "span"))
        parts += [_dot(scale.at(p.autodiff), y, "theirs", p.label), _dot(scale.at(p.rule), y, "ours", p.label)]
    return _svg(width, bottom + 22, "error against float64, relative to the array's size", parts)


def overview(reports: Sequence[Report]) -> str:
    """Return a plot of all measured errors against autodiff's; "" without any."""
    points = [
        p._replace(name=f"{r.name}, {p.name}")
        for r in reports
        for p in _points([f for f in r.findings if f.claim == "accuracy"])
        if p.rule > 0 and p.autodiff > 0
    ]
    if not points:
        return ""
    size, margin = 360, 52
    values = [e for p in points for e in (p.rule, p.autodiff)]
    x, y = axis(values, margin, size - 8), axis(values, size - margin, 8)
    parts = _grid(x, y, 6)
    parts.append(_line(x.start, y.start, x.end, y.end, "equal"))
    parts.append(_text((margin + size) / 2, size - 14, "autodiff's error", "middle"))
    turned = f"rotate(-90 12 {(size - margin) / 2:.1f})"
    parts.append(
        f'<text x="12" y="{(size - margin) / 2:.1f}" text-anchor="middle" transform="{turned}">the rule\'s</text>'
    )
    parts += [_dot(x.at(p.autodiff), y.at(p.rule), "ours", p.label) for p in points]
    return _svg(size, size, "errors against float64: below the line the rule errs less than autodiff", parts)


def growth(data: Mapping[str, Any]) -> str:
    """Return two plots against a dimension's size: the elements of the largest array, and the operations."""
    sizes, ours, theirs = data["sizes"], data["rule"], data.get("autodiff", {})
    return "".join(
        _curves(
            f"{title} by {data['dimension']}",
            list(zip(sizes, ours[part], strict=True)),
            list(zip(sizes, theirs[part], strict=True)) if theirs else [],
        )
        for part, title in (("largest", "largest array"), ("operations", "operations"))
    )


def _curves(title: str, ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]) -> str:
    width, height, left, bottom = 250, 170, 46, 130
    x = axis([a for a, _ in ours], left, width - 14)
    y = axis([b for _, b in (*ours, *theirs)], bottom, 26)
    parts = _grid(x, y, 4)
    parts.append(_text(left, 14, title))
    for pairs, kind in (*([(theirs, "theirs")] if theirs else ()), (ours, "ours")):
        places = [(x.at(a), y.at(b)) for a, b in pairs]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{path}" class="{kind}"/>')
        label = [f"{a:,.3g}: {b:,.3g}" for a, b in pairs]
        parts += [_dot(*place, kind, words) for place, words in zip(places, label, strict=True)]
    return _svg(width, height - 18, title, parts)


def taylor(data: Mapping[str, Any], title: str) -> str:
    """Return a plot of the remainder of a Taylor step against the step h, beside h^2."""
    pairs = [(h, abs(float(r))) for h, r in zip(data["h"], data["remainder"], strict=True)]
    pairs = [(h, r) for h, r in pairs if r > 0 and math.isfinite(r)]
    if not pairs:
        return ""
    h, r = max(pairs)
    low = min(r for _, r in pairs)
    squares = [(step, r * (step / h) ** 2) for step, _ in pairs]
    return _curves(title, pairs, [(step, square) for step, square in squares if square >= low])


def jacobian(data: Mapping[str, Any], title: str) -> str:
    """Return a picture of the nonzero entries of dy/dx, and of the wrong ones.

    `rows` of the data are strings of "+", "-" and "." for zero; `wrong` holds pairs of row and column.
    """
    rows = data["rows"]
    cell = max(6, min(12, 160 // len(rows)))
    width, height = cell * max(map(len, rows)), cell * len(rows)
    parts = [f'<rect width="{width}" height="{height}" class="paper"/>']
    plus, minus = (
        [(i, j) for i, row in enumerate(rows) for j, entry in enumerate(row) if entry == sign] for sign in "+-"
    )
    for kind, places in (("plus", plus), ("minus", minus), ("wrong", data.get("wrong", ()))):
        squares = "".join(f"M{cell * j} {cell * i}h{cell - 1}v{cell - 1}h-{cell - 1}z" for i, j in places)
        parts.append(f'<path d="{squares}" class="{kind}"/>')
    return _svg(width, height, title, parts)
