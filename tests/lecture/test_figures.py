"""The figures show numbers that the library computed, and come out the same every time."""

import sys

import jax
import numpy as np
import pytest

from vjplib import tanh
from vjplib.lecture import figures


def texts(figure):
    return " ".join(t.get_text() for axes in figure.axes for t in axes.texts)


def labels(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_draw_all_writes_every_figure(tmp_path):
    paths = figures.draw_all(tmp_path / "made")
    assert [p.stem for p in paths] == list(figures.FIGURES)
    assert all(p.read_bytes().startswith(b"\x89PNG") and p.stat().st_size > 10_000 for p in paths)


def test_the_same_figure_has_the_same_bytes(tmp_path):
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    for path in (first, second):
        figures.save(figures.gradient_descent(), path)
    assert first.read_bytes() == second.read_bytes()


def test_descent_follows_equation_1():
    path = figures.descent(figures.one_weight_loss, -1.5, learning_rate=0.5)
    slopes = np.asarray(jax.vmap(jax.grad(figures.one_weight_loss))(path))
    step = path[:-1] - np.float32(0.5) * slopes[:-1]
    np.testing.assert_allclose(path[1:], step, rtol=2**-22)  # a product may be rounded before the sum, or with it
    assert abs(np.tanh(path[-1]) - 0.6) < 1e-3


def test_relu_is_drawn_with_its_jump_and_no_line_across():
    relu = figures.activations().axes[0]
    slope = np.asarray(relu.lines[1].get_ydata())
    assert set(slope[np.isfinite(slope)]) == {0.0, 1.0}
    assert np.isnan(slope).sum() == 1


@pytest.mark.parametrize(
    ("draw", "slopes"), [(figures.quadratic_surface, ("4", "42")), (figures.product_surface, ("3", "2"))]
)
def test_surfaces_state_the_lecture_s_partials_at_2_3(draw, slopes):
    along_x, along_y, point = labels(draw())
    assert along_x.endswith(f"x$ = {slopes[0]}")
    assert along_y.endswith(f"y$ = {slopes[1]}")
    assert point.startswith("(2, 3)")


def test_graphs_state_what_the_orders_take():
    backward, forward = (" ".join(t.get_text() for t in axes.texts) for axes in figures.computational_graphs().axes)
    assert "4.0 TB" in forward
    assert "TB" not in backward
    assert r"$3 \times 10^{12}$ multiplications" in forward
    assert r"$3 \times 10^{6}$ multiplications" in backward


def test_graphs_of_a_small_network_are_labelled_without_powers():
    shown = texts(figures.computational_graphs(n=1000))
    assert r"1000 $\times$ 1000" in shown
    assert "3000 multiplications" in shown


@pytest.mark.parametrize(("central", "order"), [(False, 1), (True, 2)])
def test_truncation_falls_with_the_step(central, order):
    steps = np.logspace(-4, -2, 9)
    errors = figures.finite_difference_errors(tanh, 1.0, steps, np.float64, central)
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.02)


@pytest.mark.parametrize(("dtype", "smallest", "largest"), [(np.float32, -6, -4), (np.float64, -14, -9)])
def test_round_off_rises_as_the_step_shrinks(dtype, smallest, largest):
    sizes = np.logspace(smallest, largest, 200)
    errors = figures.finite_difference_errors(tanh, 1.0, sizes, dtype, central=True)
    assert np.median(errors[:20]) > 10 * np.median(errors[-20:])
    assert np.all(errors < 2 * np.finfo(dtype).eps / sizes)


def test_structures_are_drawn_with_the_numbers_they_store():
    stored = [axes.get_xlabel() for axes in figures.jacobians().axes[:4]]
    assert [label.split(", ")[1].split()[0] for label in stored] == ["144", "12", "3", "36"]


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in figures.FIGURES.values():
        with pytest.raises(ImportError, match=r"pip install 'vjplib\[examples\]'"):
            draw()
