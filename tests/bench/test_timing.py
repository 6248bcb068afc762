"""The timing kit calls programs in turn, and says where two results differ."""

import numpy as np
import pytest

from vjplib.bench import timing


def test_calls_take_turns():
    order = []
    times = timing.interleaved([lambda: order.append("a"), lambda: order.append("b")], 0)
    assert "".join(order) == "ab" * (2 + timing.FEWEST_QUICK)
    assert times.shape == (2, timing.FEWEST_QUICK)


@pytest.mark.parametrize(("seconds", "rounds"), [(0, timing.FEWEST_QUICK), (timing.QUICK, timing.ROUNDS[0])])
def test_a_slow_program_is_called_the_fewest_times_allowed(monkeypatch, seconds, rounds):
    clock = iter(range(10**6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.interleaved([lambda: None], seconds).tolist() == [[1.0] * rounds]


def test_a_compiled_program_is_bound_to_its_arguments(monkeypatch):
    program = timing.compile_bound(lambda x, y: x + y, np.float32(1), np.float32(2))
    assert program.run() == 3
    monkeypatch.setattr(timing, "interleaved", lambda runs, seconds: np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    (cost,) = timing.costs([program], [8], seconds=0)
    assert (cost.low, cost.median, cost.high, cost.rounds, cost.residual) == (2, 3, 4, 5, 8)
    assert min(cost.lowering, cost.compiling) > 0
    assert cost.spread == 1 / 3


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, np.nan, np.inf], [1.0, np.nan, np.inf], ""),
        ([1.0, 2.0], [1.0, 2.0 + 1e-9], ""),
        ([1.0, 2.0], [1.0, 2.1], r"differs by 5.0e-02 of its largest entry, most at (1,): 2 against 2.1"),
        ([1.0, 2.0], [np.nan, 2.0], r"differs by inf of its largest entry, most at (0,): 1 against nan"),
    ],
)
def test_a_difference_is_described_where_it_is_largest(a, b, expected):
    assert timing.difference(np.array(a), np.array(b)) == expected
