"""Slow proofs run on request: pytest -m deep, pytest -m sweep. Four devices are made of the processor's cores."""

import gc
import os

import jax
import pytest

from vjplib.compat import with_collective_timeout

pytest_plugins = "pytester"
os.environ["XLA_FLAGS"] = with_collective_timeout(os.environ.get("XLA_FLAGS", ""))
# Compiling takes longer than what is computed: without optimisation, by XLA's older and quicker code generator, and in
# one part, the suite takes less than half of the time. Before a release it is run with JAX_DISABLE_MOST_OPTIMIZATIONS=0
# too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # the processes that tests start have it too
HURRIED = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
jax.config.update("jax_disable_most_optimizations", HURRIED)
if HURRIED and jax.__version_info__ < (0, 11):  # later versions have one code generator
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
jax.config.update("jax_enable_compilation_cache", False)  # whose keys take time though no folder is given
jax.config.update("jax_num_cpu_devices", 4)  # for what is claimed of shards; read when the first array is made
gc.set_threshold(
    50_000, 50, 1_000
)  # tracing makes millions of objects: collected at every 700th, they take a tenth of the time


def pytest_collection_modifyitems(config, items):
    if config.getoption("-m"):
        return
    slow = [item for item in items if {"deep", "sweep"} & set(item.keywords)]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)
