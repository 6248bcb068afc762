"""Sharded convolutions: gradients are those of one device, and sharded batches and channels stay where they are."""

import math

import jax
import numpy as np
import pytest
from sharded_convolutions import CALLS, X, measure

SPLITS = (
    *(f"{split}, {axes}" for split in ("batch", "space") for axes in ("Auto", "Explicit")),
    "channels, Auto",
    "shard_map, check_vma=True",
    "shard_map, check_vma=False",
)
NAMES = [f"{call}, {split}" for call in CALLS for split in SPLITS]


@pytest.fixture(scope="module")
def results():
    with jax.enable_x64(True):
        return measure()


@pytest.mark.xdist_group("sharding")
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_one_device(results, name):
    assert results[name]["error"] < math.sqrt(math.prod(X)) * np.finfo(np.float64).eps


@pytest.mark.xdist_group("sharding")
@pytest.mark.parametrize("name", [name for name in NAMES if ", batch" in name or ", channels" in name])
def test_no_activation_crosses_devices(results, name):
    kernel, _ = CALLS[name.split(", ")[0]]
    assert [shape for shape in results[name]["moved"] if math.prod(shape) > math.prod(kernel)] == []


@pytest.mark.xdist_group("sharding")
def test_what_is_each_devices_own_moves_nothing(results):
    apart = {name: result for name, result in results.items() if name not in NAMES}
    assert {name.split(",")[0] for name in apart} == {"blocks of groups", "few places", "patches"}
    assert len(apart) == 10
    for name, result in apart.items():
        assert result["error"] < math.sqrt(math.prod(X)) * np.finfo(np.float64).eps, name
        assert result["moved"] == [], name
