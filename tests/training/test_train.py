"""Training: Eq. 1 (L1), histories that seeds and resumptions determine, the stop on NaN, and bad input refused."""

import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vjplib as vl
from vjplib.training import net, train

X = np.random.default_rng(0).normal(size=(22, 3)).astype(np.float32)
Y = (X[:, 0] > X[:, 1]).astype(np.int32) + (X[:, 2] > 1)
NETWORK = net.serial(net.linear(8), net.tanh, net.linear(3))
PARAMS = NETWORK.init(jax.random.key(0), (3,))[1]
SMALLER = net.serial(net.linear(4), net.tanh, net.linear(3)).init(jax.random.key(0), (3,))[1]
OPTIMIZER = optax.sgd(optax.cosine_decay_schedule(0.1, 30), momentum=0.9)
EVALUATE = train.evaluator({"accuracy": lambda params, x, y: train.accuracy(NETWORK.apply(params, x), y)}, (X, Y))


def classify(params, x, y):
    return train.cross_entropy(NETWORK.apply(params, x), y)


def fit(loss=classify, params: Any = PARAMS, data: Any = (X, Y), *, optimizer: Any = OPTIMIZER, **options):
    options = {"epochs": 4, "batch_size": 5, "evaluate": EVALUATE, "progress": False} | options
    return train.fit(loss, optimizer, params, data, **options)


# ------------------------------------------------------------------------------------------------- Eq. 1 of the lecture


def test_a_step_of_sgd_is_equation_1_bit_for_bit():
    """L1: W <- W - lr dl/dW. On small integers and a power of two no operation rounds, so no order of sums matters."""
    integers = np.random.default_rng(1).integers
    x, y = jnp.array(integers(-4, 5, (16, 3)), float), jnp.array(integers(-4, 5, (16, 2)), float)
    network = net.serial(net.linear(8), net.relu, net.linear(2))
    shapes = network.init(jax.random.key(0), (3,))[1]
    W = jax.tree.map(lambda a: jnp.array(integers(-4, 5, a.shape), a.dtype), shapes)
    lr, sgd = 2.0**-6, optax.sgd(2.0**-6)

    def loss(W, x, y):
        return jnp.sum(vl.squared_error(network.apply(W, x), y))

    value, grads = jax.value_and_grad(loss)(W, x, y)
    expected = jax.tree.map(lambda w, g: w - lr * g, W, grads)
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads))
    chex.assert_trees_all_equal(
        train.step(loss, sgd, train.State(W, sgd.init(W)), (x, y)), (train.State(expected, sgd.init(W)), value)
    )


def test_fit_of_one_batch_is_equation_1_by_hand():
    """L1: with l = 1/2 (W x - y)^2, dl/dW = (W x - y) x^T; in powers of two every operation is exact."""
    W, x, y = jnp.array([[1.0, -2.0], [0.5, 4.0]]), jnp.array([[2.0, 1.0]]), jnp.array([[1.0, -1.0]])

    def loss(W, x, y):
        return 0.5 * jnp.sum(vl.squared_error(vl.linear(x, W), y))

    run = fit(loss, W, (x, y), optimizer=optax.sgd(0.25), epochs=1, batch_size=1, evaluate=None)
    residual = np.array([1 * 2 - 2 * 1 - 1, 0.5 * 2 + 4 * 1 + 1])  # -1 and 6
    np.testing.assert_array_equal(run.params, W - 0.25 * residual[:, None] * x)
    assert run.history == (train.Record(1, 0.5 * (1 + 36), {}),)


# -------------------------------------------------------------------------------------------------- history and batches


def test_training_lowers_the_loss_and_raises_the_accuracy():
    history = fit(epochs=30, optimizer=optax.sgd(0.3, momentum=0.9)).history
    assert [record.epoch for record in history] == list(range(1, 31))
    assert history[-1].loss < history[0].loss / 4
    assert history[-1].metrics["accuracy"] == 1


def test_the_same_seed_gives_the_same_history_bit_for_bit_and_another_does_not():
    first, second, other = fit(seed=3), fit(seed=3), fit(seed=4)
    assert first.history == second.history
    chex.assert_trees_all_equal(first.state, second.state)
    assert first.history != other.history


