"""Training: `fit` runs a jitted optax step over shuffled batches, evaluates, keeps a history and can be resumed.

The loss is any pure function `loss(params, *batch) -> scalar`, the optimizer any optimizer of optax. A step is one
compiled program, and Python waits for the device once per epoch. The steps are not in a `lax.scan`, because XLA:CPU
runs a convolution many times slower inside a loop. Everything works on any device.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial, reduce
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vjplib.rules.losses import softmax_cross_entropy_with_integer_labels
from vjplib.training.net import integer

Params = Any
Batch = tuple[Array, ...]
Loss = Callable[..., Float[Array, ""]]
Metric = Callable[..., Float[Array, ""]]
Evaluate = Callable[[Params], Mapping[str, ArrayLike]]


class State(NamedTuple):
    """The state of training: the parameters, and the optimizer's state."""

    params: Params
    opt_state: optax.OptState


class Record(NamedTuple):
    """One epoch: its number from 1, the mean loss of its steps, and the metrics on held-out data after it."""

    epoch: int
    loss: float
    metrics: dict[str, float]


class Fit(NamedTuple):
    """The result of `fit`: the state after the last epoch, and one record per epoch."""

    state: State
    history: tuple[Record, ...]

    @property
    def params(self) -> Params:
        """The parameters of the state."""
        return self.state.params


class DivergenceError(FloatingPointError):
    """A step gave a loss or parameters that are not finite.

    Attributes:
        epoch: the epoch, counted from 1.
        step: the step in the epoch, counted from 1.
        loss: the loss at that step.
        result: the `Fit` before that step: the last finite parameters, and the history of the finished epochs.
    """

    def __init__(self, epoch: int, step: int, loss: float, result: Fit) -> None:
        what = "the update is not finite at a loss of" if math.isfinite(loss) else "the loss is"
        super().__init__(f"epoch {epoch}, step {step}: {what} {loss}; .result holds the params before that step")
        self.epoch, self.step, self.loss, self.result = epoch, step, loss, result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.epoch, self.step, self.loss, self.result), self.__dict__


# --------------------------------------------------------------------------------------------------- losses and metrics


def cross_entropy(logits: Float[Array, "*b n"], labels: Int[Array, "*b"]) -> Float[Array, ""]:
    """Mean over the examples of -log softmax(logits)[label].

    Args:
        logits: floating, the scores of the classes along the last axis.
        labels: integers, the right class of each example.

    Returns:
        A scalar of logits' dtype.

    Raises:
        TypeError: logits are not floating, or labels not integers.
        ValueError: the shapes do not match, or there is no example.

    Example:
        >>> round(float(cross_entropy(jnp.zeros((5, 4)), jnp.arange(5) % 4)), 4)  # log 4
        1.3863
    """
    _matching(logits, labels)
    return jnp.mean(softmax_cross_entropy_with_integer_labels(logits, labels))


def accuracy(logits: Float[Array, "*b n"], labels: Int[Array, "*b"]) -> Float[Array, ""]:
    """Mean over the examples of [argmax(logits) = label]; the first of equal scores counts.

    Args:
        logits: the scores of the classes along the last axis.
        labels: integers, the right class of each example.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: the shapes do not match, or there is no example.

    Example:
        >>> float(accuracy(jnp.array([[0.0, 1.0], [2.0, 1.0]]), jnp.array([1, 1])))
        0.5
    """
    _matching(logits, labels)
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


