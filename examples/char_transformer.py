"""A small causal transformer predicts the next character of English, better than the five characters before it do.

Embedding, norms, attention, gated perceptrons, dropout and the loss are vjplib's rules. The text is Python's own
documentation, which ships with Python; a tenth of its topics is held out. The baseline is an interpolated 5-gram model
of the same characters, counted here.

    python examples/char_transformer.py              # train for 800 steps, about five minutes on two cores
    python examples/char_transformer.py --memory     # the memory of a training step, plain and ours, at four sizes
"""

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import vjplib as vl

CONTEXT, BATCH_SIZE = 128, 32
RATE = 0.1  # of dropout


class Size(NamedTuple):
    """Width, number of heads and of blocks, length of a sequence, and size of the vocabulary."""

    width: int = 128
    heads: int = 4
    blocks: int = 3
    context: int = CONTEXT
    vocabulary: int = 0


class Ops(NamedTuple):
    """The functions of a transformer, and the policy of `jax.checkpoint` for its blocks, if any."""

    norm: Callable[..., Any]
    attention: Callable[..., Any]
    gate: Callable[..., Any]
    dropout: Callable[..., Any]
    loss: Callable[..., Any]
    keep: Callable[..., Any] | None = None


def plain_norm(x, scale):
    """Root mean square norm; JAX keeps its intermediate results for the backward."""
    return scale * x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def plain_attention(q, k, v, is_causal):
    """Causal attention; JAX keeps the weights of all pairs."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=is_causal)


def plain_gate(gate, x):
    """A gated activation; JAX keeps its intermediate results."""
    return jax.nn.silu(gate) * x


def plain_dropout(key, x, rate):
    """Dropout; JAX keeps the mask."""
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def plain_loss(x, labels, weights):
    """The cross-entropy summed over tokens; JAX keeps the probabilities of all characters."""
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(x @ weights, labels))


PLAIN = Ops(plain_norm, plain_attention, plain_gate, plain_dropout, plain_loss)
VJPLIB = Ops(vl.rms_norm, vl.dot_product_attention, vl.swiglu, vl.dropout, vl.linear_softmax_cross_entropy)
KEEP_NOTHING = jax.checkpoint_policies.nothing_saveable
KEEP_ATTENTION = jax.checkpoint_policies.save_only_these_names("dot_product_attention")
VARIANTS = {
    "plain": PLAIN,
    "vjplib": VJPLIB,
    "plain, checkpoint": PLAIN._replace(keep=KEEP_NOTHING),
    "vjplib, checkpoint": VJPLIB._replace(keep=KEEP_NOTHING),
    "vjplib, attention kept": VJPLIB._replace(keep=KEEP_ATTENTION),
}


def draw(key: jax.Array, size: Size) -> Any:
    """Draw parameters: normal, of a variance that keeps that of the activations; the scales of norms are 1."""
    d = size.width

    def matrix(key, n, m):
        return jax.random.normal(key, (n, m)) / math.sqrt(n)

    def block(key):
        keys = jax.random.split(key, 5)
        shapes = {"qkv": (d, 3 * d), "out": (d, d), "gate": (d, 4 * d), "up": (d, 4 * d), "down": (4 * d, d)}
        matrices = {name: matrix(k, *shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}
        return matrices | {"norm": jnp.ones(d), "norm of perceptron": jnp.ones(d)}

    first, places, last, others = jax.random.split(key, 4)
    return {
        "characters": jax.random.normal(first, (size.vocabulary, d)),
        "places": jax.random.normal(places, (size.context, d)) / 4,
        "blocks": jax.vmap(block)(jax.random.split(others, size.blocks)),
        "norm": jnp.ones(d),
        "logits": matrix(last, d, size.vocabulary),
    }


def features(params: Any, characters: jax.Array, heads: int, ops: Ops, key: jax.Array | None) -> jax.Array:
    """Map (batch, context) characters to the features that predict the next ones; without key, no dropout."""

    def block(x, p_and_key):
        p, key = p_and_key
        q, k, v = jnp.split(ops.norm(x, p["norm"]) @ p["qkv"], 3, -1)
        q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in (q, k, v))
        y = ops.attention(q, k, v, is_causal=True).reshape(x.shape) @ p["out"]
        x = x + (y if key is None else ops.dropout(key[0], y, RATE))
        y = ops.norm(x, p["norm of perceptron"])
        y = ops.gate(y @ p["gate"], y @ p["up"]) @ p["down"]
        return x + (y if key is None else ops.dropout(key[1], y, RATE)), None

    x = params["characters"][characters] + params["places"][: characters.shape[1]]
    count = len(params["blocks"]["out"])
    keys = None if key is None else jax.random.split(key, (count, 2))
    x, _ = jax.lax.scan(
        block if ops.keep is None else jax.checkpoint(block, policy=ops.keep), x, (params["blocks"], keys)
    )
    return ops.norm(x, params["norm"])


def loss(params: Any, text: jax.Array, heads: int, ops: Ops, key: jax.Array | None = None) -> jax.Array:
    """Compute the mean cross-entropy of each character of (batch, context + 1) after those before it, in nats."""
    x = features(params, text[:, :-1], heads, ops, key)
    labels = text[:, 1:]
    return ops.loss(x, labels, params["logits"]) / labels.size


def load() -> tuple[np.ndarray, np.ndarray, int]:
    """Return the characters to train on and those held out, as numbers, and how many there are.

    Topics repeat one another: a paragraph that is trained on is not held out.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    held_out = set(names[::10])
    paragraphs = [(name in held_out, p) for name in names for p in topics[name].split("\n\n")]
    known = {p for held, p in paragraphs if not held}
    parts = ["\n\n".join(p for held, p in paragraphs if not held), ""]
    parts[1] = "\n\n".join(p for held, p in paragraphs if held and p not in known)
    numbers = {c: i for i, c in enumerate(sorted(set("".join(parts))))}
    train, test = (np.array([numbers[c] for c in part], np.int32) for part in parts)
    return train, test, len(numbers)


