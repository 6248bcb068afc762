"""Algorithms of the convolution: the same sums in the orders that a compiler turns into fast programs."""