# ------------------------------------------------------------------------------------------------------------- training


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def step(
    loss: Loss, optimizer: optax.GradientTransformation, state: State, batch: Batch
) -> tuple[State, Float[Array, ""]]:
    """W <- W - lr dl/dW for `optax.sgd(lr)`: one step of the optimizer on the batch's loss.

    Args:
        loss: `loss(params, *batch) -> scalar`, pure. It and the optimizer are static: the step compiles once for each.
        optimizer: any optax optimizer.
        state: parameters and optimizer state; donated, so its arrays cannot be used afterwards.
        batch: the arguments of the loss after params.

    Returns:
        The new state, and the loss before the update.

    Example:
        >>> sgd = optax.sgd(0.25)
        >>> W = jnp.array(2.0)
        >>> state, value = step(lambda W, x: (W * x) ** 2, sgd, State(W, sgd.init(W)), (jnp.array(1.0),))
        >>> float(value), float(state.params)  # 2 - 0.25 * 4
        (4.0, 1.0)

    Source:
        Eq. 1 of the lecture.
    """
    value, grads = jax.value_and_grad(loss)(state.params, *batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state), value


def fit(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Params,
    data: Sequence[ArrayLike],
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    checkpoint_dir: str | PathLike | None = None,
    progress: bool = True,
) -> Fit:
    """Train params by optimizer steps on shuffled batches of data, and return the final state with the history.

    Args:
        loss: `loss(params, *batch) -> scalar`, pure; batch holds batch_size examples of each array of data.
        optimizer: any optax optimizer. A schedule counts steps; an epoch has `examples // batch_size` of them.
        params: any pytree of floating arrays. They are copied, so that the caller's arrays stay usable.
        data: arrays whose first axis is the examples, such as `(x, y)`.
        epochs: the total number of epochs, including those of an earlier run that is resumed.
        batch_size: examples per step. Examples that do not fill a batch are left out of the epoch.
        seed: seed of the shuffling. The same seed gives the same history, bit for bit on CPU.
        evaluate: maps the parameters after an epoch to the metrics of its record, scalars by name; see `evaluator`.
        checkpoint_dir: folder for the state and history after each epoch. If it holds an earlier run, training resumes
            from there, and its result is the same as without the interruption. Data, seed, batch_size, and the shapes
            and dtypes of parameters and optimizer state must be those of the earlier run. Functions cannot be compared:
            pass the same loss, evaluate and optimizer, learning rate included. The saved parameters replace params.
        progress: if True, a progress bar is shown.

    Returns:
        The state, whose parameters are also `.params`, and one `Record` per epoch.

    Raises:
        DivergenceError: a loss or an updated parameter is NaN or infinite; the error holds the last finite state.
        ImportError: checkpoint_dir is given and orbax-checkpoint is not installed.
        TypeError: data is not a tuple or list; epochs, batch_size or seed is not an integer; or a metric is no scalar.
        ValueError: data is empty or of unequal lengths, a number is out of range, or checkpoint_dir holds another run.

    Example:
        >>> x = jnp.arange(8.0)
        >>> loss = lambda w, x, y: jnp.mean((w * x - y) ** 2)
        >>> run = fit(loss, optax.sgd(0.01), jnp.array(0.0), (x, 3 * x), epochs=20, batch_size=4, progress=False)
        >>> round(float(run.params), 3), len(run.history)
        (3.0, 20)

    Source:
        Eq. 1 of the lecture, on batches.
    """
    epochs, batch_size, seed = integer("epochs", epochs), integer("batch_size", batch_size), integer("seed", seed)
    arrays = _examples(data, batch_size)
    if epochs < 1:
        raise ValueError(f"epochs must be positive, got {epochs}")
    run = Fit(jax.tree.map(_copy, State(params, optimizer.init(params))), ())
    forms = {jax.tree_util.keystr(path): _form(a) for path, a in jax.tree.leaves_with_path(run.state)}
    fixed = {"seed": seed, "batch_size": batch_size, **forms}
    columns = TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}")
    bar = Progress(*columns, TimeRemainingColumn(), disable=not progress)
    with _checkpoints(checkpoint_dir, fixed, arrays) as (resume, save), bar:
        run, task = resume(run, epochs), bar.add_task("", total=epochs)
        while len(run.history) < epochs:
            state, mean = _epoch(run, partial(_guarded_step, loss, optimizer), arrays, batch_size, seed)
            given = {} if evaluate is None else evaluate(state.params)
            metrics = {name: _scalar(name, value) for name, value in given.items()}
            run = Fit(state, (*run.history, Record(len(run.history) + 1, mean, metrics)))
            save(run)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in {"loss": mean, **metrics}.items())
            bar.update(task, completed=len(run.history), description=shown)
    return run