def bits_of_ngrams(train: np.ndarray, test: np.ndarray, vocabulary: int, n: int = 5) -> float:
    """Return the bits per held-out character of an n-gram model, interpolated by Witten and Bell's rule.

    The probability after a context of k characters is that of the counts there, mixed with the probability after the
    last k - 1 of them; the weight of the latter grows with the number of different characters seen in the context.
    """
    counts: list[dict[tuple, Counter]] = [defaultdict(Counter) for _ in range(n)]
    characters = train.tolist()
    for i, c in enumerate(characters):
        for k in range(min(n - 1, i) + 1):
            counts[k][tuple(characters[i - k : i])][c] += 1
    total, held_out = 0.0, test.tolist()
    for i in range(n - 1, len(held_out)):
        p = 1 / vocabulary
        for k in range(n):
            seen = counts[k].get(tuple(held_out[i - k : i]))
            if seen is None:
                break
            size, kinds = seen.total(), len(seen)
            p = (seen[held_out[i]] + kinds * p) / (size + kinds)
        total -= math.log2(p)
    return total / (len(held_out) - n + 1)


def batches(text: np.ndarray, steps: int, seed: int) -> Any:
    """Yield random stretches of the text, (batch, context + 1)."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        starts = rng.integers(0, len(text) - CONTEXT - 1, BATCH_SIZE)
        yield np.stack([text[i : i + CONTEXT + 1] for i in starts])


def bits(params: Any, text: np.ndarray, heads: int) -> float:
    """Return the bits per character of a text cut into stretches."""
    count = (len(text) - 1) // CONTEXT
    stretches = np.stack([text[i * CONTEXT : (i + 1) * CONTEXT + 1] for i in range(count)])
    measured = jax.jit(partial(loss, heads=heads, ops=VJPLIB))
    parts = np.array_split(stretches, max(1, count // BATCH_SIZE))
    return sum(float(measured(params, part)) * len(part) for part in parts) / count / math.log(2)


def step_of(optimizer: optax.GradientTransformation, heads: int, ops: Ops) -> Callable[..., Any]:
    """Return a training step: parameters, state, text and key to parameters, state and loss."""

    def step(params, state, text, key):
        value, gradients = jax.value_and_grad(loss)(params, text, heads, ops, key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def temporary_bytes(size: Size, ops: Ops, batch: int = BATCH_SIZE) -> int:
    """Return the scratch memory of a compiled training step."""
    optimizer = optax.adam(1e-3)
    params = jax.eval_shape(lambda key: draw(key, size), jax.random.key(0))
    text = jax.ShapeDtypeStruct((batch, size.context + 1), jnp.int32)
    step = jax.jit(step_of(optimizer, size.heads, ops), donate_argnums=(0, 1))
    key = jax.eval_shape(lambda: jax.random.key(0))
    analysis: Any = step.lower(params, jax.eval_shape(optimizer.init, params), text, key).compile().memory_analysis()
    return analysis.temp_size_in_bytes


SIZES = {
    "context 128, width 128": (Size(vocabulary=103), 32),
    "context 512, width 128": (Size(context=512, vocabulary=103), 8),
    "context 2048, width 256": (Size(256, 4, 2, 2048, 103), 2),
    "context 512, width 256, 32,768 words": (Size(256, 4, 2, 512, 32768), 8),
}


def memory() -> dict[str, dict[str, int]]:
    """Print the memory of one training step at four sizes, plain and with vjplib, without and with `jax.checkpoint`."""
    table = Table("size", *VARIANTS, title="Memory of one training step, MB")
    found = {}
    for name, (size, batch) in SIZES.items():
        found[name] = {variant: temporary_bytes(size, ops, batch) for variant, ops in VARIANTS.items()}
        table.add_row(name, *(f"{n / 1e6:,.0f}" for n in found[name].values()))
    Console().print(table)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, print bits per character beside the 5-gram model's and the memory of a step; return them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--every", type=int, default=100, help="how often to print")
    parser.add_argument("--memory", action="store_true", help="print only the memory of a training step at four sizes")
    args = parser.parse_args(argv)
    if args.memory:
        return dict(memory())
    train, test, vocabulary = load()
    size, console = Size(vocabulary=vocabulary), Console(highlight=False)
    baseline = bits_of_ngrams(train, test, vocabulary)
    console.print(f"{len(train):,} characters to train on, {len(test):,} held out")
    console.print(f"5-gram model: {baseline:.3f} bits per held-out character")
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, max(1, args.steps // 10), args.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1))
    params = draw(jax.random.key(0), size)
    state, step = optimizer.init(params), jax.jit(step_of(optimizer, size.heads, VJPLIB), donate_argnums=(0, 1))
    history = {}
    for i, text in enumerate(batches(train, args.steps, seed=0), 1):
        params, state, value = step(params, state, text, jax.random.key(i))
        if i % args.every == 0 or i == args.steps:
            history[i] = bits(params, test, size.heads)
            trained = float(value) / math.log(2)
            console.print(f"step {i:4}: {trained:.3f} bits in the last batch, {history[i]:.3f} held out")
    plain, ours = temporary_bytes(size, PLAIN), temporary_bytes(size, VJPLIB)
    console.print(
        f"memory of a step: {ours / 1e6:.0f} MB, of the same model by autodiff of plain functions {plain / 1e6:.0f}"
    )
    return {"baseline": baseline, "bits": history, "memory": (plain, ours)}


if __name__ == "__main__":
    main()
