"""The pytest plugin and vjplib.testing: pytest runs on files of tests, in this process unless it says otherwise."""

import re
import subprocess
import sys
import unittest

import jax
import pytest

import vjplib
import vjplib_pytest
from vjplib.rule import find
from vjplib.testing import ClaimError, Proof, assert_verified, effort_and_seed, parametrize, verified

# Other plugins take their time.
ALONE = [word for name in ("cacheprovider", "hypothesispytest", "jaxtyping") for word in ("-p", f"no:{name}")]
RULE = """
import jax
import jax.numpy as jnp
from vjplib import Case, Rule

@jax.custom_vjp
def waves(x):
    return jnp.sin(x)

waves.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: ({factor} * g * jnp.cos(x),))
RULES = (Rule(waves, jnp.sin, {{"jnp.sin": jnp.sin}}, (Case(("b n",), {{"b": 2, "n": 5}}, growth=False),)),)
"""
PARAMETRIZED = """
from vjplib.testing import parametrize

@parametrize({targets}, claims={claims}, effort="quick")
def test_rules(proof):
    proof()
"""


@pytest.fixture
def tests(pytester, monkeypatch):
    """Returns a function that writes a file of tests beside a module with a rule, and runs pytest on it."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(text, *options, factor=1.0, **files):
        pytester.makepyfile(waverules=RULE.format(factor=factor), test_them=text, **files)
        pytester.syspathinsert()
        return pytester.runpytest_inprocess(*ALONE, "-p", "no:xdist", *options)

    return run


def parametrized(*targets, claims=("contract", "value"), imports=""):
    return imports + PARAMETRIZED.format(targets=", ".join(targets), claims=claims)


def test_one_id_for_each_rule_and_claim_from_whatever_names_the_rules(tests):
    imports = "import vjplib, waverules\nfrom waverules import RULES, waves\n"
    calls = ("(vjplib.relu, (0.5,))", "(waves, (0.5,), {})")
    targets = ("RULES", "'waverules:waves'", "waverules", "RULES[0]", *calls, "'tanh'")
    result = tests(parametrized(*targets, claims=("contract", "residuals"), imports=imports), "--collect-only", "-q")
    names = [f"waves{i}" for i in range(4)] + ["relu", "waves4", "tanh"]
    ids = re.findall(r"test_rules\[(.*)\]", "\n".join(result.outlines))
    assert ids == [f"{name}-{claim}" for name in names for claim in ("contract", "residuals")]


def test_right_rules_pass_and_the_header_is_silent(tests):
    result = tests(parametrized("'waverules'", claims=("contract", "value", "linearity")))
    result.assert_outcomes(passed=3)
    assert "vjplib" not in result.stdout.str().replace("vjplib-0", "")


@pytest.mark.parametrize("server", ["", "true"])  # on one that runs tests for others, pytest's summary is not cut
def test_a_failure_prints_what_was_found_and_the_command_that_shows_it_again(tests, monkeypatch, server):
    monkeypatch.setenv("CI", server)
    result = tests(parametrized("'waverules'"), "--vjplib-seed", "7", factor=1.001)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "vjplib: seed 7",
            "waves: value fails",
            "the cotangent of x is wrong (* x the tolerance)",
            "  waverules.py:*: `*` is 1.001 times too large",
            "  reproduce:",
            "from waverules import waves",
            "Reproduce: vjplib verify waverules:waves --claims value --seed 7 --quick",
            "FAILED test_them.py::test_rules[[]waves-value] - vjplib.testing.ClaimError: wav*",
        ]
    )
    text = result.stdout.str()
    assert "Traceback" not in text
    assert "proof()" not in text
    assert len(text.split("= FAILURES =")[1].splitlines()) < 30


def test_the_counterexample_that_is_printed_runs_as_it_is(tests, pytester):
    text = tests(parametrized("'waverules'"), factor=0.5).stdout.str()
    source = text.split("  reproduce:\n\n")[1].split("\nReproduce: ")[0]
    (pytester.path / "pasted.py").write_text(source)
    ran = subprocess.run([sys.executable, "pasted.py"], capture_output=True, text=True, cwd=pytester.path)
    assert re.match(r"(?s)cotangent of x: \[.* should be \[", ran.stdout), ran.stdout + ran.stderr


def test_the_command_that_is_printed_shows_the_failure(tests, pytester, capsys):
    from vjplib.__main__ import main

    text = tests(parametrized("'waverules'"), factor=1.001).stdout.str()
    found = re.search(r"Reproduce: vjplib (.*)", text)
    assert found is not None
    capsys.readouterr()
    assert main([*found[1].split(), "--jobs", "0"]) == 1
    assert "waves: the cotangent of x is wrong" in capsys.readouterr().out


def test_records_of_the_test_file_itself_and_calls_are_shown_again_by_pytest(tests):
    call = "(waves, (jnp.ones((2, 3)),))"
    text = RULE.format(factor=0.5) + parametrized("RULES", call, claims=("value",))
    result = tests(text, "--vjplib-seed=3")
    result.assert_outcomes(failed=2)
    lines = [line for line in result.outlines if line.startswith("Reproduce: ")]
    assert lines == [f"Reproduce: pytest 'test_them.py::test_rules[waves{i}-value]' --vjplib-seed 3" for i in range(2)]


def test_a_counterexample_is_printed_so_that_it_can_be_pasted(tests):
    counterexample = """
