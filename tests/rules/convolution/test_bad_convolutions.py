"""Convolutions and poolings refuse a bad argument by its name, and what must hold; they take whatever lax takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import vjplib
from vjplib.rules import _arguments as arguments

vl: Any = vjplib  # calls that a type checker refuses are the point here

X, K = jnp.ones((2, 4, 8, 8)), jnp.ones((6, 4, 3, 3))
IMAGE, GRID = jnp.ones((2, 5, 6, 3)), jnp.ones((5, 6))
ORDER = lax.ConvDimensionNumbers((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3))

FUNCTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "conv_general_dilated": (
        vl.conv_general_dilated,
        {"lhs": X, "rhs": K, "window_strides": (1, 1), "padding": "SAME"},
    ),
    "explain_convolution": (vl.explain_convolution, {"lhs": X, "rhs": K, "window_strides": (1, 1), "padding": "SAME"}),
    "conv": (vl.conv, {"lhs": X, "rhs": K, "window_strides": (1, 1), "padding": "SAME"}),
    "conv_with_general_padding": (
        vl.conv_with_general_padding,
        {"lhs": X, "rhs": K, "window_strides": (1, 1), "padding": "SAME", "lhs_dilation": None, "rhs_dilation": None},
    ),
    "conv_transpose": (
        vl.conv_transpose,
        {"lhs": X, "rhs": K, "strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ),
    "conv_general_dilated_patches": (
        vl.conv_general_dilated_patches,
        {"lhs": X, "filter_shape": (3, 3), "window_strides": (1, 1), "padding": "SAME"},
    ),
    "reduce_window_max": (
        vl.reduce_window_max,
        {
            "operand": GRID,
            "window_dimensions": (2, 2),
            "window_strides": (1, 1),
            "padding": "VALID",
            "base_dilation": (1, 1),
            "window_dilation": (1, 1),
        },
    ),
    **{
        name: (getattr(vl, name), {"inputs": IMAGE, "window_shape": (2, 2), "strides": (1, 1), "padding": "VALID"})
        for name in ("max_pool", "min_pool", "avg_pool")
    },
}
ARRAYS = ("lhs", "rhs", "operand", "inputs")
INTEGERS = ("filter_shape", "window_dimensions", "window_shape", "window_strides", "strides")
DILATIONS = ("lhs_dilation", "rhs_dilation", "base_dilation", "window_dilation")
COUNTS = ("feature_group_count", "batch_group_count")
OPTIONAL = {
    "conv_general_dilated": ("lhs_dilation", "rhs_dilation", "dimension_numbers", *COUNTS, "preferred_element_type"),
    "conv": ("preferred_element_type",),
    "conv_transpose": ("rhs_dilation", "preferred_element_type"),
    "conv_general_dilated_patches": ("lhs_dilation", "rhs_dilation", "dimension_numbers", "preferred_element_type"),
}
OPTIONAL["explain_convolution"] = OPTIONAL["conv_general_dilated"]
SEQUENCE, LENGTH = "must be a sequence of integers", "must have length 2 and positive entries"
BAD: dict[str, list[tuple[Any, type[Exception], str]]] = {
    **{
        name: [
            (None, TypeError, "must be an array of numbers, got NoneType None"),
            ("text", TypeError, "must be an array of numbers, got str 'text'"),
            ([[1.0, 2.0], [3.0]], TypeError, "must be an array of numbers, got list"),
        ]
        for name in ARRAYS
    },
    **{
        name: [
            (2, TypeError, f"{SEQUENCE}, got 2"),
            ("AB", TypeError, f"{SEQUENCE}, got 'AB'"),
            ((1.5, 1), TypeError, rf"{SEQUENCE}, got \(1.5, 1\)"),
            ((None, 1), TypeError, rf"{SEQUENCE}, got \(None, 1\)"),
            ((2,), ValueError, rf"{LENGTH}, got \(2,\)"),
            ((1, 1, 1), ValueError, rf"{LENGTH}, got \(1, 1, 1\)"),
            ((0, 1), ValueError, rf"{LENGTH}, got \(0, 1\)"),
            ((1, -1), ValueError, rf"{LENGTH}, got \(1, -1\)"),
        ]
        for name in INTEGERS + DILATIONS
    },
    "padding": [
        (given, error, rf"must be SAME, SAME_LOWER, VALID or 2 x \(low, high\), integers, got {described}")
        for given, error, described in (
            ("FOO", ValueError, "'FOO'"),
            (2, TypeError, "2"),
            (None, TypeError, "None"),
            ((1, 1), TypeError, r"\(1, 1\)"),
            (((1,), (1,)), ValueError, ""),
            (((1, 1),), ValueError, ""),
            (((1, 1),) * 3, ValueError, ""),
            (((1, 2, 3), (1, 1)), ValueError, ""),
            (((0.5, 1), (1, 1)), TypeError, ""),
            (("SAME", "SAME"), ValueError, ""),
            (b"SAME", TypeError, "b'SAME'"),
        )
    ],
    **{
        name: [
            (None, TypeError, "must be an integer, got None"),
            ("a", TypeError, "must be an integer, got 'a'"),
            (1.5, TypeError, "must be an integer, got 1.5"),
            (0, ValueError, "must be a positive integer, got 0"),
            (3, ValueError, "must divide .*3 does not divide"),
        ]
        for name in COUNTS
    },
    "dimension_numbers": [
        ("NCHW", TypeError, "must be tuple/list or None"),
        (("NCHW", "OIHW"), TypeError, "must be length 3, got 2"),
        (("NCHD", "OIHW", "NCHW"), TypeError, "same set of spatial characters"),
        (ORDER._replace(out_spec=(0, 1, 2)), ValueError, r"must have each axis of 0 to 3 once, got \(0, 1, 2\)"),
        (ORDER._replace(out_spec=(0, 1, 2, 5)), ValueError, r"must have each axis of 0 to 3 once"),
        (ORDER._replace(lhs_spec=(0, 1, 2, 2)), ValueError, r"must have each axis of 0 to 3 once"),
    ],
    "preferred_element_type": [
        ("float99", TypeError, "must be a dtype or None, got 'float99'"),
        (5, TypeError, "must be a dtype or None, got 5"),
    ],
}
CASES = {
    f"{function} {argument} {number}": (function, argument, *case)
    for function, (_, given) in FUNCTIONS.items()
    for argument in dict.fromkeys((*given, *OPTIONAL.get(function, ())))
    for number, case in enumerate(BAD[argument])
    if not (argument == "window_shape" and LENGTH in case[2] and len(case[0]) != 2)  # its length says what is spatial
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_argument_is_refused_by_its_name(case):
    function, argument, value, error, message = CASES[case]
    call, given = FUNCTIONS[function]
    with pytest.raises(error, match=f"{argument}.*{message}"):
        call(**given | {argument: value})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_misspelt_keyword_is_refused(function):
    call, given = FUNCTIONS[function]
    with pytest.raises(TypeError, match=f"{function}.* unexpected keyword argument 'stride'"):
        call(**given, stride=1)


def test_a_transposed_convolution_of_two_ranks_is_refused_by_a_value_error():
    with pytest.raises(ValueError, match=r"lhs and rhs must have the same rank .*\(2, 4, 8, 8\) and \(4, 3, 3\)"):
        vl.conv_transpose(X, K[0], (2, 2), "SAME")
    with pytest.raises(ValueError, match=r"rank of at least 2, got shapes \(3,\) and \(3,\)"):
        vl.conv_transpose(jnp.ones(3), jnp.ones(3), (2,), "SAME")


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
@pytest.mark.parametrize("function", ["conv_general_dilated", "conv_general_dilated_patches", "max_pool"])
def test_bad_arguments_are_refused_alike_when_traced(function, transform):
    call, given = FUNCTIONS[function]
    (name, x), *others = given.items()
    argument = "strides" if "strides" in given else "window_strides"
    x = x[None] if transform is jax.vmap else x
    with pytest.raises(TypeError, match=f"{argument} must be a sequence of integers, got 2"):
        transform(lambda x: jnp.sum(call(**dict(others) | {name: x, argument: 2})))(x)


def test_bad_arguments_are_refused_alike_inside_of_lax():
    with vl.use_in_lax():
        with pytest.raises(TypeError, match="window_strides must be a sequence of integers, got 2"):
            lax.conv_general_dilated(X, K, 2, "SAME")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=r"padding must be .* got 'FOO'"):
            lax.reduce_window(GRID, -jnp.inf, lax.max, (2, 2), (1, 1), "FOO")


# ------------------------------------------------------------------------------------------------ what lax takes

TAKEN: dict[str, Any] = {
    "lists": [1, 1],
    "NumPy integers": (np.int64(1), np.int32(1)),
    "an array": np.array([1, 1]),
    "numbers of JAX": (jnp.int32(1), 1),
}
PADS: dict[str, Any] = {
    "lower case": "same",
    "SAME_LOWER": "SAME_LOWER",
    "lists": [[1, 1], [1, 1]],
    "an array": np.ones((2, 2), int),
    "negative": ((-1, 1), (1, -1)),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("form", TAKEN)
def test_integers_are_taken_in_any_form(form, function):
    call, given = FUNCTIONS[function]
    integers = {name: TAKEN[form] for name in (*given, *OPTIONAL.get(function, ())) if name in INTEGERS + DILATIONS}
    expected = call(**given | dict.fromkeys(integers, (1, 1)))
    np.testing.assert_array_equal(call(**given | integers), expected)


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name != "explain_convolution"])
@pytest.mark.parametrize("form", PADS)
def test_padding_is_taken_in_any_form(form, function):
    call, given = FUNCTIONS[function]
    given = given | {"padding": PADS[form]}
    if isinstance(PADS[form], str):
        expected = call(**given | {"padding": PADS[form].upper()})
    else:
        expected = call(**given | {"padding": tuple(tuple(map(int, pair)) for pair in PADS[form])})
    np.testing.assert_array_equal(call(**given), expected)


def test_a_string_pads_windows_without_strides():
    np.testing.assert_array_equal(
        vl.reduce_window_max(GRID, (2, 3), padding="SAME"),
        lax.reduce_window(GRID, -jnp.inf, lax.max, (2, 3), (1, 1), "SAME"),
    )


def test_group_counts_are_taken_in_any_form():
    expected = vl.conv_general_dilated(X, K[:, :2], (1, 1), "SAME", feature_group_count=2)
    for count in (np.int64(2), jnp.int32(2)):
        y = vl.conv_general_dilated(X, K[:, :2], (1, 1), "SAME", feature_group_count=count)
        np.testing.assert_array_equal(y, expected)


def test_shapes_alone_are_explained():
    shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (X, K))
    assert vl.explain_convolution(*shapes, (1, 1), "SAME") == vl.explain_convolution(X, K, (1, 1), "SAME")


LISTS = {
    "conv_general_dilated": lambda x, k: vl.conv_general_dilated(x, k, (1,), "SAME"),
    "conv": lambda x, k: vl.conv(x, k, (1,), "SAME"),
    "conv_with_general_padding": lambda x, k: vl.conv_with_general_padding(x, k, (1,), "SAME", None, None),
    "conv_transpose": lambda x, k: vl.conv_transpose(x, k, (1,), "SAME", dimension_numbers=("NCH", "OIH", "NCH")),
    "conv_general_dilated_patches": lambda x, k: vl.conv_general_dilated_patches(x, (2,), (1,), "SAME") * jnp.sum(k[0]),
    "reduce_window_max": lambda x, k: vl.reduce_window_max(x, (1, 1, 2)) * jnp.sum(k[0]),
    "max_pool": lambda x, k: vl.max_pool(x, (2,)) * jnp.sum(k[0]),
    "avg_pool": lambda x, k: vl.avg_pool(x, (2,)) * jnp.sum(k[0]),
}


@pytest.mark.parametrize("function", LISTS)
def test_lists_of_numbers_are_arrays(function):
    f, x, k = LISTS[function], [[[1.0, 3.0, 2.0, 5.0]]], [[[1.0, -2.0, 0.5]]]
    arrays = jnp.array(x), jnp.array(k)
    np.testing.assert_array_equal(f(x, arrays[1]), f(*arrays))
    total = lambda x, k: jnp.sum(jnp.sin(f(x, k)))  # noqa: E731
    expected = jax.grad(total, argnums=(0, 1))(*arrays)
    np.testing.assert_array_equal(jax.grad(total, argnums=1)(x, arrays[1]), expected[1])
    if not function.endswith(("pool", "max", "patches")):
        np.testing.assert_array_equal(f(arrays[0], k), f(*arrays))
        np.testing.assert_array_equal(jax.grad(total)(arrays[0], k), expected[0])


def test_symbolic_sizes_are_integers():
    (n,) = jax.export.symbolic_shape("n")
    assert arguments.positive("window_shape", (n, 2), 2) == (n, 2)
    assert arguments.pads(((n, n - 1),), 1) == ((n, n - 1),)
    x = jax.ShapeDtypeStruct((1, n, 5), jnp.float32)
    given = arguments.convolution_arguments(lhs=x, rhs=x, window_strides=(n,), padding="SAME", feature_group_count=n)
    assert (given["window_strides"], given["feature_group_count"]) == ((n,), n)
