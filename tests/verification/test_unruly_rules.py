"""Rules that raise, hang, exit, print, change what is global, eat memory or crash are findings, and the run goes on."""

import io
import os
import random
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vjplib
from vjplib.__main__ import main

X = (np.linspace(-1, 1, 7, dtype=np.float32),)
CALLS = []
GROWN = []
INFS = "jax_debug_infs"


def sine(bwd):
    rule = jax.custom_vjp(jnp.sin)
    rule.defvjp(lambda x: (jnp.sin(x), x), bwd)
    return rule


def right(x, g):
    return (g * jnp.cos(x),)


def verified(bwd, **options):
    return vjplib.verify(sine(bwd), X, effort="quick", **options)


def endless(x, g):
    while True:
        pass


def endless_and_deaf(x, g):
    until = time.monotonic() + 4
    while time.monotonic() < until:
        try:
            while time.monotonic() < until:
                time.sleep(0.01)
        except BaseException:
            pass
    return right(x, g)


def endless_when_compiled(x, g):
    start = jnp.sum(x) * 0
    steps = jax.lax.while_loop(lambda state: (state[0] >= 0) & (state[1] < 2**26), step, (start, 0))
    return (g * jnp.cos(x) + 0 * steps[0],)


def step(state):
    return jnp.abs(jnp.sin(state[0])) + state[0], state[1] + 1


@pytest.mark.parametrize("bwd", [endless, endless_and_deaf])
def test_what_does_not_end_fails_and_the_rest_is_not_examined(bwd):
    start = time.monotonic()
    report = verified(bwd, time_limit=1)
    assert time.monotonic() - start < 10
    assert any("did not end within 1 s" in f.message for f in report.failures)
    assert {f.message for f in report.findings if f.level == "skipped"} == {"skipped: an earlier check timed out"}
    assert vjplib.verify(vjplib.tanh, X, effort="quick").ok


def test_compiled_code_that_does_not_end_is_left_behind():
    report = verified(endless_when_compiled, time_limit=1, claims=("contract", "value"))
    assert [f.message for f in report.failures] == ["did not end within 1 s"]
    assert not report.ok


def test_a_python_loop_is_stopped():
    before = threading.active_count()
    verified(endless, time_limit=1, claims=("contract",))
    time.sleep(0.5)
    assert threading.active_count() <= before


def test_time_limit_must_be_positive():
    for limit in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="time_limit must be a positive number of seconds, got"):
            verified(right, time_limit=limit)


def test_without_a_limit_all_runs_in_the_callers_thread():
    threads = set()

    def bwd(x, g):
        threads.add(threading.current_thread())
        return right(x, g)

    assert verified(bwd, time_limit=float("inf")).ok
    assert threads == {threading.main_thread()}


def test_what_raises_or_exits_fails_each_claim():
    def leaves(x, g):
        sys.exit(3)

    def deepens(x, g):
        return deepens(x, g)

    for bwd, said in ((leaves, "SystemExit: 3"), (deepens, "RecursionError")):
        report = verified(bwd, claims=("value", "linearity"))
        assert {f.claim for f in report.failures} == {"value", "linearity"}
        assert all(said in f.message for f in report.failures)


def test_nan_fails():
    report = verified(lambda x, g: (g * jnp.nan,))
    assert {"value", "second_order", "edges"} <= {f.claim for f in report.failures}


def test_printing_is_noted_and_passes_through(capsys):
    def bwd(x, g):
        print("hello")
        return right(x, g)

    report = verified(bwd)
    assert report.ok
    assert any("prints while it is traced or run: 'hello'" in f.message for f in report.findings)
    assert "hello" in capsys.readouterr().out


