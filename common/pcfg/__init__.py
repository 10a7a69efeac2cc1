"""Probabilistic context-free grammars: reading them, sampling from them, exact inference in them."""
