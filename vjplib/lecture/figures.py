"""The lecture's figures: the library computes every curve, number and size in them.

Each figure is a function that returns a matplotlib figure, outside pyplot's global state. `draw_all` saves all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from rich.filesize import decimal

from vjplib.compat import x64
from vjplib.jacobians import BandedToeplitz, Chain, Dense, Diagonal, DiagonalMinusLowRank, backward_order, forward_order
from vjplib.rules.activations import quadratic, relu, sigmoid, tanh
from vjplib.rules.products import multiply
from vjplib.rules.regression_losses import squared_error
from vjplib.rules.softmax import softmax
from vjplib.training.train import State, step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From the palette of Okabe and Ito (Color Universal Design, 2008), for readers of every common colour vision.
BLACK, BLUE, VERMILION = "#000000", "#0072B2", "#D55E00"
PALE_BLUE, PALE_VERMILION = "#DCEBF7", "#F9D9C3"
DPI = 150


def draw_all(directory: str | Path) -> list[Path]:
    """Draw all figures into a directory as PNG files and return their paths; the bytes are the same in each run.

    Args:
        directory: made if it does not exist; files of the same names are overwritten.

    Raises:
        ImportError: matplotlib is not installed.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = {directory / f"{name}.png": draw for name, draw in FIGURES.items()}
    for path, draw in paths.items():
        save(draw(), path)
    return list(paths)


