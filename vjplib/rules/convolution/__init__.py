"""Convolutions: the rules (conv1d, general, transpose, patches), and how each product is computed on CPU."""
