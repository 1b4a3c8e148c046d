"""Operators of PyTorch, one file for each family, and `library`, which registers them."""
