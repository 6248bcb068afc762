"""The examples that follow the lecture run, agree with themselves, and keep what they promise."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def million_pixels():
    return load("million_pixels")


@pytest.fixture(scope="module")
def gradient_descent():
    return load("gradient_descent")


def test_three_ways_to_the_gradient_of_a_small_image_agree(million_pixels, capsys):
    million_pixels.main(["--n", "200"])
    printed = capsys.readouterr().out
    assert all(way in printed for way in ("jax.grad of the rules", "Eq. 33a", "Eq. 33b", "All gradients agree"))


def test_a_million_pixels_take_tens_of_megabytes(million_pixels):
    report = million_pixels.differentiate(1_000_000)
    assert len(report.runs) == 2
    for run in report.runs.values():
        assert run.program_bytes < 50e6
        assert np.abs(run.gradient).max() > 0
    assert report.backward.multiplications == 6_000_000
    assert report.backward.peak_bytes == 20_000_012


def test_gradient_descent_prints_its_updates_and_draws_them(gradient_descent, capsys, tmp_path):
    gradient_descent.main(["--steps", "3", "--out", str(tmp_path / "descent.png")])
    printed = capsys.readouterr().out
    assert "-1.500000" in printed
    assert "-1.228010" in printed
    assert (tmp_path / "descent.png").stat().st_size > 10_000


@pytest.mark.parametrize("learning_rate", [0.5, 0.3])
def test_each_update_equals_equation_1(gradient_descent, learning_rate):
    weights, slopes = gradient_descent.descend(gradient_descent.cost, -1.5, learning_rate, 12)
    np.testing.assert_array_equal(weights[1:], weights[:-1] - np.float32(learning_rate) * slopes[:-1])
    assert gradient_descent.cost(weights[-1]) < 1e-3
