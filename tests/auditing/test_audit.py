"""audit: each custom rule of a program is found, through whatever transforms it, and judged where it is met."""

import io
import json
import os
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from rich.console import Console

from vjplib import audit, examined, watching
from vjplib.__main__ import main


def dense(factor):
    """x @ W + b, the cotangents of x and of b times a factor."""
    made = jax.custom_vjp(lambda x, W, b: x @ W + b)
    made.defvjp(
        lambda x, W, b: (x @ W + b, (x, W)),
        lambda res, g: (factor * (g @ res[1].T), jnp.outer(res[0], g), factor * g),
    )
    return made


def cube(factor):
    """x^3 by a custom_jvp, its slope 3 x^2 times factor."""
    made = jax.custom_jvp(lambda x: x**3)
    made.defjvp(lambda primals, tangents: (primals[0] ** 3, factor * 3 * primals[0] ** 2 * tangents[0]))
    return made


RIGHT, WRONG = dense(1), dense(2)
RIGHT_JVP, WRONG_JVP = cube(1.0), cube(1.001)
X, W, B = jnp.arange(1.0, 6.0) / 5, jnp.cos(jnp.arange(10.0)).reshape(5, 2), jnp.ones(2)
RULES = {"custom_vjp": (RIGHT, WRONG), "custom_jvp": (RIGHT_JVP, WRONG_JVP)}


def call(rule, x):
    """A rule of either kind at x, to a number."""
    return jnp.sum(jnp.sin(rule(x) if isinstance(rule, jax.custom_jvp) else rule(x, W, B)))


def sharded(rule):
    vma = isinstance(rule, jax.custom_jvp)  # a custom_vjp would have to say which weights vary
    mesh = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Auto,))
    return jax.shard_map(lambda x: call(rule, x[0])[None], mesh=mesh, in_specs=P("a"), out_specs=P("a"), check_vma=vma)


def nested(rule):
    outer = jax.custom_vjp(lambda x: call(rule, x))
    outer.defvjp(lambda x: jax.vjp(lambda x: call(rule, x), x), lambda back, g: back(g))
    return outer


def looped(rule):
    step = lambda state: (state[0] + 1, state[1] + call(rule, X * state[1]))  # noqa: E731
    return lambda x: jax.lax.while_loop(lambda state: state[0] < 3, step, (0, jnp.sum(x)))[1]


PROGRAMS = {
    "eager": (lambda rule: lambda x: call(rule, x), 1),
    "jit": (lambda rule: jax.jit(lambda x: call(rule, x)), 1),
    "grad": (lambda rule: jax.grad(lambda x: call(rule, x)), 1),
    "jit of grad": (lambda rule: jax.jit(jax.grad(lambda x: call(rule, x))), 1),
    "grad of jit": (lambda rule: jax.grad(jax.jit(lambda x: call(rule, x))), 1),
    "scan": (
        lambda rule: jax.grad(
            lambda x: jax.lax.scan(lambda c, s: (c + call(rule, s * x), None), 0.0, jnp.arange(1.0, 5.0))[0]
        ),
        4,
    ),
    "while": (looped, 3),
    "cond": (lambda rule: lambda x: jax.lax.cond(x[0] > 0, lambda x: call(rule, x), jnp.sum, x), 1),
    "vmap": (lambda rule: lambda x: jax.vmap(lambda s: call(rule, s * x))(jnp.arange(7.0)), 7),
    "grad in vmap in jit": (
        lambda rule: jax.jit(lambda x: jax.vmap(jax.grad(lambda x: call(rule, x)))(jnp.stack([x, 2 * x]))),
        2,
    ),
    "remat": (lambda rule: jax.jit(jax.value_and_grad(jax.checkpoint(lambda x: call(rule, x)))), 2),
    "shard_map": (lambda rule: lambda x: jax.jit(jax.grad(lambda x: jnp.sum(sharded(rule)(x))))(x[None]), 1),
    "nested": (lambda rule: jax.grad(nested(rule)), 1),
}