def save(figure: "Figure", path: str | Path) -> None:
    """Write a figure to a file, without metadata about matplotlib."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def one_weight_loss(w: Float[Array, ""]) -> Float[Array, ""]:
    """(tanh(w) - 0.6)^2: the loss of a network of one weight with input 1 and target 0.6.

    Example:
        >>> round(float(one_weight_loss(0.0)), 6)
        0.36
    """
    return squared_error(tanh(w), 0.6)


def descent(
    cost: Callable[..., Any], start: float, learning_rate: float = 0.5, steps: int = 12
) -> Float[np.ndarray, " steps+1"]:
    """Compute the weights after each update of `optax.sgd`, the start included.

    Args:
        cost: a function of one number.
        start: the first weight.
        learning_rate: lr of Eq. 1.
        steps: the number of updates.

    Example:
        >>> descent(lambda w: w**2 / 2, start=8.0, steps=3).tolist()
        [8.0, 4.0, 2.0, 1.0]

    Source:
        Eq. 1 of the lecture.
    """
    optimizer, w = optax.sgd(learning_rate), jnp.asarray(start, jnp.float32)
    state, path = State(w, optimizer.init(w)), [float(w)]
    for _ in range(steps):
        state, _ = step(cost, optimizer, state, ())
        path.append(float(state.params))
    return np.array(path, np.float32)


def gradient_descent(
    cost: Callable[..., Any] = one_weight_loss, path: np.ndarray | None = None, learning_rate: float = 0.5
) -> "Figure":
    """Fig. 1: the successive updates of gradient descent on a cost of one weight.

    Args:
        cost: a function of one number.
        path: the weights after each update; None runs `descent` from -1.5.
        learning_rate: the learning rate of the path.
    """
    path = descent(cost, -1.5, learning_rate) if path is None else path
    margin = 0.35 * np.ptp(path)
    w = np.linspace(path.min() - margin / 2, path.max() + margin, 400, dtype=np.float32)
    figure = _figure(7, 4.2)
    axes = figure.subplots()
    axes.plot(w, jax.vmap(cost)(w), color=VERMILION, lw=2, label="cost $l(w)$")
    heights = np.asarray(jax.vmap(cost)(path))
    axes.plot(path, heights, "o", color=BLUE, ms=6, label=f"updates, lr = {learning_rate:g}", zorder=3)
    for i in range(len(path) - 1):
        _arrow(axes, (path[i], heights[i]), (path[i + 1], heights[i + 1]), shrink=3, color=BLUE, lw=1)
    last = rf"$w_{{{len(path) - 1}}} = {path[-1]:.3f}$"
    for i, text, above in ((0, f"$w_0 = {path[0]:g}$", 6), (-1, last, 12)):
        axes.annotate(text, (path[i], heights[i]), (8, above), textcoords="offset points")
    axes.set(xlabel="weight $w$", ylabel="cost", title=r"Gradient descent: $w \leftarrow w - lr \; dl/dw$")
    axes.legend()
    return figure


def activations() -> "Figure":
    """Fig. 2: relu, tanh and sigmoid with their derivatives, by `jax.grad` of the rules."""
    figure = _figure(10, 3.4)
    x = jnp.linspace(-4, 4, 801)
    drawn = (relu, r"$[x \geq 0]$"), (tanh, r"$1 - \tanh^2(x)$"), (sigmoid, r"$s(x)\,(1 - s(x))$")
    for axes, (f, formula) in zip(figure.subplots(1, 3), drawn, strict=True):
        slope = np.array(jax.vmap(jax.grad(f))(x))
        slope[np.flatnonzero(np.abs(np.diff(slope)) > 0.5)] = np.nan  # draws no line across a jump
        axes.plot(x, f(x), color=BLUE, lw=2, label="function")
        axes.plot(x, slope, color=VERMILION, lw=2, ls="--", label=f"derivative: {formula}")
        axes.set(title=f.__name__, xlabel="$x$", ylim=(-1.25, 2.25))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", fontsize=8.5)
    return figure


def quadratic_surface() -> "Figure":
    """Fig. 3: 4 x + 7 y^2 with its partial derivatives at (2, 3)."""
    return _surface(quadratic, "$f(x, y) = 4x + 7y^2$")


def product_surface() -> "Figure":
    """Fig. 4: x y with its partial derivatives at (2, 3)."""
    return _surface(multiply, r"$f(x, y) = x \cdot y$")


def _surface(f: Callable[..., Any], formula: str) -> "Figure":
    """Draw a surface over a square, with the tangents at (2, 3), whose slopes are the partial derivatives."""
    x0, y0 = 2.0, 3.0
    z0, *slopes = (float(a) for a in (f(x0, y0), *jax.grad(f, argnums=(0, 1))(x0, y0)))
    x, y = jnp.meshgrid(*[jnp.linspace(-5, 5, 41)] * 2)
    figure = _figure(7, 5.2)
    axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    axes.plot_surface(x, y, f(x, y), cmap="cividis", alpha=0.75, linewidth=0, rcount=41, ccount=41, zorder=1)
    reach = np.array([-2.0, 2.0])
    along = ("x", reach, 0 * reach, VERMILION), ("y", 0 * reach, reach, BLACK)
    for (name, dx, dy, colour), slope in zip(along, slopes, strict=True):
        label = rf"$\partial f / \partial {name}$ = {slope:g}"
        axes.plot(x0 + dx, y0 + dy, z0 + slope * reach, color=colour, lw=3, label=label, zorder=2)
    axes.plot([x0], [y0], [z0], "o", color=BLACK, ms=7, label=f"({x0:g}, {y0:g}), $f$ = {z0:g}", zorder=3)
    axes.set(xlabel="$x$", ylabel="$y$", zlabel="$f$", title=formula)
    axes.view_init(elev=28, azim=-125)
    axes.legend(loc="upper left")
    return figure


def computational_graphs(n: int = 1_000_000) -> "Figure":
    """Fig. 5: the derivative of f(g(h(x))) multiplied from the loss backwards, and from the input forwards.

    f is a loss, g a softmax and h a convolution with three taps, of n numbers each. Sizes and multiplications are those
    that `backward_order` and `forward_order` count from shapes alone.

    Args:
        n: the number of inputs.
    """

    def factors(row: Any, kernel: Any) -> tuple[Any, ...]:
        column = row[:, None]
        return Dense(row[None, :]), DiagonalMinusLowRank(row, column, column), BandedToeplitz(kernel, n)

    shapes = jax.eval_shape(factors, jax.ShapeDtypeStruct((n,), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32))
    figure = _figure(12, 5.6)
    left, right = figure.subplots(1, 2)
    _graph(left, shapes, jax.eval_shape(backward_order, shapes), ("$f' g'$", "$(f' g')\\, h'$"), (1.5, 0.75))
    _graph(right, shapes, jax.eval_shape(forward_order, shapes), ("$g' h'$", "$f'\\, (g' h')$"), (0.5, 1.25))
    left.set_title("(a)  $l' = (f' g')\\, h'$ from the loss backwards, Eq. 33a")
    right.set_title("(b)  $l' = f'\\, (g' h')$ from the input forwards, Eq. 33b")
    return figure


def _graph(axes: "Axes", factors: Any, chain: Chain, names: tuple[str, str], columns: tuple[float, float]) -> None:
    """Draw the layers, their Jacobians below, and below them the products of an order, the last one framed.

    The first product stands midway between its two factors, so that its column identifies them.
    """
    axes.set(xlim=(-0.55, 3.3), ylim=(-0.35, 3.3))
    axes.axis("off")
    for column, value in enumerate(("$x$", "$h(x)$", "$g(h(x))$", "$l$")):
        _node(axes, (column, 3), value, "white")
        if column:
            _arrow(axes, (column - 1, 3), (column, 3), shrink=24)
            axes.text(column - 0.5, 3.08, "hgf"[column - 1], ha="center", style="italic")
    for column, (name, factor) in enumerate(zip(("$h'$", "$g'$", "$f'$"), reversed(factors), strict=True)):
        _node(axes, (column, 2), f"{name}   {_shape(factor.shape)}\n{decimal(factor.nbytes)}", PALE_BLUE)
        _edge(axes, (column, 3), (column, 2))

    pair = [column for column in range(3) if abs(column - columns[0]) < 1]
    third = 3 - sum(pair)  # the columns are 0, 1 and 2
    sources = [(column, 2) for column in pair], [(third, 2), (columns[0], 1)]
    for row, (made, name, column) in enumerate(zip(chain.steps, names, columns, strict=True)):
        work = f"{_number(made.multiplications)} multiplications"
        text = f"{name}   {_shape(made.product)}\n{decimal(made.nbytes)}\n{work}"
        _node(axes, (column, 1 - row), text, PALE_VERMILION if made.product[0] > 1 else PALE_BLUE, framed=row == 1)
        for source in sources[row]:
            _edge(axes, source, (column, 1 - row))


def _node(axes: "Axes", at: tuple[float, int], text: str, colour: str, framed: bool = False) -> None:
    box = {"boxstyle": "round,pad=0.4", "fc": colour, "ec": BLACK, "lw": 2.5 if framed else 0.8}
    axes.text(*at, text, ha="center", va="center", fontsize=9, bbox=box, zorder=3)


def _edge(axes: "Axes", start: tuple[float, int], end: tuple[float, int]) -> None:
    """Draw an arrow from the lower side of a node to the upper side of a node in a row below."""
    half_height = (0.23, 0.23, 0.17, 0.1)  # of the nodes in rows 0 to 3: three lines of text, three, two and one
    below, above = start[1] - half_height[start[1]], end[1] + half_height[end[1]]
    _arrow(axes, (start[0], below), (end[0], above), shrink=0)


def _arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float], shrink: float, **style: Any) -> None:
    style = {"arrowstyle": "-|>", "color": BLACK, "shrinkA": shrink, "shrinkB": shrink} | style
    axes.annotate("", end, start, arrowprops=style)


def _shape(shape: tuple[int, int]) -> str:
    return rf"{_number(shape[0])} $\times$ {_number(shape[1])}"


def _number(n: int) -> str:
    """Format an integer for a label, a large one as a power of ten."""
    if n < 10_000:
        return str(n)
    digits, exponent = f"{n:.1e}".split("e+")
    return rf"${float(digits):g} \times 10^{{{int(exponent)}}}$".replace(r"$1 \times ", "$")


def finite_difference_errors(
    f: Callable[..., Any], at: float, steps: np.ndarray, dtype: Any, central: bool
) -> Float[np.ndarray, " steps"]:
    """Compute the relative errors of difference quotients of f in a dtype, against `jax.grad` in float64.

    Args:
        f: a function of one number.
        at: where to differentiate.
        steps: the step sizes.
        dtype: the dtype of x, of the step and of f.
        central: (f(x + h) - f(x - h)) / 2h instead of (f(x + h) - f(x)) / h.

    Example:
        >>> errors = finite_difference_errors(tanh, 1.0, np.array([1e-1, 1e-2]), np.float64, central=True)
        >>> round(float(np.log10(errors[0] / errors[1])), 1)
        2.0

    Source:
        Definition 2.1 of the lecture, Eq. 2 and 3.
    """
    with x64():
        h = jnp.asarray(steps, dtype)
        x = jnp.full_like(h, at)
        below = x - h if central else x
        quotients = (f(x + h) - f(below)) / (2 * h if central else h)
        exact = jax.grad(f)(jnp.asarray(at, jnp.float64))
        return np.abs(np.asarray(quotients, np.float64) / np.float64(exact) - 1)


def finite_differences() -> "Figure":
    """Error of finite differences by step: truncation falls with the step, round-off rises as the step shrinks."""
    steps = np.logspace(-15, 0, 181)
    figure = _figure(7.5, 4.8)
    axes = figure.subplots()
    for dtype, colour, width in ((np.float32, VERMILION, 2.5), (np.float64, BLUE, 1.2)):
        for central, style in ((False, "-"), (True, "--")):
            errors = finite_difference_errors(tanh, 1.0, steps, dtype, central)
            label = f"{np.dtype(dtype).name}, {'central' if central else 'forward'}"
            axes.loglog(steps, np.where(errors > 0, errors, np.nan), style, color=colour, lw=width, label=label)
    axes.set(xlabel="step $h$", ylabel="relative error", ylim=(1e-13, 30))
    axes.set_title("Finite differences of tanh at $x = 1$")
    axes.text(2e-11, 3e-4, r"round-off $\propto \epsilon / h$")
    axes.text(2e-8, 2e-5, r"truncation $\propto h$")
    axes.text(1e-2, 1e-6, r"$\propto h^2$")
    axes.text(2e-12, 2, "$x + h$ rounds to $x$")
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    return figure


def jacobians() -> "Figure":
    """The values of a Jacobian of each structure, as an image: positive and negative in two colours, zero in white."""
    figure = _figure(11, 3.8)
    from matplotlib.colors import AsinhNorm

    n = 12
    rng = np.random.default_rng(0)
    x, W = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (n, (n, n)))
    y: Any = softmax(x)
    images = {
        "Dense\n$W x + b$": Dense(W),
        "Diagonal\ntanh": Diagonal(1 - jnp.tanh(x) ** 2),
        "BandedToeplitz\nconv1d, $k = 3$": BandedToeplitz(jnp.array([-0.5, 1.0, 0.25]), n),
        "DiagonalMinusLowRank\nsoftmax": DiagonalMinusLowRank(y, y[:, None], y[:, None]),
    }
    for axes, (title, jacobian) in zip(figure.subplots(1, 4), images.items(), strict=True):
        values = np.asarray(jacobian.dense())
        largest = np.abs(values).max()
        norm = AsinhNorm(linear_width=largest / 20, vmin=-largest, vmax=largest)
        image = axes.imshow(values, cmap="PuOr_r", norm=norm)
        stored = sum(leaf.size for leaf in jax.tree.leaves(jacobian))
        axes.set(title=title, xlabel=f"{values.size} entries, {stored} numbers stored")
        axes.set(xticks=np.arange(values.shape[1] + 1) - 0.5, yticks=np.arange(values.shape[0] + 1) - 0.5)
        axes.tick_params(length=0, labelbottom=False, labelleft=False)
        axes.grid(color="0.85", lw=0.5)
        bar = figure.colorbar(image, ax=axes, location="bottom", ticks=[-largest, 0, largest], format="%.2g")
        bar.minorticks_off()
    return figure


def _figure(width: float, height: float) -> "Figure":
    """Make an empty figure of a size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'vjplib[examples]'") from error
    return Figure(figsize=(width, height), layout="constrained")


FIGURES: dict[str, Callable[[], "Figure"]] = {
    "figure_1_gradient_descent": gradient_descent,
    "figure_2_activations": activations,
    "figure_3_quadratic": quadratic_surface,
    "figure_4_product": product_surface,
    "figure_5_computational_graphs": computational_graphs,
    "finite_differences": finite_differences,
    "jacobians": jacobians,
}
