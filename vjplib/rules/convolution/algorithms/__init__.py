"""Algorithms of the convolution: the same sums in orders that compile to fast programs. `dispatch` chooses."""
