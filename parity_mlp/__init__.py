"""MLP on sparse and hierarchical parity, trained by batch-1 SGD (setting 1 of the paper)."""