def test_an_epoch_takes_each_example_once_at_most_in_an_order_of_its_own():
    n, batch_size = 7, 3

    def loss(counts, one_hot):  # each step of sgd(1) takes one from the counts of its examples
        return jnp.sum(counts * one_hot)

    def left(epochs):
        data = (jnp.eye(n),)
        options = {"optimizer": optax.sgd(1.0), "epochs": epochs, "batch_size": batch_size, "evaluate": None}
        return np.asarray(fit(loss, jnp.zeros(n), data, **options).params)

    assert sorted(left(1)) == [-1.0] * 6 + [0.0]
    assert sum(left(8)) == -8 * 6
    assert len(set(left(8))) > 1  # not the same example is left out of every epoch


def test_the_step_compiles_once_for_all_epochs_seeds_and_runs():
    chex.clear_trace_counter()
    loss = chex.assert_max_traces(classify, n=1)
    assert len(fit(loss, seed=0).history) == len(fit(loss, seed=1).history) == 4
    weak = jnp.asarray(0.0)  # of weak type, which steps would make strong
    loss = chex.assert_max_traces(lambda w, x: jnp.mean((w - x) ** 2), n=1)
    assert len(fit(loss, weak, (X,), optimizer=optax.sgd(0.1, momentum=0.9), evaluate=None).history) == 4


def test_the_callers_arrays_stay_usable():
    before = jax.tree.map(np.array, PARAMS)
    fit(epochs=1)
    chex.assert_trees_all_equal(PARAMS, before)


def test_an_optimizer_whose_state_shares_arrays_with_the_parameters_can_be_used():
    def pull_back(updates, state, params=None):
        return jax.tree.map(lambda g, w, w0: -0.1 * g - 0.01 * (w - w0), updates, params, state), state

    run = fit(optimizer=optax.GradientTransformation(lambda params: params, pull_back))
    chex.assert_trees_all_equal(run.state.opt_state, PARAMS)
    assert run.history[-1].loss < run.history[0].loss


@pytest.mark.parametrize("batch_size", [None, 1, 5, 22])
def test_metrics_are_means_over_all_examples_whatever_the_batches(batch_size):
    metrics = {"x": lambda w, x, y: w * jnp.mean(x), "y": lambda w, x, y: jnp.mean(y)}
    evaluate = train.evaluator(metrics, (X, Y), batch_size=batch_size)
    chex.assert_trees_all_close(evaluate(2.0), {"x": float(2 * X.mean()), "y": float(Y.mean())}, rtol=1e-5)


def test_the_progress_bar_shows_loss_and_metrics(capsys):
    fit(epochs=2, progress=True)
    shown = capsys.readouterr().out
    assert "2/2" in shown
    assert "loss" in shown
    assert "accuracy" in shown


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = fit(epochs=5)
    part = fit(epochs=2, checkpoint_dir=tmp_path / "run")
    resumed = fit(epochs=5, checkpoint_dir=tmp_path / "run")
    assert part.history == whole.history[:2]
    assert resumed.history == whole.history
    chex.assert_trees_all_equal(resumed.state, whole.state)
    assert jax.tree.structure(resumed.state) == jax.tree.structure(whole.state)


def test_a_run_that_was_killed_goes_on_after_its_last_whole_epoch(tmp_path):
    seen = []

    def killed_in_the_third_epoch(params):
        seen.append(params)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return EVALUATE(params)

    with pytest.raises(KeyboardInterrupt):
        fit(epochs=5, evaluate=killed_in_the_third_epoch, checkpoint_dir=tmp_path)
    resumed, whole = fit(epochs=5, checkpoint_dir=tmp_path), fit(epochs=5)
    assert resumed.history == whole.history
    chex.assert_trees_all_equal(resumed.state, whole.state)


def test_a_finished_run_is_returned_without_a_step(tmp_path):
    first = fit(checkpoint_dir=tmp_path)
    again = fit(loss=pytest.fail, checkpoint_dir=tmp_path)
    assert again.history == first.history
    chex.assert_trees_all_equal(again.state, first.state)