def met(program, name):
    """Returns name, calls and differentiated calls of each rule that a program met."""
    with watching() as watch:
        jax.block_until_ready(program(X))
    return [(g.kind, g.calls, g.differentiated, len(g.sample)) for g in watch.groups.values() if name in g.source]


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_rules_are_found_with_their_values_through(name, kind):
    make, calls = PROGRAMS[name]
    found = [row for row in met(make(RULES[kind][0]), "test_audit") if row[0] == kind and row[1] == calls]
    assert found
    assert found[0][3] == min(calls, 3)
    if "grad" in name or name in ("scan", "remat", "shard_map"):
        assert found[0][2] == calls


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("name", ["jit of grad", pytest.param("scan", marks=pytest.mark.deep), "shard_map"])
def test_a_wrong_rule_is_caught_in_place_and_a_right_one_passes(name, kind):
    for rule, verdict in zip(RULES[kind], ("pass", "fail"), strict=True):
        with watching() as watch:
            jax.block_until_ready(PROGRAMS[name][0](rule)(X))
        report = examined(watch, effort="quick")
        assert [(r.kind, r.verdict) for r in report.rules] == [(kind, verdict)]
        assert report.ok is (verdict == "pass")
        assert "test_audit.py:" in report.rules[0].source
        error = report.rules[0].error
        assert error is not None
        assert error < 1e-5 or verdict == "fail"


def test_the_bias_of_a_layer_in_a_scanned_and_jitted_training_step():
    @jax.jit
    def train(W, b):
        def step(params, x):
            grads = jax.grad(lambda p: jnp.sum(jax.nn.relu(WRONG(x, *p)) ** 2))(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), None

        return jax.lax.scan(step, (W, b), jnp.stack([X, -X, X / 2]))[0]

    report = audit(train, W, B)
    (wrong,) = report.failures
    assert (wrong.calls, wrong.differentiated) == (3, 3)
    assert wrong.shapes == "float32[5] float32[5, 2] float32[2]"
    assert {f.argument for f in wrong.findings if f.level == "fail"} == {"cotangent of b"}
    assert "test_audit.py:" in wrong.callers[0]
    assert (wrong.kept, wrong.autodiff_kept) == (
        60,
        20,
    )  # x and W, where x alone is needed, for it is not differentiated
    assert wrong.share is not None
    assert 0 < wrong.share <= 1
    relu = next(r for r in report.rules if r.name == "relu")
    assert relu.verdict == "pass"


def test_the_values_are_those_of_the_program_and_sampled_alike_for_a_seed():
    def values(seed):
        with watching(seed=seed, keep=4) as watch:
            jax.jit(lambda x: jax.lax.map(jax.vmap(RIGHT_JVP), x))(jnp.arange(24.0).reshape(6, 4)).block_until_ready()
        (group,) = watch.groups.values()
        assert group.calls == 24
        return sorted(float(m.args[0]) for _, m in group.sample)

    assert values(0) == values(0)
    assert len(set(values(0))) == 4
    assert set(values(0)) <= set(map(float, range(24)))
    assert any(values(seed) != values(0) for seed in (1, 2, 3))


def made(primal, fwd, bwd, **options):
    rule = jax.custom_vjp(primal, **options)
    rule.defvjp(fwd, bwd)
    return rule


STRAIGHT_THROUGH = made(lambda x: jnp.round(x), lambda x: (jnp.round(x), None), lambda res, g: (g,))
CLIPPED = made(lambda x: x, lambda x: (x, None), lambda res, g: (jnp.clip(g, -0.1, 0.1),))
RAISES = made(lambda x: x**2, lambda x: (x**2, x), lambda x, g: (g * x.no_such_thing,))
NAN = made(lambda x: x**2, lambda x: (x**2, x), lambda x, g: (g * x / (x - x),))
POWER = made(lambda n, x: x**n, lambda n, x: (x**n, x), lambda n, x, g: (n * g * x ** (n - 1),), nondiff_argnums=(0,))
POWER_OF_TWO = made(lambda n, x: x**n, lambda n, x: (x**n, x), lambda n, x, g: (2 * g * x,), nondiff_argnums=(0,))
TREE = made(
    lambda p: p["a"] * p["b"], lambda p: (p["a"] * p["b"], p), lambda p, g: ({"a": g * p["b"], "b": g * p["a"]},)
)
TAKEN = made(lambda x, i: x[i], lambda x, i: (x[i], (x, i)), lambda r, g: (jnp.zeros_like(r[0]).at[r[1]].add(g), None))
NOISY = made(
    lambda key, x: x * jax.random.normal(key, x.shape),
    lambda key, x: (x * jax.random.normal(key, x.shape), (key, x)),
    lambda r, g: (None, g * jax.random.normal(r[0], g.shape)),
)


