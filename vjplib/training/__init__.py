"""Networks of pure functions, made of the rules, and their training with optax: `net` and `train`."""
