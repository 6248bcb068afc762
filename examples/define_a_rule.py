"""Derive, write and verify a new rule: RMS normalisation, y = x / sqrt(mean(x^2) + eps).

The file has the order of any rule's file: function, forward, derivation, backward, reference, Jacobian, record. When
run, it first verifies a backward with a likely mistake, which treats the norm as a constant, and prints the report;
then it verifies the correct backward.

    python examples/define_a_rule.py [--effort quick|standard|deep]

The command line finds the record at the end of the file. In the folder of the project,
`PYTHONPATH=examples vjplib verify define_a_rule` prints the same report, and
`PYTHONPATH=examples python -m vjplib.lecture.rule_pages DIRECTORY define_a_rule` writes the rule's page.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vjplib import Case, Edge, Rule, verify, verify_rule
from vjplib.jacobians import DiagonalMinusLowRank
from vjplib.precision import upcast
from vjplib.rules import as_floating, like_primal

EPS = 1e-6


def rms_norm(x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """x / r with r = sqrt(mean(x^2) + 1e-6) along the last axis; its Jacobian is (I - y y^T / n) / r.

    Args:
        x: (..., n), floating.

    Returns:
        An array of x's shape and dtype, whose mean square along the last axis is 1, or less where x is as small as
        1e-3. A row of zeros gives zeros. NaN makes its row NaN; an infinity gives NaN, and 0 in the rest of its row.
        Where |x| exceeds 1e19 its square overflows float32, and the row is 0.

    Raises:
        TypeError: x is not floating.
        ValueError: x is a scalar.

    Example:
        >>> jnp.round(rms_norm(jnp.array([3.0, -3.0, 3.0])), 3).tolist()
        [1.0, -1.0, 1.0]

    Source:
        Zhang and Sennrich, Root mean square layer normalization, 2019.
    """
    x = as_floating("x", x)
    if x.ndim == 0:
        raise ValueError("x must have at least one axis to normalise along, got shape ()")
    return _rms_norm(x)


@jax.custom_vjp
def _rms_norm(x):
    return fwd(x)[0]


def fwd(x):
    """Step 1: keep the residuals that the backward needs, y and one number 1 / r a row."""
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(upcast(x)), -1, keepdims=True) + EPS)
    y = (upcast(x) * inverse).astype(x.dtype)
    return y, (y, inverse)


# r^2 = sum_k x_k^2 / n + eps, so 2 r dr/dx_j = 2 x_j / n, that is dr/dx_j = x_j / (n r) = y_j / n. By the quotient rule
#   dy_i/dx_j = delta_ij / r - x_i / r^2 dr/dx_j = (delta_ij - y_i y_j / n) / r
# The Jacobian is n x n, and full: every output depends on every input, through r. With the cotangent on its left, the
# second term is a number times y:
#   g^T J = (g - mean(g * y) y) / r
def bwd(res, g):
    """Step 2: the product derived above. `like_primal` is given y for x: both have the same shape and dtype."""
    y, inverse = res
    g, p = upcast(g), upcast(y)
    return (like_primal((g - jnp.mean(g * p, -1, keepdims=True) * p) * inverse, y),)


_rms_norm.defvjp(fwd, bwd)


def reference(x):
    """Step 3: the textbook form, in plain jnp. Its autodiff in float64 is the oracle."""
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + EPS)


def jacobian(x):
    """Step 4: the Jacobian for one vector, diagonal minus rank one; the matrix is never formed."""
    y = reference(x)
    inverse = jax.lax.rsqrt(jnp.mean(x**2) + EPS)
    return (DiagonalMinusLowRank(jnp.full_like(x, inverse), inverse * y[:, None], y[:, None] / x.size),)


@jax.custom_vjp
def careless(x):
    """rms_norm, with a wrong backward."""
    return fwd(x)[0]


# With r treated as a constant, J = I / r, and the cotangent is only scaled. Training still works with this mistake.
def bwd_careless(res, g):
    """g / r, without the second term."""
    y, inverse = res
    return (like_primal(upcast(g) * inverse, y),)


careless.defvjp(fwd, bwd_careless)

# Step 5: the record: inputs and claims. The library writes the assertions.
RULES = (
    Rule(
        fn=rms_norm,
        reference=reference,
        baselines={"x / sqrt(mean(x**2) + eps)": reference},
        cases=(Case(("b n",), {"b": 2, "n": 7}), Case(("b c n",), {"b": 2, "c": 3, "n": 5}), Case(("n",), {"n": 11})),
        edges=(
            Edge("a row of zeros beside another", ([[0.0, 0.0], [3.0, -4.0]],)),
            Edge("as small as eps", ([1e-3, -1e-3, 2e-3],)),
            Edge("one element", ([[2.0], [-3.0]],)),
            Edge("empty batch", (np.zeros((0, 3)),)),
        ),
        bench=(Case(("b n",), {"b": 256, "n": 4096}),),
        residual_bytes=lambda b, n: 4 * (b * n + b),
        jacobian=jacobian,
        reason="keeps its output and one number a row",
        source="Zhang and Sennrich, 2019",
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example with command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", default="standard", choices=("quick", "standard", "deep"))
    effort = parser.parse_args(argv).effort

    # Without a reference, the oracle is JAX's derivative of the function without its custom rule.
    x = np.random.default_rng(0).standard_normal((2, 7)).astype(np.float32)
    wrong = verify(careless, (x,), effort=effort)
    print("With the norm treated as a constant:", wrong, sep="\n")
    assert not wrong.ok

    right = verify_rule(RULES[0], effort=effort)
    print("As derived:", right, sep="\n")
    assert right.ok


if __name__ == "__main__":
    main()
