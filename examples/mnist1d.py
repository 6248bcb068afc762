"""MNIST-1D: logistic regression, an MLP and a CNN compared with the paper; layers and loss are vjplib's rules.

The data are sequences of 40 numbers: digits drawn in one stroke, then scaled, shifted, sheared and mixed with noise,
4000 to train on and 1000 to test on (Greydanus and Kobak, Scaling down deep learning with MNIST-1D, arXiv 2011.14439).

    python examples/mnist1d.py             # train on all training data, test, print the table
    python examples/mnist1d.py --search    # repeat the choice of the settings, on a fifth of the training data
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from vjplib.training.net import Layer, conv1d, flatten, linear, mean_pool, relu, serial
from vjplib.training.train import accuracy, cross_entropy, evaluator, fit

Data = tuple[np.ndarray, np.ndarray]
BATCH_SIZE = 100


class Setting(NamedTuple):
    """Settings to search; sizes are the widths of the MLP's hidden layers, or the strides of the CNN's."""

    sizes: tuple[int, ...]
    learning_rate: float
    weight_decay: float


class Model(NamedTuple):
    """A network for given sizes, its accuracy in the paper in per cent, the settings to search, and the best."""

    network: Callable[[tuple[int, ...]], Layer]
    paper: float
    searched: list[Setting]
    chosen: Setting


def logistic(_: tuple[int, ...]) -> Layer:
    """One linear layer."""
    return serial(flatten(), linear(10))


def mlp(widths: tuple[int, ...]) -> Layer:
    """Linear layers with a ReLU between any two."""
    hidden = [layer for width in widths for layer in (linear(width), relu)]
    return serial(flatten(), *hidden, linear(10))


def cnn(strides: tuple[int, ...]) -> Layer:
    """Convolutions of 32 channels, then the mean over all positions, which makes the digit's shift matter little."""
    hidden = [layer for stride in strides for layer in (conv1d(32, kernel_size=5, stride=stride), relu)]
    return serial(*hidden, mean_pool(), linear(10))


def grid(*values: Sequence) -> list[Setting]:
    """Every combination of the sizes, learning rates and weight decays."""
    return [Setting(*v) for v in product(*values)]


MODELS = {
    "logistic": Model(logistic, 32, grid([()], [0.03, 0.1, 0.3], [0, 1e-3]), Setting((), 0.1, 0)),
    "mlp": Model(mlp, 68, grid([(100, 100), (256, 256)], [0.1, 0.3], [3e-3, 6e-3]), Setting((256, 256), 0.3, 3e-3)),
    "cnn": Model(
        cnn, 94, grid([(1, 2, 2), (1, 2, 1), (1, 2, 1, 1)], [0.1, 0.2], [1e-3]), Setting((1, 2, 1, 1), 0.2, 1e-3)
    ),
}


def load() -> tuple[Data, Data]:
    """Generate the training and the test data with the package's defaults; nothing is downloaded."""
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as e:
        raise ImportError("this example needs mnist1d: pip install 'vjplib[examples]'") from e
    d = make_dataset(get_dataset_args())
    train, test = (
        (d[f"x{part}"].astype(np.float32)[..., None], d[f"y{part}"].astype(np.int32)) for part in ("", "_test")
    )
    return train, test


def accuracies(setting: Setting, network: Layer, data: Data, held_out: Data, args: argparse.Namespace) -> list[float]:
    """Train on data with each seed, and return the accuracies on held_out in per cent."""
    steps = args.epochs * (len(data[0]) // BATCH_SIZE)
    # The first tenth warms up: at the full rate, the first steps may be so long that every ReLU stays at 0.
    rate = optax.warmup_cosine_decay_schedule(0.0, setting.learning_rate, steps // 10, steps)
    optimizer = optax.chain(optax.add_decayed_weights(setting.weight_decay), optax.sgd(rate, momentum=0.9))

    def loss(params, x, y):
        return cross_entropy(network.apply(params, x), y)

    measure = evaluator({"accuracy": lambda params, x, y: accuracy(network.apply(params, x), y)}, held_out)
    results = []
    for seed in range(args.seeds):
        _, params = network.init(jax.random.key(seed), data[0].shape[1:])
        options = {"epochs": args.epochs, "batch_size": BATCH_SIZE, "seed": seed, "progress": args.progress}
        run = fit(loss, optimizer, params, data, **options)
        results.append(100 * measure(run.params)["accuracy"])
    return results


def search(name: str, train: Data, args: argparse.Namespace) -> dict[Setting, list[float]]:
    """Train each setting on four fifths of the training data, and return its accuracies on the last fifth."""
    x, y = train
    cut = len(x) * 4 // 5
    model = MODELS[name]
    table = Table("sizes", "learning rate", "weight decay", "validation", "each seed", title=name)
    results = {}
    for s in model.searched:
        results[s] = accuracies(s, model.network(s.sizes), (x[:cut], y[:cut]), (x[cut:], y[cut:]), args)
        table.add_row(*map(str, s), *cells(results[s]), style="bold" if s == model.chosen else None)
    Console().print(table)
    return results


def compare(train: Data, held_out: Data, args: argparse.Namespace) -> dict[str, list[float]]:
    """Train each model on all training data with its chosen setting, and return its accuracies on the test set."""
    table = Table("model", "paper", "ours, mean", "each seed", title="MNIST-1D, accuracy on the test set")
    results = {}
    for name in args.models:
        model = MODELS[name]
        results[name] = accuracies(model.chosen, model.network(model.chosen.sizes), train, held_out, args)
        table.add_row(name, f"{model.paper} %", *cells(results[name]))
    Console().print(table)
    return results


def cells(accuracies: list[float]) -> tuple[str, str]:
    """Format the mean, and each accuracy."""
    return f"{np.mean(accuracies):.1f} %", "  ".join(f"{a:.1f}" for a in accuracies)


def main(argv: Sequence[str] | None = None) -> dict:
    """Print a table of accuracies, and return them by model, or by model and setting for a search."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--search", action="store_true", help="compare settings on a part of the training data")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    train, held_out = load()
    if args.search:
        return {name: search(name, train, args) for name in args.models}
    return compare(train, held_out, args)


if __name__ == "__main__":
    # A script's folder is first on the path, so this file would hide the package mnist1d.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
    main()
