"""Right rules that are defined on a part of all numbers."""

import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from field_rule import (
    FieldRule,
    collector,
    integers,
    normal,
    of_one_number,
    positive_definite,
    simplex,
    symmetric,
    uniform,
)
from jax import lax

DOMAINS: list[FieldRule] = []
right = collector(DOMAINS)


# Matrices with a property.
@right("positive definite", positive_definite(5))
def logdet():
    def fwd(A):
        L = jnp.linalg.cholesky(A)
        return 2 * jnp.sum(jnp.log(jnp.diagonal(L))), L

    def bwd(L, g):
        return (g * jsp.linalg.cho_solve((L, True), jnp.eye(L.shape[0], dtype=L.dtype)),)

    return lambda A: fwd(A)[0], fwd, bwd


@right("positive definite", positive_definite(5), normal(5, 3))
def cholesky_solve():
    def primal(A, b):
        return jsp.linalg.cho_solve((jnp.linalg.cholesky(A), True), b)

    def fwd(A, b):
        L = jnp.linalg.cholesky(A)
        x = jsp.linalg.cho_solve((L, True), b)
        return x, (L, x)

    def bwd(res, g):
        L, x = res
        db = jsp.linalg.cho_solve((L, True), g)
        dA = -db @ x.T
        return (dA + dA.T) / 2, db

    return primal, fwd, bwd


@right("positive definite", normal(7, 3), normal(3, seed=1), positive_definite(3))
def gaussian_log_likelihood():
    def solved(x, mean, cov):
        L = jnp.linalg.cholesky(cov)
        return L, jsp.linalg.cho_solve((L, True), (x - mean).T).T

    def fwd(x, mean, cov):
        L, s = solved(x, mean, cov)
        square = jnp.sum((x - mean) * s, axis=-1)
        y = -(square + mean.size * jnp.log(2 * jnp.pi)) / 2 - jnp.sum(jnp.log(jnp.diagonal(L)))
        return y, (L, s)

    def bwd(res, g):
        L, s = res
        dx = -g[:, None] * s
        inverse = jsp.linalg.cho_solve((L, True), jnp.eye(L.shape[0], dtype=L.dtype))
        return dx, -jnp.sum(dx, axis=0), ((s.T * g) @ s - jnp.sum(g) * inverse) / 2

    return lambda *args: fwd(*args)[0], fwd, bwd


@right("positive definite", positive_definite(4))
def matrix_square_root():
    """The cotangent solves a Sylvester equation in the eigenvectors."""

    def fwd(A):
        w, V = jnp.linalg.eigh(A)
        s = jnp.sqrt(w)
        return (V * s) @ V.T, (s, V)

    def bwd(res, g):
        s, V = res
        return (V @ (V.T @ ((g + g.T) / 2) @ V / (s[:, None] + s)) @ V.T,)

    return lambda A: fwd(A)[0], fwd, bwd


@right("spectrum with gaps", symmetric(4) + np.diag(np.array([0, 4, 8, 12], np.float32)))
def eigenvalues():
    def primal(A):
        return jnp.linalg.eigvalsh(A)

    def fwd(A):
        w, V = jnp.linalg.eigh(A)
        return w, V

    def bwd(V, g):
        return ((V * g) @ V.T,)

    return primal, fwd, bwd


@right("spectrum with gaps", symmetric(4) + np.diag(np.array([0, 4, 8, 12], np.float32)))
def eigh():
    def primal(A):
        w, V = jnp.linalg.eigh(A)
        return w, V

    def fwd(A):
        out = primal(A)
        return out, out

    def bwd(res, gs):
        (w, V), (gw, gV) = res, gs
        eye = jnp.eye(w.size, dtype=w.dtype)
        F = (1 - eye) / (w - w[:, None] + eye)
        dA = V @ (jnp.diag(gw) + F * (V.T @ gV)) @ V.T
        return ((dA + dA.T) / 2,)

    return primal, fwd, bwd


