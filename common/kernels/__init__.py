"""Functions compiled by numba that several settings compute with."""
