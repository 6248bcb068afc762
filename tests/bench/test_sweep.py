"""vjplib bench --sweep finds wrong convolutions of ours, counts lax's, and draws the pads at which lax is wrong."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vjplib.__main__ import main
from vjplib.bench import sweep, timing
from vjplib.compat import fast_compile_options


def compile_in_haste(f, *args):
    """Compile with XLA's own passes, but without LLVM's, which take most of the time."""
    program = jax.jit(f, compiler_options=fast_compile_options()).lower(*args).compile()
    return timing.Compiled(lambda: program(*args))


def limit(patch):
    patch.setattr(timing, "compile_bound", compile_in_haste)
    patch.setattr(sweep, "LARGEST", 2**12)
    patch.setattr(sweep, "MOST_WORK", 2**20)
    patch.setattr(sweep, "REPEATS", 1)


@pytest.fixture
def small(monkeypatch):
    limit(monkeypatch)


@pytest.fixture(scope="module")
def trials():
    with pytest.MonkeyPatch.context() as patch:
        limit(patch)
        return tuple(sweep.sweep(12, seconds=0))


def off_by(share, product):
    """Return lax's convolution, whose y, dx or dk is off by a share of one entry that is about as large as any."""

    def shifted(a):
        at = jnp.argmax(jnp.abs(a))
        return a.reshape(-1).at[at].multiply(1 + share).reshape(a.shape)

    def convolve(x, k, **arguments):
        @jax.custom_vjp
        def f(x, k):
            y = lax.conv_general_dilated(x, k, **arguments)
            return shifted(y) if product == "y" else y

        def bwd(res, g):
            dx, dk = jax.vjp(lambda x, k: lax.conv_general_dilated(x, k, **arguments), *res)[1](g)
            return shifted(dx) if product == "dx" else dx, shifted(dk) if product == "dk" else dk

        f.defvjp(lambda x, k: (f(x, k), (x, k)), bwd)
        return f(x, k)

    return convolve


def draws(count, seed=0):
    rng = np.random.default_rng(seed)
    return [sweep.draw(rng) for _ in range(count)]


def unusual(lhs, rhs, arguments):
    """Return whether a pad crops, is one-sided or exceeds the kernel's reach."""
    del lhs
    if isinstance(arguments["padding"], str):
        return False
    kernel = [n for e, n in zip(arguments["dimension_numbers"][1], rhs, strict=True) if e not in "IO"]
    reach = [r * (n - 1) for r, n in zip(arguments["rhs_dilation"], kernel, strict=True)]
    return any(
        low != high or min(low, high) < 0 or max(low, high) > most
        for (low, high), most in zip(arguments["padding"], reach, strict=True)
    )


def test_about_a_third_of_the_convolutions_have_unusual_pads():
    assert 60 <= sum(unusual(*call) for call in draws(240)) <= 105


def test_usual_and_every_kind_of_unusual_pads_are_drawn():
    paddings = [arguments["padding"] for _, _, arguments in draws(240)]
    pads = [pad for padding in paddings if not isinstance(padding, str) for pad in padding]
    assert {"SAME", "VALID"} <= {padding for padding in paddings if isinstance(padding, str)}
    for kind in (lambda a, b: a > 0 == b, lambda a, b: a == 0 < b, lambda a, b: a < 0 < b, lambda a, b: b < 0 < a):
        assert any(kind(low, high) for low, high in pads)
    assert any(low < 0 == high for low, high in pads)
    assert any(high < 0 == low for low, high in pads)


@pytest.mark.parametrize("seed", range(3))
def test_the_reference_is_lax_in_float64(small, seed):
    for lhs, rhs, arguments in draws(12, seed):
        rng = np.random.default_rng(seed)
        x, k = rng.standard_normal(lhs), rng.standard_normal(rhs)
        with jax.enable_x64(True):

            def products(x, k, g, a=arguments):
                y, back = jax.vjp(lambda x, k: lax.conv_general_dilated(x, k, **a), x, k)
                return y, *back(g)

            shape = jax.eval_shape(lambda x, k, a=arguments: lax.conv_general_dilated(x, k, **a), x, k).shape
            g = rng.standard_normal(shape)
            right = [np.asarray(a) for a in jax.jit(products, compiler_options=fast_compile_options())(x, k, g)]
        found = sweep.exact(x, k, g, arguments)
        assert [a.shape for a in found] == [a.shape for a in right]
        assert max(sweep.errors(found, right)) < 1e-12, (lhs, rhs, arguments)