@right("manifold", np.linalg.qr(normal(5, 5))[0], normal(5, 3))
def solve_orthonormal():
    """The transpose is the inverse."""

    def primal(Q, b):
        return jnp.linalg.solve(Q, b)

    def fwd(Q, b):
        y = Q.T @ b
        return y, (Q, y)

    def bwd(res, g):
        Q, y = res
        db = Q @ g
        return -db @ y.T, db

    return primal, fwd, bwd


@right("triangular", np.tril(normal(5, 5)) + 3 * np.eye(5, dtype=np.float32), normal(5, 3))
def solve_lower():
    def solve(L, b, trans=0):
        return jsp.linalg.solve_triangular(L, b, trans=trans, lower=True)

    def fwd(L, b):
        x = solve(L, b)
        return x, (L, x)

    def bwd(res, g):
        L, x = res
        db = solve(L, g, 1)
        return jnp.tril(-db @ x.T), db

    return lambda L, b: solve(L, b), fwd, bwd


@right("linear solve", normal(5, 5) + 4 * np.eye(5, dtype=np.float32), normal(5, 3))
def solve():
    def fwd(A, b):
        x = jnp.linalg.solve(A, b)
        return x, (A, x)

    def bwd(res, g):
        A, x = res
        db = jnp.linalg.solve(A.T, g)
        return -db @ x.T, db

    return lambda A, b: jnp.linalg.solve(A, b), fwd, bwd


@right("linear solve", normal(7), 5 + uniform(0, 1, 7), normal(7, seed=1), normal(7, seed=2))
def solve_tridiagonal():
    """Lower, main and upper diagonal; the first of the lower and the last of the upper are not used."""

    def solve(low, main, up, b):
        def down(carry, row):
            c, d = carry
            a, m, u, r = row
            w = m - a * c
            return (u / w, (r - a * d) / w), (u / w, (r - a * d) / w)

        zero = jnp.zeros_like(b[0])
        _, (c, d) = lax.scan(down, (zero, zero), (low * (jnp.arange(b.size) > 0), main, up, b))

        def back(x, row):
            x = row[1] - row[0] * x
            return x, x

        return lax.scan(back, zero, (c * (jnp.arange(b.size) < b.size - 1), d), reverse=True)[1]

    def fwd(low, main, up, b):
        x = solve(low, main, up, b)
        return x, (low, main, up, x)

    def bwd(res, g):
        low, main, up, x = res
        db = solve(jnp.roll(up, 1), main, jnp.roll(low, -1), g)
        before, after = jnp.roll(x, 1).at[0].set(0), jnp.roll(x, -1).at[-1].set(0)
        return -db * before, -db * x, -db * after, db

    return solve, fwd, bwd


# Order.
@right("sorted", uniform(0, 3, 7), np.sort(uniform(0, 3, 11)), normal(11))
def interpolate():
    def place(x, knots):
        i = jnp.clip(jnp.searchsorted(knots, x, side="right"), 1, knots.size - 1)
        return i, (x - knots[i - 1]) / (knots[i] - knots[i - 1])

    def primal(x, knots, values):
        return jnp.interp(x, knots, values)

    def fwd(x, knots, values):
        return jnp.interp(x, knots, values), (x, knots, values)

    def bwd(res, g):
        x, knots, values = res
        i, t = place(x, knots)
        slope = (values[i] - values[i - 1]) / (knots[i] - knots[i - 1])
        below, above = x < knots[0], x > knots[-1]
        t = jnp.where(below, 0, jnp.where(above, 1, t))
        slope = jnp.where(below | above, 0, slope)
        zeros = jnp.zeros_like(knots)
        dknots = zeros.at[i - 1].add(-g * slope * (1 - t)).at[i].add(-g * slope * t)
        return g * slope, dknots, zeros.at[i - 1].add(g * (1 - t)).at[i].add(g * t)

    return primal, fwd, bwd


