"""Right rules of physics, solvers and signals."""

import jax
import jax.numpy as jnp
import numpy as np
from field_rule import FieldRule, collector, complex_normal, normal, uniform
from jax import lax

PHYSICS: list[FieldRule] = []
right = collector(PHYSICS)


# Physics in SI units.
def distances(x):
    return x[:, None] - x[None], jnp.eye(x.shape[0], dtype=bool)


METRES = np.cumsum(uniform(1, 2, 5, 3), axis=0) * np.float32(1e-10)
COULOMBS = np.float32(1.6e-19) * np.array([1, -1, 1, 2, -1], np.float32)
ORBITS = (
    np.array([3.84e8, 1.5e9, 4e8], np.float32),
    np.array([5.97e24, 5.97e24, 1e23], np.float32),
    np.array([7.35e22, 1e20, 1e21], np.float32),
)


@right("SI units", METRES, COULOMBS)
def coulomb_energy():
    """Joules from metres and coulombs."""
    k = 8.9875518e9

    def inverse(x):
        gap, same = distances(x)
        r = jnp.sqrt(jnp.sum(jnp.where(same[..., None], 1, gap) ** 2, axis=-1))
        return gap, jnp.where(same, 0, 1 / r)

    def primal(x, q):
        return k * (q @ (inverse(x)[1] @ q)) / 2

    def fwd(x, q):
        return primal(x, q), (x, q)

    def bwd(res, g):
        x, q = res
        gap, inv = inverse(x)
        potential = k * (inv @ q)
        field = jnp.einsum("ij,ijk->ik", k * q * inv * inv, gap * inv[..., None])
        return -g * q[:, None] * field, g * potential

    return primal, fwd, bwd


@right("SI units", *ORBITS)
def gravity():
    G = 6.674e-11

    def primal(r, m, other):
        return -(G * m / r) * other

    def fwd(r, m, other):
        return primal(r, m, other), (r, m, other)

    def bwd(res, g):
        r, m, other = res
        u = G * m / r
        return g * (u / r) * other, -g * (G * other / r), -g * u

    return primal, fwd, bwd


@right("SI units", np.array([4e-7, 5.5e-7, 1e-6, 1e-5], np.float32), np.float32(5800))
def planck():
    """Spectral radiance of a black body, from a wavelength in metres and a temperature in kelvin."""
    first, second = 1.191043e-16, 1.438777e-2

    def primal(wavelength, T):
        return first / wavelength**5 / jnp.expm1(second / (wavelength * T))

    def fwd(wavelength, T):
        y = primal(wavelength, T)
        return y, (wavelength, T, y)

    def bwd(res, g):
        wavelength, T, y = res
        x = second / (wavelength * T)
        steep = x / -jnp.expm1(-x)
        return g * y / wavelength * (steep - 5), jnp.sum(g * y * steep) / T

    return primal, fwd, bwd


@right("SI units", uniform(3.5e-10, 6e-10, 7), np.float32(1.65e-21), np.float32(3.4e-10))
def lennard_jones():
    def primal(r, epsilon, sigma):
        s = (sigma / r) ** 6
        return 4 * epsilon * (s * s - s)

    def fwd(r, epsilon, sigma):
        return primal(r, epsilon, sigma), (r, epsilon, sigma)

    def bwd(res, g):
        r, epsilon, sigma = res
        s = (sigma / r) ** 6
        force = 24 * epsilon * (2 * s * s - s)
        return -g * force / r, jnp.sum(g * 4 * (s * s - s)), jnp.sum(g * force) / sigma

    return primal, fwd, bwd


# Solvers.
def fixed_point_of(W, b):
    def unsettled(state):
        z, old, n = state
        return (n < 200) & (jnp.max(jnp.abs(z - old)) > 4 * jnp.finfo(b.dtype).eps)

    def again(state):
        z, _, n = state
        return jnp.tanh(W @ z + b), z, n + 1

    return lax.while_loop(unsettled, again, (jnp.tanh(b), b + 1, 0))[0]


def unrolled(W, b):
    return lax.fori_loop(0, 60, lambda _, z: jnp.tanh(W @ z + b), jnp.tanh(b))


def contracting(rng, sizes):
    """Matrices of a norm so small that the iteration converges."""
    n = sizes[4]
    return rng.standard_normal((n, n)) / (4 * np.sqrt(n)), rng.standard_normal(n)


IMPLICIT = {"reference": unrolled, "order_two": {"reverse": False, "forward": True}, "domain": contracting}


@right("implicit", normal(4, 4) / 8, normal(4), **IMPLICIT)
def equilibrium():
    """z = tanh(W z + b); the backward iterates as well."""

    def fwd(W, b):
        z = fixed_point_of(W, b)
        return z, (W, z)

    def bwd(res, g):
        W, z = res
        slope = 1 - z * z

        def unsettled(state):
            u, old, n = state
            return (n < 200) & (jnp.max(jnp.abs(u - old)) > 4 * jnp.finfo(u.dtype).eps * jnp.max(jnp.abs(u)))

        u, _, _ = lax.while_loop(unsettled, lambda s: (g + W.T @ (slope * s[0]), s[0], s[2] + 1), (g, 0 * g, 0))
        return jnp.outer(slope * u, z), slope * u

    return fixed_point_of, fwd, bwd


