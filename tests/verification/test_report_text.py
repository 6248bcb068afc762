"""The text of a report: one paragraph a cause, what is wrong first, in at most 12 lines before its reproduction."""

import re
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_rules import FAULTS, LOGITS, hidden_state, rule, sine, softmax

import vjplib
from vjplib.verification.causes import causes
from vjplib.verification.report import Explanation, Finding, Report
from vjplib.verification.text import remarks, render

X, S, V = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((4, 16), 16, 7))
MOST = 12  # lines of a paragraph before its reproduction
EVERY_VALUE = ("value", "linearity", "second_order", "taylor", "edges", "accuracy")


def norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def norm_fwd(x, scale):
    r = jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    return x * r * scale, (x * r, r, scale)


def rms(bwd):
    made = rule(norm, norm_fwd, bwd)
    made.__name__ = "rms"
    return made


def forgot_to_divide(res, g):
    y, r, scale = res
    gs = g * scale
    return r * (gs - y * jnp.sum(gs * y, axis=-1, keepdims=True)), jnp.sum(g * y, axis=0)


def dropped_projection(res, g):
    y, r, scale = res
    gs = g * scale
    dx = r * gs
    return dx, jnp.sum(g * y, axis=0)


def two_mistakes(res, g):
    y, r, scale = res
    gs = g * scale
    dx = r * (gs + y * jnp.mean(gs * y, axis=-1, keepdims=True))
    return dx, jnp.sum(g, axis=0)


def center(x):
    return x - jnp.mean(x, axis=-1, keepdims=True)


def center_bwd(_, g):
    return (g,)


def naive_softmax(x):
    e = jnp.exp(x)
    return e / jnp.sum(e, axis=-1, keepdims=True)


def doubled(y, g):
    return (2 * y * (g - jnp.sum(g * y, axis=-1, keepdims=True)),)


def hangs(x, g):
    while True:
        pass


def draws(x, g):
    np.random.rand()  # noqa: NPY002
    return g * jnp.cos(x)


CENTERED = rule(center, lambda x: (center(x), None), center_bwd)
DOUBLED = rule(naive_softmax, lambda x: 2 * (naive_softmax(x),), doubled)
KEEPS_TWO = rule(jnp.sin, lambda x: (jnp.sin(x), (x, jnp.cos(x))), lambda res, g: (g * res[1],))
NEGATED = softmax(lambda y, g: -y * (g - jnp.sum(g * y, axis=-1, keepdims=True)))


class Case(NamedTuple):
    """A wrong rule, a call, what to verify of it, and the text, numbers of lines and of sizes of errors replaced."""

    fn: Any
    args: tuple[Any, ...]
    text: str
    options: dict[str, Any]


def case(fn, args, text, **options):
    return Case(fn, args, textwrap.dedent(text).strip("\n"), options)


def fault(name, claims, text, **options):
    return case(FAULTS[name].fn, FAULTS[name].args, text, claims=claims, reference=FAULTS[name].reference, **options)