import vjplib.testing, vjplib
from vjplib.verification import Finding, Report

def examine(claims, effort, seed):
    source = "import numpy as np\\n\\nassert np.sin(0) == 1, 'wrong'\\n"
    return Report("f", tuple(Finding("value", "fail", f"wrong {i}", counterexample=source) for i in range(20)))

def test_it():
    vjplib.testing.Proof(vjplib.testing.Sheet("f", examine, "standard"), "value")()
"""
    text = tests(counterexample).stdout.str()
    assert "\nimport numpy as np\n\nassert np.sin(0) == 1, 'wrong'\n" in text
    assert text.count("assert np.sin") == 1
    assert "  and 19 more\n" in text


def test_what_is_undecided_is_skipped_and_what_raises_is_told(tests):
    imports = """
import jax, jax.numpy as jnp
def loop(x):
    return jax.lax.while_loop(lambda c: jnp.sum(c) < 10, lambda c: c + 1, x)
"""
    result = tests(parametrized("(loop, (jnp.ones(3),))", claims=("value",), imports=imports), "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*JAX cannot differentiate the oracle*give a reference*"])
    result = tests(
        parametrized("(jnp.sum, ([1, 2],))", claims=("contract", "value"), imports="import jax.numpy as jnp\n")
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*ValueError: args must hold at least one floating array*"])


COUNTING = """
import vjplib.testing
from vjplib.testing import Sheet, parametrize
from vjplib.verification import Finding, Report

asked = []
def examine(claims, effort, seed):
    asked.append((tuple(claims), effort, seed))
    return Report("f", tuple(Finding(c, "pass", "") for c in claims))

def sheets(target, effort):
    yield Sheet("f", examine, effort)

vjplib.testing._sheets, kept = sheets, vjplib.testing._sheets
@parametrize("f", claims=("contract", "value", "linearity"))
def test_f(proof):
    proof()
vjplib.testing._sheets = kept

def test_asked():
    assert asked == {asked}
"""


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((), [(("contract", "value", "linearity"), "standard", 0)]),
        (
            ("-k", "contract or linearity or asked", "--vjplib-deep", "--vjplib-seed=5"),
            [(("contract", "linearity"), "deep", 5)],
        ),
    ],
)
def test_claims_of_one_rule_that_are_asked_for_are_examined_together(tests, options, asked):
    result = tests(COUNTING.replace("{asked}", repr(asked)), *options)
    assert result.ret == 0
    assert ("vjplib: deep, seed 5" in result.outlines) == bool(options)


def test_the_fixture_verifies_with_the_seed_and_tells_the_line(tests):
    text = """
import numpy as np, vjplib
from waverules import RULES, waves

def test_right(vjplib_verify):
    report = vjplib_verify(vjplib.tanh, (0.5,), effort="quick", claims=("contract",))
    assert report.ok

def test_wrong(vjplib_verify):
    vjplib_verify(waves, (np.ones((2, 3), np.float32),), claims=("value",))

def test_wrong_record(vjplib_verify):
    vjplib_verify(RULES[0], effort="quick", claims=("value",))
"""
    result = tests(text, "--vjplib-seed", "11", factor=0.5)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "test_them.py:9: waves is not verified",
            "Reproduce: pytest test_them.py::test_wrong --vjplib-seed 11",
            "test_them.py:12: waves is not verified",
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_assertions_print_the_report_alone_unless_all_is_asked_for(tests):
    text = """
import unittest
import numpy as np
import vjplib
from waverules import waves

class Wrong(unittest.TestCase):
    def test_wrong(self):
        vjplib.assert_verified(waves, (np.ones((2, 3), np.float32),), effort="quick", claims=("value",))
