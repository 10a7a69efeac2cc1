"""Sparse and hierarchical parity with an MLP trained by batch-1 SGD (settings 1 and 2 of the paper)."""