CASES = {
    "an axis's size": case(
        rms(forgot_to_divide),
        (X, S),
        """
        rms: the cotangent of x is wrong (# x the tolerance)
          test_report_text.py:LINE in forgot_to_divide: `jnp.sum(gs * y, axis=-1, keepdims=True)` is 16
              times too large; 16 is the size of x's last axis. Is a mean meant where a sum is written?
          also wrong for the same reason: second order, Taylor's remainder, edges, accuracy
          reproduce:
        """,
        effort="standard",
        claims=EVERY_VALUE,
    ),
    "a sign": case(
        NEGATED,
        LOGITS,
        """
        fn: the cotangent of x is wrong (# x the tolerance)
          test_report_text.py:LINE: `-y` or `g - jnp.sum(g * y, axis=-1, keepdims=True)` has the wrong sign
          also wrong for the same reason: second order, edges
          reproduce:
        """,
        claims=EVERY_VALUE,
    ),
    "a dropped projection": case(
        rms(dropped_projection),
        (X, S),
        """
        rms: the cotangent of x is wrong (# x the tolerance)
          test_report_text.py:LINE in dropped_projection: a term is missing; adding `-y * jnp.mean(y * dx,
              axis=-1, keepdims=True)` to the cotangent of x makes it right
          also wrong for the same reason: second order, edges
          reproduce:
        """,
        claims=EVERY_VALUE,
    ),
    "a dropped mean": case(
        CENTERED,
        (X,),
        """
        center: the cotangent of x is wrong (# x the tolerance)
          test_report_text.py:LINE in center_bwd: a term is missing; adding `-jnp.mean(g, axis=-1,
              keepdims=True)` to the cotangent of x makes it right
          also wrong for the same reason: second order, edges
          reproduce:
        """,
        claims=EVERY_VALUE,
    ),
    "a missing operand": fault(
        "sum(g) for <g, y>",
        EVERY_VALUE,
        """
        fn: the cotangent of x is wrong (# x the tolerance)
          wrong_rules.py:LINE: `g` in `jnp.sum(g, axis=-1, keepdims=True)` lacks the factor `y`
          also wrong for the same reason: second order, edges
          reproduce:
        """,
    ),
    "a sum over the batch": fault(
        "bias not summed, but its first row",
        EVERY_VALUE,
        """
        fn: the cotangent of b is wrong (# x the tolerance)
          wrong_rules.py:LINE: the cotangent of b should be `jnp.sum(g, axis=0)`
          also wrong for the same reason: second order, edges
          reproduce:
        """,
    ),
    "two mistakes": case(
        rms(two_mistakes),
        (X, S),
        """
        rms: the cotangent of x is wrong (# x the tolerance)
          test_report_text.py:LINE in two_mistakes: `gs * y` has the wrong sign
          also wrong for the same reason: second order, edges
          reproduce:
        rms: the cotangent of scale is wrong (# x the tolerance)
          test_report_text.py:LINE in two_mistakes: `g` in `jnp.sum(g, axis=0)` lacks the factor `y`
          also wrong for the same reason: edges
          reproduce:
        """,
        claims=EVERY_VALUE,
    ),
    "a factor, and an overflow": case(
        DOUBLED,
        LOGITS,
        """
        naive_softmax: the cotangent of x is wrong (# x the tolerance)
          test_report_text.py:LINE in doubled: `2 * y` or `g - jnp.sum(g * y, axis=-1, keepdims=True)` is 2
              times too large
          also wrong for the same reason: second order, edges
          reproduce:
        naive_softmax: the output, the output of the forward pass and the cotangent of x are wrong (# x the
              tolerance)
          edges: output: inputs times 100: not finite where the oracle is (# x the tolerance, worst at (#))
          edges: output of the forward pass: inputs times 100: not finite where the oracle is (# x the
              tolerance, worst at (#))
          edges: cotangent of x: inputs times 100: not finite where the oracle is (# x the tolerance, worst
              at (#))
          and 3 more
        """,
        claims=EVERY_VALUE,
        reference=jax.nn.softmax,
    ),
    "nothing of the kind": case(
        sine(lambda x, g: g * jnp.tanh(x)),
        (V,),
        """
        sin: the cotangent of x is wrong (# x the tolerance)
          value: in float64, # from the oracle, relative to its size (# x the tolerance)
          second order: reverse over reverse differs from the oracle in the derivative with respect to x (#
              x the tolerance)
          and 1 more
          no factor on one expression, and no single missing factor or term, explains the error; the best
              factor, on `jnp.tanh(x)` at test_report_text.py:LINE, leaves # % of it
          reproduce:
        """,
        claims=("value", "second_order"),
    ),
    "arguments of one shape swapped": fault(
        "swapped cotangents of equal shape",
        ("value",),
        """
        matmul: the cotangent of a is wrong (# x the tolerance)
          wrong_rules.py:LINE: the cotangent of a should be `g @ res[1].T`
          trap: cotangents of equal shape are permuted; return them in the order of the arguments:
              docs/traps.md#permuted-cotangents
          reproduce:
        matmul: the cotangent of b is wrong (# x the tolerance)
          wrong_rules.py:LINE: the cotangent of b should be `res[0].T @ g`
          trap: cotangents of equal shape are permuted; return them in the order of the arguments:
              docs/traps.md#permuted-cotangents
          reproduce:
        """,
    ),
    "a forgotten gradient": fault(
        "None for one argument",
        EVERY_VALUE,
        """
        fn: the cotangent of W is wrong (# x the tolerance)
          value: in float64, # from the oracle, relative to its size (# x the tolerance)
          second order: reverse over reverse differs from the oracle in the derivative with respect to x (#
              x the tolerance)
          edges: ties: differs from the oracle (# x the tolerance, worst at (#))
          and 5 more
          trap: the gradient of this argument is zero or None, and should not be; return its cotangent:
              docs/traps.md#forgotten-gradient
          reproduce:
        """,
    ),
    "an axis of one": fault(
        "wrong for an axis of one",
        ("value", "variations"),
        """
        mean: the cotangent of x is wrong (# x the tolerance)
          variations [the axes of size 7 made 1]: differs from the float64 oracle, inputs times 1 (# x the
              tolerance, worst at (#))
          variations [the axes of size 7 made 1]: in float64, # from the oracle, relative to its size (# x
              the tolerance)
          trap: it is wrong for an axis of one element only; do not squeeze, nor divide by n - 1, at n = 1:
              docs/traps.md#batch-of-one
          right at your call; if the function is not meant for such sizes, an exception says so
          reproduce:
        """,
        effort="standard",
    ),
    "the wrong shape": fault(
        "bias not summed at all",
        ("contract",),
        """
        fn: it raises an exception
          contract: forward and backward raise as called: ValueError: ...
          and 2 more
        fn: a shape, dtype or tree is wrong
          contract: <lambda>'s b: the backward returns float32 of shape (2, 3) for an argument of shape (3,)
          trap: an argument was broadcast and its cotangent is not summed back; sum over the axes along
              which it was broadcast: docs/traps.md#broadcast-not-summed
        """,
    ),
    "a dtype": fault(
        "cotangent dtype",
        ("contract",),
        """
        fn: a shape, dtype or tree is wrong
          contract: cotangent of x: in bfloat16, the backward returns float32 of shape (3, 7) for an
              argument of bfloat16 of shape (3, 7)
          and 1 more
          trap: the cotangent has another dtype than its argument; end with dx.astype(x.dtype):
              docs/traps.md#cotangent-dtype
        """,
    ),
    "second order": fault(
        "second order wrong, first right",
        ("value", "second_order"),
        """
        fn: the second derivative is wrong (# x the tolerance)
          second order: reverse over reverse differs from the oracle in the derivative with respect to x (#
              x the tolerance)
          trap: a second derivative is exactly zero, and should not be; let residuals depend on the
              arguments by functions that have derivatives: docs/traps.md#second-order-zero
        """,
    ),
    "an edge": fault(
        "0 times infinity at a boundary",
        ("value", "edges"),
        """
        fn: the cotangent of x is wrong (# x the tolerance)
          edges: zeros: not finite where the oracle is (# x the tolerance, worst at (#))
          edges: subnormal inputs: not finite where the oracle is (# x the tolerance, worst at (#))
          trap: at a boundary it is not finite where the derivative is, as 0 * inf and 0 / 0 are not; make
              the argument harmless by jnp.where before dividing, not only the result after:
              docs/traps.md#zero-times-infinity
          right at your call; if the function is not meant for such inputs, domain= says so
          reproduce:
        """,
    ),
    "not linear": fault(
        "cotangent clipped at 5",
        ("value", "linearity"),
        """
        sin: the backward is not linear in the cotangent (# x the tolerance)
          linearity: cotangent of x: the backward is not linear in the cotangent: B(2^40 g) = 2^40 B(g) is
              off by # of its size (# x the tolerance)
          trap: the backward is not linear in the cotangent; use the cotangent as a factor once; clip
              gradients elsewhere, or leave linearity out of claims if it is meant: docs/traps.md#not-linear
        """,
    ),
    "residual bytes": case(
        KEEPS_TWO,
        (V,),
        """
        sin: the residuals are not of the size claimed
          residuals: keeps 56 bytes, autodiff 28; 28 of them the backward never uses; 28 are claimed
          trap: more is kept between forward and backward than needed; keep the smallest residual, the
              output before the input: docs/traps.md#residuals-kept
        """,
        claims=("residuals",),
        residual_bytes=28,
    ),
    "n by n": fault(
        "n x n Jacobian of softmax formed",
        ("growth",),
        """
        fn: time or memory grows too fast
          growth: in the axes of size 7: largest array grows with exponent 2.00, operations 2.00; autodiff
              of the reference: 1.00 and 1.00
          trap: an array grows faster than what comes in and goes out, as an n x n Jacobian does; derive the
              product with the cotangent, and never form the Jacobian: docs/traps.md#n-by-n
        """,
    ),
    "hidden state": case(
        hidden_state(),
        (V,),
        """
        sin: two runs give different numbers
          transforms: a rerun gives other bits: state or randomness is hidden in it
          trap: something but arguments and residuals passes from forward to backward, or a run to the next;
              keep it in the residuals; take random keys as arguments: docs/traps.md#hidden-state
        """,
        claims=("transforms",),
    ),
    "a side effect": case(
        sine(draws),
        (V,),
        """
        sin: it changes the state of the process
          transforms: draws from NumPy's global random numbers, so a traced call and a cached one differ;
              the change is undone
        """,
        claims=("value", "transforms"),
    ),
    "raises": case(
        sine(lambda x, g: g @ jnp.ones((3, 3))),
        (V,),
        """
        sin: it raises an exception
          contract: forward and backward raise as called: TypeError: ...
          value: raises TypeError: ...
          and 3 more
        """,
        claims=("contract", "value"),
    ),
    "does not end": case(
        sine(hangs),
        (V,),
        """
        sin: it did not end in time
          contract: did not end within 4 s
        """,
        claims=("contract", "value"),
        time_limit=4,
    ),
}