"""
    result = tests(text, factor=0.5)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["waves is not verified", "waves: the cotangent of x is wrong*"])
    assert "class Wrong" not in result.stdout.str()
    assert "def test_wrong" in tests(text, "--full-trace", factor=0.5).stdout.str()


def test_without_the_plugin_tests_run_and_fail_too(tests):
    result = tests(parametrized("'waverules'"), "-p", "no:vjplib", factor=0.5)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*ClaimError: waves: value fails*"])
    assert "unrecognized arguments: --vjplib-deep" in tests("", "-p", "no:vjplib", "--vjplib-deep").stderr.str()


@pytest.mark.parametrize("seed", ["-1", "x", "1.5"])
def test_a_seed_that_is_none_is_refused(tests, seed):
    result = tests("", f"--vjplib-seed={seed}")
    assert f"must be an integer of at least 0, got {seed}" in result.stderr.str()


def test_a_test_that_does_not_call_its_proof_fails(tests):
    forgetful = parametrized("'waverules'").replace("    proof()", "    proof")
    result = tests(forgetful, factor=0.5)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["the test must call proof(), and does not: nothing is verified"])
    tests(forgetful.replace("    proof", "    raise KeyError")).assert_outcomes(failed=2)
    reading = forgetful.replace("    proof", "    assert proof.report.ok")
    tests(reading).assert_outcomes(passed=2)
    fixture = "import pytest\n\n@pytest.fixture\ndef shown(proof):\n    proof()\n"
    tests(fixture + forgetful.replace("(proof)", "(shown, proof)")).assert_outcomes(passed=2)


def test_strict_markers_are_content(tests):
    tests(parametrized("'waverules'", claims=("contract",)), "--strict-markers").assert_outcomes(passed=1)


def test_processes_of_xdist_examine_no_claim_twice(pytester):
    """In processes of their own; each writes down what it was asked for."""
    text = COUNTING.replace("asked.append(", 'print(*claims, file=open("asked.txt", "a")); asked.append(')
    pytester.makepyfile(test_them=text.partition("def test_asked")[0])
    command = [sys.executable, "-m", "pytest", *ALONE, "-v", "-n", "2", "--dist=loadgroup"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=pytester.path)
    assert "3 passed" in ran.stdout, ran.stdout + ran.stderr
    grouped = "test_f[f-contract]@f" in ran.stdout  # pytest-xdist 3.8 does not group under pytest 9.2
    asked = (pytester.path / "asked.txt").read_text().splitlines()
    assert sorted(asked) == (["contract value linearity"] if grouped else ["contract", "linearity", "value"])


def test_the_plugin_imports_nothing_of_vjplib_and_no_jax(pytester):
    pytester.makepyfile("import sys\ndef test_it():\n    assert not {'jax', 'numpy', 'vjplib'} & set(sys.modules)\n")
    command = [sys.executable, "-m", "pytest", *ALONE, "-p", "no:xdist"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=pytester.path)
    assert "1 passed" in ran.stdout, ran.stdout
    assert re.search("plugins:.*vjplib", ran.stdout)


def test_an_assertion_under_unittest_is_a_plain_one():
    class Right(unittest.TestCase):
        def test_right(self):
            assert_verified(vjplib.tanh, (0.5,), effort="quick", claims=("contract",))

        def test_wrong(self):
            assert_verified(vjplib.tanh, (0.5,), reference=vjplib.sigmoid, effort="quick", claims=("value",))

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Right).run(result)
    assert (result.testsRun, len(result.failures), result.errors) == (2, 1, [])
    assert "tanh is not verified" in result.failures[0][1]


def test_testing_imports_no_pytest():
    program = "import sys, vjplib.testing; assert not {'pytest', '_pytest'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ((), {}, "targets must name at least one rule or call, got none"),
        (((),), {}, "targets must name at least one rule or call, got none"),
        (("sofmax",), {}, "got 'sofmax'"),
        (("tanh",), {"claims": ("V99",)}, "claims must be among contract, .* got V99"),
        (("tanh",), {"effort": "slow"}, "effort must be one of quick, standard, deep, got 'slow'"),
        ((3,), {}, r"targets must be rules, .* or calls \(fn, args\) or .*; got 3"),
        (((vjplib.tanh, 0.5),), {}, "a call must be .* with args a tuple, got"),
        (((vjplib.tanh,),), {}, "a call must be "),
    ],
)
def test_targets_that_make_no_sense_are_refused(targets, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        parametrize(*targets, **options)


def test_outside_pytest_s_options_the_defaults_hold(monkeypatch):
    monkeypatch.setattr(vjplib_pytest, "configs", [])
    assert effort_and_seed("quick") == ("quick", 0)
    assert verified(find("tanh")[0], claims=("contract",)).ok


def test_nothing_decided_is_not_success():
    def loop(x):
        return jax.lax.while_loop(lambda c: c < 10, lambda c: c + 1, x)

    message = r"test_pytest_plugin.py:\d+: loop is not verified: no claim was decided"
    with pytest.raises(ClaimError, match=message) as raised:
        verified(loop, (0.5,), claims=("value",))
    assert "Reproduce: pytest" in str(raised.value)


def test_proofs_hold_the_report():
    def test(proof):
        proof()

    (case, _) = vars(parametrize("tanh", claims=("contract", "residuals"), effort="quick")(test))["pytestmark"][0].args[
        1
    ]
    (proof,) = case.values
    assert isinstance(proof, Proof)
    assert proof.report.level("contract") == "pass"