@right("sorted", np.sort(uniform(0, 3, 7)), normal(7))
def integral_to_the_middle():
    """The integral of a piecewise linear function over the first half of its knots' range."""

    def passes(t, y):
        h, end = jnp.diff(t), (t[0] + t[-1]) / 2
        share = jnp.clip((end - t[:-1]) / h, 0, 1)
        return h, share

    def primal(t, y):
        h, s = passes(t, y)
        return jnp.sum(h * (y[:-1] * (s - s * s / 2) + y[1:] * s * s / 2))

    def fwd(t, y):
        return primal(t, y), (t, y)

    def bwd(res, g):
        t, y = res
        h, s = passes(t, y)
        inside = ((s > 0) & (s < 1)).astype(t.dtype)
        left, right_ = s - s * s / 2, s * s / 2
        ds = h * (y[:-1] * (1 - s) + y[1:] * s) * inside
        dh = y[:-1] * left + y[1:] * right_ - ds * s / h
        dend = jnp.sum(ds / h)
        dt = jnp.zeros_like(t).at[1:].add(dh).at[:-1].add(-dh - ds / h).at[jnp.array([0, -1])].add(dend / 2)
        dy = jnp.zeros_like(y).at[:-1].add(h * left).at[1:].add(h * right_)
        return g * dt, g * dy

    return primal, fwd, bwd


@right("sorted", uniform(0.05, 0.95, 7), np.sort(uniform(0, 1, 6)))
def empirical_quantiles():
    """Quantiles of sorted samples, linear between them."""

    def place(p, n):
        at = p * (n - 1)
        i = jnp.clip(jnp.floor(at).astype(int), 0, n - 2)
        return i, at - i

    def primal(p, samples):
        i, t = place(p, samples.size)
        return (1 - t) * samples[i] + t * samples[i + 1]

    def fwd(p, samples):
        return primal(p, samples), (p, samples)

    def bwd(res, g):
        p, samples = res
        i, t = place(p, samples.size)
        ds = jnp.zeros_like(samples).at[i].add(g * (1 - t)).at[i + 1].add(g * t)
        return g * (samples.size - 1) * (samples[i + 1] - samples[i]), ds

    return primal, fwd, bwd


# Numbers within bounds.
@right("bounded", uniform(0, 6, 7), uniform(0.05, 0.9, 7, seed=1))
def kepler():
    """E with E - e sin E = M, by Newton's method."""

    def primal(M, e):
        def step(E, _):
            return E - (E - e * jnp.sin(E) - M) / (1 - e * jnp.cos(E)), None

        return lax.scan(step, M + 0.85 * e * jnp.sign(jnp.sin(M)), None, length=20)[0]

    def fwd(M, e):
        E = primal(M, e)
        return E, (E, e)

    def bwd(res, g):
        E, e = res
        dM = g / (1 - e * jnp.cos(E))
        return dM, dM * jnp.sin(E)

    return primal, fwd, bwd


@right("bounded", uniform(0.3, 0.99, 9, 3), normal(9, 3))
def state_space_scan():
    """h_t = a_t h_(t-1) + x_t, associatively, in both directions."""

    def primal(a, x):
        return lax.associative_scan(lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), (a, x))[1]

    def fwd(a, x):
        h = primal(a, x)
        return h, (a, h)

    def bwd(res, g):
        a, h = res
        later = jnp.concatenate([a[1:], jnp.ones_like(a[:1])])[::-1]
        dx = primal(later, g[::-1])[::-1]
        return dx * jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]]), dx

    return primal, fwd, bwd


@right("bounded", uniform(0.5, 0.95, 3), normal(40, 3))
def leaky_integrator():
    """The whole kernel of decays as a convolution in logarithms."""

    def powers(decay, n):
        lag = jnp.arange(n)[:, None] - jnp.arange(n)
        return lag[..., None], jnp.where(lag[..., None] >= 0, jnp.exp(lag[..., None] * jnp.log(decay)), 0)

    def primal(decay, x):
        return jnp.einsum("tsd,sd->td", powers(decay, x.shape[0])[1], x)

    def fwd(decay, x):
        return primal(decay, x), (decay, x)

    def bwd(res, g):
        decay, x = res
        lag, K = powers(decay, x.shape[0])
        return jnp.einsum("tsd,td,sd->d", lag * K / decay, g, x), jnp.einsum("tsd,td->sd", K, g)

    return primal, fwd, bwd


