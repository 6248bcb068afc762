"""The commands: what they print, what they write, and the status that they exit with."""

import json
import os
import re
import subprocess
import sys

import pytest

import vjplib
from vjplib.__main__ import main
from vjplib.rule import rules

MODULE = """
import jax
import jax.numpy as jnp
from vjplib import Case, Gain, Rule

@jax.custom_vjp
def waves(x):
    return jnp.sin(x)

waves.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: ({factor} * g * jnp.cos(x),))
CASE = Case(("b n",), {{"b": 2, "n": 5}}, growth={growth})
RULES = (Rule(waves, jnp.sin, {{"jnp.sin": jnp.sin}}, (CASE,), bench=(CASE,), reason="an example"{fields}),)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Returns a function that writes a module of one rule into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("COLUMNS", "120")

    def write(name, factor=1.0, fields="", growth=True):
        (tmp_path / f"{name}.py").write_text(MODULE.format(factor=factor, fields=fields, growth=growth))

    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def refused(capsys, *arguments):
    """Returns the message of a command that exits with status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    out, message = capsys.readouterr()
    assert out == ""
    assert message.count("\n") == 1
    return message


def test_list_prints_every_rule_with_its_reason(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for rule in rules():
        assert rule.name in out
        assert rule.reason in out
        assert rule.source in out
        assert all(claimed in out for claimed in rule.claimed())
    assert "4*n + 4*k" in out


def test_a_right_rule_is_verified(capsys):
    assert main(["verify", "tanh", "vjplib.rules.activations:sigmoid", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "tanh" in out
    assert "sigmoid" in out
    assert "FAIL" not in out
    assert "2 of 2 rules verified" in out


def test_a_rule_named_twice_is_verified_once(capsys):
    assert main(["verify", "tanh", "vjplib.rules.activations:tanh", "--claims", "v1"]) == 0
    assert "1 of 1 rules verified" in capsys.readouterr().out


def test_a_wrong_rule_of_one_s_own_fails_by_name(capsys, module, tmp_path):
    module("halved", factor=0.5)
    assert main(["verify", "halved", "tanh", "--quick", "--json", "out.json"]) == 1
    out = capsys.readouterr().out
    heading, *lines = out[out.index("waves: ") :].splitlines()
    assert heading.startswith("waves: the cotangent of x is wrong (")
    assert heading.endswith(" x the tolerance)")
    assert lines[0] == "  at b=2 n=5"
    assert re.fullmatch(r"  halved\.py:\d+: .* is 2 times too small", lines[1])
    assert "1 of 2 rules verified" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [(r["name"], r["ok"]) for r in written["reports"]] == [("waves", False), ("tanh", True)]
    assert not written["ok"]
    assert written["environment"]["vjplib"] == vjplib.__version__


def test_a_record_that_cannot_be_used_fails_and_the_others_are_verified(capsys, module):
    module("misnamed", fields=", residual_bytes=lambda rows: 4 * rows")
    assert main(["verify", "misnamed", "tanh", "--claims", "contract"]) == 1
    out = capsys.readouterr().out
    assert "waves: the record cannot be used\n  contract: the record cannot be used: TypeError" in out
    assert "1 of 2 rules verified" in out


def test_nothing_decided_is_not_success(capsys, module):
    module("still", growth=False)
    assert main(["verify", "still", "--quick", "--claims", "growth"]) == 1
    assert "waves: no claim was decided, so nothing is proved" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_an_unknown_target_is_told_what_exists(capsys, command):
    message = refused(capsys, command, "sofmax")
    assert message.startswith(
        f"vjplib {command}: target must be a rule, or a module that can be imported, got 'sofmax'; "
    )
    assert "did you mean 'softmax'?" in message
    message = refused(capsys, command, "nothing.like.it")
    assert "the rules are " in message
    assert {"conv1d", "relu"} <= set(message.partition("the rules are ")[2].split(", "))
    assert "got 'nothing.like.it'" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "vjplib.rule"], "vjplib.rule must end in RULES"),
        (["verify", "vjplib.rules.linear:relu"], "vjplib.rules.linear must hold a rule named 'relu', has linear"),
        (["verify", "--claims", "V1,V99"], "argument --claims: must be among contract, "),
        (["verify", "--seed", "-1"], "argument --seed: must be an integer of at least 0, got -1"),
        (["verify", "--quick", "--deep"], "argument --deep: not allowed with argument --quick"),
        (["bench", "--json", "nowhere/out.json"], "argument --json: must lie in a folder that exists"),
        (["verify", "--json", "."], "argument --json: must be a file that can be written, got ."),
        (["verify", "--json", "a", "--html", "./a"], "--json and --html must be different files, got a for both"),
        (["bench", "--reasons", "--models"], "--reasons measures the gains of rules and takes neither --models"),
        (["prove"], "invalid choice: 'prove'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_what_makes_no_sense_exits_2_in_one_line(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_a_module_that_cannot_be_imported_is_named(capsys, module, tmp_path):
    module("unused")
    (tmp_path / "broken.py").write_text("import vjplib\n1 / 0\n")
    message = refused(capsys, "verify", "broken")
    assert message == "vjplib verify: broken cannot be imported: ZeroDivisionError: division by zero\n"
    (tmp_path / "exits_when_imported.py").write_text("import sys\nsys.exit(0)\n")
    assert (
        refused(capsys, "verify", "exits_when_imported")
        == "vjplib verify: exits_when_imported cannot be imported: SystemExit: 0\n"
    )


def test_bench_prints_and_writes(capsys, module, tmp_path):
    module("right")
    assert main(["bench", "right", "--quick", "--json", str(tmp_path / "bench.json")]) == 0
    out = capsys.readouterr().out
    assert "waves" in out
    assert "jnp.sin" in out
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [row["measure"] for row in written["rows"]] == ["forward", "returned", "reduced", "followed"]
    assert all(row["ours"]["median"] > 0 for row in written["rows"])
    assert written["refused"] == []


def test_bench_refuses_a_rule_that_is_not_its_baseline(capsys, module, tmp_path):
    module("doubled", factor=2.0)
    assert main(["bench", "doubled", "--quick", "--json", "bench.json"]) == 1
    assert "waves is not timed: ValueError: waves and its baseline jnp.sin" in capsys.readouterr().out
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["rows"] == []
    assert len(written["refused"]) == 1


def test_bench_reports_a_reason_that_has_gone(capsys, module, tmp_path):
    module("words")
    module("gone", fields=", gains=(Gain('kept bytes', 0.5),)")
    assert main(["bench", "--reasons", "words", "--json", "bench.json"]) == 0
    assert "an example" in (out := capsys.readouterr().out)
    assert "not measured: the record claims no gain" in " ".join(out.split())
    assert [row["gone"] for row in json.loads((tmp_path / "bench.json").read_text())["reasons"]] == [False]
    assert main(["bench", "--reasons", "words", "gone", "--quick", "--json", "bench.json"]) == 1
    assert "waves: kept bytes (b=2 n=5) is 1 of jnp.sin's, but the record claims at most 0.5" in capsys.readouterr().out
    assert [row["gone"] for row in json.loads((tmp_path / "bench.json").read_text())["reasons"]] == [False, True]


def test_figures_prints_the_paths_drawn(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("vjplib.lecture.figures.draw_all", lambda directory: [tmp_path / directory / "descent.png"])
    assert main(["figures", "made"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'made' / 'descent.png'}\n"


def test_figures_where_no_folder_can_be_made(capsys, tmp_path):
    (tmp_path / "taken").write_text("")
    assert str(tmp_path / "taken") in refused(capsys, "figures", str(tmp_path / "taken"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"]])
def test_help_version_and_list_start_no_backend(arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    ran = subprocess.run([sys.executable, "-m", "vjplib", *arguments], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "vjplib" in ran.stdout or "softmax" in ran.stdout


PLAIN = """
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

def rule(factor):
    @jax.custom_vjp
    def swiglu(x: Float[Array, "b n"], w: Float[Array, "n"]):
        return jax.nn.silu(x) * w
    def bwd(res, g):
        x, w = res
        s = jax.nn.sigmoid(x)
        return factor * g * w * s * (1 + x * (1 - s)), (g * jax.nn.silu(x)).sum(0)
    swiglu.defvjp(lambda x, w: (jax.nn.silu(x) * w, (x, w)), bwd)
    return swiglu

swiglu, doubled = rule(1), rule(2)
def plain(x, w): return swiglu(x, w)
def scaled(x, scale=1.0): return scale * jnp.tanh(x)
"""


@pytest.fixture
def plain_module(module, tmp_path):
    def write(more=""):
        (tmp_path / "plain_rules.py").write_text(PLAIN + more)

    return write


@pytest.mark.parametrize(
    ("more", "arguments"),
    [
        ("", ["plain_rules:swiglu"]),
        ("", ["plain_rules:plain", "--args", "normal(2, 3), normal(3)"]),
        ("ARGS = {'plain': (jnp.ones((2, 3)), jnp.ones(3))}", ["plain_rules:plain"]),
        ("ARGS = lambda: (jnp.ones((2, 3)), jnp.ones(3))", ["plain_rules:plain"]),
    ],
    ids=["annotations", "a text", "the module's, by name", "the module's, made by a function"],
)
def test_verify_takes_the_arguments_of_a_function_from(plain_module, more, arguments, capsys):
    plain_module(more)
    assert main(["verify", *arguments, "--effort", "quick", "--claims", "contract,value", "--jobs", "0"]) == 0
    assert "1 of 1 rules verified" in capsys.readouterr().out


def test_verify_fails_a_wrong_function_beside_a_record(plain_module, capsys):
    plain_module()
    command = ["verify", "plain_rules:doubled", "tanh", "--quick", "--claims", "contract,value", "--jobs", "0"]
    assert main(command) == 1
    shown = capsys.readouterr().out
    assert "doubled: the cotangent of x is wrong" in shown
    assert "1 of 2 rules verified" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain_rules:plain"], r"its arguments are not known \(x has no annotation of jaxtyping.*--args 'normal"),
        (["plain_rules:plain", "--args", "normal(2"], "arguments must read as 'normal"),
        (["plain_rules:plain", "--args", "gauss(2)"], "gauss must be one of normal, uniform"),
        (["tanh", "--args", "normal(2)"], "--args is for functions without a record"),
        (["plain_rules:swiglo"], "must end in RULES"),
    ],
)
def test_verify_says_how_to_give_arguments(plain_module, arguments, message, capsys):
    plain_module()
    assert re.search(message, refused(capsys, "verify", *arguments))


def test_a_misspelt_command_gets_a_suggestion(capsys):
    assert "did you mean 'verify'?" in refused(capsys, "verfy", "tanh")