def test_global_state_is_watched_and_restored():
    def bwd(x, g):
        np.random.seed(0)  # noqa: NPY002
        random.random()
        os.environ["VJPLIB_TEST"] = "set"
        jax.config.update(INFS, True)
        GROWN.append(1)
        os.chdir("/")
        global CALLS
        CALLS = [*CALLS, x]
        return right(x, g)

    folder = os.getcwd()
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    report = verified(bwd)
    messages = [f.message for f in report.failures]
    for words in ("NumPy's global random", "Python's global random", "settings of JAX: jax_debug_infs", "VJPLIB_TEST"):
        assert any(words in message for message in messages), words
    assert any("sets global variables" in f.message and "CALLS, GROWN" in f.message for f in report.findings)
    assert any("changes the current folder" in message for message in messages)
    assert os.getcwd() == folder
    assert str(np.random.get_state()) == str(numpy_state)  # noqa: NPY002
    assert random.getstate() == python_state
    assert "VJPLIB_TEST" not in os.environ
    assert not getattr(jax.config, INFS)


def test_what_was_changed_is_restored_where_the_call_is_refused_too():
    def changes(x):
        os.environ["VJPLIB_TEST"] = "set"
        return jnp.argmax(x)

    with pytest.raises(ValueError, match="at least one floating array"):
        vjplib.verify(changes, X)
    assert "VJPLIB_TEST" not in os.environ


def test_another_standard_output_is_found_and_put_back():
    def bwd(x, g):
        sys.stdout = io.StringIO()
        return right(x, g)

    before = sys.stdout
    report = verified(bwd)
    assert any("replaces sys.stdout" in f.message for f in report.failures)
    assert sys.stdout is before


def test_contexts_of_the_caller_hold_in_the_checks():
    seen = set()

    def bwd(x, g):
        seen.add("HIGHEST" in str(jax.make_jaxpr(jnp.dot)(X[0], X[0])))
        return right(x, g)

    with jax.default_matmul_precision("highest"):
        assert verified(bwd, claims=("contract",)).ok
    assert seen == {True}


@pytest.mark.parametrize(
    ("setting", "effort"),
    [
        (lambda: jax.transfer_guard("disallow_explicit"), "standard"),
        (jax.checking_leaks, "standard"),
        (lambda: jax.debug_nans(True), "quick"),
        (lambda: jax.numpy_rank_promotion("raise"), "standard"),
        (lambda: jax.numpy_dtype_promotion("strict"), "quick"),
        (lambda: jax.enable_x64(True), "quick"),
        (lambda: np.errstate(all="raise"), "quick"),
    ],
)
def test_settings_of_the_caller_fail_no_right_rule(setting, effort):
    with setting():
        report = vjplib.verify(vjplib.softmax, (X[0].reshape(1, 7),), effort=effort)
    assert report.ok, report


def test_an_array_larger_than_memory_is_a_finding_and_nothing_is_computed():
    def whole_jacobian(x, g):
        return (g @ jnp.diag(jnp.cos(x)),)

    n = 100_000 * 4  # 1.28 TB in float64
    start = time.monotonic()
    report = vjplib.verify(sine(whole_jacobian), (np.linspace(0, 1, n, dtype=np.float32),), effort="quick")
    assert time.monotonic() - start < 30
    assert {f.claim for f in report.failures} == {"growth"}
    assert any(
        "forms an array of 160,000,000,000 elements" in f.message for f in report.findings if f.level == "skipped"
    )
    assert report.level("value") == "skipped"


