"""Layers that know how to split themselves.

Shape letters used in all docstrings of this folder: B batch, S sequence, T tokens (B * S, rows of a
flat activation), H hidden, N heads, D head size, F feed-forward size, V vocabulary, C capacity of a
key-value cache. Activations between layers are flat, [T, H]: matrix products on CPU are
two-dimensional, and a reshape is free.
"""
