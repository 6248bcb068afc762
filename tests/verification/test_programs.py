"""What is compared is compiled as few programs: all as one at first, and each alone only where that raises."""

import jax
import jax.numpy as jnp
import numpy as np
from wrong_rules import rule

import vjplib
from vjplib.compat import fast_compile_options
from vjplib.verification.call import attempt_all

NAMES = ("a", "b", "c")


def tried(refused=(), together=True):
    """Returns the results of `attempt_all`, and the names of each run; a trace raises where the name is refused."""
    runs, traced = [], []

    def trace(name):
        traced.append(name)
        if name in refused:
            raise TypeError(name)

    def run(names):
        runs.append(tuple(names))
        if set(names) & set(refused) or (len(names) > 1 and not together):
            raise ValueError("of the program")
        return {name: name.upper() for name in names}

    results = attempt_all(run, {name: lambda name=name: trace(name) for name in NAMES})
    return results, runs, traced


def test_what_raises_nothing_is_one_program_and_is_not_traced_apart():
    assert tried() == ({"a": "A", "b": "B", "c": "C"}, [NAMES], [])


def test_what_cannot_be_traced_is_left_out_of_the_program_of_the_others():
    results, runs, traced = tried(refused="b")
    assert (results["a"], results["c"], runs, traced) == ("A", "C", [NAMES, ("a", "c")], [*NAMES])
    assert isinstance(results["b"], TypeError)
    results, runs, _ = tried(refused=NAMES)
    assert (set(map(type, results.values())), runs) == ({TypeError}, [NAMES])


def test_what_does_not_compile_together_is_tried_alone():
    results, runs, _ = tried(together=False)
    assert (results, runs) == ({"a": "A", "b": "B", "c": "C"}, [NAMES, ("a",), ("b",), ("c",)])
    results, runs, _ = tried(refused="b", together=False)
    assert runs == [NAMES, ("a", "c"), ("a",), ("c",)]
    assert (results["a"], type(results["b"])) == ("A", TypeError)


def test_coverage_compiles_no_program_for_each_equation(caplog):
    made = rule(
        lambda x: jnp.sin(x) * jnp.exp(x), lambda x: (jnp.sin(x) * jnp.exp(x), x), lambda x, g: (backward(x, g),)
    )

    def backward(x, g):
        return g * jnp.exp(x) * (jnp.sin(x) + jnp.cos(x)) + 0 * jnp.tanh(x)

    x = np.linspace(-1, 1, 37, dtype=np.float32)  # of a shape that no other test has compiled for
    fast_compile_options()  # found out once, by compiling
    with jax.log_compiles():
        report = vjplib.verify(made, (x,), claims=("coverage",))
    (note,) = report.findings
    assert "no cotangent moves with" in note.message, report
    assert sum("Finished XLA compilation" in record.message for record in caplog.records) == 2
