"""conv_general_dilated is lax's: value, gradients, shapes, dtypes and errors, whatever formulation serves the call."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from convolution_calls import differences, random_call, unusual_call
from jax import lax

import vjplib

ULPS = 1e-12  # float64 sums of some hundred terms in another order
FLOAT32 = 1e-5  # of the largest entry, in float32: where XLA misreads, the error is 0.3 to 1e36, or NaN


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


@pytest.mark.parametrize("seed", range(10))
def test_float32_is_right_at_unusual_pads(seed):
    rng = np.random.default_rng(seed)
    for _ in range(3):
        call = unusual_call(rng)
        assert max(differences(rng, *call, dtype=np.float32)) < FLOAT32, call


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(100, 140))
def test_a_thousand_convolutions_in_float32_are_right(seed):
    rng = np.random.default_rng(seed)
    for draw in (random_call, *(unusual_call,) * 4) * 5:
        call = draw(rng)
        assert max(differences(rng, *call, dtype=np.float32)) < FLOAT32, call


X, K = jnp.ones((2, 4, 8, 8)), jnp.ones((6, 4, 3, 3))
GENERAL: dict[str, Any] = {"window_strides": (1, 1), "padding": "SAME"}


def general(lhs: Any = X, rhs: Any = K, **kwargs):
    return lambda library: library.conv_general_dilated(lhs, rhs, **GENERAL | kwargs)


BAD = {
    "ranks differ": general(rhs=K[0]),
    "no rank": general(lhs=jnp.ones(())),
    "a list for x": general(lhs=[[1.0]]),
    "no kernel": general(rhs=None),
    "dtypes differ": general(rhs=K.astype(jnp.bfloat16)),
    "integers with floats": general(rhs=K.astype(jnp.int32)),
    "channels differ": general(rhs=jnp.ones((6, 3, 3, 3))),
    "groups that do not divide channels": general(feature_group_count=3),
    "groups that do not divide features": general(rhs=jnp.ones((6, 1, 3, 3)), feature_group_count=4),
    "groups and the kernel's channels": general(feature_group_count=2),
    "no groups": general(feature_group_count=0),
    "a negative number of groups": general(feature_group_count=-1),
    "batch groups that do not divide the batch": general(batch_group_count=3),
    "batch groups that do not divide features": general(lhs=jnp.ones((4, 4, 8, 8)), batch_group_count=4),
    "no batch groups": general(batch_group_count=0),
    "groups of both kinds": general(
        lhs=jnp.ones((2, 4, 8, 8)), rhs=jnp.ones((4, 2, 3, 3)), feature_group_count=2, batch_group_count=2
    ),
    "too few strides": general(window_strides=(1,)),
    "too many strides": general(window_strides=(1, 1, 1)),
    "strides that are no sequence": general(window_strides=2),
    "an unknown padding": general(padding="CIRCULAR"),
    "too few pads": general(padding=((1, 1),)),
    "pads that are no pairs": general(padding=(1, 1)),
    "pads that are no integers": general(padding=((0.5, 1), (1, 1))),
    "more cut off than there is": general(padding=((-9, 0), (0, 0))),
    "a string with a dilated x": general(lhs_dilation=(2, 2)),
    "too few dilations": general(rhs_dilation=(2,)),
    "two dimension numbers": general(dimension_numbers=("NCHW", "OIHW")),
    "dimension numbers of another rank": general(dimension_numbers=("NCH", "OIH", "NCH")),
    "dimension numbers without a batch": general(dimension_numbers=("ACHW", "OIHW", "NCHW")),
    "dimension numbers with an axis twice": general(dimension_numbers=("NCHH", "OIHW", "NCHW")),
    "dimension numbers of other axes": general(dimension_numbers=("NCHD", "OIHW", "NCHW")),
    "dimension numbers that are no strings": general(dimension_numbers=(1, 2, 3)),
    "an unknown precision": general(precision="exact"),
    "a preferred dtype too narrow": general(preferred_element_type=jnp.float16),
    "a preferred dtype that is none": general(preferred_element_type="float99"),
    "an unknown keyword": general(kernel_dilation=(1, 1)),
    "conv, channels differ": lambda library: library.conv(X, jnp.ones((6, 3, 3, 3)), (1, 1), "SAME"),
    "general padding, pads": lambda library: library.conv_with_general_padding(X, K, (1, 1), ((1,),), None, None),
    "transpose, channels differ": lambda library: library.conv_transpose(X, K, (2, 2), "SAME"),
    "transpose, ranks differ": lambda library: library.conv_transpose(X, K[0], (2, 2), "SAME"),
    "transpose, an unknown padding": lambda library: library.conv_transpose(
        X, jnp.ones((3, 3, 8, 6)), (2, 2), "CIRCULAR"
    ),
    "patches, too few strides": lambda library: library.conv_general_dilated_patches(X, (3, 3), (1,), "SAME"),
    "patches, the window's rank": lambda library: library.conv_general_dilated_patches(X, (3,), (1,), "SAME"),
}


@pytest.mark.parametrize("call", BAD)
def test_what_lax_refuses_is_refused_by_a_type_or_value_error(call):
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever lax raises, an AttributeError included
        BAD[call](lax)
    with pytest.raises((TypeError, ValueError)) as ours:
        BAD[call](vjplib)
    assert str(ours.value)