@right("bounded", np.log(simplex(5, 7)), np.log(simplex(5, 7, seed=1)))
def kl_from_log_probabilities():
    def primal(logp, logq):
        return jnp.sum(jnp.exp(logp) * (logp - logq), axis=-1)

    def fwd(logp, logq):
        return primal(logp, logq), (logp, logq)

    def bwd(res, g):
        p, gap = jnp.exp(res[0]), res[0] - res[1]
        g = g[:, None]
        return g * p * (gap + 1), -g * p

    return primal, fwd, bwd


@right("bounded", -uniform(0.01, 5, 7))
def log1mexp():
    def primal(x):
        return jnp.where(x > -np.log(2), jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))

    return of_one_number(primal, lambda x: -1 / jnp.expm1(-x))


@right("bounded", uniform(0.05, 0.95, 7), integers(1, 7).astype(bool))
def bernoulli_log_likelihood():
    def primal(p, outcome):
        return jnp.where(outcome, jnp.log(p), jnp.log1p(-p))

    def fwd(p, outcome):
        return primal(p, outcome), (p, outcome)

    def bwd(res, g):
        p, outcome = res
        return jnp.where(outcome, g / p, -g / (1 - p)), None

    return primal, fwd, bwd


@right("bounded", uniform(0.05, 0.95, 7))
def probit():
    def fwd(p):
        z = jsp.special.ndtri(p)
        return z, z

    def bwd(z, g):
        return (g * jnp.sqrt(2 * jnp.pi) * jnp.exp(z * z / 2),)

    return lambda p: jsp.special.ndtri(p), fwd, bwd


@right("bounded", uniform(-0.9, 0.9, 7))
def arctanh():
    return of_one_number(jnp.arctanh, lambda x: 1 / ((1 - x) * (1 + x)))


def beta_by_gammas(x, a, b):  # JAX's betaln loses digits from 8 on
    log_beta = jsp.special.gammaln(a) + jsp.special.gammaln(b) - jsp.special.gammaln(a + b)
    return (a - 1) * jnp.log(x) + (b - 1) * jnp.log1p(-x) - log_beta


@right("bounded", uniform(0.1, 0.9, 7), uniform(0.5, 4, 7), uniform(0.5, 4, 7, seed=1))
def beta_log_density():
    def fwd(x, a, b):
        return beta_by_gammas(x, a, b), (x, a, b)

    def bwd(res, g):
        x, a, b = res
        both = jsp.special.digamma(a + b)
        dx = g * ((a - 1) / x - (b - 1) / (1 - x))
        return dx, g * (jnp.log(x) - jsp.special.digamma(a) + both), g * (jnp.log1p(-x) - jsp.special.digamma(b) + both)

    return lambda x, a, b: beta_by_gammas(x, a, b), fwd, bwd


@right("bounded", simplex(5, 7))
def entropy():
    def primal(p):
        return -jnp.sum(p * jnp.log(p), axis=-1)

    def fwd(p):
        return primal(p), p

    def bwd(p, g):
        return (-g[:, None] * (jnp.log(p) + 1),)

    return primal, fwd, bwd


@right("positive", uniform(0.3, 6, 7))
def log_gamma():
    return of_one_number(jsp.special.gammaln, jsp.special.digamma)


@right("positive", uniform(0.3, 6, 7), integers(5, 7))
def poisson_nll():
    def primal(rate, count):
        return rate - count * jnp.log(rate) + jsp.special.gammaln(count + 1.0).astype(rate.dtype)

    def fwd(rate, count):
        return primal(rate, count), (rate, count)

    def bwd(res, g):
        rate, count = res
        return g * (1 - count / rate), None

    return primal, fwd, bwd
