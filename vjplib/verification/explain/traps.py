"""Traps: the mistakes that authors of a custom_vjp are known to make, in words, each with its remedy."""

from typing import NamedTuple

PAGE = "docs/traps.md"


class Trap(NamedTuple):
    """A known mistake in words, for a report, and its remedy in a line."""

    words: str
    remedy: str


TRAPS: dict[str, Trap] = {
    "cotangent-dtype": Trap("the cotangent has another dtype than its argument", "end with dx.astype(x.dtype)"),
    "one-array-for-a-tree": Trap(
        "one array stands for a whole pytree, and JAX copies it to each leaf", "return the argument's own tree"
    ),
    "broadcast-not-summed": Trap(
        "an argument was broadcast and its cotangent is not summed back",
        "sum over the axes along which it was broadcast",
    ),
    "summed-over-the-wrong-axis": Trap(
        "it may be summed over the wrong one of two axes of equal size: the total is right, the entries are not",
        "verify with axes of distinct sizes",
    ),
    "forward-is-not-the-primal": Trap(
        "the forward pass does not return what the primal does",
        "write the forward once, and let the primal return fwd(...)[0]",
    ),
    "weak-type": Trap(
        "one side is weakly typed, as a Python number is", "give the constant a dtype, as in jnp.asarray(2, x.dtype)"
    ),
    "array-in-nondiff": Trap(
        "an array stands in a place named by nondiff_argnums, where no tracer may stand",
        "take it as an ordinary argument, and return None or zeros for it",
    ),
    "closed-over-value": Trap(
        "a pass uses a value that it closes over, from outside its arguments",
        "make it an argument, or let jax.closure_convert do so",
    ),
    "forgotten-gradient": Trap(
        "the gradient of this argument is zero or None, and should not be", "return its cotangent"
    ),
    "second-order-zero": Trap(
        "a second derivative is exactly zero, and should not be",
        "let residuals depend on the arguments by functions that have derivatives",
    ),
    "forward-over-reverse": Trap(
        "forward mode meets a custom_vjp in the forward or the backward pass",
        "write the forward without the decorated function, and the backward without another custom_vjp",
    ),
    "optimize-remat": Trap("optimize_remat=True has no derivative reverse over reverse", "leave it out, or state it"),
    "residuals-kept": Trap(
        "more is kept between forward and backward than needed",
        "keep the smallest residual, the output before the input",
    ),
    "residual-is-no-array": Trap(
        "a residual is no array: a string, a dtype", "keep an array of that dtype, or pass it by nondiff_argnums"
    ),
    "not-linear": Trap(
        "the backward is not linear in the cotangent",
        "use the cotangent as a factor once; clip gradients elsewhere, or leave linearity out of claims if it is meant",
    ),
    "conjugate-missing": Trap(
        "a complex conjugate is missing, or stands where none should",
        "JAX pulls back by the transpose, without a conjugate: dx = g * f'(x)",
    ),
    "real-and-complex": Trap(
        "real and complex are mixed", "return jnp.real(...) for a real argument, a complex one for a complex"
    ),
    "zero-times-infinity": Trap(
        "at a boundary it is not finite where the derivative is, as 0 * inf and 0 / 0 are not",
        "make the argument harmless by jnp.where before dividing, not only the result after",
    ),
    "integers": Trap(
        "integers and booleans have no cotangent but None or float0",
        "return None for an integer argument, and do not compute with an integer output's cotangent",
    ),
    "symbolic-zeros": Trap(
        "symbolic zeros are mishandled", "leave symbolic_zeros out, or treat each SymbolicZero by itself"
    ),
    "unbatched-residuals": Trap(
        "it fails under vmap where some arguments or residuals have a batch axis and others have none",
        "broadcast, and count axes from the end; let a callback take vmap_method='sequential' or 'broadcast_all'",
    ),
    "double-psum": Trap(
        "a cotangent is summed over devices twice, or not at all",
        "sum over the axes along which the cotangent varies and the argument does not",
    ),
    "one-static-value": Trap(
        "it is right for one value of a static argument and wrong for another",
        "derive for any value, or refuse the others",
    ),
    "batch-of-one": Trap(
        "it is wrong for an axis of one element only", "do not squeeze, nor divide by n - 1, at n = 1"
    ),
    "edge-of-the-image": Trap("it is wrong at the edge of an axis only", "derive what padding and cropping do"),
    "odd-or-even": Trap(
        "it is wrong for odd or for even lengths only", "derive with the remainder: n = stride * m + r"
    ),
    "ties": Trap("it is wrong at ties or kinks", "state a convention, and share the cotangent among what is tied"),
    "non-uniform-cotangent": Trap(
        "it is right for a cotangent of ones and wrong for others",
        "keep g under the sum: sum(g * y), not sum(g) * mean(y)",
    ),
    "low-precision-inside": Trap(
        "it computes in a lower precision inside", "compute in the arguments' precision or a higher one, and cast last"
    ),
    "overflow": Trap("it overflows at large inputs", "shift by the maximum before taking exponentials"),
    "n-by-n": Trap(
        "an array grows faster than what comes in and goes out, as an n x n Jacobian does",
        "derive the product with the cotangent, and never form the Jacobian",
    ),
    "quadratic-time": Trap(
        "operations grow faster than autodiff's", "derive the product with the cotangent: the sums have a short form"
    ),
    "hidden-state": Trap(
        "something but arguments and residuals passes from forward to backward, or a run to the next",
        "keep it in the residuals; take random keys as arguments",
    ),
    "primal-not-jittable": Trap("the primal cannot be traced", "use jnp for numpy, jnp.where for if"),
    "backward-not-jittable": Trap(
        "the forward or backward pass cannot be traced", "use jnp for numpy, jnp.where for if"
    ),
    "permuted-cotangents": Trap("cotangents of equal shape are permuted", "return them in the order of the arguments"),
}


def anchor(key: str) -> str:
    """Return the place in the pages that explains a trap.

    Example:
        >>> anchor("ties")
        'docs/traps.md#ties'
    """
    return f"{PAGE}#{key}"


def describe(key: str) -> str:
    """Return a trap as a report prints it: its words, the remedy and the place of its page.

    Example:
        >>> describe("low-precision-inside").partition(";")[0]
        'trap: it computes in a lower precision inside'
    """
    trap = TRAPS[key]
    return f"trap: {trap.words}; {trap.remedy}: {anchor(key)}"
