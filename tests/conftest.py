"""Deep proofs run on request: pytest -m deep."""

import pytest


def pytest_collection_modifyitems(config, items):
    if config.getoption("-m"):
        return
    deep = [item for item in items if "deep" in item.keywords]
    config.hook.pytest_deselected(items=deep)
    items[:] = [item for item in items if "deep" not in item.keywords]


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)