@pytest.mark.parametrize(
    ("fn", "verdicts"),
    [
        (lambda: STRAIGHT_THROUGH(X), ["note"]),
        (lambda: CLIPPED(X), ["note"]),
        (lambda: jax.grad(lambda x: jnp.sum(RAISES(x)))(X), ["fail"]),
        (lambda: RAISES(X), ["note"]),
        (lambda: NAN(X), ["fail"]),
        (lambda: POWER(2, X) + POWER(3, X), ["pass", "pass"]),
        (lambda: POWER_OF_TWO(2, X) + POWER_OF_TWO(3, X), ["fail", "pass"]),
        (lambda: TREE({"a": X, "b": 2 * X}), ["pass"]),
        (lambda: TAKEN(X, jnp.array([0, 3, 3])), ["pass"]),
        (lambda: jax.jit(NOISY)(jax.random.key(3), X), ["pass"]),
        (lambda: jax.nn.relu(jnp.array([0.0, 1.0, -1.0])), ["pass"]),
        (lambda: jax.lax.cond(X[0] > 100, lambda: RIGHT_JVP(X), lambda: X), ["pass"]),
        (lambda: jnp.sin(X), []),
    ],
    ids=[
        "straight-through",
        "clipped",
        "raises",
        "raises, not asked",
        "NaN",
        "static",
        "one static",
        "pytree",
        "integers",
        "keys",
        "kink",
        "branch not taken",
        "no rule",
    ],
)
def test_verdicts(fn, verdicts):
    report = audit(fn)
    assert [r.verdict for r in report.rules] == verdicts, str(report)
    assert report.ok is ("fail" not in verdicts and not report.raised)


def without_nan(x, y):
    """x y, zero where y is zero even if x is not finite, after TensorFlow's multiply_no_nan."""
    return jnp.where(y == 0, 0.0, x * y)


WITHOUT_NAN = jax.custom_jvp(without_nan)
WITHOUT_NAN.defjvp(lambda primals, ts: (without_nan(*primals), primals[1] * ts[0] + primals[0] * ts[1]))


def test_a_difference_at_a_kink_is_no_error_of_a_rule_that_passes():
    y = jnp.array([0.0, 2.0, 0.0, 3.0])
    report = audit(jax.grad(lambda xy: jnp.sum(WITHOUT_NAN(*xy))), (jnp.array([5.0, 2.0, -3.0, 1.0]), y))
    (rule,) = report.rules
    assert rule.verdict == "pass"
    assert rule.error is None or rule.error < 1e-5
    assert any(f.code == "kink" and f.argument == "cotangent of y" for f in rule.findings)


def test_infinite_cotangents_break_no_law():
    rule = made(lambda x, y: x * y, lambda x, y: (x * y, (x, y)), lambda res, g: (g * res[1], g * res[0]))
    report = audit(
        jax.grad(lambda xy: jnp.sum(rule(*xy))), (jnp.array([-jnp.inf, 2.0, 1.0]), jnp.array([2.0, 3.0, 1.0]))
    )
    assert [r.verdict for r in report.rules] == ["pass"], str(report)


TWO = made(lambda x, y: (x * y, y**2), lambda x, y: ((x * y, y**2), (x, y)), lambda r, g: (g[0] * r[1], None))


@pytest.mark.parametrize(
    ("argnums", "output", "verdict"), [(0, 0, "note"), (1, 0, "fail"), (1, 1, "fail"), ((0, 1), 0, "fail")]
)
def test_what_the_program_does_not_differentiate_is_noted(argnums, output, verdict):
    report = audit(jax.jit(jax.grad(lambda x, y: jnp.sum(TWO(x, y)[output]), argnums)), X, 2 * X)
    assert report.rules[0].verdict == verdict
    assert ("as this program differentiates it" in report.rules[0].reason) is (verdict == "note")


