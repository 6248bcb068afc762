"""The examples that train: each runs with few steps, and what it chose is among what it searched."""

import runpy
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MNIST1D = runpy.run_path(str(EXAMPLES / "mnist1d.py"))
DIGITS = runpy.run_path(str(EXAMPLES / "digits.py"))
CHARACTERS = runpy.run_path(str(EXAMPLES / "char_transformer.py"))


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


@pytest.fixture(scope="module")
def characters():
    return CHARACTERS["load"]()


def test_characters_are_held_out_by_topics(characters):
    train, test, vocabulary = characters
    assert 300_000 < len(train) < 600_000
    assert 0.05 < len(test) / len(train) < 0.2
    assert max(train.max(), test.max()) == vocabulary - 1
    n = 60
    windows = {train[i : i + n].tobytes() for i in range(len(train) - n)}
    assert np.mean([test[i : i + n].tobytes() in windows for i in range(0, len(test) - n, n)]) < 0.1


def test_ngrams_are_interpolated_probabilities():
    """Of two alternating characters: the probability after one is its count, mixed with that of single characters."""
    train = np.array([0, 1] * 50)
    bits = CHARACTERS["bits_of_ngrams"](train, np.array([0, 1, 0, 1]), 2, n=2)
    p = {}
    for c, count in ((0, 50), (1, 50)):
        once = (count + 2 / 2) / (100 + 2)
        seen = 49 if c == 0 else 50  # after the other one
        p[c] = (seen + once) / (seen + 1)
    np.testing.assert_allclose(bits, -(2 * np.log2(p[1]) + np.log2(p[0])) / 3, rtol=1e-12)


def test_characters_fall_below_chance_in_a_few_steps(characters, monkeypatch, capsys):
    train, test, vocabulary = characters
    scope = CHARACTERS["main"].__globals__
    monkeypatch.setitem(scope, "load", lambda: (train[:20_000], test[:5_000], vocabulary))
    monkeypatch.setitem(scope, "Size", lambda vocabulary: CHARACTERS["Size"](16, 2, 1, 128, vocabulary))
    found = CHARACTERS["main"](["--steps", "12", "--every", "6"])
    assert list(found["bits"]) == [6, 12]
    assert found["bits"][12] < found["bits"][6] < 2 * np.log2(vocabulary)
    assert found["baseline"] < np.log2(vocabulary)
    assert "5-gram model:" in capsys.readouterr().out
    ours, plain = found["memory"][::-1]
    assert 0 < ours < plain


def test_both_transformers_have_the_same_loss_and_gradients(characters):
    size = CHARACTERS["Size"](16, 2, 2, 8, 11)
    params = CHARACTERS["draw"](jax.random.key(0), size)
    text = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 9)))
    results = []
    for name in ("PLAIN", "VJPLIB"):
        of_params = jax.value_and_grad(lambda p, ops=CHARACTERS[name]: CHARACTERS["loss"](p, text, 2, ops))
        results.append(jax.jit(of_params)(params))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("example", "module", "message"),
    [(MNIST1D, "mnist1d.data", "needs mnist1d"), (DIGITS, "sklearn.datasets", "needs scikit-learn")],
)
def test_a_missing_package_is_named_with_its_extra(example, module, message, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{message}: pip install 'vjplib\[examples\]'"):
        example["load"]()