def test_no_result_of_ours_is_wrong(trials):
    assert not any(trial.wrong for trial in trials)
    assert all(len(trial.errors) == len(trial.lax_errors) == 3 for trial in trials)
    assert max(max(trial.errors) for trial in trials) > 0


@pytest.mark.parametrize(("at", "product"), [(0, "y"), (1, "dx"), (2, "dk")])
def test_a_wrong_result_of_ours_is_found(small, monkeypatch, at, product):
    monkeypatch.setattr(sweep, "conv_general_dilated", off_by(1e-3, product))
    (trial,) = sweep.sweep(1, seconds=0)
    assert trial.wrong
    assert [error > sweep.WRONG for error in trial.errors] == [i == at for i in range(3)]


def test_remarks_count_the_wrong_results_of_lax_and_give_our_largest_error(trials):
    right, wrong = (replace(trials[0], errors=(1e-7, 0.0, e), lax_errors=(e, 0.0, 0.0)) for e in (0.0, 2e-3))
    assert list(sweep.remarks([right, wrong])) == [
        "lax is wrong in 1 of 2",
        "our largest error of y, dx and dk is 2.0e-03 of the largest entry",
    ]


def test_nan_is_wrong():
    assert sweep.errors([np.array([np.nan, 1.0])], [np.ones(2)]) == (np.inf,)
    assert sweep.errors([np.array([1.0, np.inf])], [np.ones(2)]) == (np.inf,)


def test_zero_is_right_where_all_is_zero():
    assert sweep.errors([np.zeros(2, np.float32)], [np.zeros(2)]) == (0.0,)


def test_json_holds_what_json_can_represent(trials):
    written = sweep.to_dict([replace(trials[0], errors=(0.5, np.inf, 0.0))])
    (found,) = json.loads(json.dumps(written, allow_nan=False))["trials"]
    assert found["errors"] == [0.5, "inf", 0.0]
    assert found["wrong"]


@pytest.fixture
def as_fast(monkeypatch):
    """Give every program the same time, so that only a wrong result makes a difference."""
    monkeypatch.setattr(timing, "interleaved", lambda runs, seconds: np.ones((len(runs), 1)))


def test_a_wrong_result_of_ours_exits_with_1(small, as_fast, monkeypatch, capsys, tmp_path):
    command = ["bench", "--sweep", "2", "--quick", "--json", str(tmp_path / "sweep.json")]
    assert main(command) == 0
    monkeypatch.setattr(sweep, "conv_general_dilated", off_by(1.0, "dk"))
    assert main(command) == 1
    assert "WRONG" in capsys.readouterr().out
    trials = json.loads((tmp_path / "sweep.json").read_text())["trials"]
    assert [trial["wrong"] for trial in trials] == [True] * 2
    assert all(trial["errors"][2] > 0.1 > trial["errors"][0] for trial in trials)


def test_a_wrong_result_of_lax_is_counted_and_no_failure(small, as_fast, monkeypatch, capsys, tmp_path):
    class Lax:
        conv_general_dilated = staticmethod(off_by(1.0, "dx"))
        conv_dimension_numbers = staticmethod(lax.conv_dimension_numbers)
        padtype_to_pads = staticmethod(lax.padtype_to_pads)

    monkeypatch.setattr(sweep, "lax", Lax)
    assert main(["bench", "--sweep", "2", "--quick", "--json", str(tmp_path / "sweep.json")]) == 0
    assert "lax is wrong in 2 of 2" in capsys.readouterr().out
    trials = json.loads((tmp_path / "sweep.json").read_text())["trials"]
    assert [(trial["wrong"], trial["lax_wrong"]) for trial in trials] == [(False, True)] * 2
    assert all(trial["lax_errors"][1] > 0.1 for trial in trials)