def evaluator(
    metrics: Mapping[str, Metric], data: Sequence[ArrayLike], *, batch_size: int | None = None
) -> Callable[[Params], dict[str, float]]:
    """Make the argument `evaluate` of `fit`: a function from params to the mean of each metric over data.

    Args:
        metrics: functions `metric(params, *batch) -> scalar` by name, each a mean over the examples of its batch.
        data: held-out arrays whose first axis is the examples.
        batch_size: the number of examples to evaluate at a time; None for all at once. The last batch may be smaller.

    Returns:
        A function that returns a float for each name.

    Raises:
        TypeError: data is not a tuple or list, batch_size is not an integer, or, when called, a metric is no scalar.
        ValueError: arrays of data are empty or of different lengths, or batch_size is not in [1, examples].

    Example:
        >>> evaluate = evaluator({"mean": lambda w, x: jnp.mean(w * x)}, (jnp.arange(5.0),), batch_size=2)
        >>> evaluate(jnp.array(10.0))
        {'mean': 20.0}
    """
    batch_size = None if batch_size is None else integer("batch_size", batch_size)
    arrays, metrics = _examples(data, batch_size), dict(metrics)
    n = len(arrays[0])
    size = batch_size or n
    batches = [tuple(a[i : i + size] for a in arrays) for i in range(0, n, size)]
    measure = jax.jit(lambda params, batch: {name: metric(params, *batch) for name, metric in metrics.items()})

    def evaluate(params: Params) -> dict[str, float]:
        parts = [(len(batch[0]) / n, measure(params, batch)) for batch in batches]
        return {name: sum(share * _scalar(name, part[name]) for share, part in parts) for name in metrics}

    return evaluate


# ------------------------------------------------------------------------------------------------------------ one epoch


def _epoch(
    run: Fit, guarded_step: Callable[..., tuple[State, Array, Array]], arrays: Batch, batch_size: int, seed: int
) -> tuple[State, float]:
    """Train for one more epoch; return the state and the mean loss of its steps."""
    # The order depends on seed and epoch alone, so that a resumed run shuffles like an uninterrupted one.
    n, key = len(arrays[0]), jax.random.fold_in(jax.random.key(seed), len(run.history))
    order = np.asarray(jax.random.permutation(key, n))
    state, good, steps = run.state, jnp.array(True), []
    for rows in order[: n - n % batch_size].reshape(-1, batch_size):
        state, good, value = guarded_step(state, good, arrays, rows)
        steps.append((good, value))
    goods, losses = (np.asarray(a) for a in zip(*jax.device_get(steps), strict=True))
    if not goods.all():
        bad = int(np.argmin(goods))
        raise DivergenceError(len(run.history) + 1, bad + 1, float(losses[bad]), Fit(state, run.history))
    return state, float(np.mean(losses, dtype=float))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _guarded_step(
    loss: Loss, optimizer: optax.GradientTransformation, state: State, good: Array, arrays: Batch, rows: Array
) -> tuple[State, Array, Array]:
    """Take a step on the examples in rows; once a loss or a parameter is not finite, nothing changes any more."""
    new, value = step(loss, optimizer, state, tuple(a[rows] for a in arrays))
    floats = [a for a in jax.tree.leaves((value, new.params)) if jnp.issubdtype(a.dtype, jnp.inexact)]
    good &= reduce(jnp.logical_and, (jnp.all(jnp.isfinite(a)) for a in floats))
    return jax.tree.map(partial(jnp.where, good), new, state), good, value


