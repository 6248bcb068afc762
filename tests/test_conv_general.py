"""conv_general_dilated is lax's: value, gradients, shapes, dtypes and errors, whatever formulation serves the call."""

import numpy as np
import pytest
from convolution_calls import differences, random_call

ULPS = 1e-12  # float64 sums of some hundred terms in another order


@pytest.mark.parametrize("seed", range(8))
def test_random_calls_agree_with_lax(seed):
    rng = np.random.default_rng(seed)
    for _ in range(5):
        call = random_call(rng)
        assert max(differences(rng, *call)) < ULPS, call


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(100, 140))
def test_two_thousand_random_calls_agree_with_lax(seed):
    rng = np.random.default_rng(seed)
    for _ in range(50):
        call = random_call(rng)
        assert max(differences(rng, *call)) < ULPS, call
