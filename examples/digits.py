"""Digits: a small CNN of vjplib's rules classifies scikit-learn's 8 x 8 digits, at least 98 % of the held-out ones.

A `conv1d` runs along one axis. Two of them, with the axes swapped in between, are a two-dimensional convolution whose
kernels are products of a row and a column, summed over the channels in between.

    python examples/digits.py               # train on four fifths of the images, test on the rest
    python examples/digits.py --validate    # the same within those four fifths, to compare settings
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from vjplib.training.net import Layer, conv1d, flatten, linear, relu, serial, swap_axes
from vjplib.training.train import accuracy, cross_entropy, evaluator, fit

Data = tuple[np.ndarray, np.ndarray]
BATCH_SIZE = 50


def conv2d(channels: int) -> Layer:
    """A separable 3 x 3 convolution of images (..., rows, columns, c)."""
    return serial(conv1d(channels, 3), swap_axes(-3, -2), conv1d(channels, 3), swap_axes(-3, -2))


NETWORK = serial(conv2d(32), relu, conv2d(32), relu, conv2d(32), relu, flatten(3), linear(10))


def loss(params, x, y):
    """The cross entropy of the network's scores."""
    return cross_entropy(NETWORK.apply(params, x), y)


def right(params, x, y):
    """The accuracy of the network's scores."""
    return accuracy(NETWORK.apply(params, x), y)


def load() -> Data:
    """Load the 1797 images, with values in [0, 1], and their digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise ImportError("this example needs scikit-learn: pip install 'vjplib[examples]'") from e
    digits: Any = load_digits()
    return digits.images[..., None].astype(np.float32) / 16, digits.target.astype(np.int32)


def split(data: Data) -> tuple[Data, Data]:
    """Split the data into four fifths and a held-out fifth, with the same share of each digit."""
    from sklearn.model_selection import train_test_split

    x, y = data
    first, rest = train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=0)
    return (x[first], y[first]), (x[rest], y[rest])


def with_shifts(data: Data) -> Data:
    """Add copies of each image, shifted by a pixel to each of the four sides."""
    x, y = data
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    return np.concatenate([padded[:, i : i + 8, j : j + 8] for i, j in corners]), np.tile(y, len(corners))


def trained(data: Data, args: argparse.Namespace):
    """Train by SGD with momentum, weight decay and a learning rate that rises, then falls; return the parameters."""
    steps = args.epochs * (len(data[0]) // BATCH_SIZE)
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.03, steps // 10, steps)
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(rate, momentum=0.9))
    _, params = NETWORK.init(jax.random.key(args.seed), data[0].shape[1:])
    options = {"epochs": args.epochs, "batch_size": BATCH_SIZE, "seed": args.seed, "progress": args.progress}
    return fit(loss, optimizer, params, data, **options).params


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Print and return the accuracy on the training images and on the held-out images."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true", help="hold out a fifth of the training images instead")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    train, held_out = split(load())
    if args.validate:
        train, held_out = split(train)
    params = trained(with_shifts(train), args)
    parts = {"trained on": train, "held out": held_out}
    results = {name: evaluator({"accuracy": right}, part)(params)["accuracy"] for name, part in parts.items()}
    table = Table("images", "number", "accuracy", title="8 x 8 digits")
    for name, value in results.items():
        table.add_row(name, str(len(parts[name][0])), f"{100 * value:.1f} %")
    Console().print(table)
    return results


if __name__ == "__main__":
    main()