def test_a_rule_that_raises_ends_neither_the_audit_nor_goes_unsaid():
    report = audit(jax.grad(lambda x: jnp.sum(RAISES(x))), X)
    assert "no_such_thing" in report.raised
    assert "no_such_thing" in report.rules[0].reason


def test_a_time_limit():
    def slow(x, g):
        time.sleep(5)
        return (2 * g * x,)

    with watching() as watch:
        made(lambda x: x**2, lambda x: (x**2, x), slow)(X)
    start = time.perf_counter()
    report = examined(watch, seconds=0.5)
    assert time.perf_counter() - start < 4.5
    assert report.rules[0].verdict == "undecided"
    assert "did not end within" in report.rules[0].reason


def test_the_caller_may_say_what_is_by_design():
    with watching() as watch:
        WRONG(X, W, B)
    report = examined(watch, effort="quick", by_design={watch.groups[next(iter(watch.groups))].name: "a gift"})
    assert report.ok
    assert report.rules[0].verdict == "note"
    assert "a gift" in report.rules[0].reason
    assert report.unmet == ()


def test_what_is_by_design_and_not_met_is_told():
    with watching() as watch:
        jax.nn.relu(X)
    report = examined(watch, effort="quick", by_design={"relu": "a gift", "rellu": "a slip"})
    assert report.unmet == ("rellu",)
    assert "rellu, which is said to differ by design, was not met" in str(report)
    assert "rellu, which" in report.to_markdown()
    assert json.loads(report.to_json())["unmet"] == ["rellu"]


def test_reports_are_text_of_80_columns_json_and_markdown():
    report = audit(lambda x: jnp.sum(WRONG(x, W, B)) + jnp.sum(jax.nn.relu(x)), X)
    assert max(map(len, str(report).splitlines())) <= 80
    assert "FAIL" in str(report)
    assert "`res[1].T` is 2 times too large reproduce:" in " ".join(str(report).split())
    assert "\x1b" not in str(report)
    back = json.loads(report.to_json())
    assert back["ok"] is False
    assert [rule["verdict"] for rule in back["rules"]] == ["fail", "pass"]
    heading, _, *lines = report.to_markdown().splitlines()
    assert heading.endswith(": 2 rules met with 2 shapes: 1 pass, 1 fail")
    assert [line.count("|") for line in lines] == [11] * 4


def test_a_passing_rule_is_one_line_unless_asked_for_more():
    report = audit(lambda x: jnp.sum(CLIPPED(x)) + jnp.sum(jax.nn.relu(x)), X)
    text = io.StringIO()
    report.print(Console(file=text, width=80), verbose=True)
    assert "1 <lambda>, custom_vjp at" in str(report)
    assert "2 relu, custom_jvp at" not in str(report)
    assert "2 relu, custom_jvp at" in text.getvalue()
    assert len(report.rules[1].findings) > 1


def test_bad_options_are_refused():
    with pytest.raises(TypeError, match="fn must be callable"):
        audit(3)  # type: ignore[arg-type]  # what is tested
    with watching() as watch:
        pass
    with pytest.raises(ValueError, match="effort must be one of quick, standard, deep, got 'hard'"):
        examined(watch, effort="hard")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="seconds must be positive"):
        examined(watch, seconds=0)


def test_nothing_is_left_behind():
    calls = (jax.custom_jvp.__call__, jax.custom_vjp.__call__, jax.vjp)
    f = jax.jit(lambda x: jax.nn.relu(x))
    f(X)
    audit(f, X)
    assert (jax.custom_jvp.__call__, jax.custom_vjp.__call__, jax.vjp) == calls
    assert "vjplib_tap" not in str(jax.make_jaxpr(f)(X))


SCRIPT = """
    import sys
    import jax, jax.numpy as jnp

    @jax.custom_vjp
    def halve(x):
        return x / 2
    halve.defvjp(lambda x: (x / 2, None), lambda res, g: (g{error},))

    if __name__ == "__main__":
        step = jax.jit(jax.grad(lambda x: jnp.sum(halve(x) ** 2)))
        for i in range(int(sys.argv[1])):
            step(jnp.arange(3.0) + i)
        print("done", *sys.argv[1:])
        {end}
"""