def test_a_history_with_nan_among_the_metrics_survives(tmp_path):
    fit(epochs=1, evaluate=lambda params: {"ratio": float("nan")}, checkpoint_dir=tmp_path)
    assert np.isnan(fit(epochs=2, checkpoint_dir=tmp_path).history[0].metrics["ratio"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "but that has seed 0, not 1$"),
        ({"batch_size": 4}, "but that has batch_size 5, not 4$"),
        ({"data": (X[:20], Y[:20])}, r"data\[0\] float32\[22, 3\] of digest \w{16}, not float32\[20, 3\] of digest "),
        (
            {"data": (X, 2 - Y)},
            r"but that has data\[1\] int32\[22\] of digest \w{16}, not int32\[22\] of digest \w{16}$",
        ),
        ({"data": (X, Y, Y)}, r"but that has data\[2\] None, not int32\[22\] of digest \w{16}$"),
        ({"epochs": 1}, "epochs must be at least the 2 of the run in checkpoint_dir, got 1"),
        ({"params": SMALLER}, r"but that has \.params\[0\]\['W'\] float32\[8, 3\], not float32\[4, 3\];"),
        ({"optimizer": optax.sgd(0.1)}, r"\.trace\[0\]\['W'\] float32\[8, 3\], not None;"),
    ],
    ids=[
        "seed",
        "batch_size",
        "fewer examples",
        "other labels",
        "one more array",
        "fewer epochs",
        "another network",
        "another optimizer",
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, options, message):
    fit(epochs=2, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=message):
        fit(**{"epochs": 4, "checkpoint_dir": tmp_path} | options)


def test_equal_data_resume_a_run_whatever_holds_them_and_however_they_lie(tmp_path):
    fit(epochs=1, checkpoint_dir=tmp_path)
    assert len(fit(epochs=2, data=[jnp.array(X), list(Y)], checkpoint_dir=tmp_path).history) == 2
    assert len(fit(epochs=3, data=(np.asfortranarray(X), Y), checkpoint_dir=tmp_path).history) == 3


def test_data_of_dtypes_that_numpy_lacks_can_be_checkpointed(tmp_path):
    data = (jnp.asarray(X, jnp.bfloat16), jnp.asarray(Y))
    first = fit(epochs=1, data=data, checkpoint_dir=tmp_path)
    assert fit(epochs=1, data=data, checkpoint_dir=tmp_path).history == first.history


@pytest.mark.parametrize("number", [jnp.float32, jnp.bfloat16, np.float64, np.array, int])
def test_metrics_of_any_scalar_type_are_kept_as_floats(tmp_path, number):
    run = fit(epochs=1, evaluate=lambda params: {"two": number(2)}, checkpoint_dir=tmp_path)
    assert type(run.history[0].metrics["two"]) is float
    assert (
        fit(epochs=1, checkpoint_dir=tmp_path).history == run.history == (run.history[0]._replace(metrics={"two": 2}),)
    )


def test_checkpoints_without_orbax_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'vjplib\[examples\]'"):
        fit(checkpoint_dir=tmp_path)


# ---------------------------------------------------------------------------------------------------------- stop on NaN


def descend(w, x, bottom=jnp.nan):
    """w, whose gradient is 1, so that sgd(1) takes step k from -(k - 1) to -k; but bottom once nine steps are taken."""
    del x
    return jnp.where(w > -8.5, w, bottom)


def nan_at_the_tenth_step(count):
    return jnp.where(count == 9, jnp.nan, 1.0)