MODULE = """
import ctypes, os, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
from vjplib import Case, Rule

def rule(name, bwd):
    made = jax.custom_vjp(lambda x: jnp.sin(x))
    made.defvjp(lambda x: (jnp.sin(x), x), bwd)
    made.__name__ = name
    return Rule(made, jnp.sin, {"jnp.sin": jnp.sin}, (Case(("n",), {"n": 5}),))

def dies(x, g):
    os.kill(os.getpid(), signal.SIGKILL)

def crashes(x, g):
    ctypes.string_at(0)

def devours(x, g):
    held = [np.empty(2**28) for _ in range(10_000)]  # 21 TB
    return (g * jnp.cos(x),)

def sleeps(x, g):
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

RULES = tuple(
    rule(name, bwd)
    for name, bwd in (
        ("dies", dies), ("crashes", crashes), ("devours", devours), ("sleeps", sleeps),
        ("waves", lambda x, g: (g * jnp.cos(x),)),
    )
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals and the limit on memory are Linux's")
def test_a_process_that_dies_is_a_finding_and_the_others_are_verified(tmp_path, monkeypatch, capfd):
    (tmp_path / "unruly.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert main(["verify", "unruly", "--quick", "--claims", "contract", "--time-limit", "5"]) == 1
    out = " ".join(capfd.readouterr().out.split())
    assert "dies: the process died contract: the process that examined it died by SIGKILL, as the system does" in out
    assert "crashes: the process died contract: the process that examined it died by SIGSEGV" in out
    assert "devours: it raises an exception" in out
    assert "MemoryError" in out
    assert "sleeps: it did not end in time contract [n=5]: did not end within 5 s" in out
    assert "1 of 5 rules verified" in out
    sys.modules.pop("unruly")


def test_the_same_seed_gives_the_same_report_in_every_process(tmp_path):
    import json

    runs = []
    for jobs in ("0", "2"):
        assert (
            main(["verify", "tanh", "relu", "--quick", "--seed", "5", "--jobs", jobs, "--json", str(tmp_path / jobs)])
            == 0
        )
        runs.append([r["findings"] for r in json.loads((tmp_path / jobs).read_text())["reports"]])
    assert runs[0] == runs[1]


def test_claims_shared_out_among_processes_give_the_report_of_one(tmp_path, monkeypatch):
    import json

    rules = """
RULES = tuple(rule(name, bwd) for name, bwd in (("waves", lambda x, g: (1.001 * g * jnp.cos(x),)),))
"""
    (tmp_path / "wrongwaves.py").write_text(MODULE.partition("RULES =")[0] + rules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    runs = []
    for jobs in ("1", "3"):
        assert main(["verify", "wrongwaves", "--quick", "--jobs", jobs, "--json", jobs]) == 1
        (report,) = json.loads((tmp_path / jobs).read_text())["reports"]
        runs.append(report["findings"])
    assert runs[0] == runs[1]
    assert {"value", "linearity", "transforms"} <= {f["claim"] for f in runs[0]}
    sys.modules.pop("wrongwaves")


def test_what_a_rule_does_to_the_run_is_told_by_whichever_process_sees_it(tmp_path, monkeypatch, capfd):
    rules = """
@jax.custom_jvp
def slope(x):
    return jnp.cos(x)

@slope.defjvp
def slope_jvp(xs, ts):
    np.random.rand()
    return jnp.cos(xs[0]), -jnp.sin(xs[0]) * ts[0]

RULES = (rule("waves", lambda x, g: (g * slope(x),)),)
"""
    (tmp_path / "drawing.py").write_text(MODULE.partition("RULES =")[0] + rules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for jobs in ("1", "3"):
        assert main(["verify", "drawing", "--quick", "--jobs", jobs]) == 1
        assert "draws from NumPy's global random numbers" in " ".join(capfd.readouterr().out.split())
    sys.modules.pop("drawing")


def test_what_jax_sets_when_a_kernel_is_first_asked_for_is_no_fault(monkeypatch):
    monkeypatch.delenv("MOSAIC_GPU_CUDA_ROOT", raising=False)

    def as_pallas_does(x):
        os.environ["MOSAIC_GPU_CUDA_ROOT"] = "/somewhere"
        return jnp.sin(x)

    report = vjplib.verify(as_pallas_does, (np.array([0.5, -1.0], np.float32),), effort="quick")
    assert report.ok, report
    assert os.environ["MOSAIC_GPU_CUDA_ROOT"] == "/somewhere"