def shown(report):
    return "\n".join(remarks([report], "fail"))


def normalized(text):
    """Returns text folded, with the numbers of lines and of errors replaced, and each reproduction cut off."""
    text = re.sub(r"(?s)reproduce:\n\n.*?\n\n", "reproduce:\n", text + "\n\n")
    text = re.sub(r"(test_report_text|wrong_rules)\.py:\d+", r"\1.py:LINE", text)
    text = re.sub(r"(\d[\d.e]*|inf) x the tolerance", "# x the tolerance", text)
    text = re.sub(r"(\w+Error): .*", r"\1: ...", text)
    text = re.sub(r"worst at \([\d, ]*\)", "worst at (#)", text)
    text = re.sub(r"\d\.\de[-+]\d+ (from|of)", r"# \1", re.sub(r"\d+% of it", "# % of it", text)).strip("\n")
    return "\n".join(textwrap.fill(line, 100, subsequent_indent=" " * 6) for line in text.splitlines())


@pytest.mark.parametrize("name", CASES)
def test_a_report_answers_the_author_first(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fn, args, expected, options = CASES[name]
    report = vjplib.verify(fn, args, **{"effort": "quick", **options})
    text = shown(report)
    assert normalized(text) == expected
    assert text in str(report)
    paragraphs = re.split(r"\n(?! )", expected)
    assert len(paragraphs) == len(causes(report))
    assert max(len(paragraph.splitlines()) for paragraph in paragraphs) <= MOST
    capsys.readouterr()
    name = fn.__name__ if fn.__name__.isidentifier() else "fn"
    sources = re.findall(r"(?s)reproduce:\n\n(.*?)\n\n", text + "\n\n")
    assert len(sources) == expected.count("reproduce:")
    for source in sources:
        namespace = {name: fn}
        exec(source, namespace)
        given, right = np.asarray(namespace["given"]), np.asarray(namespace["right"])
        assert given.shape == right.shape
        assert not np.allclose(given, right, rtol=5e-5, atol=1e-6)
        assert " should be " in capsys.readouterr().out


FACTOR = Explanation("factor", ("cotangent of x",), factor=2.0)
LEAD = Finding("value", "fail", "differs", "cotangent of x", 10.0, case="n=5", code="wrong_value", explanation=FACTOR)
FOLLOWS = {
    "the same cotangent at an edge": Finding(
        "edges", "fail", "ties", "cotangent of x", 9.0, case="n=5", code="wrong_value"
    ),
    "its second derivative": Finding("second_order", "fail", "differs", "", 9.0, case="n=5", code="wrong_value"),
    "its error in half precision": Finding(
        "accuracy", "fail", "", "cotangent of x", 9.0, case="n=5", code="inaccurate"
    ),
    "another size of the call": Finding(
        "variations", "fail", "", "cotangent of x", 9.0, case="n=6", code="wrong_value"
    ),
}
STANDS_ALONE = {
    "another argument": Finding("value", "fail", "differs", "cotangent of w", 9.0, case="n=5", code="wrong_value"),
    "not finite": Finding("edges", "fail", "zeros", "cotangent of x", float("inf"), case="n=5", code="wrong_value"),
    "a trap": Finding("edges", "fail", "ties", "cotangent of x", 9.0, case="n=5", code="wrong_value", trap="ties"),
    "an exception": Finding("second_order", "fail", "raises", case="n=5", code="raises"),
    "no end": Finding("edges", "fail", "did not end", case="n=5", code="timeout"),
    "not linear": Finding("linearity", "fail", "B(2 g)", "cotangent of x", 9.0, case="n=5", code="not_linear"),
    "a transform": Finding("transforms", "fail", "vmap", "", 9.0, case="n=5", code="wrong_value"),
    "communication": Finding("sharding", "fail", "sends", case="n=5", code="communication"),
    "growth": Finding("growth", "fail", "n x n", case="n=5", code="growth"),
}


@pytest.mark.parametrize("name", FOLLOWS)
def test_what_follows_from_one_cause_is_one_line(name):
    (cause,) = causes(Report("f", (LEAD, FOLLOWS[name])))
    assert cause.findings == (LEAD, FOLLOWS[name])
    assert shown(Report("f", (LEAD, FOLLOWS[name]))).count("also wrong for the same reason: ") == 1


@pytest.mark.parametrize("name", STANDS_ALONE)
def test_an_independent_failure_is_never_folded_away(name):
    first, second = causes(Report("f", (LEAD, STANDS_ALONE[name])))
    assert (first.findings, second.findings) == ((LEAD,), (STANDS_ALONE[name],))
    assert STANDS_ALONE[name].message in shown(Report("f", (LEAD, STANDS_ALONE[name])))


def test_another_case_is_not_said_to_fail_for_the_same_reason():
    other = Finding("value", "fail", "differs", "cotangent of x", 9.0, case="n=8 axis=0", code="wrong_value")
    text = shown(Report("f", (LEAD, other)))
    assert "also wrong at other calls, maybe for the same reason: n=8 axis=0" in text


def test_every_failure_is_in_one_cause():
    findings = (LEAD, *FOLLOWS.values(), *STANDS_ALONE.values())
    found = [f for cause in causes(Report("f", findings)) for f in (*cause.findings, *cause.elsewhere)]
    assert sorted(map(str, found)) == sorted(map(str, findings))


def test_notes_are_told_on_request_and_what_is_undecided_always():
    findings = (
        Finding("value", "pass", "equal"),
        Finding("edges", "note", "a kink"),
        Finding("taylor", "skipped", "no"),
    )
    report = Report("f", findings)
    assert [str(f) for f in report.notes] == ["edges note a kink"]
    assert "a kink" not in render([report])
    assert "f: taylor skip no" in render([report])
