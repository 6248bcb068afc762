"""Policy gradient, Q-learning and entropy losses of rlax, and distributions of distrax: needs rlax and tfp-nightly.

vjplib audit examples/audits/rlax_losses.py:step
"""

import distrax
import jax
import jax.numpy as jnp
import rlax


def step():
    """Gradient of a sum of losses of a policy, some of whose actions have probability zero, and of its values."""
    keys = jax.random.split(jax.random.key(0), 4)
    logits, q = jax.random.normal(keys[0], (6, 5)), jax.random.normal(keys[1], (6, 5))
    actions, rewards = jnp.array([0, 1, 2, 3, 1, 0]), jax.random.normal(keys[2], (6,))
    angles = jnp.linspace(-2.0, 2.0, 6)

    def loss(logits, q):
        masked = jnp.where(jnp.arange(5) < 4, logits, -jnp.inf)
        policy = distrax.Categorical(logits=masked)
        td = jax.vmap(rlax.q_learning)(q[:-1], actions[:-1], rewards[1:], jnp.full(5, 0.9), q[1:])
        return (
            rlax.policy_gradient_loss(logits, actions, rewards, jnp.ones(6))
            + jnp.mean(0.5 * rlax.clip_gradient(td, -1.0, 1.0) ** 2)
            + jnp.mean(rlax.huber_loss(td))
            + jnp.mean(policy.entropy())
            + jnp.mean(policy.log_prob(actions))
            + jnp.mean(policy.kl_divergence(distrax.Categorical(logits=jnp.where(jnp.arange(5) < 4, q, -jnp.inf))))
            + jnp.mean(distrax.Multinomial(10, probs=jax.nn.softmax(logits)).log_prob(jnp.array([2.0, 3, 0, 1, 4])))
            + jnp.mean(distrax.VonMises(angles, jnp.exp(q[:, 0])).log_prob(0.3))
            + jnp.mean(distrax.VonMises(angles, jnp.exp(q[:, 1])).sample(seed=keys[3]))
        )

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(logits, q)
