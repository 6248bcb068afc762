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
    "SafeSoftmaxCrossEntropyTest": ("_classification", 4),  # compares the safe loss with the other
    "SigmoidCrossEntropyTest": ("_classification", 10),
    "SigmoidFocalLossTest": ("_classification", 9),
    "CTCTest": ("_classification", 3),  # one test is of optax's forward probabilities
    "KLDivergenceTest": ("_classification", 7),
    "GeneralizedKLDivergenceTest": ("_classification", 8),  # made of the one under test
    "PolyLossTest": ("_classification", 25),  # compares optax's loss, made of the one under test, with it
    "SquaredErrorTest": ("_regression", 3),
    "L2LossTest": ("_regression", 3),  # half the squared error
    "HuberLossTest": ("_regression", 2),
    "LogCoshTest": ("_regression", 4),
}
OURS = {
    "_classification": (
        "ctc_loss",
        "kl_divergence",
        "safe_softmax_cross_entropy",
        "sigmoid_binary_cross_entropy",
        "sigmoid_focal_loss",
        "softmax_cross_entropy",
        "softmax_cross_entropy_with_integer_labels",
    ),
    "_regression": ("huber_loss", "log_cosh", "squared_error"),
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
    print(suite, result.testsRun)
    assert result.testsRun >= fewest