def _copy(a: ArrayLike) -> Array:
    # Steps donate their state: copies keep the caller's arrays alive, and donate no shared array twice.
    # An explicit dtype makes a weak type strong, like every step's output: otherwise the step would compile twice.
    return jnp.array(a, dtype=jnp.asarray(a).dtype)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def _form(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _content(array: Array) -> str:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f"{_form(array)} of digest {hashlib.sha256(data.data).hexdigest()[:16]}"


@contextmanager
def _checkpoints(
    directory: str | PathLike | None, fixed: dict[str, Any], arrays: Batch
) -> Iterator[tuple[Callable[[Fit, int], Fit], Callable[[Fit], None]]]:
    """Provide `resume(run, epochs) -> run` and `save(run)`, which do nothing without a directory."""
    if directory is None:
        yield (lambda run, epochs: run), (lambda run: None)
        return
    try:
        import orbax.checkpoint as ocp
    except ImportError as e:
        raise ImportError("checkpoint_dir needs orbax-checkpoint: pip install 'vjplib[examples]'") from e
    fixed = {**fixed, **{f"data[{i}]": _content(a) for i, a in enumerate(arrays)}}
    # Saving in the background would read arrays that the next epoch overwrites.
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)

    def resume(run: Fit, epochs: int) -> Fit:
        if (newest := manager.latest_step()) is None:
            return run
        kept = manager.restore(newest, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
        theirs = kept["fixed"]
        other = [f"{k} {theirs.get(k)}, not {fixed.get(k)}" for k in theirs | fixed if theirs.get(k) != fixed.get(k)]
        if other:
            raise ValueError(f"checkpoint_dir must hold a run like this one, but that has {'; '.join(other)}")
        if newest > epochs:
            raise ValueError(f"epochs must be at least the {newest} of the run in checkpoint_dir, got {epochs}")
        form = jax.tree.map(ocp.utils.to_shape_dtype_struct, run.state)
        state = manager.restore(newest, args=ocp.args.Composite(state=ocp.args.StandardRestore(form))).state
        return Fit(state, tuple(Record(**record) for record in kept["history"]))

    def save(run: Fit) -> None:
        about = {"fixed": fixed, "history": [record._asdict() for record in run.history]}
        args = ocp.args.Composite(state=ocp.args.StandardSave(run.state), about=ocp.args.JsonSave(about))
        manager.save(len(run.history), args=args)

    with ocp.CheckpointManager(Path(directory).absolute(), options=options) as manager:
        yield resume, save


# --------------------------------------------------------------------------------------------------------------- checks


def _examples(data: Sequence[ArrayLike], batch_size: int | None) -> Batch:
    if not isinstance(data, tuple | list):
        raise TypeError(f"data must be a tuple or list of arrays, got {type(data).__name__}")
    arrays = tuple(jnp.asarray(a) for a in data)
    shapes = [a.shape for a in arrays]
    if not arrays or any(len(shape) == 0 or shape[0] == 0 for shape in shapes):
        raise ValueError(f"data must hold arrays of at least one example each, got shapes {shapes}")
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"arrays of data must have the same number of examples, got shapes {shapes}")
    if batch_size is not None and not 0 < batch_size <= len(arrays[0]):
        raise ValueError(f"batch_size must lie in [1, {len(arrays[0])}], the number of examples, got {batch_size}")
    return arrays


def _scalar(name: str, value: Any) -> float:
    if np.ndim(value) == 0:
        with suppress(TypeError, ValueError):
            return float(value)
    raise TypeError(f"metric {name} must be a scalar, got {value!r:.60}")


def _matching(logits: Array, labels: Array) -> None:
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape or labels.size == 0:
        raise ValueError(
            "labels must have the shape of logits less the last axis, and at least one example, "
            f"got labels {labels.shape} and logits {logits.shape}"
        )
