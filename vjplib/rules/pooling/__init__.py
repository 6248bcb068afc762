"""Pooling by sliding windows: the rules in `pooling`, the arithmetic of windows in `windows`."""
