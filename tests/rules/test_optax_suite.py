"""optax's own tests of its losses, from its wheel, pass with our functions in the place of optax's."""

import unittest
from functools import partial
from importlib import import_module

import jax
import jax.test_util
import pytest

import vjplib as vl

SUITES = {
    "SoftmaxCrossEntropyTest": ("_classification", 9),
    "SoftmaxCrossEntropyWithIntegerLabelsTest": ("_classification", 15),
    "SafeSoftmaxCrossEntropyTest": ("_classification", 4),  # compares optax's safe loss with the one under test
    "PolyLossTest": ("_classification", 25),  # compares optax's loss, made of the one under test, with it
    "SquaredErrorTest": ("_regression", 3),
    "L2LossTest": ("_regression", 3),  # half the squared error
}
OURS = {
    "_classification": ("softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"),
    "_regression": ("squared_error",),
}


@pytest.fixture(scope="module")
def ours_in_optax():
    """Puts our functions in the place of optax's; optax jits its losses, and may have traced them with its own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for file, names in OURS.items():
            for name in names:
                monkeypatch.setattr(import_module(f"optax.losses.{file}"), name, getattr(vl, name))
        # Two of the tests check derivatives in forward mode too, which no custom_vjp has; reverse mode remains.
        monkeypatch.setattr(jax.test_util, "check_grads", partial(jax.test_util.check_grads, modes=("rev",)))
        jax.clear_caches()
        yield
    jax.clear_caches()


@pytest.mark.xdist_group("optax")
@pytest.mark.usefixtures("ours_in_optax")
@pytest.mark.filterwarnings("ignore")  # optax's tests raise warnings of their own
@pytest.mark.parametrize("suite", SUITES)
def test_optax_s_own_tests_pass_with_ours(suite):
    file, fewest = SUITES[suite]
    tests = import_module(f"optax.losses.{file}_test")
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(getattr(tests, suite)).run(result)
    assert not result.skipped
    assert not [text for _, text in (*result.failures, *result.errors)]
    assert result.testsRun >= fewest