@pytest.mark.parametrize(
    ("loss", "optimizer", "message"),
    [
        (descend, optax.sgd(1.0), "epoch 3, step 2: the loss is nan"),
        (lambda w, x: descend(w, x, jnp.inf), optax.sgd(1.0), "epoch 3, step 2: the loss is inf"),
        (
            lambda w, x: w,
            optax.sgd(nan_at_the_tenth_step),
            "epoch 3, step 2: the update is not finite",
        ),
    ],
    ids=["NaN loss", "infinite loss", "NaN update"],
)
def test_the_first_step_that_is_not_finite_stops_the_run_and_loses_nothing(tmp_path, loss, optimizer, message):
    options = {"optimizer": optimizer, "epochs": 5, "batch_size": 2, "evaluate": None, "checkpoint_dir": tmp_path}
    with pytest.raises(train.DivergenceError, match=message) as error:
        fit(loss, jnp.array(0.0), (np.zeros(8),), **options)
    assert isinstance(error.value, FloatingPointError)
    assert (error.value.epoch, error.value.step) == (3, 2)
    result = error.value.result
    assert float(result.params) == -9
    # Four steps an epoch, the first from 0 on: the losses are the means of 0 to -3 and of -4 to -7.
    assert result.history == (train.Record(1, -1.5, {}), train.Record(2, -5.5, {}))
    assert fit(loss, jnp.array(0.0), (np.zeros(8),), **options | {"epochs": 2}).history == result.history  # from disk


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": ()}, ValueError, r"data must hold arrays of at least one example each, got shapes \[\]"),
        ({"data": (X[:0], Y[:0])}, ValueError, r"at least one example each, got shapes \[\(0, 3\), \(0,\)\]"),
        ({"data": (X, np.float32(1))}, ValueError, r"at least one example each, got shapes \[\(22, 3\), \(\)\]"),
        ({"data": (X, Y[:-1])}, ValueError, r"the same number of examples, got shapes \[\(22, 3\), \(21,\)\]"),
        ({"data": X}, TypeError, "data must be a tuple or list of arrays, got ndarray"),
        ({"batch_size": 23}, ValueError, r"batch_size must lie in \[1, 22\], the number of examples, got 23"),
        ({"batch_size": 0}, ValueError, r"batch_size must lie in \[1, 22\], the number of examples, got 0"),
        ({"epochs": 0}, ValueError, "epochs must be positive, got 0"),
        ({"epochs": 2.5}, TypeError, "epochs must be an integer, got 2.5"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer, got 2.5"),
        ({"seed": 2.5}, TypeError, "seed must be an integer, got 2.5"),
        ({"evaluate": lambda _: {"m": jnp.ones(2)}}, TypeError, r"metric m must be a scalar, got Array\(\[1., 1.\]"),
        ({"evaluate": lambda _: {"m": np.ones(1)}}, TypeError, r"metric m must be a scalar, got array\(\[1.\]\)"),
        ({"evaluate": lambda _: {"m": None}}, TypeError, "metric m must be a scalar, got None"),
    ],
)
def test_bad_arguments_of_fit_are_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)


@pytest.mark.parametrize(("data", "batch_size"), [((X, Y[:-1]), None), ((X, Y), 23), ((X, Y), 0)])
def test_bad_arguments_of_evaluator_are_refused_by_name(data, batch_size):
    with pytest.raises(ValueError, match=r"examples, got"):
        train.evaluator({}, data, batch_size=batch_size)


def test_a_size_or_metric_that_is_no_number_is_refused_by_evaluator():
    with pytest.raises(TypeError, match=r"batch_size must be an integer, got 2\.5"):
        train.evaluator({}, (X, Y), batch_size=2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="metric wrong must be a scalar"):
        train.evaluator({"wrong": lambda w, x, y: w * y}, (X, Y))(2.0)


@pytest.mark.parametrize("metric", [train.cross_entropy, train.accuracy])
@pytest.mark.parametrize("shapes", [((4, 3), (4, 1)), ((4, 3), (3,)), ((0, 3), (0,)), ((), ())])
def test_labels_that_do_not_match_the_logits_are_refused(metric, shapes):
    logits, labels = jnp.zeros(shapes[0]), jnp.zeros(shapes[1], int)
    with pytest.raises(ValueError, match="labels must have the shape of logits less the last axis"):
        metric(logits, labels)


def test_accuracy_counts_the_first_of_equal_scores():
    assert train.accuracy(jnp.zeros((4, 3)), jnp.array([0, 0, 1, 2])) == 0.5


def test_cross_entropy_is_the_mean_of_the_negative_log_probabilities():
    probabilities = jnp.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    expected = -(np.log(0.25) + np.log(0.75)) / 2
    np.testing.assert_allclose(train.cross_entropy(jnp.log(probabilities), jnp.array([2, 1])), expected, rtol=1e-6)