@pytest.mark.parametrize(
    ("error", "end", "status", "said"),
    [
        ("/ 2", "", 0, "1 rule met with 1 shape: 1 pass"),
        ("/ 3", "", 1, "FAIL"),
        ("/ 2", "raise KeyError('lost')", 1, "KeyError: 'lost'"),
        ("/ 2", "sys.exit(3)", 1, "SystemExit: status 3"),
        ("/ 2", "sys.exit()", 0, "1 rule met with 1 shape: 1 pass"),
    ],
)
def test_a_script_is_run_and_watched(tmp_path, capsys, monkeypatch, error, end, status, said):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT).format(error=error, end=end), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["vjplib"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    written = tmp_path / "audit.json"
    assert main(["audit", "--quick", "--json", str(written), "--run", str(script), "5", "--verbose"]) == status
    out = capsys.readouterr().out
    assert "done 5 --verbose" in out
    assert said in out
    (rule,) = json.loads(written.read_text(encoding="utf-8"))["rules"]
    assert (rule["calls"], rule["differentiated"]) == (5, 5)


def test_a_function_that_leaves_the_program_is_no_success(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "leaving.py"
    file.write_text("import sys, jax\ndef loss(x=1.0):\n    jax.grad(jax.nn.relu)(x)\n    sys.exit(0)\n")
    assert main(["audit", f"{file}:loss", "--quick"]) == 1
    assert "SystemExit: status 0" in capsys.readouterr().out
    file.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(SystemExit) as left:
        main(["audit", f"{file}:loss"])
    assert left.value.code == 2
    assert "leaving.py cannot be imported: SystemExit: 0" in capsys.readouterr().err


def test_a_function_of_a_file_with_its_arguments(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "losses.py"
    file.write_text("import jax, jax.numpy as jnp\nARGS = (jnp.ones(3),)\nloss = lambda x: jnp.sum(jax.nn.relu(x))\n")
    written = tmp_path / "audit.md"
    words = ["--quick", "--steps", "2", "--seed", "1", "--markdown", str(written)]
    assert main(["audit", f"{file}:loss", *words]) == 0
    out = capsys.readouterr().out
    assert "1 pass" in out
    assert "1 relu, custom_jvp at" not in out
    assert main(["audit", f"{file}:loss", "--quick", "-v"]) == 0
    assert "1 relu, custom_jvp at" in capsys.readouterr().out
    assert "| relu (custom_jvp) |" in written.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of FILE.py:FUNCTION and --run"),
        (["nothing.py:f"], "with a file that exists"),
        (["--run", "nothing.py"], "a script that exists"),
        ([f"{__file__}:no_such_function"], "must hold a function no_such_function"),
        ([f"{__file__}:audit", "--by-design", "x"], "must be RULE=REASON"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(words, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["audit", *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.deep
@pytest.mark.parametrize("implementation", ["0", "1"])
def test_both_implementations_of_custom_vjp(implementation):
    program = """
        import jax, jax.numpy as jnp
        from vjplib import audit
        def rule(factor, static):
            made = jax.custom_vjp(lambda n, x: x**n, nondiff_argnums=(0,))
            made.defvjp(lambda n, x: (x**n, x), lambda n, x, g: (factor * n * g * x ** (n - 1),))
            return lambda x: made(static, x)
        for factor, ok in ((1, True), (2, False)):
            f = rule(factor, 3)
            scanned = lambda x: jax.lax.scan(lambda c, s: (c + jnp.sum(f(s * x)), None), 0.0, jnp.arange(1.0, 4.0))[0]
            report = audit(jax.jit(jax.grad(scanned)), jnp.arange(1.0, 4.0))
            assert report.ok is ok, report
            assert [(r.calls, r.differentiated) for r in report.rules] == [(3, 3)], report
    """
    environment = {**os.environ, "JAX_CUSTOM_VJP3": implementation}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, env=environment)


def test_a_custom_jvp_without_its_rule_raises_what_jax_raises():
    report = audit(jax.custom_jvp(jnp.sin), 1.0)
    assert "No JVP defined" in report.raised
    assert not report.rules