@right("implicit", normal(4, 4) / 8, normal(4), **IMPLICIT)
def equilibrium_by_a_solve():
    def fwd(W, b):
        z = fixed_point_of(W, b)
        return z, (W, z)

    def bwd(res, g):
        W, z = res
        slope = 1 - z * z
        u = jnp.linalg.solve(jnp.eye(z.size, dtype=z.dtype) - (slope[:, None] * W).T, g)
        return jnp.outer(slope * u, z), slope * u

    return fixed_point_of, fwd, bwd


@right("implicit", uniform(0.5, 9, 7), reference=jnp.sqrt, order_two={"reverse": False, "forward": True})
def heron():
    """The square root, by iteration."""

    def primal(a):
        def unsettled(state):
            y, old = state
            return jnp.max(jnp.abs(y - old) / y) > 8 * jnp.finfo(a.dtype).eps

        return lax.while_loop(unsettled, lambda s: ((s[0] + a / s[0]) / 2, s[0]), ((1 + a) / 2, a + 1))[0]

    def fwd(a):
        y = primal(a)
        return y, y

    return primal, fwd, lambda y, g: (g / (2 * y),)


@right("ODE", normal(2, 3), np.float32(9.81), kwargs={"steps": 10}, static=(2,))
def pendulum():
    """Fourth-order Runge-Kutta steps, differentiated one by one backwards."""

    def slope(state, gravity):
        return jnp.stack([state[1], -gravity * jnp.sin(state[0])])

    def step(state, gravity):
        h = 0.05
        a = slope(state, gravity)
        b = slope(state + h / 2 * a, gravity)
        c = slope(state + h / 2 * b, gravity)
        return state + h / 6 * (a + 2 * b + 2 * c + slope(state + h * c, gravity))

    def primal(state, gravity, steps):
        return lax.scan(lambda s, _: (step(s, gravity), None), state, None, length=steps)[0]

    def fwd(state, gravity, steps):
        last, states = lax.scan(lambda s, _: (step(s, gravity), s), state, None, length=steps)
        return last, (states, gravity)

    def bwd(steps, res, g):
        states, gravity = res

        def back(carry, state):
            ds, dg = jax.vjp(step, state, gravity)[1](carry[0])
            return (ds, carry[1] + dg), None

        return lax.scan(back, (g, jnp.zeros_like(gravity)), states, reverse=True)[0]

    return primal, fwd, bwd


@right("ODE", normal(5), normal(5, seed=1), uniform(0.5, 2, 5), 0.1, 8, static=(3, 4))
def leapfrog():
    """A reversible integrator: the backward runs it backwards and keeps no states."""

    def force(x, k):
        return -k * x - x**3 / 10

    def step(x, v, k, h):
        v = v + h / 2 * force(x, k)
        x = x + h * v
        return x, v + h / 2 * force(x, k)

    def primal(x, v, k, h, steps):
        return lax.scan(lambda s, _: (step(*s, k, h), None), (x, v), None, length=steps)[0]

    def fwd(x, v, k, h, steps):
        y = primal(x, v, k, h, steps)
        return y, (*y, k)

    def bwd(h, steps, res, gs):
        x, v, k = res

        def back(carry, _):
            x, v, gx, gv, gk = carry
            x, v = step(x, v, k, -h)
            gx, gv, dk = jax.vjp(lambda x, v, k: step(x, v, k, h), x, v, k)[1]((gx, gv))
            return (x, v, gx, gv, gk + dk), None

        return lax.scan(back, (x, v, *gs, jnp.zeros_like(k)), None, length=steps)[0][2:]

    return primal, fwd, bwd


@right("scan in the backward", normal(3), normal(3, 3), normal(8, 3, seed=1))
def hidden_markov_evidence():
    """The log evidence of a chain; its derivatives are posteriors, by forward and backward messages."""

    def widened(*arrays):
        return [a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in arrays]

    def messages(start, transition, emissions):
        """Return the forward messages, each normalized, and the log evidence: the sum of what they lose by that."""

        def normalized(a):
            size = jax.nn.logsumexp(a)
            return a - size, size

        def forth(a, e):
            a, size = normalized(jax.nn.logsumexp(a[:, None] + transition, axis=0) + e)
            return a, (a, size)

        first, size = normalized(start + emissions[0])
        others, sizes = lax.scan(forth, first, emissions[1:])[1]
        return jnp.concatenate([first[None], others]), size + jnp.sum(sizes)

    def primal(start, transition, emissions):
        return messages(*widened(start, transition, emissions))[1].astype(start.dtype)

    def fwd(start, transition, emissions):
        alpha, evidence = messages(*widened(start, transition, emissions))
        return evidence.astype(start.dtype), (alpha, transition, emissions)

    def bwd(res, g):
        alpha, *given = res
        transition, emissions = widened(*given)
        like = given[0].dtype

        def back(b, e):
            b = jax.nn.logsumexp(transition + e + b, axis=1)
            b -= jnp.max(b)
            return b, b

        last = jnp.zeros_like(alpha[-1])
        beta = jnp.concatenate([lax.scan(back, last, emissions[1:], reverse=True)[1], last[None]])
        p = jax.nn.softmax(alpha + beta, axis=1)
        pairs = alpha[:-1, :, None] + transition + (emissions[1:] + beta[1:])[:, None]
        pairs = jax.nn.softmax(pairs, axis=(1, 2))
        return tuple((g * a).astype(like) for a in (p[0], jnp.sum(pairs, axis=0), p))

    return primal, fwd, bwd


