"""Examples: calls drawn of rules that have no record stay in the domain, and no right rule raises an alarm there."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from field_right_rules import EXAMPLES
from wrong_rule import keeping, normal

from vjplib import mutation as power
from vjplib.__main__ import main
from vjplib.mutation.examples import drawn_call, dtypes_of, redrawn
from vjplib.verification.domain import properties

BY_NAME = {example.name: example for example in EXAMPLES}
SINE = power.Example("sine", keeping(lambda x: jnp.sin(x), lambda res, g: (g * jnp.cos(res[0]),)), (normal(5),))


def draws(name, count=8):
    for k in range(count):
        yield drawn_call(BY_NAME[name], np.random.default_rng(k))


def alarms(example, runs, by="vjplib"):
    return [alarm for alarm in power.run_correct(example, runs, 0).alarms if alarm.by == by]


def test_the_zoo_holds_the_kinds_that_raised_false_alarms():
    assert len(EXAMPLES) >= 60
    assert len(BY_NAME) == len(EXAMPLES)


def test_sizes_are_drawn_and_a_static_number_that_states_one_follows():
    sizes = set()
    for call in draws("embedding"):
        table, ids, vocabulary = call.args
        assert vocabulary.value == table.shape[0] > np.max(ids)
        sizes.add(table.shape)
    assert len(sizes) > 2


@pytest.mark.parametrize(
    "name", ["logdet", "interpolate", "kepler", "kl_from_log_probabilities", "solve_orthonormal", "permute_rows"]
)
def test_drawn_arrays_keep_the_properties_of_the_given_ones(name):
    given = [properties(a) for a in jax.tree.leaves(BY_NAME[name].args)]
    assert any(given)
    for k, call in enumerate(draws(name)):
        for scale in (1e-3, 1.0, 30.0):
            args = redrawn(call, np.random.default_rng(k), jnp.dtype("float32"), scale)
            for leaf, kept in zip(jax.tree.leaves(args), given, strict=True):
                assert all(p.holds(np.asarray(leaf)) for p in kept)


def test_a_call_is_drawn_in_the_dtypes_that_the_function_takes():
    def found(name):
        return [jnp.dtype(dtype).name for dtype in dtypes_of(next(draws(name, 1)), ("float32", "bfloat16", "float64"))]

    assert found("kepler") == ["float32", "bfloat16", "float64"]
    assert found("bias_gelu") == ["float32", "bfloat16"]
    assert dtypes_of(next(draws("attention_with_bias", 1)), ("float32",)) == [None]


@pytest.mark.parametrize("name", ["segment_sum", "kepler", "huber", "attention_with_bias", "centred_over_devices"])
def test_a_right_rule_raises_no_alarm(name):
    assert alarms(BY_NAME[name], range(2)) == []


def test_a_wrong_rule_raises_one_at_each_run():
    wrong = SINE._replace(fn=keeping(lambda x: jnp.sin(x), lambda res, g: (2 * g * jnp.cos(res[0]),)))
    assert {alarm.run for alarm in alarms(wrong, range(4))} == {0, 1, 2, 3}
    assert alarms(wrong._replace(options={"claims": ("transforms",)}), range(4)) == []


def test_a_file_of_examples_is_a_target(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "sine_of_mine.py").write_text(
        """
import jax, jax.numpy as jnp, numpy as np
from vjplib.mutation import Example

@jax.custom_vjp
def sine(x):
    return jnp.sin(x)

sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))
EXAMPLES = (Example("sine", sine, (np.float32([0.5, -1.0, 2.0]),)),)
"""
    )
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert main(["power", str(folder / "sine_of_mine.py"), "--mutants", "0", "--runs", "2", "--jobs", "0"]) == 0
    assert "vjplib" in (shown := capsys.readouterr().out)
    assert "survived" not in shown
    (folder / "broken_example.py").write_text("EXAMPLES = 3")
    with pytest.raises(SystemExit):
        main(["power", str(folder / "broken_example.py")])
    assert "EXAMPLES of broken_example must be a tuple" in capsys.readouterr().err
    for module in ("sine_of_mine", "broken_example"):
        sys.modules.pop(module)
