"""The examples that train: each runs with few steps, and what it chose is among what it searched."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MNIST1D = runpy.run_path(str(EXAMPLES / "mnist1d.py"))
DIGITS = runpy.run_path(str(EXAMPLES / "digits.py"))


@pytest.fixture(scope="module")
def mnist1d():
    return MNIST1D["load"]()


def test_mnist1d_prints_its_accuracies_beside_the_papers(mnist1d, monkeypatch, capsys):
    monkeypatch.setitem(MNIST1D["main"].__globals__, "load", lambda: mnist1d)
    results = MNIST1D["main"](["--epochs", "2", "--seeds", "2", "--no-progress"])
    assert {name: len(accuracies) for name, accuracies in results.items()} == {"logistic": 2, "mlp": 2, "cnn": 2}
    assert results["logistic"][0] > 20  # ten classes: twice as good as guessing, after two epochs
    shown = capsys.readouterr().out
    for model, paper in (("logistic", "32 %"), ("mlp", "68 %"), ("cnn", "94 %")):
        row = next(line for line in shown.splitlines() if f" {model} " in line)
        assert paper in row
        assert f"{np.mean(results[model]):.1f} %" in row


def test_mnist1d_searches_on_training_data_alone(monkeypatch, capsys):
    seen = []
    x, y = np.zeros((1000, 40, 1), np.float32), np.zeros(1000, np.int32)
    scope = MNIST1D["main"].__globals__
    monkeypatch.setitem(scope, "load", lambda: ((x, y), None))
    monkeypatch.setitem(scope, "accuracies", lambda s, network, *data: seen.append(data[:2]) or [s.learning_rate])
    results = MNIST1D["main"](["--search", "--models", "logistic"])["logistic"]
    assert list(results) == MNIST1D["MODELS"]["logistic"].searched
    assert {(len(train[0]), len(validation[0])) for train, validation in seen} == {(800, 200)}
    assert "validation" in capsys.readouterr().out


@pytest.mark.parametrize("name", MNIST1D["MODELS"])
def test_mnist1d_chose_among_what_it_searched(name):
    model = MNIST1D["MODELS"][name]
    assert model.chosen in model.searched


def test_mnist1d_is_the_papers_data_set(mnist1d):
    (x, y), (x_test, y_test) = mnist1d
    assert (x.shape, x_test.shape) == ((4000, 40, 1), (1000, 40, 1))
    assert set(np.bincount(np.concatenate([y, y_test]))) == {500}


def test_digits_learns_in_one_epoch_and_holds_out_a_stratified_fifth(capsys):
    results = DIGITS["main"](["--epochs", "1", "--validate", "--no-progress"])
    assert results["held out"] > 0.8
    assert "held out" in capsys.readouterr().out
    x, y = DIGITS["load"]()
    (_, train), (_, held_out) = DIGITS["split"]((x, y))
    assert abs(len(held_out) - len(y) / 5) < 1
    assert max(abs(np.bincount(held_out) - np.bincount(train) / 4)) < 2


def test_digits_shifts_keep_each_image_first_and_its_label():
    x, y = np.arange(2 * 64.0).reshape(2, 8, 8, 1), np.array([3, 7])
    shifted, labels = DIGITS["with_shifts"]((x, y))
    assert labels.tolist() == [3, 7] * 5
    np.testing.assert_array_equal(shifted[:2], x)
    np.testing.assert_array_equal(shifted[2:4, 1:], x[:, :-1])


@pytest.mark.parametrize(
    ("example", "module", "message"),
    [(MNIST1D, "mnist1d.data", "needs mnist1d"), (DIGITS, "sklearn.datasets", "needs scikit-learn")],
)
def test_a_missing_package_is_named_with_its_extra(example, module, message, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{message}: pip install 'vjplib\[examples\]'"):
        example["load"]()