# Fourier and complex.
@right("FFT", normal(3, 9), normal(3, 9, seed=1))
def long_convolution():
    """A causal convolution along the last axis."""

    def primal(x, k):
        n = 2 * x.shape[-1]
        return jnp.fft.irfft(jnp.fft.rfft(x, n) * jnp.fft.rfft(k, n), n)[..., : x.shape[-1]]

    def fwd(x, k):
        return primal(x, k), (x, k)

    def bwd(res, g):
        x, k = res
        size = x.shape[-1]
        X, K, G = (jnp.fft.rfft(a, 2 * size) for a in (x, k, g))
        return tuple(jnp.fft.irfft(jnp.conj(A) * G, 2 * size)[..., :size] for A in (K, X))

    return primal, fwd, bwd


@right("FFT", normal(3, 8), normal(5) + 1j * normal(5, seed=1))
def spectral_filter():
    """Weights in the frequency domain, as a Fourier neural operator has them."""

    def primal(x, w):
        return jnp.fft.irfft(jnp.fft.rfft(x) * w, x.shape[-1])

    def fwd(x, w):
        X = jnp.fft.rfft(x)
        return jnp.fft.irfft(X * w, x.shape[-1]), (X, w)

    def bwd(res, g):
        X, w = res
        n = g.shape[-1]
        G = jnp.fft.rfft(g)
        twice = jnp.where((jnp.arange(w.size) == 0) | (2 * jnp.arange(w.size) == n), 1, 2)
        dw = jnp.sum(X * jnp.conj(G), axis=0) * twice / n
        return jnp.fft.irfft(jnp.conj(w) * G, n), dw.astype(w.dtype)

    return primal, fwd, bwd


@right("complex", complex_normal(4, 3), complex_normal(3))
def intensities():
    """|A x|^2, as in phase retrieval."""

    def fwd(A, x):
        y = A @ x
        return jnp.real(y) ** 2 + jnp.imag(y) ** 2, (A, x, y)

    def bwd(res, g):
        A, x, y = res
        d = 2 * g * jnp.conj(y)
        return jnp.outer(d, x), A.T @ d

    return lambda A, x: fwd(A, x)[0], fwd, bwd


@right("complex", normal(7))
def phasor():
    def fwd(angle):
        y = jnp.exp(1j * angle)
        return y, y

    return lambda angle: jnp.exp(1j * angle), fwd, lambda y, g: (jnp.real(1j * y * g),)


@right("complex", complex_normal(3, 3) + 3 * np.eye(3, dtype=np.float32), complex_normal(3))
def complex_solve():
    def fwd(A, b):
        x = jnp.linalg.solve(A, b)
        return x, (A, x)

    def bwd(res, g):
        A, x = res
        db = jnp.linalg.solve(A.T, g)
        return -jnp.outer(db, x), db

    return lambda A, b: jnp.linalg.solve(A, b), fwd, bwd


@right("complex", (normal(2, 5) + 1j * normal(2, 5, seed=1)), np.float32(0.7))
def rotate_qubits():
    """exp(-i angle X / 2) of amplitudes along the first axis."""

    def primal(state, angle):
        c, s = jnp.cos(angle / 2), jnp.sin(angle / 2)
        return c * state - 1j * s * state[::-1]

    def fwd(state, angle):
        return primal(state, angle), (state, angle)

    def bwd(res, g):
        state, angle = res
        c, s = jnp.cos(angle / 2), jnp.sin(angle / 2)
        dangle = jnp.sum(jnp.real(g * (-s * state - 1j * c * state[::-1]))) / 2
        return (c * g - 1j * s * g[::-1]).astype(state.dtype), dangle

    return primal, fwd, bwd


@right("scan", uniform(0.5, 1.5, 3, 7))
def cumulative_product():
    def fwd(x):
        y = jnp.cumprod(x, axis=-1)
        return y, (x, y)

    def bwd(res, g):
        x, y = res
        return (jnp.cumsum((g * y)[..., ::-1], axis=-1)[..., ::-1] / x,)

    return lambda x: jnp.cumprod(x, axis=-1), fwd, bwd
